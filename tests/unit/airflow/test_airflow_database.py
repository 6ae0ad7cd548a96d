"""The copy is the database as it was, with its rights; and it does not come back over work that was done since."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.unit.host.run_module import run_module
from tests.unit.postgresql.conftest import Server, running_server, server

__all__ = ["running_server", "server"]
pytestmark = pytest.mark.database
MODULE = "airflow/library/airflow_database.py"
SCHEMA = """
CREATE TABLE alembic_version (version_num text); INSERT INTO alembic_version VALUES ('old');
CREATE TABLE task_instance (dag_id text, task_id text, run_id text, hostname text, state text, start_date timestamptz,
  last_heartbeat_at timestamptz, scheduled_dttm timestamptz, queued_dttm timestamptz, queued_by_job_id int,
  external_executor_id text, try_number int);
CREATE TABLE callback (type text, state text);
CREATE TABLE job (job_type text, start_date timestamptz);
"""


@pytest.fixture
def airflow(server: Server) -> Server:
    for statement in (
        "CREATE ROLE airflow LOGIN PASSWORD 'x'",
        "CREATE ROLE airflow_celery LOGIN PASSWORD 'y'",
        "CREATE DATABASE airflow OWNER airflow",
        "REVOKE ALL ON DATABASE airflow FROM PUBLIC",
        "GRANT CONNECT ON DATABASE airflow TO airflow_celery",
    ):
        server.query(statement)
    server.query(SCHEMA, "airflow")
    return server


def run(server: Server, state: str, *, check: bool = False, **parameters: Any) -> dict[str, Any]:
    given = {**server.parameters, "state": state, "backup_status": "/nowhere", "note": {"from": "3.2.2"}, **parameters}
    return run_module(MODULE, given, check=check)


def task(server: Server, state: str, silent: int = 0) -> None:
    server.query(
        f"INSERT INTO task_instance VALUES ('d', '{state}', 'r', 'worker-1', '{state}', now() - interval '90 seconds',"
        f" now() - interval '{silent} seconds', now(), now(), 1, 'celery', 1)",
        "airflow",
    )


def rights(server: Server) -> list[Any]:
    return server.query("SELECT pg_get_userbyid(datdba), datacl::text FROM pg_database WHERE datname = 'airflow'")


def test_a_look_tells_what_runs_and_waits(airflow: Server) -> None:
    for state in ("running", "queued", "deferred"):
        task(airflow, state)
    found = run(airflow, "look")["found"]
    assert found["versions"] == {"alembic_version": ["old"]}
    assert [(row["dag"], row["task"], round(row["seconds"])) for row in found["running"]] == [("d", "running", 90)]
    assert (found["queued"], found["deferred"], found["copy"]) == (1, 1, None)
    assert found["backup_problems"] == ["there are no backups"]


def test_queued_tasks_are_handed_back_with_their_try(airflow: Server) -> None:
    for state in ("queued", "success"):
        task(airflow, state)
    task(airflow, "running", silent=60)  # lost with its host: the scheduler's to find
    airflow.query("INSERT INTO callback VALUES ('executor', 'queued'), ('triggerer', 'queued')", "airflow")
    assert run(airflow, "drained", check=True)["requeued"] == 0

    assert run(airflow, "drained")["requeued"] == 2

    rows = airflow.query(
        "SELECT task_id, state, try_number, external_executor_id FROM task_instance ORDER BY 1", "airflow"
    )
    assert rows == [
        ("queued", "scheduled", 1, None),
        ("running", "running", 1, "celery"),
        ("success", "success", 1, "celery"),
    ]
    assert airflow.query("SELECT state FROM callback ORDER BY type", "airflow") == [("pending",), ("queued",)]
    assert not run(airflow, "drained")["changed"]


def test_what_still_runs_is_named(airflow: Server) -> None:
    task(airflow, "running")
    assert "still running: d.running" in run(airflow, "drained")["msg"]


def test_the_copy_comes_back_as_it_was(airflow: Server) -> None:
    before = rights(airflow)
    made = run(airflow, "kept")
    assert made["restore_point"].startswith("before_upgrade_")
    assert run(airflow, "look")["found"]["copy"]["from"] == "3.2.2"
    airflow.query("UPDATE alembic_version SET version_num = 'new'", "airflow")
    again = run(airflow, "kept")
    assert (again["changed"], again["at"]) == (False, made["at"]), "a copy is not made over the one of before"

    assert run(airflow, "restored", since=time.time())["changed"]

    assert airflow.query("SELECT version_num FROM alembic_version", "airflow") == [("old",)]
    assert rights(airflow) == before
    assert run(airflow, "look")["found"]["copy"] is None
    assert not run(airflow, "restored", since=time.time())["changed"], "nothing to put back"


def test_work_that_was_done_since_is_not_forgotten(airflow: Server) -> None:
    run(airflow, "kept")
    airflow.query("INSERT INTO job VALUES ('SchedulerJob', now() + interval '1 second')", "airflow")
    assert "has run since, before this run" in run(airflow, "restored", since=time.time() + 100)["msg"]
    assert run(airflow, "restored", since=time.time() - 100, check=True)["changed"], "this run started it itself"


def test_a_copy_that_was_not_finished_is_made_anew(airflow: Server) -> None:
    airflow.query("CREATE DATABASE airflow_before_upgrade")  # without our note
    assert run(airflow, "kept")["changed"]
    assert airflow.query("SELECT version_num FROM alembic_version", "airflow_before_upgrade") == [("old",)]
    assert run(airflow, "dropped")["changed"]
    assert not run(airflow, "dropped")["changed"]


def test_an_open_session_does_not_stop_it(airflow: Server) -> None:
    import psycopg2

    session = psycopg2.connect(host=airflow.parameters["socket_directory"], dbname="airflow", user="postgres")
    try:
        assert run(airflow, "kept")["changed"]
        session = psycopg2.connect(host=airflow.parameters["socket_directory"], dbname="airflow", user="postgres")
        assert run(airflow, "restored", since=time.time())["changed"]
    finally:
        session.close()
