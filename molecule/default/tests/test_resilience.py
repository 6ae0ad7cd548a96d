"""Kill things the hard way in the middle of work: nothing is lost, nothing is done twice, and nobody has to help."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest
from platform_under_test import RULE_TASKS, Figures, Platform, wait_for

pytestmark = [
    pytest.mark.kills,
    pytest.mark.unit("transformation_service", "transformation-service"),
    pytest.mark.unit("airflow_worker", "airflow-worker"),
    pytest.mark.unit("redis", "redis-server"),
]
RECORDS = 10_000


def restarts(platform: Platform, host: str, unit: str) -> int:
    return int(platform.host(host).check_output("systemctl show --value --property=NRestarts %s", unit))


def kill(platform: Platform, host: str, unit: str) -> None:
    platform.host(host).check_output("systemctl kill --kill-whom=all --signal=KILL %s", unit)


def is_active(platform: Platform, host: str, unit: str) -> bool:
    return bool(platform.host(host).run("systemctl is-active --quiet %s", unit).succeeded)


@pytest.fixture(scope="module", autouse=True)
def records(platform: Platform, new_slot: Callable[[], str]) -> Iterator[int]:
    """At least 10,000 records, and at the end a platform with every unit up."""
    missing = RECORDS - platform.ledger(new_slot())["total"]
    if missing > 0:
        command = "transformation-service generate --entity User --count %s --seed 11 --load"
        answer = platform.host(platform.first("transformation_service")).check_output(command, str(missing))
        assert json.loads(answer)["loaded"] == {"User": missing}
    yield platform.ledger(new_slot())["total"]
    workers = platform.groups["airflow_worker"]
    for host in workers:
        platform.host(host).check_output("systemctl start airflow-worker")
    wait_for(lambda: [is_active(platform, h, "airflow-worker") for h in workers], all, "the workers", 30)


def until_batches_are_done(platform: Platform, slot: str, batches: int, *, kill: bool) -> dict[str, int]:
    """Wait on the service's host until the slot's job has done some batches; with ``kill``, kill the service then."""
    service = platform.first("transformation_service")
    url = f"http://{platform.addresses[service]}:5000"
    data = {"url": url, "slot": slot, "batches": batches, "kill": kill, "seconds": 60}
    return dict(platform.probe(service, "kill_in_job", data))


def assert_each_record_once(platform: Platform, slot: str, before: dict[str, int], run_id: str) -> None:
    answer = platform.finish(run_id, 90)
    tasks = platform.tasks(run_id)
    log = "\n".join(platform.redact(platform.log(run_id, task, tasks[task]["try_number"])) for task in RULE_TASKS)
    assert answer["state"] == "success", log
    assert log.count(f"slot {slot}) has succeeded") == len(RULE_TASKS), "a task that waited shows no log of its worker"
    after, jobs = platform.ledger(slot), len(RULE_TASKS)
    assert after["records"] == before["total"] >= RECORDS
    assert after["rows"] == before["total"] * jobs
    effects = after["transform_count"] - before["transform_count"]
    assert effects == before["total"] * jobs, "effects and ledger differ"
    assert after["jobs"] == jobs


def test_the_service_is_killed_in_the_middle_of_a_job(
    platform: Platform, new_slot: Callable[[], str], figures: Figures
) -> None:
    service, slot = platform.first("transformation_service"), new_slot()
    before, restarted, started = (
        platform.ledger(slot),
        restarts(platform, service, "transformation-service"),
        time.time(),
    )
    run_id = platform.trigger(slot)
    batches = until_batches_are_done(platform, slot, 3, kill=True)
    assert 3 <= batches["done"] < batches["total"]
    assert_each_record_once(platform, slot, before, run_id)
    assert restarts(platform, service, "transformation-service") > restarted
    tries = [platform.tasks(run_id)[task]["try_number"] for task in RULE_TASKS]
    assert set(tries) == {1}, "the outage should cost no try of a task"
    done = f"after {batches['done']} of {batches['total']} batches"
    figures(f"service killed {done}, {before['total']} records once, run over in {time.time() - started:.1f} s")


def test_every_worker_is_killed_in_the_middle_of_a_run(
    platform: Platform, new_slot: Callable[[], str], held_record: Callable[[], None], figures: Figures
) -> None:
    """The tasks wait in the triggerer; what they resume on has to come back by itself."""
    workers, slot, started = platform.groups["airflow_worker"], new_slot(), time.time()
    before = platform.ledger(slot)
    restarted = {host: restarts(platform, host, "airflow-worker") for host in workers}
    run_id = platform.trigger(slot)
    # Both that run at once. One that a worker still runs would be given up after 300 s without a heartbeat.
    wait_for(
        lambda: {platform.tasks(run_id)[task]["state"] for task in RULE_TASKS[:2]},
        lambda states: states == {"deferred"},
        "the tasks to defer",
        30,
        0.1,
    )
    for host in workers:
        kill(platform, host, "airflow-worker")
    held_record()
    assert_each_record_once(platform, slot, before, run_id)
    assert {platform.tasks(run_id)[task]["hostname"] for task in RULE_TASKS} <= set(workers)
    wait_for(
        lambda: [restarts(platform, host, "airflow-worker") > restarted[host] for host in workers], all, "restarts", 30
    )
    figures(f"{len(workers)} workers killed, {before['total']} records once, run over in {time.time() - started:.1f} s")


def test_redis_is_killed_while_a_task_is_queued(
    platform: Platform, new_slot: Callable[[], str], figures: Figures
) -> None:
    workers, redis, slot, started = platform.groups["airflow_worker"], platform.first("redis"), new_slot(), time.time()
    before, restarted = platform.ledger(slot), restarts(platform, redis, "redis-server")
    for host in workers:
        platform.host(host).check_output("systemctl stop --no-block airflow-worker")
    wait_for(
        lambda: [is_active(platform, h, "airflow-worker") for h in workers], lambda up: not any(up), "the stop", 60
    )
    run_id = platform.trigger(slot)
    wait_for(lambda: platform.redis([["LLEN", "default"]])[0], lambda n: n == 1, "the task in the queue", 30)
    kill(platform, redis, "redis-server")
    wait_for(lambda: restarts(platform, redis, "redis-server"), lambda n: n > restarted, "the restart", 30)
    wait_for(lambda: platform.redis([["LLEN", "default"]])[0], lambda n: n == 1, "the same queue", 30)
    for host in workers:
        platform.host(host).check_output("systemctl start airflow-worker")
    assert_each_record_once(platform, slot, before, run_id)
    figures(f"Redis killed with a task queued, {before['total']} records once, all in {time.time() - started:.1f} s")


@pytest.mark.slow
def test_a_worker_is_killed_while_it_executes_the_task(
    platform: Platform, new_slot: Callable[[], str], figures: Figures
) -> None:
    """The hardest case: nobody tells the scheduler. 300 s without a heartbeat, then 2 minutes until the retry."""
    slot, started = new_slot(), time.time()
    before = platform.ledger(slot)
    run_id = platform.trigger(slot)
    until_batches_are_done(platform, slot, 1, kill=False)
    task = platform.tasks(run_id)[RULE_TASKS[0]]
    assert task["state"] == "running", "too late: it waits in the triggerer"
    kill(platform, task["hostname"], "airflow-worker")
    answer = platform.finish(run_id, 900)
    assert answer["state"] == "success"
    assert platform.tasks(run_id)[RULE_TASKS[0]]["try_number"] == 2
    assert_each_record_once(platform, slot, before, run_id)
    figures(f"worker killed under the task, {before['total']} records once, run over in {time.time() - started:.1f} s")
