"""The bad night: PostgreSQL killed and its data wiped in the middle of writes, then `restore.yml`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import platform_under_test
import pytest
from platform_under_test import Platform, wait_for

MOST_LOST_SECONDS = 60
MOST_SECONDS = 600
INVENTORIES = "inventories/local:molecule/shared/inventory:molecule/restore/inventory"
# A database of this size is restored: RESTORE_MB=1024.
MEGABYTES = int(os.environ.get("RESTORE_MB", "0"))
ROWS_PER_MEGABYTE = 7700
KILL = """
folder=$(ls -d /var/lib/postgresql/*/main); cd /
kill -9 $(head -1 $folder/postmaster.pid) $(pgrep -u postgres -f 'postgres: '); rm -rf $folder; test ! -e $folder
"""


def restore(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the playbook against this scenario's hosts."""
    root = platform_under_test.ROOT
    names = os.environ.get("PLATFORM_INVENTORY", INVENTORIES).split(":")
    inventories = [word for name in names for word in ("-i", name)]
    return subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), *inventories, "playbooks/restore.yml", *options],
        cwd=root,
        env={**os.environ, "ANSIBLE_CONFIG": str(root / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def platform() -> Platform:
    return platform_under_test.load()


def test_data_that_is_there_is_left_alone(platform: Platform) -> None:
    done = restore()
    assert done.returncode != 0
    assert "Restore refused. Nothing was changed." in done.stdout + done.stderr
    assert "restore_over=postgresql-1" in done.stdout + done.stderr
    assert platform.psql("SELECT 1 AS n")[0]["n"] == 1


def test_a_killed_and_wiped_server_comes_back_with_all_but_the_last_minute(platform: Platform) -> None:
    host = platform.host(platform.first("postgresql"))
    psql = "runuser -u postgres -- psql -qd transformation_service"
    # In a schema of its own: the service sets the rights of every table in public, and wants to own them.
    host.check_output(f"{psql} -c 'DROP SCHEMA IF EXISTS rpo CASCADE' -c 'CREATE SCHEMA rpo'")
    if MEGABYTES:
        text = "md5(n::text) || md5((-n)::text) || md5((n * 7)::text)"
        rows = f"SELECT n, {text} AS t FROM generate_series(1, {MEGABYTES * ROWS_PER_MEGABYTE}) n"
        host.check_output(f"{psql} -c 'CREATE TABLE rpo.bulk AS {rows}'")
    size = platform.psql("SELECT sum(pg_database_size(oid))::bigint AS n FROM pg_database")[0]["n"]
    began = time.monotonic()
    host.check_output("platform-backup diff")
    backed_up = time.monotonic() - began
    host.check_output(f"{psql} -c 'CREATE TABLE rpo.mark (at timestamptz)'")
    write = f"{psql} -c 'INSERT INTO rpo.mark VALUES (clock_timestamp())'"
    first = time.time()
    wal = platform.psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn()) AS name")[0]["name"]
    # Writes go on until the archive has some of them, and a while longer.
    wait_for(
        lambda: (
            host.check_output(write),
            platform.psql("SELECT last_archived_wal AS n FROM pg_stat_archiver")[0]["n"],
        )[1],
        lambda archived: archived >= wal,
        "the archive to have writes",
        90,
    )
    host.check_output(write)
    killed = time.time()
    host.check_output("bash -c %s", KILL)
    began = time.monotonic()
    done = restore()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "rows of" in done.stdout
    assert "tables equal those at" in done.stdout
    last = platform.psql("SELECT extract(epoch FROM max(at))::float8 AS at FROM rpo.mark", "transformation_service")[0][
        "at"
    ]
    assert last > first
    whole = time.monotonic() - began
    print(f"{size / 2**20:.0f} MB, backed up in {backed_up:.0f} s; lost {killed - last:.1f} s of writes")
    print(f"green again {whole:.0f} s after the kill")
    print(done.stdout)
    assert killed - last <= MOST_LOST_SECONDS
    assert whole <= MOST_SECONDS


def test_an_instant_before_a_mistake(platform: Platform) -> None:
    host = platform.host(platform.first("postgresql"))
    before = platform.psql(
        "SELECT now() AT TIME ZONE 'UTC' AS at, count(*) AS n FROM user_record", "transformation_service"
    )[0]
    host.check_output("runuser -u postgres -- psql -qd transformation_service -c 'DROP TABLE rpo.mark'")
    # A repository knows its files' times in whole seconds, and an instant after its newest file's is refused.
    passed = f"SELECT now() AT TIME ZONE 'UTC' > '{before['at']}'::timestamp + interval '1 s' AS passed"
    wait_for(lambda: platform.psql(passed)[0]["passed"], bool, "the next second", 10, 0.1)
    host.check_output("runuser -u postgres -- pgbackrest --stanza=platform check")
    done = restore("-e", f"restore_target_time={before['at']}Z", "-e", "restore_over=postgresql-1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    there = platform.psql("SELECT to_regclass('rpo.mark') IS NOT NULL AS there", "transformation_service")
    assert there[0]["there"], "the mistake was restored as well"


def test_the_copy_is_enough_when_the_repository_goes_with_the_server(platform: Platform) -> None:
    host = platform.host(platform.first("postgresql"))
    host.check_output("platform-backup diff")
    count = "SELECT count(*) AS n FROM user_record"
    before = platform.psql(count, "transformation_service")
    host.check_output("bash -c %s", KILL + "rm -rf /var/lib/pgbackrest/*")
    refused = restore()
    assert refused.returncode != 0
    assert "repository 1 has no backup" in refused.stdout + refused.stderr
    done = restore("-e", "restore_repository=2")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert platform.psql(count, "transformation_service") == before
    for repository in (1, 2):  # the first is made anew, and gets what comes from now on
        info = host.check_output(f"runuser -u postgres -- pgbackrest --stanza=platform --repo={repository} info")
        assert "status: ok" in info, info
