"""The module reloads by the files' times, names settings that wait for a restart, and tells what is wrong."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.host.run_module import run_module
from tests.unit.postgresql.conftest import Server

pytestmark = pytest.mark.database

MODULE = "postgresql/library/postgresql_server.py"
FACTS = "postgresql/library/postgresql_cluster_facts.py"


def run(server: Server, *, check: bool = False, **parameters: Any) -> dict[str, Any]:
    return run_module(MODULE, {**server.parameters, "timeout": 5, **parameters}, check=check)


def test_a_newer_file_reloads_once(server: Server) -> None:
    files = {"reload_after": [str(server.settings), str(server.hba)]}
    run(server, **files)
    with server.hba.open("a") as stream:
        stream.write("# newer\n")

    foreseen, first, second = run(server, check=True, **files), run(server, **files), run(server, **files)

    assert [foreseen["changed"], first["changed"], second["changed"]] == [True, True, False]


def test_check_mode_foresees_the_reload_for_a_file_that_would_change(server: Server) -> None:
    path = "/etc/postgresql/17/main/conf.d/not-written-yet.conf"
    assert run(server, check=True, reload_after=[path], changed_paths=[path])["changed"]


def test_a_setting_that_needs_a_restart_is_named(server: Server) -> None:
    server.query("ALTER SYSTEM SET max_worker_processes = 9")
    os.utime(server.settings, (time.time(), time.time()))
    try:
        result = run(server, reload_after=[str(server.settings)])
    finally:
        server.query("ALTER SYSTEM RESET max_worker_processes")
        server.query("SELECT pg_reload_conf()")
    assert "max_worker_processes" in result["pending_restart"]
    assert any("max_worker_processes" in problem for problem in result["problems"])


def test_a_broken_access_rule_is_named(server: Server) -> None:
    rules = server.hba.read_text()
    server.hba.write_text(rules + "hostssl airflow airflow not-an-address/99 scram-sha-256\n")
    try:
        problems = run(server)["problems"]
    finally:
        server.hba.write_text(rules)
    assert any(problem.startswith("rule not applied: pg_hba line") for problem in problems)


def test_missing_checksums_and_a_silent_address_are_named(server: Server) -> None:
    problems = run(server, addresses=["127.0.0.1"])["problems"]
    assert problems[0].startswith("the cluster has no data checksums")
    assert problems[-1].startswith("no answer at 127.0.0.1 port 5432")


def test_no_server_fails_with_the_socket_it_looked_for(tmp_path: Path) -> None:
    result = run_module(MODULE, {"socket_directory": str(tmp_path), "timeout": 0})
    assert result["failed"]
    assert str(tmp_path) in result["msg"]


def test_facts_tell_a_cluster_without_checksums_from_none(server: Server, tmp_path: Path) -> None:
    binaries = str(server.server.binaries)
    cluster = run_module(FACTS, {"binaries": binaries, "data_directory": str(server.server.directory / "data")})
    none = run_module(
        FACTS, {"binaries": binaries, "data_directory": str(tmp_path), "packages": ["dpkg", "no-such-package"]}
    )

    assert (cluster["cluster_exists"], cluster["data_checksums"]) == (True, False)
    assert (none["cluster_exists"], none["data_checksums"]) == (False, None)
    assert none["missing_packages"] == ["no-such-package"]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    assert abs(none["memory_mb"] - pages) <= 1
