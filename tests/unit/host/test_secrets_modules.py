"""Former secrets are found, and a refusal counts only when the present secret is accepted in the same way."""

from __future__ import annotations

import runpy
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import ansible.module_utils
import jwt
import pytest

from roles.airflow_objects.filter_plugins.connection_attempts import connection_attempts
from tests.unit.host.run_module import run_module

OLD, NEW = "old-" * 16, "new-" * 16


class Service(BaseHTTPRequestHandler):
    """Takes a bearer token, and requests for logs that are signed with a key."""

    accepted: tuple[str, ...] = (NEW,)

    def do_GET(self) -> None:
        given = self.headers["Authorization"]
        if self.path.startswith("/log/"):
            status = 404 if any(signed(given, key) for key in self.accepted) else 403
        else:
            status = 200 if given.removeprefix("Bearer ") in self.accepted else 401
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def signed(token: str, key: str) -> bool:
    try:
        jwt.decode(token, key, algorithms=["HS512"], audience="task-instance-logs")
    except jwt.InvalidTokenError:
        return False
    return True


@pytest.fixture
def service() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    Service.accepted = (NEW,)


def refused(url: str, kind: str) -> dict[str, Any]:
    attempt = {"name": "token", "kind": kind, "url": url, "former": OLD, "present": NEW}
    return run_module(
        "host/library/refused_secrets.py", {"attempts": [attempt], "since": time.time() - 3, "seconds": 0.6}
    )


@pytest.mark.parametrize("kind", ["bearer", "log"])
def test_a_refusal_is_proven_and_timed(service: str, kind: str) -> None:
    result = refused(service, kind)
    assert 3 <= result["slowest"] < 10
    assert OLD not in str(result)


@pytest.mark.parametrize(
    ("accepted", "said"),
    [((OLD, NEW), "the former secret is still accepted"), ((), "the present secret is refused as well")],
)
@pytest.mark.parametrize("kind", ["bearer", "log"])
def test_it_is_no_proof_when_both_are_treated_alike(
    service: str, kind: str, accepted: tuple[str, ...], said: str
) -> None:
    Service.accepted = accepted
    result = refused(service, kind)
    assert result["failed"]
    assert said in result["msg"]
    assert OLD not in str(result)


def test_a_service_that_does_not_answer_is_no_proof() -> None:
    assert "no answer that tells" in refused("http://127.0.0.1:9", "bearer")["msg"]


def test_only_secrets_that_differ_are_former(tmp_path: Path) -> None:
    (tmp_path / "same").write_text("a\n")
    (tmp_path / "other").write_text("b\n")
    files = [{"path": str(tmp_path / name), "secret": "a", "mode": "0400"} for name in ("same", "other", "none")]
    result = run_module("host/library/former_secrets.py", {"files": files})
    assert (result["former"], result["missing"], result["changed"]) == ({"other": "b"}, ["none"], False)


def judge_fields(fields: list[tuple[str, str]], keys: str) -> Any:
    roles = Path(__file__).parents[3] / "roles"
    ansible.module_utils.__path__.append(str(roles / "airflow/module_utils"))
    return runpy.run_path(str(roles / "airflow/library/airflow_fernet.py"))["judge"](fields, keys)


def test_fields_are_told_apart_by_the_key_that_reads_them() -> None:
    from cryptography.fernet import Fernet

    new, old, lost = (Fernet.generate_key().decode() for _ in range(3))
    fields = [
        (name, Fernet(key.encode()).encrypt(b"x").decode()) for name, key in zip("nol", (new, old, lost), strict=True)
    ]
    assert judge_fields(fields, f"{new},{old}") == (3, ["o"], ["l"])
    assert judge_fields(fields[:1], new) == (1, [], [])


def test_only_connections_with_another_password_are_tried() -> None:
    wanted = [
        {"conn_id": "db", "conn_type": "postgres", "host": "h", "schema": "s", "login": "u", "password": "n/w",
         "extra": {"sslmode": "require"}},
        {"conn_id": "service", "conn_type": "transformation_service", "host": "h", "port": 5000, "password": "new",
         "probe": {"authenticated_path": "/rules"}},
        {"conn_id": "same", "conn_type": "postgres", "host": "h", "schema": "s", "login": "u", "password": "old"},
        {"conn_id": "mail", "conn_type": "smtp", "host": "h", "password": "new"},
    ]  # fmt: skip
    found = connection_attempts(wanted, {name: "old" for name in ("db", "service", "same", "mail")})
    assert [(attempt["name"], attempt["kind"]) for attempt in found] == [
        ("connection db", "postgresql"),
        ("connection service", "bearer"),
    ]
    assert found[0]["present"] == "postgresql://u:n%2Fw@h:5432/s?sslmode=require"
    assert found[1]["url"] == "http://h:5000/rules"
