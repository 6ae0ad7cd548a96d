"""The ledger's statements against the service's own schema, with every way to be wrong planted in it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import psycopg
import pytest

from roles.airflow_smoke.library import airflow_smoke as subject

pytestmark = pytest.mark.database
MIGRATIONS = Path(__file__).parents[3] / "transformation_service" / "migrations"
SLOT = "2026-01-31T02:00:00Z"
_numbers = itertools.count(1)


class Service:
    """A database of the TransformationService with five records, and the effects of one job as it writes them."""

    def __init__(self, server: Any) -> None:
        self.name = f"ledger_{next(_numbers)}"
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {self.name}")
        self.connection = psycopg.connect(server.url(self.name), autocommit=True)
        for migration in sorted(MIGRATIONS.glob("*.sql")):
            self.connection.execute(migration.read_text())
        self.connection.execute(
            "INSERT INTO user_record (full_name, transform_count) SELECT 'n', 7 FROM generate_series(1, 5)"
        )

    def run_job(self, *, slot: str = SLOT, entity: str = "User", rule: str = "x") -> None:
        job = f"{next(_numbers):032x}"
        self.connection.execute(
            "INSERT INTO transformation_job (id, entity_type, rules, rule_set_version, batch_size, slot, state,"
            " max_record_id, records_total, batches_total, transformed, marked)"
            " VALUES (%s, %s, %s, %s, 2, %s, 'succeeded', 5, 5, 3, 4, 1)",
            (job, entity, [rule], rule, slot),
        )
        self.connection.execute(
            "INSERT INTO transformation_record SELECT %s, %s, %s, %s, id, 1,"
            " CASE id WHEN 3 THEN 'marked' ELSE 'transformed' END, CASE id WHEN 3 THEN 'no phone' END FROM user_record",
            (job, entity, slot, rule),
        )
        self.connection.execute("UPDATE user_record SET transform_count = transform_count + 1")


@pytest.fixture
def service(postgresql_server: Any) -> Any:
    made = Service(postgresql_server)
    yield made
    made.connection.close()


@pytest.fixture
def ledger(service: Service, postgresql_server: Any) -> subject.Ledger:
    return subject.Ledger(
        {
            "host": str(postgresql_server.directory),
            "port": 5432,
            "database": service.name,
            "user": "postgres",
            "password": "",
            "sslmode": "disable",
            "entity": "User",
            "table": "user_record",
        }
    )


def judged(ledger: subject.Ledger, before: dict[str, Any]) -> str:
    return subject.judge_ledger(before, ledger.query(subject.LEDGER_AFTER, slot=SLOT), 1)


def test_a_job_that_did_each_record_once_passes_beside_other_jobs(service: Service, ledger: subject.Ledger) -> None:
    service.run_job(slot="2026-01-30T02:00:00Z")
    (before,) = ledger.query(subject.LEDGER_BEFORE)
    service.run_job()
    service.run_job(slot="2026-02-01T02:00:00Z")
    assert judged(ledger, before) == "5 records, each once per rule set: x 4 transformed, 1 marked"


def test_each_rule_set_of_the_slot_is_judged(service: Service, ledger: subject.Ledger) -> None:
    (before,) = ledger.query(subject.LEDGER_BEFORE)
    service.run_job(rule="a")
    service.run_job(rule="b")
    assert judged(ledger, before) == (
        "5 records, each once per rule set: a 4 transformed, 1 marked; b 4 transformed, 1 marked"
    )
    service.connection.execute("DELETE FROM transformation_record WHERE record_id = 2 AND rule_set_version = 'b'")
    with pytest.raises(subject.CheckFailed, match=r"^b: the job took 5 .*; b: 1 records are not in the ledger$"):
        judged(ledger, before)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("DELETE FROM transformation_record WHERE record_id = 2", "1 records are not in the ledger"),
        ("UPDATE user_record SET transform_count = transform_count + 1 WHERE id = 2", "the records show 6"),
        (
            "INSERT INTO transformation_record SELECT job_id, entity_type, slot, 'v2', record_id, 1, outcome, reason"
            " FROM transformation_record WHERE record_id = 1",
            "1 ledger rows too many",
        ),
        ("UPDATE transformation_job SET state = 'running'", "the job is running"),
    ],
)
def test_planted_damage_is_found(service: Service, ledger: subject.Ledger, damage: str, found: str) -> None:
    (before,) = ledger.query(subject.LEDGER_BEFORE)
    service.run_job()
    service.connection.execute(damage)
    with pytest.raises(subject.CheckFailed, match=found):
        judged(ledger, before)


def test_records_that_came_after_the_job_was_accepted_are_not_missed(service: Service, ledger: subject.Ledger) -> None:
    (before,) = ledger.query(subject.LEDGER_BEFORE)
    service.run_job()
    service.connection.execute("INSERT INTO user_record (full_name) VALUES ('late')")
    assert judged(ledger, before).startswith("5 records")


def test_a_slot_without_a_job_has_none(ledger: subject.Ledger) -> None:
    assert ledger.query(subject.LEDGER_AFTER, slot=SLOT) == []


def test_a_statement_that_fails_is_a_failed_check(service: Service, ledger: subject.Ledger) -> None:
    service.connection.execute("DROP TABLE transformation_record")
    with pytest.raises(subject.CheckFailed, match='relation "transformation_record" does not exist'):
        ledger.query(subject.LEDGER_AFTER, slot=SLOT)
