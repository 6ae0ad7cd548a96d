"""A scheduler host loses its power while runs are under way: the other one, and every worker, go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from platform_under_test import Api, Figures, Platform, wait_for

pytestmark = [
    pytest.mark.kills,
    pytest.mark.unit("airflow_scheduler", "airflow-scheduler"),
    pytest.mark.unit("airflow_worker", "airflow-proxy"),
]


@pytest.fixture
def survivor(platform: Platform) -> Iterator[Api]:
    """The API of the second scheduler host; the first one is up again at the end."""
    lost, second = platform.groups["airflow_scheduler"][:2]
    yield platform.api_at(second)
    platform.power("start", lost)
    platform.await_up(lost, 120)


def finished(api: Api, platform: Platform, run_id: str, seconds: float) -> dict[str, object]:
    """Wait for the end of a run, by one host's API."""
    path = platform.run_path(run_id)
    return dict(wait_for(lambda: api.get(path), lambda run: run["state"] in ("success", "failed"), run_id, seconds, 1))


def test_a_lost_scheduler_host_stops_nothing(
    platform: Platform, survivor: Api, new_slot: Callable[[], str], figures: Figures
) -> None:
    lost = platform.first("airflow_scheduler")
    before = platform.trigger(new_slot())
    wait_for(lambda: platform.tasks(before).values(), lambda tasks: any(t["start_date"] for t in tasks), "a task", 60)
    platform.power("kill", lost)
    began = time.monotonic()
    body = {"logical_date": None, "conf": {"slot": new_slot()}}
    after = str(survivor.call("POST", "/dags/user_transformation/dagRuns", body)["dag_run_id"])
    for run_id in (before, after):
        assert finished(survivor, platform, run_id, 300)["state"] == "success"
        figures(f"{lost} lost: {run_id} over after {time.monotonic() - began:.0f} s")
        tasks = survivor.get(f"{platform.run_path(run_id)}/taskInstances")["task_instances"]
        assert {task["try_number"] for task in tasks} == {1}
