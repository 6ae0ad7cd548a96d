"""The checks' SQL on the service's own schema, with each fault planted; by the DAGs' tasks and by the script."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, DownstreamTasksSkipped

from plugins import quality
from plugins.daily import DataCheck, InputCheck
from transformation_service import database, loading, samples
from transformation_service.entities import ENTITIES

pytestmark = pytest.mark.database
SCRIPT = Path(__file__).parents[3] / "scripts/validate_input.py"
RECORDS = 200
_numbers = itertools.count(1)


class Data:
    """A database of the service with messy records of every entity, and Airflow's connection to it."""

    def __init__(self, server: Any) -> None:
        self.name = f"quality_{next(_numbers)}"
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {self.name}")
        self.url = server.url(self.name)
        database.migrate(self.url)
        for entity in ENTITIES.values():
            loading.load(self.url, entity, samples.generate(entity.name, RECORDS, 7))
        self.connection = psycopg.connect(self.url, autocommit=True)
        self.uri = {"conn_type": "postgres", "host": str(server.directory), "schema": self.name, "login": "postgres"}

    def do(self, statement: str) -> None:
        self.connection.execute(statement)

    def finish_job(self, entity: str, rule: str) -> str:
        """Write what a job leaves behind that marked record 3 and transformed all others."""
        job, table = str(uuid.uuid4()), ENTITIES[entity].table
        self.connection.execute(
            "INSERT INTO transformation_job (id, entity_type, rules, rule_set_version, batch_size, slot, state,"
            " max_record_id, records_total, batches_total)"
            f" SELECT %s, %s, %s, %s, 10, '2026-01-31', 'succeeded', max(id), count(*), 1 FROM {table}",
            (job, entity, [rule], rule),
        )
        self.connection.execute(
            "INSERT INTO transformation_record SELECT %s, %s, '2026-01-31', %s, id, 1,"
            f" CASE id WHEN 3 THEN 'marked' ELSE 'transformed' END, CASE id WHEN 3 THEN 'why' END FROM {table}",
            (job, entity, rule),
        )
        return job


@pytest.fixture
def data(postgresql_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Data]:
    made = Data(postgresql_server)
    monkeypatch.setenv("AIRFLOW_CONN_TRANSFORMATION_DB", json.dumps(made.uri))
    yield made
    made.connection.close()


class Ti(SimpleNamespace):
    map_index = -1

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed = (key, value)


def check_input(entity: str) -> None:
    with DAG("checked", schedule=None):
        task = InputCheck(task_id="pre_check", entity_type=entity, enabled="on")
        task >> EmptyOperator(task_id="next") >> EmptyOperator(task_id="last")
    task.execute({"ti": Ti(), "task": task})


def check_output(entity: str, *jobs: str, duplicates_at_most: float | None = None) -> None:
    figures = quality.output_figures(entity, jobs, duplicates_at_most)
    DataCheck(task_id="quality_check", entity_type=entity, figures=figures, enabled="on").execute({})


@pytest.mark.parametrize("entity", quality.ENTITIES)
def test_messy_records_are_a_good_input(data: Data, entity: str):
    check_input(entity)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("ALTER TABLE user_record DROP COLUMN email, DROP COLUMN phone", "user_record lacks email, phone$"),
        ("ALTER TABLE user_record RENAME TO moved", "lacks id, full_name, email, phone, country, duplicate_of$"),
        ("UPDATE user_record SET phone = NULL WHERE id % 4 = 0", r"null_share_phone.*'result': 0\.2[5-9]"),
        (
            "ALTER TABLE user_record RENAME TO moved; CREATE VIEW user_record AS"
            " SELECT * FROM moved UNION ALL (SELECT * FROM moved WHERE id <= 5)",
            r"repeated_ids.*'result': 5\.0",
        ),
    ],
)
def test_a_bad_input_fails_for_good_with_its_figure(data: Data, fault: str, says: str):
    data.do(fault)
    with pytest.raises(AirflowFailException, match=f"(?s){says}"):
        check_input("User")


def test_without_records_everything_that_follows_is_skipped(data: Data):
    data.do("DELETE FROM application_record")
    with pytest.raises(DownstreamTasksSkipped) as skipped:
        check_input("Application")
    assert sorted(skipped.value.tasks) == ["last", "next"]


def test_a_database_that_does_not_answer_may_be_tried_again(data: Data, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AIRFLOW_CONN_TRANSFORMATION_DB", json.dumps(data.uri | {"host": "/nowhere"}))
    with pytest.raises(Exception, match="/nowhere") as error:
        check_input("User")
    assert not isinstance(error.value, AirflowFailException)


def test_checks_that_are_off_ask_nobody(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AIRFLOW_CONN_TRANSFORMATION_DB", raising=False)
    InputCheck(task_id="pre_check", entity_type="User", enabled="off").execute({})


@pytest.mark.parametrize("entity", quality.ENTITIES)
def test_a_complete_ledger_passes(data: Data, entity: str):
    data.do("UPDATE application_record SET category = 'CRM'")
    data.do("UPDATE discovery_metadata_record SET metadata = '{}'")
    jobs = [data.finish_job(entity, rule) for rule in ("one", "two")]
    data.do("INSERT INTO user_record (full_name) VALUES ('after the jobs, of no concern to them')")
    data.do("UPDATE user_record SET country = NULL WHERE id = 3")  # and marked
    check_output(entity, *jobs, duplicates_at_most=0.0)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (
            "DELETE FROM transformation_record WHERE rule_set_version = 'two' AND record_id IN (5, 6)",
            r"missing_in_ledger.*'result': 2\.0",
        ),
        ("UPDATE user_record SET country = NULL WHERE id IN (2, 3, 4)", r"null_country.*'result': 2\.0"),
        ("UPDATE user_record SET duplicate_of = 1 WHERE id > 140", r"duplicate_share.*'result': 0\.3,"),
        ("DELETE FROM transformation_record; DELETE FROM transformation_job", r"rule_sets.*'result': 0\.0"),
    ],
)
def test_a_bad_result_fails_for_good_with_its_figure(data: Data, fault: str, says: str):
    jobs = [data.finish_job("User", rule) for rule in ("one", "two")]
    data.do(fault)
    with pytest.raises(AirflowFailException, match=f"(?s)The following tests have failed.*{says}"):
        check_output("User", *jobs, duplicates_at_most=0.25)


def validate(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    argv = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, env=clean | environment, check=False, cwd="/")


def test_the_script_prints_the_figures(data: Data):
    done = validate("--entity", "User", "--connection", "WHERE", WHERE=data.url)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[1]: line.split() for line in done.stdout.splitlines()}
    assert set(rows) == set(quality.input_figures("User"))
    assert rows["records"] == ["ok", "records", str(RECORDS), "at", "least", "1"]


def test_the_script_finds_libpq_s_environment_and_faults(data: Data):
    data.do("UPDATE user_record SET phone = NULL WHERE id % 4 = 0")
    where = {"PGHOST": data.uri["host"], "PGDATABASE": data.name, "PGUSER": "postgres"}
    done = validate("--entity", "User", **where)
    assert done.returncode == 1
    assert [line.split()[:2] for line in done.stdout.splitlines() if not line.startswith("ok")] == [
        ["FAILED", "null_share_phone"]
    ]
    data.do("ALTER TABLE user_record DROP COLUMN email")
    assert (validate("--entity", "User", **where).stdout, data.do("DELETE FROM application_record")) == (
        "user_record lacks email\n",
        None,
    )
    empty = validate("--entity", "Application", **where)
    assert (empty.returncode, empty.stdout) == (0, "no Application records: nothing to transform\n")


def test_the_script_says_why_it_has_no_answer():
    password = "not-to-be-shown"
    uri = f"postgresql://somebody:{password}@127.0.0.1:1/none"
    done = validate("--entity", "User", "--connection", "WHERE", WHERE=uri)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no connection: " in done.stderr
    assert password not in done.stderr
    assert validate("--entity", "User", "--connection", "WHERE").returncode == 2
    assert validate("--entity", "Nobody").returncode == 2
    assert "PGSERVICE" in validate("--help").stdout


def test_the_script_starts_without_airflow():
    code = f"import runpy, sys; runpy.run_path({str(SCRIPT)!r}); assert 'airflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")
