"""Deploys and rollbacks on a platform in use: nothing is killed, runs keep their release, broken ones go nowhere."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from deployments import PROBE_DAG_FILE, PROBE_OPERATOR_FILE, Deployer, changed, probe_released
from platform_under_test import AIRFLOW_PYTHON, Figures, Platform, wait_for

pytestmark = [
    pytest.mark.unit("airflow_scheduler", "airflow-dag-processor"),
    pytest.mark.unit("airflow_scheduler", "airflow-scheduler"),
]
UNITS = {
    "airflow_scheduler": ("api-server", "scheduler", "dag-processor", "triggerer"),
    "airflow_worker": ("worker",),
}
TASKS = 20
LOG_KEYS = ["at", "action", "release", "previous", "revision", "dirty", "by", "from", "result", "seconds", "message"]


@pytest.fixture(scope="module")
def deployer(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployer]:
    with probe_released(platform, tmp_path_factory.mktemp("source"), "one") as made:
        yield made


@contextlib.contextmanager
def room(platform: Platform) -> Iterator[None]:
    """Places on the workers for every task of a run, beside those of the proof."""
    scheduler, more = platform.first("airflow_scheduler"), -(-TASKS // len(platform.groups["airflow_worker"]))
    answers = platform.probe(scheduler, "celery_pool", more, python=AIRFLOW_PYTHON)
    assert len(answers) == len(platform.groups["airflow_worker"]), answers
    try:
        yield
    finally:
        platform.probe(scheduler, "celery_pool", -more, python=AIRFLOW_PYTHON)


def starts(platform: Platform) -> dict[tuple[str, str], str]:
    """When each process of Airflow started."""
    return {
        (name, unit): platform.host(name).check_output(
            f"systemctl show -P ExecMainStartTimestampMonotonic airflow-{unit}"
        )
        for group, units in UNITS.items()
        for name in platform.groups[group]
        for unit in units
    }


@dataclass(frozen=True)
class Story:
    """A deploy and a rollback while tasks run: releases and runs in order, and what the playbooks printed."""

    releases: tuple[str, str]
    runs: tuple[str, str, str]
    deploy: str
    rollback: str
    rollback_seconds: float
    again: str
    starts: tuple[dict[tuple[str, str], str], dict[tuple[str, str], str]]


@pytest.fixture(scope="module")
def story(platform: Platform, deployer: Deployer) -> Story:
    """One run under way at the deploy, one between deploy and rollback, one after it."""
    gates = [f"/run/deploy_probe_{time.time_ns()}_{number}" for number in range(3)]
    deployer.probe_dag("one")
    deployer.run(airflow_release_smoke=False)
    one = deployer.live()
    before = starts(platform)
    with room(platform):
        first = deployer.trigger(gates[0])
        deployer.await_running(first, TASKS)
        deployer.probe_dag("two")
        deploy = deployer.run()
        two, ended = deployer.live(), time.time()
        deployer.open(gates[0])
        second = deployer.trigger(gates[1])
        deployer.await_running(second, TASKS)
        time.sleep(max(0.0, ended + 5 - time.time()))  # the case is a rollback 5 s after the deploy
        began = time.monotonic()
        rollback = deployer.run("rollback_release")
        seconds = time.monotonic() - began
        third = deployer.trigger(gates[2])
        deployer.open(gates[1])
        deployer.open(gates[2])
        for run_id in (first, second, third):
            deployer.values(run_id)
    assert deployer.live() == one
    again = deployer.run("rollback_release", release_id=one)
    for name in platform.groups["airflow_worker"]:
        platform.host(name).check_output("rm -f /run/deploy_probe_*")
    return Story((one, two), (first, second, third), deploy, rollback, seconds, again, (before, starts(platform)))


def test_no_task_is_killed_and_none_runs_twice(platform: Platform, deployer: Deployer, story: Story) -> None:
    for run_id in story.runs:
        tasks = deployer.held(run_id)
        assert len(tasks) == TASKS
        assert {(task["state"], task["try_number"]) for task in tasks} == {("success", 1)}


def test_each_run_keeps_the_release_that_it_started_with(platform: Platform, deployer: Deployer, story: Story) -> None:
    wrote = [deployer.values(run_id) for run_id in story.runs]
    assert wrote == [{("one", "one")}, {("two", "two")}, {("one", "one")}]
    paths = [platform.run_path(run_id, "deploy_probe") for run_id in story.runs]
    assert [platform.api.get(path)["bundle_version"] for path in paths] == [*story.releases, story.releases[0]]


def test_nothing_restarts_for_an_operator_that_no_trigger_imports(story: Story) -> None:
    assert story.starts[0] == story.starts[1]


def test_the_deploy_shows_what_changes_before_it_does(story: Story) -> None:
    lines = [line.split() for line in story.deploy.splitlines()]
    shown = lines.index(["changed", "deploy_probe", PROBE_DAG_FILE])
    assert ["beside", PROBE_OPERATOR_FILE] in lines
    flipped = next(number for number, line in enumerate(lines) if "Move" in line)
    assert shown < flipped


def test_every_host_logs_who_did_what(platform: Platform, deployer: Deployer, story: Story) -> None:
    one, two = story.releases
    for name in deployer.hosts:
        deploy, rollback = deployer.log(name)[-2:]
        assert [deploy[key] for key in ("action", "release", "previous", "result")] == ["deploy", two, one, "live"]
        assert [rollback[key] for key in ("action", "release", "previous", "result")] == ["rollback", one, two, "live"]
        assert set(deploy) == set(LOG_KEYS)
        assert deploy["by"]
        assert deploy["from"]


def test_a_rollback_ends_within_a_minute(story: Story, figures: Figures) -> None:
    figures(f"rollback with its proof: {story.rollback_seconds:.0f} s")
    assert story.rollback_seconds < 60


def test_a_rollback_to_what_is_live_changes_nothing(story: Story) -> None:
    assert set(changed(story.again).values()) == {0}


def test_one_deploy_at_a_time_and_a_killed_one_frees_the_lock(
    platform: Platform, deployer: Deployer, figures: Figures
) -> None:
    deployer.probe_dag("locked")
    first = deployer.start()
    try:
        owner = json.loads(wait_for(deployer.lock_owner, bool, "the lock", 60, pause=0.1))
        assert owner["process"] == first.pid
        refused = deployer.run("rollback_release", fails=True)
        assert f"is deploying since {owner['since']}" in refused
        assert f"process {first.pid} there). Nothing was changed." in refused
        assert first.poll() is None, "the first had ended by itself; nothing was proven"
        assert not set(changed(refused).values()) - {0}
        os.kill(first.pid, signal.SIGKILL)
        killed = time.monotonic()
        wait_for(deployer.lock_owner, lambda found: not found, "the end of the lock", 5, pause=0.1)
        figures(f"lock free {time.monotonic() - killed:.1f} s after kill -9")
    finally:
        first.kill()
        first.communicate()
    assert deployer.log(platform.first("airflow_scheduler"))[-1]["result"] == "refused"
    deployer.run(airflow_release_smoke=False)  # takes up what was killed
    assert set(deployer.served().values()) == {deployer.live()}


HEAD = "from airflow.sdk import DAG\nfrom airflow.providers.standard.operators.empty import EmptyOperator as Task\n"
TWIN = HEAD + "with DAG('deploy_twin', schedule=None):\n    Task(task_id='a')\n"
CYCLE = HEAD + (
    "with DAG('deploy_circle', schedule=None):\n    a = Task(task_id='a')\n    b = Task(task_id='b')\n    a >> b >> a\n"
)
ELSEWHERE = HEAD + (
    "import socket\n\nif socket.gethostname() == '{host}':\n    import not_installed_there\n"
    "with DAG('deploy_elsewhere', schedule=None):\n    Task(task_id='a')\n"
)
UNPROVEN = """

def _planted(self: object, context: object) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    raise AirflowFailException("planted by a test")


RuleEngineOperator.execute = _planted  # type: ignore[method-assign]
"""
DAMAGE = """#!/usr/bin/env python3
# An sftp that flips a byte of the release's archive on its way.
import pathlib, re, subprocess, sys
batch = sys.stdin.read()
for name in re.findall(r"(/\\S*release-\\w+-\\w+)", batch):
    data = bytearray(pathlib.Path(name).read_bytes())
    data[len(data) // 2] ^= 1
    pathlib.Path(name).write_bytes(data)
sys.exit(subprocess.run(["sftp", *sys.argv[1:]], input=batch, text=True).returncode)
"""


@contextlib.contextmanager
def planted(deployer: Deployer, files: dict[str, str]) -> Iterator[None]:
    """Files in the sources, for a while."""
    before = {name: path.read_text() if (path := deployer.source / name).exists() else None for name in files}
    for name, text in files.items():
        deployer.write(name, text)
    try:
        yield
    finally:
        for name, former in before.items():
            if former is None:
                (deployer.source / name).unlink()
            else:
                deployer.write(name, former)


def refuse(deployer: Deployer, files: dict[str, str], says: list[str], **variables: object) -> None:
    """Deploy what must be refused: it says why, and the API serves the same at every moment."""
    live = deployer.live()
    with planted(deployer, files), deployer.watched() as seen:
        output = deployer.run(fails=True, **variables)
    assert [text for text in says if text not in output] == [], output
    assert "Nothing went live; what was live still is." in output
    assert [served for _, served in seen if served != seen[0][1]] == []
    assert len(seen) > 3
    assert deployer.live() == live
    for name in deployer.hosts:
        last = deployer.log(name)[-1]
        assert (last["action"], last["result"]) == ("deploy", "refused")
        assert [text for text in says if text not in last["message"]] == []


def test_every_mistake_in_the_sources_is_refused_at_once(deployer: Deployer) -> None:
    refuse(
        deployer,
        {
            "dags/deploy_syntax.py": HEAD + "def broken(:\n",
            "dags/deploy_twin_a.py": TWIN,
            "dags/deploy_twin_b.py": TWIN,
            "dags/deploy_cycle.py": CYCLE,
        },
        ["dags/deploy_syntax.py:3: SyntaxError", "deploy_twin", "Cycle detected in Dag: deploy_circle"],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"dags/deploy_syntax.py": HEAD + "def broken(:\n"}, ["dags/deploy_syntax.py:3: SyntaxError"]),
        ({"dags/deploy_elsewhere.py": ELSEWHERE}, ["dags/deploy_elsewhere.py:6", "not_installed_there"]),
        ({"dags/deploy_twin_a.py": TWIN, "dags/deploy_twin_b.py": TWIN}, ["deploy_twin", "dags/deploy_twin_b.py"]),
        ({"dags/deploy_cycle.py": CYCLE}, ["dags/deploy_cycle.py", "Cycle detected in Dag: deploy_circle"]),
    ],
    ids=["syntax", "one host only", "duplicate", "cycle"],
)
def test_a_mistake_is_refused(platform: Platform, deployer: Deployer, files: dict[str, str], says: list[str]) -> None:
    last = platform.groups["airflow_worker"][-1]
    refuse(deployer, {name: text.replace("{host}", last) for name, text in files.items()}, says)


@pytest.mark.slow
def test_damage_on_the_way_is_refused(deployer: Deployer, tmp_path: Path) -> None:
    sftp = tmp_path / "sftp"
    sftp.write_text(DAMAGE)
    sftp.chmod(0o755)
    new = {"dags/deploy_new.py": TWIN.replace("twin", "new")}
    refuse(deployer, new, ["arrived damaged"], ansible_sftp_executable=str(sftp), ansible_ssh_transfer_method="sftp")


@pytest.mark.slow
def test_a_removed_dag_is_refused_until_it_is_wanted(deployer: Deployer) -> None:
    file = deployer.source / PROBE_DAG_FILE
    text = file.read_text()
    file.unlink()
    try:
        refuse(
            deployer, {}, [f"DAG deploy_probe of {PROBE_DAG_FILE} would be removed", "airflow_release_allow_removal"]
        )
    finally:
        file.write_text(text)


@pytest.mark.slow
def test_what_the_proof_refuses_is_taken_back(platform: Platform, deployer: Deployer) -> None:
    live, name = deployer.live(), "plugins/operators/rule_engine_operator.py"
    text = (deployer.source / name).read_text()
    with planted(deployer, {name: text + UNPROVEN}), deployer.watched() as seen:
        output = deployer.run(fails=True)
    assert f"{live} is live again on all hosts" in output
    assert "planted by a test" in output
    assert deployer.live() == live
    releases = [set(served.values()) for _, served in seen]
    assert releases[-1] == {live}
    assert all(served.keys() == seen[0][1].keys() for _, served in seen)  # none missing, no import error, at any moment
    for host in deployer.hosts:
        last = deployer.log(host)[-1]
        assert (last["result"], last["previous"]) == ("flipped back", live)


@pytest.mark.slow
def test_killed_at_any_point_the_next_deploy_converges(deployer: Deployer, figures: Figures) -> None:
    began = time.monotonic()
    deployer.probe_dag("killed 0")
    deployer.run()
    whole = time.monotonic() - began
    for number in range(1, 4):
        deployer.probe_dag(f"killed {number}")
        process = deployer.start()
        after = random.uniform(0.15, 0.95) * whole
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after)
        process.kill()
        process.communicate()
        wait_for(deployer.lock_owner, lambda owner: not owner, "the end of the lock", 5)
        deployer.run()
        figures(f"deploy killed after {after:.1f} of {whole:.1f} s: the next one converged")
        assert set(changed(deployer.run()).values()) == {0}
        assert set(deployer.served().values()) == {deployer.live()}


@pytest.mark.slow
def test_a_release_is_visible_within_seconds(platform: Platform, deployer: Deployer, figures: Figures) -> None:
    """From the move of the link, by the host's clock, to every DAG in the API, asked ten times a second."""
    scheduler = platform.host(platform.first("airflow_scheduler"))
    helper = (deployer.source / "plugins/daily.py").read_text()
    found: dict[str, list[float]] = {}

    def measure(case: str, playbook: str = "deploy", **variables: object) -> None:
        with deployer.watched(0.1) as seen:
            deployer.run(playbook, airflow_release_smoke=False, **variables)
        release, flipped = deployer.live(), float(scheduler.check_output("stat -c %.Y /opt/airflow/current"))
        offset = time.time() - float(scheduler.check_output("date +%s.%N"))
        at = next(moment for moment, served in seen if set(served.values()) == {release})
        found.setdefault(case, []).append(at - offset - flipped)

    for number in range(int(os.environ.get("DEPLOY_ROUNDS", "2"))):
        deployer.write(f"dags/deploy_new_{number}.py", TWIN.replace("twin", f"new_{number}"))
        measure("new file")
        before = deployer.live()
        deployer.probe_dag(f"visible {number}")
        measure("edited file")
        deployer.probe_dag(f"visible {number}, 5 s later")
        measure("5 s after another")
        deployer.write("plugins/daily.py", helper + f"\n# {number}\n")
        measure("helper only")
        measure("older release", "rollback_release", release_id=before)
    seconds = sorted(value for values in found.values() for value in values)
    p50, p95 = statistics.median(seconds), seconds[min(len(seconds) - 1, round(0.95 * len(seconds)))]
    figures(f"visible after p50 {p50:.1f} s, p95 {p95:.1f} s; load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores")
    for case, values in found.items():
        figures(f"  {case:<18} {', '.join(f'{value:.1f}' for value in values)} s")
    assert p50 <= 4
    assert p95 <= 8
