"""A TransformationService that says what a test tells it to, over real HTTP, and Airflow's connection to it."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


def job_document(state: str = "queued", **changes: Any) -> dict[str, Any]:
    """A job document as the service's contract has it."""
    document = {
        "id": "5d9c1c52-5f3e-4c8b-9b51-0f6ad1f0a001",
        "state": state,
        "entity_type": "User",
        "rules": ["normalize_phone", "deduplicate"],
        "rule_set_version": "0a1b2c3d",
        "batch_size": 1000,
        "slot": "2026-01-31T02:00:00Z",
        "counts": {"total": 2500, "transformed": 2490, "marked": 10},
        "batches": {"total": 3, "done": 3},
        "progress": [{"batch": 0}, {"batch": 1}, {"batch": 2}],
        "error": None,
        "created_at": "2026-01-31T02:00:01Z",
        "started_at": "2026-01-31T02:00:01Z",
        "finished_at": "2026-01-31T02:00:04Z",
        "replayed": False,
    }
    return document | changes


def run_document(state: str = "queued", **changes: Any) -> dict[str, Any]:
    """A script run's document as the service's contract has it."""
    document = {
        "id": "9b1f0a4e-2a54-4a39-8f3a-3f1c6f2d0b02",
        "state": state,
        "kind": "static",
        "script": "mark_inactive_users",
        "version": 1,
        "slot": "2026-01-31T02:00:00Z",
        "limits": {"seconds": 30, "rows": 10000, "statements": 5},
        "parameters": {"days": 90},
        "counts": {"statements": 2, "rows": 13},
        "statements": [{"command": "UPDATE", "rows": 12}, {"command": "SELECT", "rows": 1}],
        "rows": [{"id": 1}],
        "error": None,
        "replayed": False,
        "created_at": "2026-01-31T02:00:01Z",
        "started_at": "2026-01-31T02:00:01Z",
        "finished_at": "2026-01-31T02:00:04Z",
    }
    return document | changes


@dataclass
class Answer:
    """One scripted answer; ``drop`` closes the connection without any."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False


@dataclass
class Call:
    """One request that arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


class FakeService:
    """Plays ``script`` answer by answer, the last one again and again, and keeps what was asked."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.script: list[Answer] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                service.calls.append(Call(self.command, self.path, dict(self.headers), body))
                answer = service.script.pop(0) if len(service.script) > 1 else service.script[0]
                if answer.drop:
                    self.connection.close()
                    return
                data = answer.body.encode() if isinstance(answer.body, str) else json.dumps(answer.body).encode()
                self.send_response(answer.status)
                for name, value in ({"Content-Length": str(len(data))} | answer.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def say(self, *answers: Answer | dict[str, Any]) -> None:
        """Set the script; a plain dictionary is answered with 200."""
        self.script = [answer if isinstance(answer, Answer) else Answer(body=answer) for answer in answers]

    def stop(self) -> None:
        """Refuse connections from now on."""
        self.server.shutdown()
        self.server.server_close()


def set_connection(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    """Define the connection ``transformation_service`` by environment, as Airflow allows."""
    connection = {"conn_type": "http", "password": "s3cret-token", "extra": {"timeout": 5}} | fields
    monkeypatch.setenv("AIRFLOW_CONN_TRANSFORMATION_SERVICE", json.dumps(connection))
