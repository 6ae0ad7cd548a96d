"""Compare, mask, refuse; then the same module against Airflow's real tables."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from ansible.module_utils.testing import patch_module_args
from cryptography.fernet import Fernet

from roles.airflow_objects.library import airflow_objects as subject

_numbers = itertools.count(1)
TYPES = {"postgres", "http", "generic", "smtp"}
DB_CONNECTION = {
    "conn_id": "transformation_db",
    "conn_type": "postgres",
    "host": "postgresql-1",
    "port": 5432,
    "login": "platform_checks",
    "password": "first-secret",
    "schema": "transformation_service",
    "extra": {"sslmode": "require"},
}
HTTP_CONNECTION = {
    "conn_id": "transformation_service",
    "conn_type": "http",
    "host": "service-1",
    "port": 5000,
    "password": "service-token",
    "extra": {"timeout": 300},
    "description": "The service that applies the rules",
}
BATCH = {"key": "default_batch_size", "value": "1000"}
POOL = {"name": "transformations", "slots": 4}


def objects(*, connections: Any = (), variables: Any = (), pools: Any = ()) -> subject.Objects:
    wanted, problems = subject.check_input(connections, variables, pools, TYPES)
    assert problems == []
    return wanted


EMPTY = objects()


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_every_problem_of_every_list_is_in_one_answer() -> None:
    _, problems = subject.check_input(
        connections=[
            DB_CONNECTION | {"conn_type": "postgress", "port": 70000, "extra": "{}", "pasword": "leak-me"},
            HTTP_CONNECTION | {"extra": {"timeout": "300"}, "password": 12345},
            HTTP_CONNECTION | {"conn_id": "white space"},
            HTTP_CONNECTION,
            HTTP_CONNECTION | {"conn_id": "ü" * 251},
            {"conn_type": "http"},
            "http://service-1",
            {"conn_id": "typeless"},
        ],
        variables=[BATCH, BATCH, {"key": "nothing", "value": None}, {"key": "object", "value": {1, 2}}],
        pools=[POOL | {"slots": -2}, {"name": "words", "slots": "many"}, {"name": "yes", "slots": True}],
        types=TYPES,
    )
    assert problems == [
        "connection transformation_db: unknown key pasword, did you mean password?",
        "connection transformation_db: no installed provider knows conn_type 'postgress', did you mean postgres?",
        "connection transformation_db: port must be a number from 1 to 65535",
        "connection transformation_db: extra must be a dictionary, not a string",
        "connection transformation_service: password must be a string, not a number; quote it",
        "connection transformation_service: extra.timeout must be a number of seconds, not a string",
        "connection white space: conn_id may hold letters, digits and _#!()-.:/\\ only, 250 characters at most",
        "connection transformation_service: listed more than once",
        f"connection {'ü' * 251}: conn_id may hold letters, digits and _#!()-.:/\\ only, 250 characters at most",
        "connections[5]: conn_id must be a non-empty string",
        "connections[6]: must be a dictionary with conn_id, not a string",
        "connection typeless: conn_type is required and must be a string",
        "variable default_batch_size: listed more than once",
        "variable nothing: value is required; leave the variable out to have none",
        "variable object: value must be a string or something that JSON can express",
        "pool transformations: slots must be a whole number, 0 or more, or -1 for unlimited",
        "pool words: slots must be a whole number, 0 or more, or -1 for unlimited",
        "pool yes: slots must be a whole number, 0 or more, or -1 for unlimited",
    ]
    assert "leak-me" not in str(problems)
    assert "12345" not in str(problems)


def test_without_an_installation_the_connection_type_is_not_judged() -> None:
    assert subject.check_input([DB_CONNECTION | {"conn_type": "vault"}], [], [], None)[1] == []


def test_templated_numbers_arrive_as_text_and_are_numbers() -> None:
    wanted = objects(connections=[DB_CONNECTION | {"port": "5432"}], pools=[POOL | {"slots": "-1"}])
    assert wanted["connection"]["transformation_db"]["port"] == 5432
    assert wanted["pool"]["transformations"]["slots"] == -1


def test_known_types_come_from_the_installed_providers() -> None:
    types = subject.known_connection_types()
    assert {"postgres", "http", "smtp", "redis", "slackwebhook", "generic", "email", "fs"} <= types
    assert "postgress" not in types


def test_known_types_are_also_those_of_a_provider_in_airflows_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "transformation_service" not in subject.known_connection_types()
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "roles/airflow/files/config")  # as PYTHONPATH does
    assert "transformation_service" in subject.known_connection_types()


# --- compare and show -------------------------------------------------------------------------------------------------


def test_same_set_has_no_changes() -> None:
    wanted = objects(connections=[DB_CONNECTION, HTTP_CONNECTION], variables=[BATCH], pools=[POOL])
    assert subject.plan(wanted, wanted, prune=True) == []


def test_one_variable_and_one_password_are_exactly_what_the_diff_shows() -> None:
    actual = objects(connections=[DB_CONNECTION, HTTP_CONNECTION], variables=[BATCH], pools=[POOL])
    wanted = objects(
        connections=[DB_CONNECTION | {"password": "second-secret"}, HTTP_CONNECTION],
        variables=[BATCH | {"value": "2000"}],
        pools=[POOL],
    )
    changes = subject.plan(actual, wanted, prune=True)
    diff = subject.render(changes)
    assert diff["before"] == {
        "connections": {"transformation_db": {"password": "********"}},
        "variables": {"default_batch_size": {"value": "1000"}},
    }
    assert diff["after"] == {
        "connections": {"transformation_db": {"password": "******** (changed)"}},
        "variables": {"default_batch_size": {"value": "2000"}},
    }
    assert [change.sentence for change in changes] == [
        "connection transformation_db: update password",
        "variable default_batch_size: update value",
    ]


def test_of_extra_only_the_differing_keys_are_shown_and_secret_ones_hidden() -> None:
    old = {"sslmode": "require", "timeout": "300", "auth": {"api_key": "old-key", "user": "me"}, "token": "old-token"}
    new = {"sslmode": "require", "timeout": 300, "auth": {"api_key": "new-key", "user": "me"}, "webhook": "new-hook"}
    diff = subject.render(
        subject.plan(
            objects(connections=[DB_CONNECTION | {"extra": old}]),
            objects(connections=[DB_CONNECTION | {"extra": new}]),
            prune=False,
        )
    )
    assert diff["before"]["connections"]["transformation_db"]["extra"] == {
        "timeout": "300",
        "auth": {"api_key": "********"},
        "token": "********",
    }
    assert diff["after"]["connections"]["transformation_db"]["extra"] == {
        "timeout": 300,
        "auth": {"api_key": "******** (changed)"},
        "webhook": "********",
    }


@pytest.mark.parametrize(
    ("key", "old", "new", "shown"),
    [
        ("service_token", "one", "two", ("********", "******** (changed)")),
        (
            "service_url",
            "http://me:one@h/",
            "http://me:two@h/",
            ("http://********@h/", "http://********@h/ (changed)"),
        ),
        ("settings", '{"a": 1, "password": "one"}', {"a": 1, "password": "two"}, None),
    ],
)
def test_secrets_in_variables_are_hidden_and_seen_to_change(key: str, old: Any, new: Any, shown: Any) -> None:
    actual, wanted = (objects(variables=[{"key": key, "value": value}]) for value in (old, new))
    diff = subject.render(subject.plan(actual, wanted, prune=False))
    sides = tuple(diff[side]["variables"][key]["value"] for side in ("before", "after"))
    assert sides == (shown or ({"password": "********"}, {"password": "******** (changed)"}))


def test_created_and_deleted_objects_are_shown_whole_but_hidden() -> None:
    wanted = objects(connections=[HTTP_CONNECTION])
    created = subject.render(subject.plan(EMPTY, wanted, prune=False))
    deleted = subject.render(subject.plan(wanted, EMPTY, prune=True))
    whole = {
        "conn_type": "http",
        "host": "service-1",
        "port": 5000,
        "password": "********",
        "extra": {"timeout": 300},
        "description": "The service that applies the rules",
        "managed": True,
    }
    assert (created["before"], created["after"]) == ({}, {"connections": {"transformation_service": whole}})
    assert (deleted["before"], deleted["after"]) == ({"connections": {"transformation_service": whole}}, {})


@pytest.mark.parametrize(
    ("wanted", "stored", "same"),
    [
        ({"a": [1, 2]}, '{\n  "a": [1,2]}', True),
        ({"a": 1}, '{"a": true}', False),
        (1000, "1000", True),
        ("1000", "1000", True),
        ("1000", "1000.0", False),
        (True, "true", True),
        ({"a": 1}, "not json", False),
        ("", "", True),
    ],
)
def test_variables_that_are_no_text_are_compared_as_json(wanted: Any, stored: str, same: bool) -> None:
    actual, target = (objects(variables=[{"key": "v", "value": value}]) for value in (stored, wanted))
    assert (subject.plan(actual, target, prune=True) == []) is same


def test_pruning_spares_unmarked_objects_and_the_default_pool() -> None:
    actual = objects(connections=[DB_CONNECTION, HTTP_CONNECTION], pools=[POOL, {"name": "default_pool", "slots": 8}])
    actual["connection"]["transformation_service"]["managed"] = False
    assert [change.sentence for change in subject.plan(actual, EMPTY, prune=True)] == [
        "connection transformation_db: delete",
        "pool transformations: delete",
    ]
    assert subject.plan(actual, EMPTY, prune=False) == []
    assert subject.orphans(actual, EMPTY) == ["connection transformation_db", "pool transformations"]


def test_an_object_made_by_hand_is_adopted_visibly() -> None:
    wanted = objects(variables=[BATCH])
    actual = objects(variables=[BATCH])
    actual["variable"]["default_batch_size"]["managed"] = False
    (change,) = subject.plan(actual, wanted, prune=True)
    assert (change.before, change.after) == ({"managed": False}, {"managed": True})


# --- Airflow's tables -------------------------------------------------------------------------------------------------


class Platform:
    """Airflow's own tables in a database, read back with Airflow's own models."""

    def __init__(self, url: str, keys: str) -> None:
        self.url, self.keys = url, keys
        self.engine = sqlalchemy.create_engine(url)

    def reconcile(self, wanted: subject.Objects, **options: Any) -> list[str]:
        options = {"prune": True, "check_mode": False} | options
        changes, _, migrated = subject.reconcile(self.url, self.keys, wanted, **options)
        assert migrated
        return [change.sentence for change in changes]

    def rows(self, table: str) -> list[dict[str, Any]]:
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(sqlalchemy.text(f"SELECT * FROM {table}")).mappings()]

    def connection(self, conn_id: str) -> Any:
        from airflow.models.connection import Connection
        from sqlalchemy.orm import Session

        with Session(self.engine) as session:
            return session.scalars(sqlalchemy.select(Connection).where(Connection.conn_id == conn_id)).one()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.database)])
def platform(request: pytest.FixtureRequest, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    key = Fernet.generate_key().decode()
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", key)
    monkeypatch.setattr(subject, "enter_airflow", lambda: None)  # this process is one already, with the test's settings
    if "AIRFLOW_HOME" not in os.environ:  # Airflow writes its files there on import
        monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    from airflow.models.base import Base
    from airflow.models.connection import Connection
    from airflow.models.crypto import get_fernet
    from airflow.models.pool import Pool
    from airflow.models.team import Team
    from airflow.models.variable import Variable

    get_fernet.cache_clear()
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/airflow.db"
    else:
        server = request.getfixturevalue("postgresql_server")
        name = f"objects_{next(_numbers)}"
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        url = server.url(name).replace("postgresql:", "postgresql+psycopg2:")
    made = Platform(url, key)
    tables = [model.__table__ for model in (Connection, Variable, Pool, Team)]
    Base.metadata.create_all(made.engine, tables=tables)
    with made.engine.begin() as connection:
        row = {"pool": "default_pool", "slots": 128, "description": "Default pool", "include_deferred": False}
        connection.execute(sqlalchemy.insert(Pool.__table__).values(row))
    yield made
    made.engine.dispose()
    get_fernet.cache_clear()


WANTED = {
    "connections": [DB_CONNECTION, HTTP_CONNECTION],
    "variables": [BATCH, {"key": "settings", "value": {"regions": ["CH", "DE"]}, "description": "as JSON"}],
    "pools": [POOL | {"include_deferred": True}, {"name": "default_pool", "slots": 32}],
}


def test_airflow_reads_what_the_module_wrote_and_the_second_run_changes_nothing(platform: Platform) -> None:
    wanted = objects(**WANTED)
    assert len(platform.reconcile(wanted, check_mode=True)) == 6
    assert platform.rows("connection") == []
    assert platform.reconcile(wanted) == [
        "connection transformation_db: create",
        "connection transformation_service: create",
        "variable default_batch_size: create",
        "variable settings: create",
        "pool transformations: create",
        "pool default_pool: update slots, description, managed",
    ]
    assert platform.reconcile(wanted) == []

    stored = platform.connection("transformation_service")
    assert (stored.password, stored.extra_dejson, stored.port) == ("service-token", {"timeout": 300}, 5000)
    assert stored.description == "The service that applies the rules (managed by Ansible)"
    assert "service-token" not in str(platform.rows("connection"))  # encrypted at rest

    from airflow.models.variable import Variable
    from sqlalchemy.orm import Session

    with Session(platform.engine) as session:
        values = {row.key: row.val for row in session.scalars(sqlalchemy.select(Variable))}
    assert values["default_batch_size"] == "1000"
    assert json.loads(values["settings"]) == {"regions": ["CH", "DE"]}
    pools = {row["pool"]: (row["slots"], bool(row["include_deferred"])) for row in platform.rows("slot_pool")}
    assert pools == {"default_pool": (32, False), "transformations": (4, True)}


def test_a_password_taken_away_is_gone(platform: Platform) -> None:
    """Airflow's own setter ignores an empty password and keeps the old one."""
    platform.reconcile(objects(connections=[DB_CONNECTION]))
    bare = {key: DB_CONNECTION[key] for key in ("conn_id", "conn_type", "host")}
    assert platform.reconcile(objects(connections=[bare])) == [
        "connection transformation_db: update port, login, password, schema, extra"
    ]
    stored = platform.connection("transformation_db")
    assert (stored.password, stored.login, stored.port, stored.schema, stored.extra) == (None,) * 5


def test_drift_in_an_encrypted_password_is_seen_and_repaired(platform: Platform) -> None:
    wanted = objects(connections=[DB_CONNECTION])
    platform.reconcile(wanted)
    with platform.engine.begin() as connection:
        token = Fernet(platform.keys).encrypt(b"changed by hand").decode()
        connection.execute(sqlalchemy.text("UPDATE connection SET password = :token"), {"token": token})
    assert platform.reconcile(wanted) == ["connection transformation_db: update password"]
    assert platform.connection("transformation_db").password == "first-secret"


def test_values_of_a_lost_key_are_rewritten_rather_than_raised(platform: Platform) -> None:
    wanted = objects(connections=[DB_CONNECTION], variables=[BATCH])
    platform.reconcile(wanted)
    with platform.engine.begin() as connection:
        token = Fernet(Fernet.generate_key()).encrypt(b"unreadable").decode()
        connection.execute(sqlalchemy.text("UPDATE connection SET password = :t, extra = :t"), {"t": token})
        connection.execute(sqlalchemy.text("UPDATE variable SET val = :t"), {"t": token})
    changes, _, _ = subject.reconcile(platform.url, platform.keys, wanted, prune=True, check_mode=True)
    shown = subject.render(changes)
    assert shown["before"]["variables"] == {
        "default_batch_size": {"value": "(not readable with the present Fernet key)"}
    }
    assert shown["after"]["connections"]["transformation_db"]["password"] == "******** (changed)"
    platform.reconcile(wanted)
    assert platform.connection("transformation_db").password == "first-secret"
    assert platform.reconcile(wanted) == []


def test_pruning_deletes_only_what_the_module_wrote(platform: Platform) -> None:
    platform.reconcile(objects(**WANTED))
    with platform.engine.begin() as connection:
        columns = "conn_id, conn_type, is_encrypted, is_extra_encrypted"
        connection.execute(sqlalchemy.text(f"INSERT INTO connection ({columns}) VALUES ('mine', 'http', false, false)"))
    kept = objects(connections=[DB_CONNECTION])
    assert platform.reconcile(kept, prune=False) == []
    assert platform.reconcile(kept) == [
        "connection transformation_service: delete",
        "variable default_batch_size: delete",
        "variable settings: delete",
        "pool transformations: delete",
    ]
    assert {row["conn_id"] for row in platform.rows("connection")} == {"transformation_db", "mine"}
    assert [row["pool"] for row in platform.rows("slot_pool")] == ["default_pool"]


def test_an_error_in_the_middle_leaves_nothing_behind(platform: Platform) -> None:
    wanted = objects(**WANTED)
    wanted["pool"]["transformations"]["slots"] = None  # violates NOT NULL after the connections went in
    with pytest.raises(sqlalchemy.exc.IntegrityError):
        platform.reconcile(wanted)
    assert platform.rows("connection") == []
    assert platform.rows("variable") == []


# --- as Ansible runs it -----------------------------------------------------------------------------------------------


def run_module(capsys: Any, *, check: bool = False, **params: Any) -> dict[str, Any]:
    arguments = {**params, "_ansible_check_mode": check, "_ansible_diff": True, "_ansible_inject_invocation": True}
    with patch_module_args(arguments), pytest.raises(SystemExit):
        subject.main()
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_module_is_idempotent_and_prints_no_secret(platform: Platform, tmp_path: Any, capsys: Any) -> None:
    (tmp_path / "sql_alchemy_conn").write_text(f"{platform.url}\n")
    (tmp_path / "fernet_key").write_text(platform.keys)
    arguments = WANTED | {"credentials": str(tmp_path)}
    first = run_module(capsys, **arguments)
    second = run_module(capsys, **arguments)
    assert (first["changed"], second["changed"], second["diff"]["after"]) == (True, False, None)
    for secret in ("first-secret", "service-token"):
        assert secret not in json.dumps([first, second])


def test_check_mode_on_a_pristine_host_forecasts_everything(tmp_path: Any, capsys: Any) -> None:
    result = run_module(capsys, check=True, **WANTED, credentials=str(tmp_path / "absent"))
    assert result["changed"]
    assert len(result["changes"]) == 6
    assert "not installed" in result["note"]
    refused = run_module(capsys, **WANTED, credentials=str(tmp_path / "absent"))
    assert refused["failed"]
    assert "Run role airflow first" in refused["msg"]


def test_check_mode_before_the_migration_forecasts_everything(tmp_path: Any, capsys: Any) -> None:
    (tmp_path / "sql_alchemy_conn").write_text(f"sqlite:///{tmp_path}/empty.db")
    (tmp_path / "fernet_key").write_text("")
    result = run_module(capsys, check=True, **WANTED, credentials=str(tmp_path))
    assert result["changed"]
    assert "not migrated" in result["note"]
    assert run_module(capsys, **WANTED, credentials=str(tmp_path))["failed"]


def test_bad_input_is_refused_as_a_whole(tmp_path: Any, capsys: Any) -> None:
    result = run_module(
        capsys, connections=[{"conn_id": "x", "conn_type": "http", "extra": [1]}], pools=[{"name": "p", "slots": -5}]
    )
    assert result["msg"].startswith("2 problem(s) in the wanted objects, nothing changed:")
