from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="airflow-home-"))  # before anything imports airflow

import pytest
from airflow.sdk.exceptions import TaskDeferred
from fake_service import FakeService, set_connection


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    """A running service, and the connection ``transformation_service`` to it."""
    fake = FakeService()
    set_connection(monkeypatch, host="127.0.0.1", port=fake.port)
    yield fake
    fake.stop()


class TaskInstance:
    """The part of a task instance that an operator meets."""

    def __init__(self, run_id: str = "scheduled__2026-01-31", try_number: int = 1) -> None:
        self.run_id, self.try_number = run_id, try_number
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


async def run_task(task: Any) -> dict[str, Any]:
    """Execute a task as worker and triggerer do, in one process."""
    context: Any = {"ti": TaskInstance()}
    try:
        return task.execute(context)
    except TaskDeferred as deferred:
        async for event in deferred.trigger.run():
            return task.execute_complete(context, event.payload)
    raise AssertionError("neither deferred nor done")


@pytest.fixture
def context() -> dict[str, Any]:
    return {"ti": TaskInstance()}


@pytest.fixture
def contexts() -> list[dict[str, Any]]:
    """A first try, its retry, the task cleared later, and another run of the same slot."""
    tries = [("scheduled__1", 1), ("scheduled__1", 2), ("scheduled__1", 7), ("manual__2", 1)]
    return [
        {"ti": TaskInstance(run_id, number), "run_id": run_id, "dag_run": TaskInstance(run_id)}
        for run_id, number in tries
    ]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record what the code would wait, and wait nothing."""
    import asyncio
    import time

    seen: list[float] = []
    real = asyncio.sleep

    async def no_wait(seconds: float) -> None:
        seen.append(seconds)
        await real(0)

    monkeypatch.setattr(time, "sleep", seen.append)
    monkeypatch.setattr(asyncio, "sleep", no_wait)
    return seen
