"""Backups as an operator relies on them: there is one, changes follow it, its drill works, and what fails is seen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from platform_under_test import Platform, wait_for

pytestmark = pytest.mark.unit("postgresql", "platform-backup@*")
REPOSITORY = "/var/lib/pgbackrest"
JOBS = ("full", "diff", "export", "drill", "status")


@pytest.fixture
def host(platform: Platform) -> Any:
    return platform.host(platform.first("postgresql"))


def status(host: Any) -> dict[str, Any]:
    return dict(json.loads(host.file("/var/lib/backup/status.json").content_string))


def job(host: Any, name: str) -> int:
    """Run what the timer runs; its exit code."""
    return int(host.run("systemctl start platform-backup@%s.service", name).rc)


@pytest.fixture
def healed(host: Any) -> Iterator[None]:
    """Whatever the test broke, the next backup and the unit's state are good again."""
    yield
    host.check_output("systemctl reset-failed platform-backup@*")


def test_there_is_a_backup_with_its_proof_and_no_problem(host: Any) -> None:
    assert job(host, "status") == 0
    found = status(host)
    assert found["backup"]["ok"]
    assert found["problems"] == []
    proof = json.loads(host.check_output("cat %s/platform/proofs/%s.json", REPOSITORY, found["backup"]["proof"]))
    assert set(proof["databases"]) == {"airflow", "transformation_service"}
    assert all(proof["databases"].values()), "a proof of the empty server says nothing"


@pytest.mark.parametrize("name", JOBS)
def test_the_clock_runs_it_again(host: Any, name: str) -> None:
    shown = host.check_output(
        "systemctl show --property=ActiveState,UnitFileState,NextElapseUSecRealtime %s", f"platform-backup-{name}.timer"
    )
    assert "ActiveState=active" in shown
    assert "UnitFileState=enabled" in shown
    assert "NextElapseUSecRealtime=\n" not in shown + "\n"


def test_a_change_is_in_the_repository_within_a_minute(platform: Platform, host: Any) -> None:
    wal = platform.psql("SELECT pg_walfile_name(pg_logical_emit_message(true, 'test', 'x')) AS name")[0]["name"]
    began = datetime.now(UTC)
    wait_for(
        lambda: platform.psql("SELECT last_archived_wal AS name FROM pg_stat_archiver")[0]["name"],
        lambda name: name >= wal,
        f"{wal} in the repository",
        60,
        1,
    )
    assert (datetime.now(UTC) - began).total_seconds() <= 60
    command = f"runuser -u postgres -- pgbackrest repo-ls --recurse --filter={wal} archive/platform"
    assert wal in host.check_output(command)


def test_nothing_in_the_repository_is_readable_without_the_passphrase(platform: Platform, host: Any) -> None:
    assert host.file(REPOSITORY).mode == 0o700
    assert host.file("/etc/pgbackrest/pgbackrest.conf").mode == 0o400
    vault = host.check_output("cat %s/platform/keys.vault", REPOSITORY)
    assert vault.startswith("$ANSIBLE_VAULT;")
    # A label that every cluster's file begins with would be there, were it not encrypted.
    found = host.run("grep -rlE '^\\[backup\\]|Database system identifier' %s/backup", REPOSITORY)
    assert found.stdout == ""


def test_the_live_release_is_kept_whole(platform: Platform, host: Any) -> None:
    live = platform.host(platform.first("airflow_scheduler")).check_output("readlink -f /opt/airflow/current")
    name = live.rsplit("/", 1)[-1]
    assert "OK" in host.check_output("cd %s/platform/releases && sha256sum -c %s", REPOSITORY, f"{name}.tar.gz.sha256")
    listed = host.check_output("tar -tzf %s/platform/releases/%s", REPOSITORY, f"{name}.tar.gz")
    assert f"{name}/dags/01_user_transformation.py" in listed.splitlines()


@pytest.mark.slow
def test_the_drill_restores_and_compares_and_leaves_nothing(host: Any) -> None:
    assert job(host, "drill") == 0
    found = status(host)["drill"]
    assert found["ok"]
    assert found["rows"] > 1000
    assert not host.file("/var/lib/backup/drill").exists


@pytest.mark.slow
def test_a_damaged_repository_fails_the_drill_and_refuses_the_restore(host: Any, healed: None) -> None:
    label = status(host)["backup"]["label"]
    folder = f"{REPOSITORY}/backup/platform/{label}"
    damaged = host.check_output("find %s -name '*.zst' -size +4k | head -1", folder)
    flip = "import sys; f = open(sys.argv[1], 'r+b'); b = f.read(1)[0]; f.seek(0); f.write(bytes([b ^ 255]))"
    host.check_output("python3 -c %s %s", flip, damaged)
    try:
        assert job(host, "drill") != 0
        assert host.run("systemctl is-failed platform-backup@drill.service").stdout.strip() == "failed"
        assert "damaged" in status(host)["drill"]["error"]
        refused = json.loads(host.check_output("platform-backup inspect --name x --over x"))["problems"]
        assert ["damaged" in problem["problem"] for problem in refused] == [True]
    finally:
        host.check_output("python3 -c %s %s", flip, damaged)
    assert job(host, "drill") == 0
