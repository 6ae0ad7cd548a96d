"""Operator and trigger against the reference TransformationService as a process of its own, on a real PostgreSQL."""

from __future__ import annotations

import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psycopg
import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred
from conftest import run_task
from fake_service import set_connection

from plugins.operators import RuleEngineOperator
from transformation_service import database, loading, samples
from transformation_service.entities import ENTITIES

pytestmark = pytest.mark.database
RECORDS = 600
DAGS = Path(__file__).parents[3] / "dags"


class Service:
    """The service; ``kill`` and ``start`` as an outage and systemd would."""

    def __init__(self, directory: Path, url: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        for name, value in (("url", url), ("token", "a-token-for-tests")):
            (directory / name).write_text(value)
        self.environment = os.environ | {
            "TRANSFORMATION_SERVICE_DATABASE_URL_FILE": str(directory / "url"),
            "TRANSFORMATION_SERVICE_TOKEN_FILE": str(directory / "token"),
            "TRANSFORMATION_SERVICE_PORT": str(self.port),
            "TRANSFORMATION_SERVICE_SIMULATED_MS_PER_RECORD": "2",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", "transformation_service", "serve"], env=self.environment)
        deadline = time.monotonic() + 30
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/health").is_success:
                    return
            except httpx.TransportError:
                assert self.process.poll() is None, "the service has ended"
                assert time.monotonic() < deadline, "the service does not answer"
                time.sleep(0.05)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def url(postgresql_server: Any) -> str:
    with psycopg.connect(postgresql_server.url("postgres"), autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS for_operators WITH (FORCE)")
        connection.execute("CREATE DATABASE for_operators")
    url: str = postgresql_server.url("for_operators")
    database.migrate(url)
    loading.load(url, ENTITIES["User"], samples.generate("User", RECORDS, 7))
    return url


@pytest.fixture
def service(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    running = Service(tmp_path, url)
    set_connection(monkeypatch, host="127.0.0.1", port=running.port, password="a-token-for-tests")
    running.start()
    yield running
    running.kill()


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


def assert_each_record_once(url: str, slots: int = 1) -> None:
    assert rows(url, "SELECT DISTINCT transform_count FROM user_record") == [(slots,)]
    ledger = "SELECT count(*), count(DISTINCT (slot, record_id)) FROM transformation_record"
    assert rows(url, ledger) == [(RECORDS * slots, RECORDS * slots)]


def operator(**changes: Any) -> RuleEngineOperator:
    arguments = {
        "task_id": "apply_rules",
        "entity_type": "User",
        "rules": ["normalize_phone", "standardize_email", "deduplicate"],
        "batch_size": 50,
        "slot": "2026-01-31T02:00:00Z",
    }
    return RuleEngineOperator(**(arguments | changes))


async def test_each_record_once_however_often_the_task_runs(service: Service, url: str):
    first = await run_task(operator(defer_after=0))
    assert first["state"] == "succeeded"
    assert first["counts"]["total"] == RECORDS
    again = await run_task(operator(batch_size=50))
    assert (again["replayed"], again["job_id"]) == (True, first["job_id"])
    assert_each_record_once(url)
    other = await run_task(operator(slot="2026-02-01T02:00:00+00:00"))
    assert other["job_id"] != first["job_id"]
    assert_each_record_once(url, slots=2)


def in_run(task: Any, run: Any, url: str, **conf: str) -> Any:
    """The task of a DAG file as a worker sees it in this run."""
    task = task.prepare_for_execution()
    variables = SimpleNamespace(value=SimpleNamespace(transformation_service_url=url))
    task.render_template_fields({"params": {"slot": None} | conf, "dag_run": run, "task": task, "var": variables})
    return task


@pytest.mark.parametrize(
    ("file", "entity", "trigger", "master_first"),
    [
        ("01_user_transformation.py", "User", 0, True),
        ("01_user_transformation.py", "User", 0, False),
        ("02_application_transformation.py", "Application", 1, True),
        ("03_discovery_transformation.py", "DiscoveryMetadata", 2, True),
    ],
)
async def test_master_and_own_schedule_do_the_work_of_a_day_once(
    service: Service, url: str, file: str, entity: str, trigger: int, master_first: bool
):
    if entity != "User":
        loading.load(url, ENTITIES[entity], samples.generate(entity, RECORDS, 7))
    one = datetime(2026, 1, 31, 1, tzinfo=UTC)
    two = one + timedelta(hours=1)
    master = runpy.run_path(str(DAGS / "00_master_orchestration.py"))["triggers"][trigger]
    dag = runpy.run_path(str(DAGS / file))["dag"]
    work = [task for task in dag.topological_sort() if isinstance(task, RuleEngineOperator)]
    address = f"http://127.0.0.1:{service.port}"
    conf = in_run(master, SimpleNamespace(logical_date=one, run_after=one), address).conf
    by_master = [in_run(task, SimpleNamespace(logical_date=None, run_after=one), address, **conf) for task in work]
    by_schedule = [in_run(task, SimpleNamespace(logical_date=two, run_after=two), address) for task in work]

    paths = [by_master, by_schedule] if master_first else [by_schedule, by_master]
    first, second = [[await run_task(task) for task in path] for path in paths]

    assert len(first) > 1
    for done, again in zip(first, second, strict=True):
        assert (done["replayed"], done["state"], done["counts"]["total"]) == (False, "succeeded", RECORDS)
        assert (again["replayed"], again["state"], again["job_id"]) == (True, "succeeded", done["job_id"])
    assert rows(url, f"SELECT DISTINCT transform_count FROM {ENTITIES[entity].table}") == [(len(work),)]
    ledger = "SELECT count(*), count(DISTINCT (rule_set_version, record_id)) FROM transformation_record"
    assert rows(url, ledger) == [(RECORDS * len(work), RECORDS * len(work))]


async def test_a_killed_service_loses_and_doubles_nothing(service: Service, url: str):
    import asyncio

    waiting = asyncio.create_task(run_task(operator(defer_after=0)))
    while not rows(url, "SELECT 1 FROM transformation_batch LIMIT 1"):
        await asyncio.sleep(0.02)
    service.kill()
    assert rows(url, "SELECT state FROM transformation_job") == [("running",)]
    await asyncio.to_thread(service.start)
    assert (await waiting)["state"] == "succeeded"
    assert_each_record_once(url)


async def test_a_cancelled_job_goes_on_when_the_task_is_cleared(service: Service, url: str, context: Any):
    task = operator(defer_after=0)
    with pytest.raises(TaskDeferred) as deferred:
        task.execute(context)
    await deferred.value.trigger.on_kill()
    (event,) = [event.payload async for event in deferred.value.trigger.run()]
    with pytest.raises(AirflowException, match="ended as cancelled") as cancelled:
        task.execute_complete({}, event)
    assert not isinstance(cancelled.value, AirflowFailException)
    assert (await run_task(operator()))["state"] == "succeeded"
    assert_each_record_once(url)


async def test_a_refusal_names_what_is_known(service: Service):
    with pytest.raises(AirflowFailException, match="normalize_phone"):
        await run_task(operator(rules=["no_such_rule"]))


async def test_another_batch_size_joins_and_another_scope_is_refused(service: Service, url: str):
    first = await run_task(operator(max_records=100))
    assert (first["counts"]["total"], first["max_records"]) == (100, 100)
    again = await run_task(operator(max_records="100", batch_size=60))
    assert (again["job_id"], again["replayed"]) == (first["job_id"], True)
    with pytest.raises(AirflowFailException, match=r"409 .*100"):
        await run_task(operator())
    assert rows(url, "SELECT count(*), max(transform_count) FROM user_record WHERE transform_count > 0") == [(100, 1)]
