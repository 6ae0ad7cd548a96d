"""What goes wrong in operation, caused on purpose: the message says what, and in the end the work is done once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from platform_under_test import RULE_TASKS, Figures, Platform, wait_for
from test_resilience import assert_each_record_once, records, until_batches_are_done  # noqa: F401

pytestmark = [
    pytest.mark.kills,
    pytest.mark.unit("transformation_service", "transformation-service"),
    pytest.mark.unit("airflow_worker", "airflow-worker"),
    pytest.mark.unit("airflow_scheduler", "airflow-scheduler"),
]
PHONE, EMAIL, DEDUPLICATE = RULE_TASKS
DAG = "user_transformation"


def on_service(platform: Platform, command: str) -> None:
    platform.host(platform.first("transformation_service")).check_output(command)


def until_it_answers(platform: Platform) -> None:
    url = f"http://{platform.address('transformation_service')}:5000/health"
    worker = platform.host(platform.first("airflow_worker"))
    ask = f"import urllib.request; urllib.request.urlopen({url!r}, timeout=2)"
    wait_for(lambda: worker.run("python3 -c %s", ask).succeeded, bool, "the service", 30, 0.1)


def superuser(platform: Platform, statement: str, database: str = "transformation_service") -> None:
    command = "runuser -u postgres -- psql -X -q -v ON_ERROR_STOP=1 -d %s -c %s"
    platform.host(platform.first("postgresql")).check_output(command, database, statement)


def jobs(platform: Platform, slot: str) -> dict[str, dict[str, Any]]:
    """The slot's jobs by the task that asks for them."""
    found = platform.psql(
        f"SELECT id, rules, state, batches_done, extract(epoch FROM created_at) AS created_at"
        f" FROM transformation_job WHERE slot = '{slot}'",
        "transformation_service",
    )
    return {f"apply_rules.{job['rules'][0]}": job for job in found}


def state_of(platform: Platform, run_id: str, task: str, wanted: str, seconds: float = 40) -> Mapping[str, Any]:
    return wait_for(
        lambda: platform.tasks(run_id)[task], lambda t: t["state"] == wanted, f"{task} {wanted}", seconds, 0.2
    )


def errors(platform: Platform, run_id: str, task: str, attempt: int = 1) -> str:
    """The messages of the exceptions in a task's log, as the web UI shows them."""
    content = platform.api.get(f"{platform.run_path(run_id)}/taskInstances/{task}/logs/{attempt}")["content"]
    return "\n".join(error["exc_value"] for line in content for error in line.get("error_detail") or ())


def result(platform: Platform, run_id: str, task: str) -> Any:
    return platform.api.get(f"{platform.run_path(run_id)}/taskInstances/{task}/xcomEntries/return_value")["value"]


def await_polls(platform: Platform, slot: str, run_id: str) -> None:
    """Wait until the triggerer itself asks for both first jobs: it cancels nothing that it has not taken up."""
    for task in (PHONE, EMAIL):
        state_of(platform, run_id, task, "deferred")
    service = platform.host(platform.first("transformation_service"))
    scheduler = platform.address("airflow_scheduler")
    for job in jobs(platform, slot).values():
        poll = f"{scheduler}:[0-9]* - .GET /api/v1/transformations/{job['id']}"
        journal = "journalctl --unit=transformation-service --since=-2min --output=cat"
        wait_for(lambda: service.run(f"{journal} | grep -q %s", poll).succeeded, bool, "a poll of the triggerer", 30)  # noqa: B023


def clear(platform: Platform, run_id: str, *tasks: str) -> None:
    """As the button *Clear task* does, downstream included."""
    body = {"dry_run": False, "dag_run_id": run_id, "task_ids": tasks, "include_downstream": True, "only_failed": False}
    platform.api.call("POST", f"/dags/{DAG}/clearTaskInstances", body)


@contextmanager
def without_rule(platform: Platform, rule: str) -> Iterator[None]:
    """The service as an older release of it: it does not offer the rule."""
    kept = " ".join(sorted({task.removeprefix("apply_rules.") for task in RULE_TASKS} - {rule}))
    directory = "/run/systemd/system/transformation-service.service.d"
    drop_in = f"[Service]\\nEnvironment='TRANSFORMATION_SERVICE_RULES={kept}'\\n"
    restart = "systemctl daemon-reload && systemctl restart transformation-service"
    try:
        on_service(platform, f'mkdir -p {directory} && printf "{drop_in}" > {directory}/90-test.conf && {restart}')
        until_it_answers(platform)
        yield
    finally:
        on_service(platform, f"rm -f {directory}/90-test.conf && {restart}")
        until_it_answers(platform)


def test_an_unknown_rule_is_refused_at_once_and_clearing_the_task_does_the_rest(
    platform: Platform, new_slot: Callable[[], str], figures: Figures
) -> None:
    slot = new_slot()
    before, started = platform.ledger(slot), time.time()
    with without_rule(platform, "deduplicate"):
        run_id = platform.trigger(slot)
        assert platform.finish(run_id)["state"] == "failed"
    tasks = platform.tasks(run_id)
    assert {name: task["state"] for name, task in tasks.items() if task["state"] != "success"} == {
        DEDUPLICATE: "failed",
        "quality_check": "upstream_failed",
        "summary": "upstream_failed",
        "end": "upstream_failed",
    }
    assert tasks[DEDUPLICATE]["try_number"] == 1, "a retry cannot help"
    said = errors(platform, run_id, DEDUPLICATE)
    assert "Unknown rules: deduplicate. Known: normalize_phone, standardize_email." in said
    assert set(jobs(platform, slot)) == {PHONE, EMAIL}, "the refused task has transformed something"
    earlier = {task: (result(platform, run_id, task), tasks[task]["try_number"]) for task in (PHONE, EMAIL)}

    clear(platform, run_id, DEDUPLICATE)
    assert_each_record_once(platform, slot, before, run_id)
    tasks = platform.tasks(run_id)
    assert earlier == {task: (result(platform, run_id, task), tasks[task]["try_number"]) for task in earlier}
    figures(f"rule unknown to the service: refused, put right, cleared, done in {time.time() - started:.1f} s")


@pytest.mark.parametrize("seconds", [10, pytest.param(120, marks=pytest.mark.slow)])
def test_the_service_is_away(platform: Platform, new_slot: Callable[[], str], figures: Figures, seconds: int) -> None:
    slot = new_slot()
    before = platform.ledger(slot)
    on_service(platform, "systemctl stop transformation-service")
    run_id = platform.trigger(slot)
    try:
        state_of(platform, run_id, PHONE, "running")
        time.sleep(seconds)  # the outage
    finally:
        on_service(platform, "systemctl start transformation-service")
        until_it_answers(platform)
    back = float(platform.host(platform.first("transformation_service")).check_output("date +%s.%N"))
    answer = platform.finish(run_id, 300)
    assert answer["state"] == "success", errors(platform, run_id, PHONE)
    late = max(jobs(platform, slot)[task]["created_at"] for task in (PHONE, EMAIL)) - back
    if seconds <= 10:
        assert late <= 3, "the run was not taken up at once when the service was back"
        assert {platform.tasks(run_id)[task]["try_number"] for task in RULE_TASKS} == {1}
    assert_each_record_once(platform, slot, before, run_id)
    figures(f"service away for {seconds} s: work taken up {max(0, late):.1f} s after its return")


@pytest.mark.parametrize(
    "lost",
    [
        "connections ended",
        # Scheduler and triggerer end with it, and start anew: minutes on a small host.
        pytest.param("server restarted", marks=pytest.mark.slow),
    ],
)
def test_the_database_goes_away_in_the_middle_of_a_job(
    platform: Platform, new_slot: Callable[[], str], figures: Figures, lost: str
) -> None:
    slot = new_slot()
    before, started = platform.ledger(slot), time.time()
    run_id = platform.trigger(slot)
    batches = until_batches_are_done(platform, slot, 2, kill=False)
    if lost == "connections ended":
        ended = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'transformation-service'"
        )
        superuser(platform, ended)
    else:
        platform.host(platform.first("postgresql")).check_output("systemctl restart postgresql")
    assert batches["done"] < batches["total"]
    platform.finish(run_id, 600)
    assert_each_record_once(platform, slot, before, run_id)
    figures(f"PostgreSQL, {lost}: {before['total']} records once, run over in {time.time() - started:.1f} s")


def test_two_runs_at_once_and_a_cleared_task_do_the_work_of_one(
    platform: Platform, new_slot: Callable[[], str]
) -> None:
    slot = new_slot()
    before = platform.ledger(slot)
    run_ids: list[str] = []
    triggers = [threading.Thread(target=lambda: run_ids.append(platform.trigger(slot))) for _ in range(2)]
    for trigger in triggers:
        trigger.start()
    for trigger in triggers:
        trigger.join()
    for run_id in run_ids:
        assert platform.finish(run_id)["state"] == "success"
    assert len({str(result(platform, run_id, PHONE)["job_id"]) for run_id in run_ids}) == 1
    clear(platform, run_ids[0], PHONE)
    assert platform.finish(run_ids[0])["state"] == "success"
    assert platform.tasks(run_ids[0])[PHONE]["try_number"] == 2
    log = platform.log(run_ids[0], PHONE, 2)
    assert "Nothing to do, this slot was done by transformation job" in log
    after = platform.ledger(slot)
    assert after["jobs"] == len(RULE_TASKS)
    assert after["rows"] == before["total"] * len(RULE_TASKS)
    assert after["transform_count"] - before["transform_count"] == after["rows"]


@pytest.mark.parametrize(
    ("time_is_over", "says"),
    [
        (
            "UPDATE task_instance SET trigger_timeout = now() WHERE run_id = '{run_id}' AND state = 'deferred'",
            "execution_timeout",
        ),
        ("UPDATE dag_run SET start_date = start_date - interval '1 day' WHERE run_id = '{run_id}'", None),
    ],
    ids=["of the task", "of the run"],
)
def test_a_job_whose_time_is_over_is_cancelled(
    platform: Platform,
    new_slot: Callable[[], str],
    held_record: Callable[[], None],
    time_is_over: str,
    says: str | None,
) -> None:
    """The clock is moved in the metadata database: the limits are half an hour and more."""
    slot = new_slot()
    before = platform.ledger(slot)
    run_id = platform.trigger(slot)
    await_polls(platform, slot, run_id)
    superuser(platform, time_is_over.format(run_id=run_id), "airflow")
    wait_for(
        lambda: {job["state"] for job in jobs(platform, slot).values()}, lambda s: s == {"cancelled"}, "the cancel", 60
    )
    if says:
        state_of(platform, run_id, PHONE, "up_for_retry")
        assert says in errors(platform, run_id, PHONE)
        platform.api.call("PATCH", platform.run_path(run_id), {"state": "failed"})
    else:
        assert platform.finish(run_id)["state"] == "failed"
    assert platform.ledger(slot)["rows"] == 0
    held_record()
    assert_each_record_once(platform, slot, before, platform.trigger(slot))


@pytest.fixture
def full_disks(platform: Platform) -> Iterator[Callable[[], None]]:
    """On every worker a small file system for the logs, and not a byte free; call it to make room."""
    hosts = [platform.host(name) for name in platform.groups["airflow_worker"]]
    logs = "/var/log/airflow-worker"
    for host in hosts:
        options = "size=4m,mode=0750,uid=airflow-worker,gid=airflow-worker"
        host.check_output(f"mount -t tmpfs -o {options} tmpfs {logs} && ! cat /dev/zero > {logs}/filler 2>/dev/null")
    yield lambda: [host.check_output(f"rm {logs}/filler") for host in hosts]  # type: ignore[func-returns-value]
    for host in hosts:
        host.check_output(f"umount --lazy {logs}")


def test_the_disks_of_the_workers_are_full(
    platform: Platform, new_slot: Callable[[], str], full_disks: Callable[[], None], figures: Figures
) -> None:
    slot = new_slot()
    before = platform.ledger(slot)
    run_id = platform.trigger(slot)

    def to_retry() -> list[tuple[str, str]]:
        return [(name, t["hostname"]) for name, t in platform.tasks(run_id).items() if t["state"] == "up_for_retry"]

    ((task, host),) = wait_for(to_retry, bool, "a task that waits for its retry", 40)
    assert "No space left on device" in platform.journal(host, "airflow-worker", 80)
    full_disks()
    # The clock again: the retry comes after two minutes.
    past = f"UPDATE task_instance SET end_date = end_date - interval '1 hour' WHERE run_id = '{run_id}'"
    superuser(platform, f"{past} AND state = 'up_for_retry'", "airflow")
    assert_each_record_once(platform, slot, before, run_id)
    assert platform.tasks(run_id)[task]["try_number"] == 2
    figures(f"no room for logs on {host}: {task} was tried again when there was")
