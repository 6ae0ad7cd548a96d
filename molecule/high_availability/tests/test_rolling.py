"""A change of the configuration with 20 tasks running: host by host, no task killed, the API there all the time."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from api_probe import Seen, probed
from deployments import Deployer, changed, probe_released
from platform_under_test import AIRFLOW_PYTHON, Figures, Platform, wait_for

pytestmark = [
    pytest.mark.unit("airflow_worker", "airflow-worker"),
    pytest.mark.unit("airflow_scheduler", "airflow-api-server"),
]
TASKS = 20
LONGEST_GAP_SECONDS = 10
DRAIN_SECONDS = 5


@dataclass(frozen=True)
class Story:
    """A rolling change under load, as seen from outside."""

    output: str
    seconds: float
    tasks: list[dict[str, Any]]
    api: dict[str, Seen]
    drained: list[tuple[str, str]]
    """For each worker that drained: its name, and what the other workers did meanwhile."""
    second: str


@pytest.fixture(scope="module")
def deployer(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployer]:
    with probe_released(platform, tmp_path_factory.mktemp("source"), "rolling") as made:
        yield made
        made.run("site")


def states(platform: Platform) -> dict[str, str]:
    """What systemd says of each worker."""
    return {
        name: str(platform.host(name).run("systemctl is-active airflow-worker").stdout).strip()
        for name in platform.groups["airflow_worker"]
    }


@pytest.fixture(scope="module")
def story(platform: Platform, deployer: Deployer) -> Story:
    workers, gate = platform.groups["airflow_worker"], f"/run/deploy_probe_{time.time_ns()}"
    # Places for these tasks and no more, so that each worker gets some; a restart gives each its own number back.
    own = platform.host(workers[0]).check_output("sed -n 's/^worker_concurrency = //p' /etc/airflow/airflow.cfg")
    scheduler, more = platform.first("airflow_scheduler"), -(-TASKS // len(workers)) - int(own)
    assert len(platform.probe(scheduler, "celery_pool", more, python=AIRFLOW_PYTHON)) == len(workers)
    run_id = deployer.trigger(gate)
    deployer.await_running(run_id, TASKS)
    drained: list[tuple[str, str]] = []
    over = threading.Event()

    def release_what_drains() -> None:
        """Each worker is kept waiting for its tasks for a while; then they end."""
        while not over.wait(0.5) and len(drained) < len(workers):
            now = states(platform)
            for name in set(workers) - {name for name, _ in drained}:
                if now[name] == "deactivating":
                    time.sleep(DRAIN_SECONDS)
                    now = states(platform)
                    others = sorted({state for other, state in now.items() if other != name})
                    drained.append((name, f"{now[name]}, others {', '.join(others)}"))
                    deployer.open(gate, name)

    watcher = threading.Thread(target=release_what_drains)
    watcher.start()
    urls = [f"http://{platform.addresses[name]}:8080/api/v2/version" for name in platform.groups["airflow_scheduler"]]
    settings = {"airflow_settings": {"core": {"parallelism": 33}}}
    try:
        with probed(urls) as api:
            began = time.monotonic()
            output = deployer.run("site", **settings)
            seconds = time.monotonic() - began
    finally:
        over.set()
        watcher.join()
        deployer.open(gate)
    deployer.values(run_id)
    tasks = deployer.held(run_id)
    return Story(output, seconds, tasks, api, drained, deployer.run("site", **settings))


def test_no_task_is_killed_and_none_runs_twice(story: Story) -> None:
    assert len(story.tasks) == TASKS
    assert {(task["state"], task["try_number"]) for task in story.tasks} == {("success", 1)}


def test_each_worker_drains_while_the_others_work(platform: Platform, story: Story) -> None:
    workers = platform.groups["airflow_worker"]
    meanwhile = f"deactivating, others {'active' if len(workers) > 1 else ''}"
    assert story.drained == [(name, meanwhile) for name in workers]


def test_the_api_answers_all_the_time(platform: Platform, story: Story, figures: Figures) -> None:
    for url, seen in story.api.items():
        figures(f"rolling restart in {story.seconds:.0f} s, {url}: {seen}")
    assert [seen.failures for seen in story.api.values()] == [[] for _ in story.api]
    assert max(max(seen.gap, seen.slowest) for seen in story.api.values()) <= LONGEST_GAP_SECONDS


def test_every_component_runs_the_new_configuration(platform: Platform, story: Story) -> None:
    counts = changed(story.output)
    for name in {*platform.groups["airflow_scheduler"], *platform.groups["airflow_worker"]}:
        assert counts[name] > 0, story.output
    written = "stat -c %Y /etc/airflow/airflow.cfg"
    for name in {*platform.groups["airflow_scheduler"], *platform.groups["airflow_worker"]}:
        host = platform.host(name)
        shown = host.check_output("systemctl show -p Id -p ExecMainStartTimestamp 'airflow-*.service' --timestamp=unix")
        blocks = [block for block in shown.split("\n\n") if "airflow-proxy" not in block]  # which reads another file
        started = re.findall(r"ExecMainStartTimestamp=@(\d+)", "\n".join(blocks))
        assert started
        assert min(map(int, started)) >= int(host.check_output(written)), shown


def test_a_second_run_changes_nothing(story: Story) -> None:
    assert set(changed(story.second).values()) == {0}


def test_the_workers_take_tasks_again(platform: Platform, story: Story) -> None:
    wait_for(lambda: set(states(platform).values()), lambda found: found == {"active"}, "the workers", 10)
    assert "consuming default" in story.second


def starts(platform: Platform, *hosts: str) -> dict[str, str]:
    """When each host's units started."""
    return {
        name: platform.host(name).check_output("systemctl show -p Id -p ExecMainStartTimestampMonotonic 'airflow-*'")
        for name in hosts
    }


def test_a_configuration_that_does_not_run_stops_at_the_first_host(
    platform: Platform, deployer: Deployer, story: Story
) -> None:
    others = deployer.hosts[1:]
    before = starts(platform, *others)
    broken = {"airflow_settings": {"core": {"executor": "no.such.Executor"}}, "airflow_health_seconds": 30}
    with probed([f"http://{platform.addresses[name]}:8080/api/v2/version" for name in others[:1]]) as api:
        output = deployer.run("site", fails=True, **broken)
    assert "scheduler has sent no heartbeat since its start" in output
    assert [name for name in others if f"[{name}]" in output.partition("Airflow, host by host")[2]] == []
    assert starts(platform, *others) == before
    if len(platform.groups["airflow_scheduler"]) > 1:
        assert [seen.failures for seen in api.values()] == [[]]
        assert platform.api_at(others[0]).send("GET", "/api/v2/version").status == 200
