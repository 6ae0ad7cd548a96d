"""A run that a user starts: on a worker, with the live release, with a log to read, each record transformed once."""

from __future__ import annotations

import pytest
from platform_under_test import Platform, Run

pytestmark = [
    pytest.mark.unit("airflow_worker", "airflow-worker"),
    pytest.mark.unit("airflow_scheduler", "airflow-scheduler"),
]


def test_it_succeeds(platform: Platform, run: Run) -> None:
    assert run.answer["state"] == "success", platform.redact(platform.log(run.run_id, "apply_rules"))
    states = {task: found["state"] for task, found in run.tasks.items()}
    assert states == dict.fromkeys(("start", "apply_rules", "end"), "success")


def test_it_ran_on_a_worker(platform: Platform, run: Run) -> None:
    assert run.tasks["apply_rules"]["hostname"] in platform.groups["airflow_worker"]
    assert run.tasks["apply_rules"]["executor"] in (None, "CeleryExecutor")


def test_it_ran_the_live_release(platform: Platform, run: Run) -> None:
    live = platform.host(platform.first("airflow_scheduler")).check_output("readlink /opt/airflow/current")
    assert run.answer["bundle_version"] == live.removeprefix("releases/")


def test_its_log_is_read_through_the_api_from_the_worker_that_has_it(platform: Platform, run: Run) -> None:
    worker = run.tasks["apply_rules"]["hostname"]
    log = platform.log(run.run_id, "apply_rules")
    assert f"http://{worker}:8793/" in log, "the API server did not fetch it from the worker"
    assert f"slot {run.slot}" in log
    assert not any(value in log for value in platform.secrets.values())


def test_the_ledger_has_each_record_once(run: Run) -> None:
    assert run.before["rows"] == 0
    assert run.before["total"] > 0
    assert run.after["rows"] == run.after["records"] == run.after["total"] == run.before["total"]
    assert run.after["jobs"] == 1


def test_its_result_tells_the_same_as_the_ledger(platform: Platform, run: Run) -> None:
    path = f"{platform.run_path(run.run_id)}/taskInstances/apply_rules/xcomEntries/return_value"
    counts = platform.api.get(path)["value"]["counts"]
    assert counts["total"] == counts["transformed"] + counts["marked"] == run.after["rows"]


def test_a_second_run_for_the_slot_transforms_nothing_again(platform: Platform, run: Run) -> None:
    answer = platform.finish(platform.trigger(run.slot))
    assert answer["state"] == "success"
    assert platform.ledger(run.slot) == run.after


def test_a_log_of_a_worker_is_for_the_api_server_alone(platform: Platform, run: Run) -> None:
    """The worker's log server wants a token signed with the API's key, even from a host that reaches its port."""
    worker = run.tasks["apply_rules"]["hostname"]
    url = f"http://{worker}:8793/log/dag_id=user_transformation/run_id={run.run_id}/task_id=apply_rules/attempt=1.log"
    script = f"import urllib.request; urllib.request.urlopen({url!r}, timeout=5)"
    refused = platform.host(platform.first("airflow_scheduler")).run("python3 -c %s", script)
    assert "HTTP Error 403" in refused.stderr
