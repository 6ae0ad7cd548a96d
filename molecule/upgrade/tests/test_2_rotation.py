"""All secrets change while 20 tasks run and one waits for the service: none fails, each former one is refused."""

from __future__ import annotations

import base64
import re
import secrets
import time
from dataclasses import replace
from typing import Any

from cryptography.fernet import Fernet, InvalidToken
from deployments import changed
from platform_under_test import RULE_TASKS, Platform, wait_for
from upgrades import Operator

FILES = (
    "airflow_jwt_secret", "airflow_api_secret_key", "postgresql_airflow", "postgresql_celery", "postgresql_checks",
    "postgresql_scripts", "postgresql_transformation_service", "redis_celery", "transformation_service_token",
)  # fmt: skip
TRIED = (
    "database role airflow", "database role airflow_celery", "broker user airflow_celery", "signature of tokens",
    "signature of requests for task logs", "connection transformation_db", "connection transformation_service",
    "database role transformation_service", "database role transformation_scripts",
)  # fmt: skip
SLOW = {"transformation_service_simulated_ms_per_record": 80}


def change_all(platform: Platform) -> tuple[str, str]:
    """Write new secrets where the inventory reads them; return the old and the new Fernet key."""
    folder = platform.directory / "secrets"
    for name in FILES:
        (folder / name).write_text(secrets.token_hex(32) + "\n")
    old, new = (folder / "airflow_fernet").read_text().split()[0], secrets.token_hex(16)
    (folder / "airflow_fernet").write_text(new + "\n")
    return tuple(base64.b64encode(text.encode()).decode() for text in (old, new))  # type: ignore[return-value]


def encrypted(platform: Platform) -> list[str]:
    rows = platform.psql("SELECT password AS text FROM connection WHERE is_encrypted AND password <> ''", "airflow")
    return [row["text"] for row in rows]


def decrypts(key: str, text: str) -> bool:
    try:
        Fernet(key.encode()).decrypt(text.encode())
    except InvalidToken:
        return False
    return True


def test_no_task_fails_and_each_former_secret_is_refused(operator: Operator, gate: str) -> None:
    platform = operator.platform
    operator.run("site", "--tags", "transformation_service", **SLOW)
    slot = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    waiting = platform.trigger(slot)
    operator.await_states(waiting, lambda states: "deferred" in states, "a task that waits for the service")
    held = operator.trigger(gate, deferred_seconds=30)  # after it: these take all slots of the worker
    operator.await_states(held, lambda states: states.count("running") >= 2, "running tasks")
    former = dict(platform.secrets)
    old_key, new_key = change_all(platform)
    keys = {"airflow_fernet_key": f"{new_key},{old_key}"}

    rotation = operator.start("rotate_secrets", **SLOW, **keys)
    wait_for(lambda: operator.active("scheduler"), lambda state: state == "inactive", "the drain", 240)
    operator.open(gate)
    output = operator.end(rotation)

    seconds = dict(re.findall(r"^ *(.+): the former secret is refused, ([\d.]+) s after", output, re.MULTILINE))
    print(seconds)
    assert sorted(seconds) == sorted(TRIED)
    assert max(map(float, seconds.values())) < 60
    # Two are not rotated; the former Fernet key stays behind the comma until it is taken away.
    kept = {"airflow_admin_password", "backup_passphrase", "airflow_fernet_key"}
    values = [value for name, value in former.items() if name not in kept]
    assert not [value for value in values if value in output], "a former secret was printed"
    operator.await_states(held, lambda states: states.count("success") == len(states) == 21, "the held tasks", 240)
    assert {task["try_number"] for task in operator.tasks(held)} == {1}
    wait_for(
        lambda: {task["task_id"]: task for task in operator.tasks(waiting)},
        lambda tasks: all(tasks[name]["state"] == "success" for name in RULE_TASKS),
        "the tasks that waited for the service",
        240,
    )
    assert {task["try_number"] for task in operator.tasks(waiting)} == {1}
    assert all(decrypts(new_key, text) and not decrypts(old_key, text) for text in encrypted(platform))
    remains(platform, values)


def remains(platform: Platform, former: list[str]) -> None:
    """No host keeps a former secret in a file."""
    for name in platform.groups["all"]:
        for value in former:
            found = platform.host(name).run(
                "grep -rlsF -e %s /etc /opt/airflow/config /var/lib/airflow_upgrade /run", value
            )
            assert found.stdout == "", f"{name}: {found.stdout}"


def test_the_old_fernet_key_may_go(operator: Operator) -> None:
    fresh = Operator(replace(operator.platform, _cache={}))  # it has read the former secrets
    output = fresh.run("rotate_secrets")
    assert "fernet_key" in output
    assert set(changed(fresh.run("rotate_secrets")).values()) == {0}
    assert "11 checks" in fresh.run("smoke")


def test_a_fernet_key_without_the_old_one_is_refused(operator: Operator) -> None:
    lonely: Any = Fernet.generate_key().decode()
    output = operator.run("rotate_secrets", fails=True, airflow_fernet_key=lonely)
    assert "airflow_fernet_key does not decrypt: connection transformation_" in output
    assert lonely not in output
    assert operator.active("scheduler") == "active"
