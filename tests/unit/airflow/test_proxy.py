"""The proxy as it is configured on hosts: a real HAProxy before small servers that come and go."""

from __future__ import annotations

import http.client
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jinja2
import pytest

TEMPLATE = Path(__file__).parents[3] / "roles/airflow/templates/proxy.cfg.j2"


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


@dataclass
class Server:
    """An API server's stand-in at an address of its own; keeps the requests that it got."""

    address: str
    port: int
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    cut: int = 0
    """End so many connections after the request, without an answer."""

    @contextmanager
    def up(self) -> Iterator[None]:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                checked = self.path == "/api/v2/monitor/health"
                if not checked:
                    owner.requests.append((self.command, {name.lower(): text for name, text in self.headers.items()}))
                if owner.cut and not checked:
                    owner.cut -= 1
                    self.close_connection = True
                    return
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            do_GET = do_POST = handle_any

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer((self.address, self.port), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


@dataclass
class Proxy:
    """A running HAProxy before ``servers``: ``local`` for the host's own processes, ``public`` for users."""

    servers: list[Server]
    local: int
    public: int

    def ask(self, method: str = "GET", port: int = 0, **headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port or self.local, timeout=30)
        connection.request(method, "/execution/x", b"{}" if method == "POST" else None, headers)
        return connection.getresponse().status


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Callable[..., Proxy]]:
    running: list[subprocess.Popen[bytes]] = []

    def start(count: int = 1, *, certificate: str = "", spare: bool = False) -> Proxy:
        port, spare_port = free_port(), free_port()
        made = Proxy([Server(f"127.0.0.{number + 1}", port) for number in range(count)], free_port(), free_port())
        environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False)
        text = environment.from_string(TEMPLATE.read_text()).render(
            airflow_api_servers=[server.address for server in made.servers],
            airflow_api_port=port,
            airflow_listen_address="127.0.0.1",
            airflow_port=made.public,
            __airflow_local_port=made.local,
            __airflow_proxy_public=True,
            __airflow_proxy_certificate=bool(certificate),
            __airflow_spare=["api-server-spare"] if spare else [],
            __airflow_spare_port=spare_port,
        )
        if spare:
            made.servers.append(Server("127.0.0.1", spare_port))
        (tmp_path / "proxy.cfg").write_text(text)
        (tmp_path / "proxy_certificate").write_text(certificate)
        argv, given = ["/usr/sbin/haproxy", "-f", tmp_path / "proxy.cfg"], {"CREDENTIALS_DIRECTORY": str(tmp_path)}
        with (tmp_path / "log").open("ab") as log:  # HAProxy makes it non-blocking: it must not be ours
            running.append(subprocess.Popen(argv, env=given, stdout=log))
        until = time.monotonic() + 10
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", made.local), timeout=1).close()
                return made
            except OSError:
                time.sleep(0.02)
        raise AssertionError("HAProxy did not start")

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(("count", "spare"), [(1, False), (1, True), (2, False)])
def test_a_request_is_held_until_a_server_is_back(
    proxy: Callable[..., Proxy], count: int, spare: bool, method: str
) -> None:
    made = proxy(count, spare=spare)
    if count > 1 or spare:
        time.sleep(4)  # the checks have found both to be down by then
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(made.ask, method)
        time.sleep(1.5)
        assert not answer.done()
        with made.servers[count - 1].up():
            assert answer.result(10) == 200
    assert [kind for kind, _ in made.servers[count - 1].requests] == [method]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_other_server_answers_at_once(proxy: Callable[..., Proxy], method: str) -> None:
    made = proxy(2)
    with made.servers[0].up():
        with made.servers[1].up():
            until = time.monotonic() + 10
            while not all(server.requests for server in made.servers) and time.monotonic() < until:
                assert made.ask(method) == 200
        began = time.monotonic()
        assert {made.ask(method) for _ in range(4)} == {200}
        assert time.monotonic() - began < 1
    assert all(server.requests for server in made.servers)


def test_while_the_one_server_restarts_its_spare_answers_and_never_else(proxy: Callable[..., Proxy]) -> None:
    made = proxy(spare=True)
    server, spare = made.servers
    with spare.up():
        with server.up():
            asked_until_answered_by(made, server)
            spare.requests.clear()
            assert {made.ask() for _ in range(20)} == {200}
            assert not spare.requests
        with ThreadPoolExecutor() as pool:
            began = time.monotonic()
            assert set(pool.map(lambda _: made.ask("POST"), range(20))) == {200}
            assert time.monotonic() - began < 3
        assert len(spare.requests) == 20
        with server.up():
            asked_until_answered_by(made, server)


def asked_until_answered_by(made: Proxy, server: Server) -> None:
    server.requests.clear()
    until = time.monotonic() + 10
    while not server.requests:
        assert made.ask() == 200
        assert time.monotonic() < until


def test_what_may_have_been_received_is_repeated_only_where_that_changes_nothing(proxy: Callable[..., Proxy]) -> None:
    made = proxy()
    (server,) = made.servers
    with server.up():
        server.cut = 1
        assert made.ask("POST") == 502
        assert [kind for kind, _ in server.requests] == ["POST"]
        server.cut = 1
        assert made.ask("GET") == 200
        assert [kind for kind, _ in server.requests] == ["POST", "GET", "GET"]


def test_a_client_cannot_say_who_it_is(proxy: Callable[..., Proxy]) -> None:
    made = proxy()
    with made.servers[0].up():
        assert made.ask(**{"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "https"}) == 200
    (_, headers) = made.servers[0].requests[0]
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-forwarded-proto"] == "http"


def test_with_a_certificate_users_are_served_by_https_and_tasks_as_before(
    proxy: Callable[..., Proxy], tmp_path: Path
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate),
            *("-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
        ],
        check=True,
        capture_output=True,
    )
    made = proxy(certificate=certificate.read_text() + key.read_text())
    trust = ssl.create_default_context(cafile=str(certificate))
    with made.servers[0].up():
        connection = http.client.HTTPSConnection("localhost", made.public, timeout=10, context=trust)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        assert made.ask() == 200
        with pytest.raises((http.client.HTTPException, OSError)):
            made.ask(port=made.public)
    assert [headers["x-forwarded-proto"] for _, headers in made.servers[0].requests] == ["https", "http"]
