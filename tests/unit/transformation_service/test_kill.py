"""The real process, killed with SIGKILL in the middle of 10,000 records."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psycopg
import pytest

RECORDS = 10_000
# What holds the service up at a place inside a batch's transaction while it is killed there.
PLACES = {
    "anywhere": None,
    "ledger written, records not": "LOCK TABLE user_record IN SHARE MODE",
    "records written, job not moved on": "SELECT FROM transformation_job FOR UPDATE",
}
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'transformation-service'"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Process:
    """``python -m transformation_service serve`` on a port of its own."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.port = free_port()
        self._environment = {
            **os.environ,
            **environment,
            "TRANSFORMATION_SERVICE_PORT": str(self.port),
            "TRANSFORMATION_SERVICE_POLL_SECONDS": "0.2",
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", headers={"Authorization": "Bearer test-token-7c1f"}, timeout=10
        )

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "transformation_service", "serve"], env=self._environment
        )
        self.until(lambda: self.get("/health") is not None)

    def get(self, path: str) -> Any:
        try:
            response = self.http.get(path)
        except httpx.TransportError:
            return None
        return response.json() if response.status_code == 200 else None

    def until(self, condition: Callable[[], bool], within: float = 40) -> None:
        deadline = time.monotonic() + within
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def end(self, number: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(20)

    def close(self) -> None:
        self.http.close()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def process(secret_files: dict[str, str]) -> Iterator[Process]:
    process = Process(secret_files)
    yield process
    process.close()


def test_kill_in_the_middle_of_a_job_loses_and_doubles_nothing(process: Process, db: Any) -> None:
    db.load("User", RECORDS)
    process.start()
    answer = process.http.post(
        "/api/v1/transformations",
        headers={"Idempotency-Key": "k"},
        json={
            "entity_type": "User",
            "rules": ["normalize_phone", "standardize_email", "deduplicate"],
            "batch_size": 500,
            "slot": "2026-01-31T02:00:00Z",
        },
    )
    assert answer.status_code == 202
    path = answer.headers["location"]
    killed_at = []
    for number, lock in enumerate(PLACES.values(), 1):
        process.until(lambda number=number: process.get(path)["batches"]["done"] >= number * 5)
        if lock is None:
            time.sleep(random.uniform(0, 0.2))  # chooses the place of the kill; nothing is waited for
            assert process.end(signal.SIGKILL) == -signal.SIGKILL
        else:
            with psycopg.connect(db.url) as holder:
                holder.execute(lock.encode())
                process.until(lambda: db.value(SESSIONS + " AND wait_event_type = 'Lock'") > 0)
                assert process.end(signal.SIGKILL) == -signal.SIGKILL
        process.until(lambda: db.value(SESSIONS) == 0)
        # What is confirmed is whole at any moment.
        done = db.value("SELECT batches_done FROM transformation_job")
        confirmed = db.value("SELECT sum(transformed + marked)::int FROM transformation_batch")
        assert confirmed == done * 500 < RECORDS
        assert db.value("SELECT count(*) FROM transformation_record") == confirmed
        assert db.value("SELECT sum(transform_count)::int FROM user_record") == confirmed
        killed_at.append(done)
        process.start()
    process.until(lambda: process.get(path)["state"] == "succeeded")
    job = process.get(path)
    assert killed_at == sorted(set(killed_at))
    assert job["batches"] == {"total": 20, "done": 20}
    assert job["counts"]["transformed"] + job["counts"]["marked"] == RECORDS
    db.assert_each_record_once("User", RECORDS)
    assert process.end(signal.SIGTERM) in (0, -signal.SIGTERM)
    db.assert_each_record_once("User", RECORDS)
