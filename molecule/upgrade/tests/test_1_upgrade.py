"""From Airflow 3.2 to this version: a proof that fails, a drain too long, two kills, success, and the way back."""

from __future__ import annotations

import re
import secrets
from typing import Any

import pytest
from cryptography.fernet import Fernet
from deployments import changed, kill
from platform_under_test import ROOT, Platform, wait_for
from upgrades import Operator

OLD = "3.2.2"
OLD_SCHEMA, NEW_SCHEMA = "1d6611b6ab7c", "d2f4e1b3c5a7"
NEW = re.findall(r"^apache-airflow==(\S+)", (ROOT / "roles/airflow/files/requirements.txt").read_text(), re.MULTILINE)[
    0
]
FORMER = ROOT / ".artifacts/former"
HISTORY = "SELECT dag_id, run_id, state FROM dag_run WHERE end_date IS NOT NULL ORDER BY 1, 2"


@pytest.fixture(scope="module")
def upgraded() -> list[str]:
    """What the upgrade has printed, once it has succeeded."""
    return []


def history(platform: Platform) -> list[dict[str, Any]]:
    return platform.psql(HISTORY, "airflow")


def token(platform: Platform) -> str:
    row = platform.psql("SELECT password FROM connection WHERE conn_id = 'transformation_service'", "airflow")[0]
    return Fernet(platform.secrets["airflow_fernet_key"].encode()).decrypt(row["password"].encode()).decode()


def nothing_is_kept(operator: Operator) -> bool:
    kept = operator.platform.host("control-1").file("/var/lib/airflow_upgrade/former.tar").exists
    return not kept and operator.databases() == [
        "airflow",
        "postgres",
        "template0",
        "template1",
        "transformation_service",
    ]


def test_a_look_lists_migrations_and_changes_nothing(operator: Operator) -> None:
    output = operator.run("upgrade", "--check")
    assert f"control-1: Airflow {OLD} to {NEW}" in output
    assert f"alembic_version: {OLD_SCHEMA} to {NEW_SCHEMA}, 14 migrations" in output
    assert operator.version() == OLD
    assert operator.active("scheduler") == "active"


def test_reasons_against_it_come_in_one_list(operator: Operator) -> None:
    # A smaller disk cannot be had here, another secret can; and a lock that leaves a minor version out.
    output = operator.run(
        "upgrade",
        fails=True,
        airflow_api_secret_key=secrets.token_hex(32),
        airflow_requirements="apache-airflow==3.4.0 \\\n",
    )
    assert "Upgrade refused. Nothing was changed." in output
    assert "leaves out a minor version" in output
    assert "api_secret_key differ from the inventory" in output
    assert operator.active("scheduler") == "active"


def test_what_the_proof_refuses_is_taken_back(operator: Operator, gate: str) -> None:
    platform = operator.platform
    operator.open(gate)
    run = operator.trigger(gate, 0)
    operator.await_states(run, lambda states: states.count("success") == len(states) > 20, "the run's end")
    before = history(platform)

    # The proof asks for the old version, so the new one fails it, and the old one passes.
    output = operator.run("upgrade", fails=True, airflow_smoke_version=OLD)

    assert f"Airflow {NEW} answers, expected {OLD}" in output
    assert f"Airflow {NEW} is taken back. {OLD} runs again" in output
    assert operator.version() == OLD
    assert operator.schema() == OLD_SCHEMA
    assert f"venvs/{OLD}-" in platform.host("worker-1").check_output("systemctl show -P ExecStart airflow-worker")
    # What the new version did is forgotten; the old one's proof is one more run.
    after = history(platform)
    assert [run for run in before if run not in after] == []
    assert nothing_is_kept(operator)
    assert "11 checks" in operator.run("smoke")


def test_a_drain_that_takes_too_long_is_given_up(operator: Operator, gate: str) -> None:
    platform = operator.platform
    run = operator.trigger(gate, 0)
    operator.await_states(run, lambda states: states.count("running") >= 3, "running tasks")
    output = operator.run("upgrade", fails=True, airflow_drain_seconds=5)
    assert "After 5 s tasks still run on worker-1" in output
    assert operator.version() == OLD
    assert {operator.active("scheduler", name) for name in platform.groups["airflow_scheduler"]} == {"active"}
    operator.open(gate)
    operator.await_states(run, lambda states: states.count("success") == len(states) == 21, "the run's end", 240)
    assert {task["try_number"] for task in operator.tasks(run)} == {1}
    assert nothing_is_kept(operator)


def test_tasks_under_way_outlast_an_upgrade_that_is_killed_twice(
    operator: Operator, gate: str, upgraded: list[str]
) -> None:
    platform = operator.platform
    before = history(platform)
    run = operator.trigger(gate, deferred_seconds=60)
    operator.await_states(run, lambda states: "deferred" in states and states.count("running") >= 3, "running tasks")

    first = operator.start("upgrade")
    wait_for(lambda: operator.active("scheduler"), lambda state: state == "inactive", "the drain", 240)
    kill(first)
    assert operator.version() == OLD, "the API serves the tasks that still run"

    second = operator.start("upgrade")
    operator.open(gate)
    wait_for(operator.databases, lambda names: "airflow_before_upgrade" in names, "the copy", 240)
    wait_for(
        lambda: platform.host("control-1").run("pgrep -f 'airflow db migrat[e]'").rc,
        lambda code: code == 0,
        "the migration",
        120,
        0.1,
    )
    kill(second)

    output = operator.run("upgrade")
    upgraded.append(output)
    print("\n".join(line for line in output.splitlines() if "No task started" in line))

    assert operator.version() == NEW
    assert operator.schema() == NEW_SCHEMA
    for name in platform.groups["all"]:
        assert platform.host(name).check_output("readlink /opt/airflow/venv").startswith(f"/opt/airflow/venvs/{NEW}-")
    operator.await_states(run, lambda states: states.count("success") == len(states) == 21, "the run's end", 240)
    assert {task["try_number"] for task in operator.tasks(run)} == {1}
    assert [run for run in before if run not in history(platform)] == []
    assert token(platform) == platform.secrets["transformation_service_token"]
    assert nothing_is_kept(operator)


def test_there_is_nothing_to_do_any_more(operator: Operator) -> None:
    output = operator.run("upgrade")
    assert "runs on every host: nothing to do" in output
    assert set(changed(output).values()) == {0}


def test_the_live_release_may_be_gone_back_to(operator: Operator) -> None:
    # It counts as read with the new packages; a rollback refuses it otherwise.
    output = operator.run(
        "rollback_release",
        "--check",
        release_id=operator.platform.host("control-1").check_output("readlink /opt/airflow/current").split("/")[-1],
    )
    assert "was verified with" not in output


def test_an_older_lock_is_refused(operator: Operator) -> None:
    output = operator.run("upgrade", fails=True, airflow_requirements=f"apache-airflow=={OLD} \\\n")
    assert f"Airflow {NEW} runs, and this repository has {OLD}: its database can't go back" in output
    assert operator.version() == NEW


def test_after_success_the_former_revision_goes_back_by_a_restore(operator: Operator, upgraded: list[str]) -> None:
    platform = operator.platform
    (instant, over) = re.findall(r"make restore TARGET_TIME=(\S+) ARGS='-e restore_over=(\S+) ", upgraded[-1])[0]
    operator.run("restore", "-e", "airflow_upgrade=true", restore_target_time=instant, restore_over=over, root=FORMER)
    assert operator.version() == OLD
    assert operator.schema() == OLD_SCHEMA
    for name in platform.groups["all"]:
        assert platform.host(name).check_output("readlink /opt/airflow/venv").startswith(f"/opt/airflow/venvs/{OLD}-")
    assert "11 checks" in operator.run("smoke", root=FORMER)
    operator.run("upgrade")
    assert operator.version() == NEW
