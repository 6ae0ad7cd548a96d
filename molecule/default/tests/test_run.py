"""A run that a user starts: on a worker, with the live release, with a log to read, each record transformed once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from platform_under_test import RULE_TASKS, Figures, Platform, Run

pytestmark = [
    pytest.mark.unit("airflow_worker", "airflow-worker"),
    pytest.mark.unit("airflow_scheduler", "airflow-scheduler"),
]


def test_it_succeeds(platform: Platform, run: Run) -> None:
    states = {task: found["state"] for task, found in run.tasks.items()}
    failed = next((task for task, state in states.items() if state == "failed"), None)
    assert run.answer["state"] == "success", failed and platform.redact(platform.log(run.run_id, failed))
    wanted = ("start", "pre_check", *RULE_TASKS, "quality_check", "summary", "end")
    assert states == dict.fromkeys(wanted, "success")


@pytest.mark.parametrize("task", RULE_TASKS)
def test_it_ran_on_a_worker(platform: Platform, run: Run, task: str) -> None:
    assert run.tasks[task]["hostname"] in platform.groups["airflow_worker"]
    assert run.tasks[task]["executor"] in (None, "CeleryExecutor")


def test_it_ran_the_live_release(platform: Platform, run: Run) -> None:
    live = platform.host(platform.first("airflow_scheduler")).check_output("readlink /opt/airflow/current")
    assert run.answer["bundle_version"] == live.removeprefix("releases/")


def test_its_log_is_read_through_the_api_from_the_worker_that_has_it(platform: Platform, run: Run) -> None:
    worker = run.tasks[RULE_TASKS[0]]["hostname"]
    log = platform.log(run.run_id, RULE_TASKS[0])
    assert f"http://{worker}:8793/" in log, "the API server did not fetch it from the worker"
    assert f"slot {run.slot}" in log
    assert not any(value in log for value in platform.secrets.values())


def test_the_ledger_has_each_record_once(run: Run) -> None:
    assert run.before["rows"] == 0
    assert run.before["total"] > 0
    assert run.after["records"] == run.after["total"] == run.before["total"]
    assert run.after["jobs"] == len(RULE_TASKS)
    assert run.after["rows"] == run.after["records"] * run.after["jobs"]  # and a job has each record once at most


def result(platform: Platform, run_id: str, task: str, dag: str = "user_transformation") -> Any:
    path = f"{platform.run_path(run_id, dag)}/taskInstances/{task}/xcomEntries/return_value"
    return platform.api.get(path)["value"]


def test_its_summary_tells_the_same_as_the_ledger(platform: Platform, run: Run) -> None:
    summary = result(platform, run.run_id, "summary")
    assert {f"apply_rules.{name}" for name in summary["rule_sets"]} == set(RULE_TASKS)
    for figures in summary["rule_sets"].values():
        assert figures["total"] == figures["transformed"] + figures["marked"] == run.after["records"]
    assert summary["all"]["total"] == run.after["rows"]
    assert summary["already_done"] is False


def test_a_second_run_for_the_slot_transforms_nothing_again(platform: Platform, run: Run) -> None:
    before = platform.ledger(run.slot)  # deployments have transformed in slots of their own since the run
    run_id = platform.trigger(run.slot)
    assert platform.finish(run_id)["state"] == "success"
    assert platform.ledger(run.slot) == before
    assert before["rows"] == run.after["rows"]
    assert result(platform, run_id, "summary")["already_done"] is True
    assert "an earlier run has done this slot" in platform.log(run_id, "summary")


DAILY = {
    "user_transformation": ("User", 3),
    "application_transformation": ("Application", 2),
    "discovery_transformation": ("DiscoveryMetadata", 2),
}


def test_the_master_does_the_work_of_a_slot_and_each_own_run_finds_it_done(
    platform: Platform, new_slot: Callable[[], str], figures: Figures
) -> None:
    slot = new_slot()
    master = platform.finish(platform.trigger(slot, "master_orchestration"), dag="master_orchestration")
    assert master["state"] == "success"
    done = {dag: platform.ledger(slot, entity) for dag, (entity, _) in DAILY.items()}
    for dag, (_, rule_sets) in DAILY.items():
        assert done[dag]["jobs"] == rule_sets
        assert done[dag]["rows"] == done[dag]["records"] * rule_sets > 0
    for dag in DAILY:
        run_id = platform.trigger(slot, dag)
        assert platform.finish(run_id, dag=dag)["state"] == "success"
        assert result(platform, run_id, "summary", dag)["already_done"] is True
    assert {dag: platform.ledger(slot, entity) for dag, (entity, _) in DAILY.items()} == done
    counts = ", ".join(f"{done[dag]['records']} {entity}" for dag, (entity, _) in DAILY.items())
    figures(f"master_orchestration: {master['duration']:.1f} s for {counts} records")


def test_a_log_of_a_worker_is_for_the_api_server_alone(platform: Platform, run: Run) -> None:
    """The worker's log server wants a token signed with the API's key, even from a host that reaches its port."""
    worker = run.tasks["summary"]["hostname"]
    url = f"http://{worker}:8793/log/dag_id=user_transformation/run_id={run.run_id}/task_id=summary/attempt=1.log"
    script = f"import urllib.request; urllib.request.urlopen({url!r}, timeout=5)"
    refused = platform.host(platform.first("airflow_scheduler")).run("python3 -c %s", script)
    assert "HTTP Error 403" in refused.stderr


@pytest.fixture
def records(platform: Platform) -> Iterator[Callable[[str], None]]:
    """Runs SQL as the superuser on user_record, and has its contents again at the end."""
    host = platform.host(platform.first("postgresql"))
    psql = "runuser -u postgres -- psql -X -q -v ON_ERROR_STOP=1 -d transformation_service -c %s"
    host.check_output(psql, "CREATE TABLE user_record_kept AS SELECT id, country, phone, email FROM user_record")
    yield lambda sql: host.check_output(psql, sql)
    host.check_output(
        psql,
        "UPDATE user_record SET (country, phone, email) = (kept.country, kept.phone, kept.email)"
        " FROM user_record_kept AS kept WHERE kept.id = user_record.id;"
        " DELETE FROM user_record WHERE id > (SELECT max(id) FROM user_record_kept); DROP TABLE user_record_kept",
    )


@pytest.mark.parametrize(
    ("plant", "says"),
    [
        (
            "UPDATE user_record SET country = NULL, phone = '+41 44 668 18 00', email = 'a@example.org'"
            " WHERE id IN (SELECT id FROM user_record ORDER BY id LIMIT 3)",
            r"Column: null_country\s+Check: max,\s+Check Values: \{'leq_to': 0, 'result': 3\.0,",
        ),
        (
            "INSERT INTO user_record (full_name, email, phone, country)"
            " SELECT full_name, email, phone, country FROM user_record",
            r"Column: duplicate_share\s+Check: max,\s+Check Values: \{'leq_to': 0\.25, 'result': 0\.5",
        ),
    ],
    ids=["a required field is empty", "every record is there twice"],
)
def test_a_planted_fault_fails_the_quality_check_with_figures_and_without_another_try(
    platform: Platform, new_slot: Callable[[], str], records: Callable[[str], None], plant: str, says: str
) -> None:
    records(plant)
    run_id = platform.trigger(new_slot())
    assert platform.finish(run_id)["state"] == "failed"
    tasks = platform.tasks(run_id)
    assert {task: found["state"] for task, found in tasks.items() if found["state"] != "success"} == {
        "quality_check": "failed",
        "summary": "upstream_failed",
        "end": "upstream_failed",
    }
    assert tasks["quality_check"]["try_number"] == 1
    content = platform.api.get(f"{platform.run_path(run_id)}/taskInstances/quality_check/logs/1")["content"]
    errors = [error["exc_value"] for line in content for error in line.get("error_detail") or ()]
    assert any(re.search(says, error) for error in errors), errors
