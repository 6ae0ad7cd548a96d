"""Each secret is where it is needed, and nowhere else: files, processes and journals of every host are searched."""

from __future__ import annotations

import base64
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import platform_under_test
import pytest
from platform_under_test import Platform

GROUPS = platform_under_test.load().groups
CONTROL = {
    "airflow_fernet_key", "airflow_jwt_secret", "airflow_api_secret_key", "postgresql_airflow_password",
    "postgresql_celery_password", "redis_celery_password",
}  # fmt: skip
MAY_HOLD = {
    "airflow_scheduler": CONTROL,
    "airflow_worker": {"airflow_api_secret_key", "postgresql_celery_password", "redis_celery_password"},
    "transformation_service": {
        "postgresql_transformation_service_password",
        "postgresql_scripts_password",
        "transformation_service_token",
    },
    "postgresql": {"backup_passphrase"},
}
# Where files with a secret may lie; root's alone, handed to the units by systemd.
PLACES = ("/etc/airflow/credentials/", "/etc/transformation_service/credentials/", "/run/credentials/")
# But this one, which PostgreSQL's own processes read to archive WAL.
BACKUP = "/etc/pgbackrest/pgbackrest.conf"


def forms(secrets: dict[str, str]) -> dict[str, list[str]]:
    """Every form in which a value may be written: plain, in a URL, in base64."""
    return {
        name: sorted({value, urllib.parse.quote(value, safe=""), base64.b64encode(value.encode()).decode()})
        for name, value in secrets.items()
    }


@pytest.fixture(scope="module")
def found(platform: Platform) -> dict[str, Any]:
    """What the search found on each host; all hosts search at the same time."""
    data = {"secrets": forms(platform.secrets)}
    with ThreadPoolExecutor(len(GROUPS["all"])) as pool:
        results = pool.map(lambda host: platform.probe(host, "secrets_on_host", data), GROUPS["all"])
        return dict(zip(GROUPS["all"], results, strict=True))


def may_hold(host: str) -> set[str]:
    return set().union(*(names for group, names in MAY_HOLD.items() if host in GROUPS.get(group, [])))


@pytest.mark.parametrize("host", GROUPS["all"])
def test_host_holds_only_the_secrets_that_it_needs(found: dict[str, Any], host: str) -> None:
    held = {name for file in found[host]["files"] for name in file["names"]}
    assert held == may_hold(host)


@pytest.mark.parametrize("host", GROUPS["all"])
def test_secrets_lie_in_root_files_of_their_own(found: dict[str, Any], host: str) -> None:
    files = [file for file in found[host]["files"] if file["path"] != BACKUP]
    assert [file["path"] for file in files if not file["path"].startswith(PLACES)] == []
    assert [file["path"] for file in files if file["mode"] & 0o077 and not file["path"].startswith("/run/")] == []
    assert [file["path"] for file in files if file["owner"] != 0 and not file["path"].startswith("/run/")] == []


@pytest.mark.parametrize("host", GROUPS["all"])
def test_no_process_has_a_secret_in_its_arguments_or_environment(found: dict[str, Any], host: str) -> None:
    assert found[host]["processes"] == []


@pytest.mark.parametrize("host", GROUPS["all"])
def test_no_journal_tells_a_secret(found: dict[str, Any], host: str) -> None:
    assert found[host]["journal_bytes"] > 0
    assert found[host]["journal"] == []


@pytest.mark.parametrize("host", GROUPS["all"])
def test_the_units_users_cannot_read_the_stored_secrets(platform: Platform, host: str) -> None:
    for user in ("airflow", "airflow-worker", "transformation-service"):
        if platform.host(host).user(user).exists:
            for place in PLACES[:2]:
                assert platform.host(host).run("runuser -u %s -- ls %s", user, place).failed
            assert platform.host(host).run("runuser -u %s -- sudo -n true", user).failed
