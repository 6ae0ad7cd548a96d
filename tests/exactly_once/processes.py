"""What runs in processes of its own, so that SIGKILL is SIGKILL: the service, a worker's task, a trigger.

All are forked from a server that has imported what they need: a start costs 30 ms and not seconds.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        *("plugins.daily", "plugins.operators", "plugins.triggers.transformation_service"),
        *("transformation_service.__main__", "transformation_service.app"),
        # What these import at first use, and what each process imports of its parent.
        *("airflow.sdk.execution_time.supervisor", "airflow.sdk.definitions.timetables.trigger"),
        *("airflow.timetables.base", "uvicorn.lifespan.on", "uvicorn.loops.auto", "uvicorn.protocols.http.auto"),
        *("tests.exactly_once.processes", "_pytest.config"),
    ]
)
FASTER = 20  # waits are cut to a twentieth: their order counts here, not their length


@dataclass(frozen=True, kw_only=True)
class Try:
    """One try of a task, as Airflow would hand it to a worker.

    ``path`` tells who started the run: the ``master`` hands its own slot on, ``schedule`` and ``manual`` leave it to
    the run's instant. ``fails`` is a place where the task's process raises: ``submitted``, ``waiting``, ``reporting``.
    """

    url: str
    run_id: str
    path: str
    instant: datetime
    number: int
    rules: tuple[str, ...]
    batch_size: int
    defer_after: float
    fails: str | None
    mutant: str | None


class Planted(Exception):
    """The task fails here because the sequence says so."""


def _say_in(log: Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)


def serve(environment: dict[str, str], log: Path, mutant: str | None) -> None:
    """Run the service, as ``python -m transformation_service serve`` does."""
    os.environ.update(environment)
    _say_in(log)
    if mutant == "effects and ledger in several transactions":
        import contextlib

        from psycopg import AsyncConnection

        AsyncConnection.transaction = lambda self: contextlib.nullcontext()  # type: ignore[assignment, misc]
    from transformation_service.__main__ import serve

    serve()


def _make_task(given: Try) -> tuple[Any, dict[str, Any]]:
    """Build the operator as a DAG file does and render it for the run."""
    from airflow.sdk import DAG

    from plugins import daily
    from plugins.operators import RuleEngineOperator
    from plugins.operators.transformation_service import Work

    if given.mutant == "slot is the run's instant":
        daily.slot_of_day = lambda params, run: params.get("slot") or str(run.logical_date or run.run_after)
    key = Work.key
    added = {"key with the try number": str(given.number), "key with the run": given.run_id}.get(given.mutant or "")
    if added:
        Work.key = lambda self, after=None: f"{key(self, after)}-{added}"  # type: ignore[method-assign]

    run = SimpleNamespace(logical_date=None if given.path == "manual" else given.instant, run_after=given.instant)
    params: dict[str, Any] = {"slot": None}
    if given.path == "master":  # its run has handed on the slot; this one's has no tick of its own
        params = {"slot": daily.slot_of_day({}, run)}
        run = SimpleNamespace(logical_date=None, run_after=given.instant)
    with DAG(dag_id="of_the_test", schedule=None, **daily.daily_settings(owner="transformation")):
        task = RuleEngineOperator(
            task_id="apply_rules",
            transformation_service_url=given.url,
            entity_type="User",
            rules=list(given.rules),
            batch_size=given.batch_size,
            slot=daily.SLOT_OF_DAY,
            defer_after=given.defer_after,
            patience=5,
        )
    task = task.prepare_for_execution()
    ti = SimpleNamespace(xcom_push=lambda **_: _fail(given, "submitted"))
    context = {"params": params, "dag_run": run, "task": task, "ti": ti}
    task.render_template_fields(context)
    return task, context


def _fail(given: Try, place: str) -> None:
    if given.fails == place:
        raise Planted(place)


def work(log: Path, given: Try, event: dict[str, Any] | None, answer: Connection) -> None:
    """Execute the task, or go on with it after its trigger's event; send what a worker would tell the scheduler."""
    from airflow.sdk.exceptions import AirflowException, TaskDeferred

    _say_in(log)
    os.environ["AIRFLOW_CONN_TRANSFORMATION_SERVICE"] = json.dumps({"conn_type": "http", "password": "a-token"})
    sleep = time.sleep

    def shorter(seconds: float) -> None:
        _fail(given, "waiting")
        sleep(seconds / FASTER)

    time.sleep = shorter
    task, context = _make_task(given)

    def stop(*_: object) -> None:
        task.on_kill()
        os._exit(1)

    signal.signal(signal.SIGTERM, stop)
    try:
        result = task.execute(context) if event is None else task.execute_complete(context, event)
        _fail(given, "reporting")
        answer.send(("success", result))
    except TaskDeferred as deferred:
        # As in the metadata database: the class path and plain JSON, nothing else.
        answer.send(("deferred", json.dumps(deferred.trigger.serialize())))
    except (AirflowException, Planted) as error:
        answer.send(("failed", f"{type(error).__name__}: {error}"))


def wait(log: Path, serialized: str, answer: Connection) -> None:
    """Run a trigger from what the metadata database has of it, and send its event."""
    from importlib import import_module

    _say_in(log)
    path, arguments = json.loads(serialized)
    module, name = path.rsplit(".", 1)
    os.environ["AIRFLOW_CONN_TRANSFORMATION_SERVICE"] = json.dumps({"conn_type": "http", "password": "a-token"})
    sleep = asyncio.sleep
    asyncio.sleep = lambda seconds: sleep(seconds / FASTER)

    async def run() -> None:
        trigger = getattr(import_module(module), name)(**arguments)
        waiting = asyncio.ensure_future(anext(trigger.run()))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, waiting.cancel)
        try:
            answer.send(("event", json.dumps((await waiting).payload)))
        except asyncio.CancelledError:  # a user has cleared the deferred task
            await trigger.on_kill()

    asyncio.run(run())
