from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="airflow-home-"))  # before anything imports airflow

import pytest
from fake_service import FakeService, set_connection


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    """A running service, and the connection ``transformation_service`` to it."""
    fake = FakeService()
    set_connection(monkeypatch, host="127.0.0.1", port=fake.port)
    yield fake
    fake.stop()


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
