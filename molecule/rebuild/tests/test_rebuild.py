"""All hosts are lost; one command brings the platform back as it was, or says what is in its way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import platform_under_test
from platform_under_test import ROOT, Figures, Platform, wait_for

RESULT = ROOT / ".artifacts/rebuild/result.json"
# Live at the time of the backup, and not in the sources that the rebuild is started from.
DAG = """
from airflow.sdk import DAG

with DAG("only_in_the_backup", schedule=None):
    pass
"""


def result() -> dict[str, Any]:
    return dict(json.loads(RESULT.read_text()))


def runs(platform: Platform) -> dict[str, str]:
    """State of every DAG run that is over."""
    found = platform.api.get("/dags/~/dagRuns?limit=100&order_by=run_after")["dag_runs"]
    return {run["dag_run_id"]: run["state"] for run in found if run["state"] in ("success", "failed")}


def release_of(platform: Platform, dag: str) -> str:
    return str(platform.api.get(f"/dags/{dag}")["bundle_version"])


def test_a_platform_in_use_is_refused_and_left_alone(platform, hosts):
    before = runs(platform)
    code, output = hosts.rebuild()
    assert code == 10, output
    assert "make rebuild OVER=data-1" in output
    assert (result()["outcome"], {phase["changed"] for phase in result()["phases"]}) == ("refused", {0})
    assert runs(platform).items() >= before.items()


def test_lost_hosts_come_back_with_history_variables_and_release(platform, hosts, figures: Figures, tmp_path: Path):
    source = tmp_path / "source"
    for part in ("dags", "plugins", "scripts"):
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".airflowignore", source)
    (source / "dags/only_in_the_backup.py").write_text(DAG)
    hosts.play("deploy", "-e", f"airflow_release_source={source}")
    platform.api.send("DELETE", "/api/v2/variables/by_hand", token=platform.api.token)
    platform.api.call("POST", "/variables", {"key": "by_hand", "value": "somebody typed this"})
    hosts.play("backup")
    release, before = release_of(platform, "only_in_the_backup"), runs(platform)
    assert before
    hosts.lose()

    code, output = hosts.rebuild()
    assert code == 0, output[-6000:]
    found = result()
    assert (found["outcome"], found["failures"]) == ("green", [])
    assert found["backup"]["release"] == found["release"] == release
    assert found["backup"]["tables"] > 50
    assert found["versions"]["airflow"].startswith("Airflow ")
    assert {check["name"] for check in found["smoke"] if check["ok"]} >= {"DAG run", "ledger"}
    phases = ", ".join(
        f"{phase['name']} {phase['seconds']:.0f} s" for phase in found["phases"] if phase["seconds"] >= 3
    )
    figures(f"blank hosts to green in {found['seconds']:.0f} s: {phases}")

    platform_under_test.load.cache_clear()
    back = platform_under_test.load()
    assert runs(back).items() >= before.items()
    assert back.api.get("/variables/by_hand")["value"] == "somebody typed this"
    assert release_of(back, "only_in_the_backup") == release
    log = (RESULT.parent / "ansible.log").read_text()
    for name, secret in back.secrets.items():
        assert secret not in log + RESULT.read_text(), name


def test_a_platform_in_use_is_replaced_when_it_is_named(platform, hosts, figures: Figures):
    platform.psql("SELECT pg_switch_wal()::text AS x")
    platform.api.call("POST", "/variables", {"key": "after_the_backup", "value": "written after it"})
    wait_for(
        lambda: platform.psql("SELECT count(*) AS n FROM variable WHERE key = 'after_the_backup'", "airflow")[0]["n"],
        lambda count: count == 1,
        "the variable",
        10,
    )
    code, output = hosts.rebuild("-e", "restore_over=data-1")
    assert code == 0, output[-6000:]
    figures(f"over a platform in use in {result()['seconds']:.0f} s")
    platform_under_test.load.cache_clear()
    back = platform_under_test.load()
    # Nothing is lost: what was not in the repository yet is taken from the replaced data folder.
    assert back.api.get("/variables/after_the_backup")["value"] == "written after it"
    folders = back.host("data-1").check_output("ls -d /var/lib/postgresql/*/main.before-*").split()
    assert len(folders) == 1


def test_hosts_without_a_backup_are_refused_before_any_change(hosts):
    hosts.lose(backups=True)
    code, output = hosts.rebuild()
    assert code == 10, output
    assert "has no backup in backup_repository" in output
    assert result()["outcome"] == "refused"


def test_a_begin_from_scratch_whose_proof_fails_says_so(hosts):
    code, output = hosts.rebuild("-e", "rebuild_from_scratch=true", "-e", "airflow_smoke_version=0.0.0")
    assert code == 30, output[-4000:]
    found = result()
    assert (found["outcome"], found["phases"][-1]["stage"]) == ("proof failed", "proof")
    assert "expected 0.0.0" in found["failures"][0]["message"]
    code, output = hosts.rebuild("-e", "rebuild_from_scratch=true")
    assert code == 10, output[-4000:]
    assert "nothing begins from scratch over data" in output
    hosts.play("smoke")


def test_a_rebuild_that_breaks_off_says_where_and_keeps_the_journals(hosts):
    hosts.lose(backups=True)
    broken = {"full": "no day", "diff": "Mon 03:30", "export": "04:15", "drill": "Sun 05:30"}
    code, output = hosts.rebuild("-e", "rebuild_from_scratch=true", "-e", json.dumps({"backup_schedule": broken}))
    assert code == 20, output[-4000:]
    found = result()
    assert (found["outcome"], found["failures"][0]["phase"], found["failures"][0]["host"]) == (
        "failed",
        "PostgreSQL",
        "data-1",
    )
    assert (RESULT.parent / "journals/data-1.log").stat().st_size > 0
