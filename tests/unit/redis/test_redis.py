"""The ACL of role redis on a real server, and the module that asks whether it holds."""

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
import redis
import yaml

from tests.unit.host.run_module import run_module

ROLE = Path(__file__).parents[3] / "roles" / "redis"
MODULE = "redis/library/redis_ping.py"
PASSWORD = "an acceptable password"


def acl() -> str:
    """The role's template with the role's own variables, as on a host whose Redis knows no newer command."""
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
    own = yaml.safe_load((ROLE / "vars" / "main.yml").read_text())
    commands = own["__redis_celery_commands"].replace("{{ __redis_celery_commands_here }}", "")
    # Ansible's own settings for templates, and the two of its filters that this one uses.
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True)
    environment.filters["regex_replace"] = lambda value, _pattern, appended: f"{value}{appended}"
    environment.filters["ansible.builtin.hash"] = lambda value, kind: hashlib.new(kind, value.encode()).hexdigest()
    template = environment.from_string((ROLE / "templates/etc/redis/platform.acl.j2").read_text())
    variables = {**defaults, **own, "__redis_celery_commands": commands, "redis_celery_password": PASSWORD}
    return template.render(variables)


class Server:
    """A Redis on a free loopback port, with an administrator of the tests' own beside the role's users."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (directory / "platform.acl").write_text(acl() + "user tester on >tester ~* &* +@all\n")
        self.process: subprocess.Popen[bytes] | None = None

    def client(self, user: str, password: str) -> "redis.Redis[str]":
        return redis.Redis(port=self.port, username=user, password=password, decode_responses=True)

    def start(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            pytest.fail(
                "These tests start a Redis server of their own: install Debian's package 'redis-server'.", False
            )
        settings = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.directory),
            "aclfile": str(self.directory / "platform.acl"),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
        }
        arguments = [word for name, value in settings.items() for word in (f"--{name}", value)]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen([program, *arguments], stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while True:
            try:
                self.client("tester", "tester").ping()
                return
            except redis.exceptions.RedisError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail((self.directory / "log").read_text(), False)
                time.sleep(0.05)

    def kill(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    running.start()
    yield running
    running.kill()


def ping(server: Server, **changed: Any) -> list[str]:
    parameters = {"addresses": ["127.0.0.1"], "port": server.port, "username": "airflow_celery", "password": PASSWORD}
    result = run_module(MODULE, {**parameters, "timeout": 0, **changed})
    assert PASSWORD not in str(result)
    problems: list[str] = result["problems"]
    return problems


def test_a_server_with_the_roles_acl_is_healthy(server: Server) -> None:
    assert ping(server) == []


def test_a_wrong_password_is_named_without_showing_it(server: Server) -> None:
    (problem,) = ping(server, password="another one")
    assert problem.startswith(f"127.0.0.1 port {server.port} refuses user airflow_celery: -WRONGPASS")
    assert "another one" not in problem


def test_a_server_open_to_everybody_is_named(server: Server) -> None:
    server.client("tester", "tester").execute_command("ACL SETUSER default on nopass")
    (problem,) = ping(server)
    assert "answers without a password: +PONG" in problem


def test_no_server_is_named(server: Server) -> None:
    server.kill()
    (problem,) = ping(server)
    assert problem.startswith(f"no answer at 127.0.0.1 port {server.port}")


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda client: client.get("another_key"),
        lambda client: client.lpush("another_queue", "message"),
        lambda client: client.publish("another_channel", "message"),
        lambda client: client.keys(),
        lambda client: client.flushall(),
        lambda client: client.config_get(),
        lambda client: client.acl_list(),
        lambda client: client.eval("return 1", 0),
    ],
)
def test_celerys_user_reaches_nothing_else(server: Server, forbidden: Callable[["redis.Redis[str]"], Any]) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError):
        forbidden(server.client("airflow_celery", PASSWORD))


def test_queued_and_unacknowledged_messages_survive_a_kill(server: Server) -> None:
    """Kombu marks a message as unacknowledged in a transaction, and Redis loads transactions as user default."""
    celery = server.client("airflow_celery", PASSWORD)
    celery.lpush("default", "queued")
    with celery.pipeline(transaction=True) as transaction:
        transaction.zadd("unacked_index", {"tag": 1}).hset("unacked", "tag", "message").execute()

    server.kill()
    server.start()

    celery = server.client("airflow_celery", PASSWORD)
    assert celery.llen("default") == 1
    assert celery.hget("unacked", "tag") == "message"
    assert server.client("tester", "tester").zcard("unacked_index") == 1
    assert server.client("tester", "tester").acl_log() == []


def test_a_real_worker_runs_gives_back_and_redelivers_without_a_denial(server: Server, tmp_path: Path) -> None:
    """All that Celery does with its broker in the life of a worker; the server's ACL LOG is the judge."""
    (tmp_path / "acl_tasks.py").write_text(
        "import time\n"
        "from celery import Celery\n"
        f"app = Celery(broker='redis://airflow_celery:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{server.port}/0')\n"
        "app.conf.update(task_default_queue='default', task_acks_late=True, worker_prefetch_multiplier=1,\n"
        "    task_ignore_result=True, broker_transport_options={'visibility_timeout': 1})\n"
        "@app.task\n"
        "def touch(path, seconds=0):\n"
        "    open(path, 'a').write('x')\n"
        "    time.sleep(seconds)\n"
    )

    def worker() -> "subprocess.Popen[bytes]":
        command = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "acl_tasks",
            "worker",
            "-c",
            "1",
            "-Q",
            "default",
            "-E",
            "-l",
            "INFO",
        ]
        with (tmp_path / "worker.log").open("ab") as log:
            # A group of its own: a killed worker leaves its pool's processes behind.
            return subprocess.Popen(
                [*command, "-n", "t@h"], cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
            )

    def kill(process: "subprocess.Popen[bytes]") -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)

    def client(code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", f"from acl_tasks import app, touch\n{code}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def wait_for(path: Path, length: int) -> None:
        deadline = time.monotonic() + 60
        while not path.exists() or path.stat().st_size < length:
            assert time.monotonic() < deadline, (tmp_path / "worker.log").read_text()
            time.sleep(0.05)

    ran, slow = tmp_path / "ran", tmp_path / "slow"
    first = worker()
    try:
        client(f"[touch.apply_async(({str(ran)!r},), priority=n % 10) for n in range(20)]")
        wait_for(ran, 20)
        assert "pong" in client("print(app.control.inspect(timeout=10, limit=1).ping())")
        client(f"touch.delay({str(slow)!r}, 5); touch.apply_async(({str(ran)!r},), countdown=600)")
        wait_for(slow, 1)
    finally:
        kill(first)
    # Kombu looks for what became visible again when it starts, and then only every 100 seconds.
    newest = max(
        score for _tag, score in server.client("tester", "tester").zrange("unacked_index", 0, -1, withscores=True)
    )
    while time.time() < newest + 1:
        time.sleep(0.05)
    second = worker()
    try:
        wait_for(slow, 2)
        second.terminate()
        second.wait(60)
    finally:
        kill(second)

    assert server.client("airflow_celery", PASSWORD).llen("default") > 0, "nothing was given back"
    denied = server.client("tester", "tester").acl_log()
    # redis-py sends its name on connect and expects that servers refuse it; the role allows it where Redis knows it.
    assert [entry["object"] for entry in denied if entry["object"] != "client|setinfo"] == []
