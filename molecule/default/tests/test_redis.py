"""Redis as Celery's user and as a stranger meet it, from a worker host."""

from __future__ import annotations

from typing import Any

import pytest
from platform_under_test import Platform

pytestmark = pytest.mark.unit("redis", "redis-server")
FORBIDDEN = [
    *("CONFIG GET *", "CONFIG SET appendonly no", "KEYS *", "SCAN 0", "FLUSHALL", "FLUSHDB", "SAVE", "SHUTDOWN"),
    *("ACL LIST", "ACL SETUSER x on", "REPLICAOF 127.0.0.1 1", "MONITOR", "CLIENT LIST"),
    # Allowed commands, but not on other keys and channels than Celery's.
    *("SET somebodys-key 1", "GET somebodys-key", "LPUSH other-queue x", "PUBLISH news x"),
]
# Refused by the server's configuration, before its access list is asked.
SWITCHED_OFF = ["DEBUG SLEEP 0", "MODULE LOAD x"]


@pytest.fixture(scope="module")
def answers(platform: Platform) -> dict[str, Any]:
    commands = ["PING", "LLEN default", *FORBIDDEN, *SWITCHED_OFF]
    return dict(zip(commands, platform.redis([command.split() for command in commands]), strict=True))


def test_celery_gets_what_it_needs(answers: dict[str, Any]) -> None:
    assert answers["PING"] is True
    assert answers["LLEN default"] == 0, "messages wait although nothing runs"


@pytest.mark.parametrize(
    ("username", "password"),
    [(None, None), ("default", ""), ("default", "the right one"), ("airflow_celery", "wrong"), ("airflow_celery", "")],
)
def test_everybody_else_is_kept_out(platform: Platform, username: str | None, password: str | None) -> None:
    if password == "the right one":
        password = platform.secrets["redis_celery_password"]
    answer = platform.redis([["PING"]], username=username, password=password)[0]
    refusals = "WRONGPASS", "invalid username-password", "Authentication required"
    assert any(refusal in str(answer) for refusal in refusals), answer


@pytest.mark.parametrize("command", FORBIDDEN)
def test_celerys_user_has_no_right_to(answers: dict[str, Any], command: str) -> None:
    assert "no permissions" in str(answers[command]).lower(), answers[command]


@pytest.mark.parametrize("command", SWITCHED_OFF)
def test_nobody_may(answers: dict[str, Any], command: str) -> None:
    assert "command not allowed" in str(answers[command]), answers[command]


def test_nothing_is_ever_evicted_and_everything_is_written_down(platform: Platform) -> None:
    # Nobody may ask the running server for its configuration, so this is the file that it was started with.
    host = platform.host(platform.first("redis"))
    assert "/etc/redis/platform.conf" in host.check_output("systemctl show --property=ExecStart redis-server")
    text = host.file("/etc/redis/platform.conf").content_string
    settings = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
    assert settings["maxmemory-policy"] == "noeviction"
    assert (settings["appendonly"], settings["appendfsync"]) == ("yes", "everysec")
    assert int(settings["maxmemory"].removesuffix("mb")) > 0
