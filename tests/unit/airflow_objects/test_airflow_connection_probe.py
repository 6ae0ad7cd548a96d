"""Each way that a connection can be broken has a sentence of its own, and none of them holds a secret."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from roles.airflow_objects.library import airflow_connection_probe as subject

SECRET = "a-very-secret-token"


class Service(http.server.BaseHTTPRequestHandler):
    """Answers /health to everybody and /rules to whoever has the token."""

    def do_GET(self) -> None:
        status = {"/health": 200, "/base/health": 200, "/broken": 503, "/rules": 401}.get(self.path, 404)
        if self.path == "/rules" and self.headers.get("Authorization") == f"Bearer {SECRET}":
            status = 200
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(params=["http", "transformation_service"])
def service(request: pytest.FixtureRequest) -> Any:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield {
        "conn_id": "transformation_service",
        "conn_type": request.param,
        "host": "127.0.0.1",
        "port": server.server_address[1],
        "password": SECRET,
        "probe": {"authenticated_path": "/rules"},
    }
    server.shutdown()
    server.server_close()
    thread.join()


def try_one(item: dict[str, Any], timeout: float = 2) -> subject.Probe:
    (probe,) = subject.probe_all([item], timeout)
    assert SECRET not in str(probe)
    return probe


@pytest.mark.parametrize(
    ("item", "target"),
    [
        ({"conn_type": "http", "host": "service-1", "port": 5000}, ("service-1", 5000)),
        ({"conn_type": "http", "host": "http://service-1:5000/base"}, ("service-1", 5000)),
        ({"conn_type": "http", "host": "https://service-1"}, ("service-1", 443)),
        ({"conn_type": "http", "host": "service-1", "schema": "https"}, ("service-1", 443)),
        ({"conn_type": "http", "host": "service-1"}, ("service-1", 80)),
        ({"conn_type": "postgres", "host": "db", "port": "5433"}, ("db", 5433)),
        ({"conn_type": "postgres", "host": "db"}, ("db", 5432)),
        ({"conn_type": "slackwebhook", "host": None}, ("hooks.slack.com", 443)),
        ({"conn_type": "slackwebhook", "host": "hooks.slack.com/services"}, ("hooks.slack.com", 443)),
        ({"conn_type": "fs"}, ("", None)),
    ],
)
def test_host_and_port_are_found_as_the_hooks_find_them(item: dict[str, Any], target: Any) -> None:
    assert subject.target_of(item) == target


def test_http_with_the_right_token(service: dict[str, Any]) -> None:
    probe = try_one(service)
    assert (probe.ok, probe.detail) == (True, "/health answered, /rules accepts the credentials")
    url = f"http://127.0.0.1:{service['port']}/base"
    assert try_one({**service, "host": url, "port": None, "probe": None}).detail == "/health answered"


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"password": "wrong"}, "GET /rules answered 401, refuses the credentials"),
        ({"password": None}, "GET /rules answered 401, wants credentials, and none are given"),
        ({"login": "me"}, "GET /rules answered 401, refuses the credentials"),
        ({"probe": {"path": "/nowhere"}}, "GET /nowhere answered 404"),
        ({"probe": {"path": "/broken"}}, "GET /broken answered 503"),
        ({"schema": "https"}, "wrong version number"),
    ],
)
def test_http_failures_say_what_was_found(service: dict[str, Any], change: dict[str, Any], detail: str) -> None:
    probe = try_one({**service, **change})
    assert not probe.ok
    assert detail.lower() in probe.detail.lower().replace("_", " ")
    assert probe.check


def test_network_failures_say_what_to_check(unused_tcp_port: int) -> None:
    base = {"conn_id": "mail", "conn_type": "smtp", "host": "127.0.0.1", "port": unused_tcp_port}
    refused = try_one(base)
    assert refused.sentence("worker-1") == (
        f"mail (smtp) from worker-1 to 127.0.0.1:{unused_tcp_port}: Connection refused. "
        "Check that the service runs and listens on this address and port"
    )
    unknown = try_one({**base, "host": "no-such-host.invalid"})
    assert (unknown.ok, unknown.check) == (False, "host of mail, and that this host resolves the name")


def test_a_server_that_says_nothing_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        item = {"conn_id": "quiet", "conn_type": "http", "host": "127.0.0.1", "port": silent.getsockname()[1]}
        begin = time.monotonic()
        probes = subject.probe_all([item, {**item, "conn_id": "quiet_too"}], 0.3)
        assert time.monotonic() - begin < 1.5  # both at the same time
    assert [probe.detail for probe in probes] == ["no answer", "no answer"]
    assert "firewall" in probes[0].check


def test_a_resolver_without_an_end_is_given_up_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(subject, "probe_tcp", lambda item, timeout: str(released.wait(30)))
    probe = try_one({"conn_id": "mail", "conn_type": "smtp", "host": "mail"}, timeout=0.05)
    released.set()
    assert (probe.ok, probe.detail) == (False, "no answer within 1.1 s")


@pytest.mark.parametrize(
    ("text", "found", "check"),
    [
        (
            2 * 'connection to server at "db", port 5432 failed: FATAL:  password authentication failed for user "u"\n',
            'password authentication failed for user "u"',
            "login and password of x against the role in PostgreSQL",
        ),
        (
            'connection to server at "db", port 5432 failed: FATAL:  no pg_hba.conf entry for host "10.0.0.3"',
            'no pg_hba.conf entry for host "10.0.0.3"',
            "that pg_hba lets this host, database and role in, and extra.sslmode",
        ),
        (
            'connection to server at "db", port 5432 failed: FATAL:  database "nope" does not exist',
            'database "nope" does not exist',
            "schema and login of x: they name the database and the role",
        ),
        (
            "connection to server failed: timeout expired",
            "timeout expired",
            "the firewall between the two hosts, then the address",
        ),
    ],
)
def test_postgresql_errors_are_translated(text: str, found: str, check: str) -> None:
    error = subject._postgres_error(text, {"conn_id": "x"})
    assert error.found.endswith(found)
    assert error.check == check


def test_what_has_no_host_or_is_left_out_does_not_fail() -> None:
    assert try_one({"conn_id": "files", "conn_type": "fs"}).detail == "names no host, nothing to try"
    skipped = try_one({"conn_id": "x", "conn_type": "http", "host": "nowhere.invalid", "probe": {"skip": True}})
    assert (skipped.ok, skipped.detail) == (True, "left out by probe.skip")


def run_module(capsys: Any, *, check: bool = False, **params: Any) -> dict[str, Any]:
    arguments = {**params, "_ansible_check_mode": check, "_ansible_inject_invocation": True}
    with patch_module_args(arguments), pytest.raises(SystemExit):
        subject.main()
    output, errors = capsys.readouterr()
    assert SECRET not in output + errors
    # Where Ansible's controller code is imported too, a module's warnings go to the display, not into the answer.
    return {"warnings": errors} | json.loads(output.strip().splitlines()[-1])


def test_all_failures_come_in_one_list(service: dict[str, Any], unused_tcp_port: int, capsys: Any) -> None:
    mail = {"conn_id": "mail", "conn_type": "smtp", "host": "127.0.0.1", "port": unused_tcp_port, "password": SECRET}
    broken = [service, mail, {**mail, "conn_id": "other_mail"}]
    failed = run_module(capsys, connections=broken, source="worker-1")
    assert failed["failed"]
    assert failed["msg"].startswith(
        "2 of 3 Airflow connections do not work:\n- mail (smtp) from worker-1 to 127.0.0.1:"
    )
    checked = run_module(capsys, check=True, connections=broken, source="worker-1")
    assert not checked.get("failed")
    assert "other_mail" in str(checked["warnings"])
    assert not run_module(capsys, connections=[service])["changed"]
