from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest
from fake_service import Answer, FakeService, job_document, run_document

from plugins.triggers.transformation_service import TransformationServiceTrigger


def trigger(**changes: Any) -> TransformationServiceTrigger:
    arguments = {"kind": "job", "work_id": "j-1", "transformation_service_conn_id": "transformation_service"}
    return TransformationServiceTrigger(**(arguments | changes))


async def events(instance: TransformationServiceTrigger) -> list[dict[str, Any]]:
    return [event.payload async for event in instance.run()]


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
async def test_one_event_when_the_job_is_final(service: FakeService, waits, state):
    service.say(job_document("queued"), job_document("running"), job_document(state))
    (event,) = await events(trigger())
    assert event["status"] == "final"
    assert event["work"]["state"] == state
    assert "progress" not in event["work"]
    assert json.loads(json.dumps(event)) == event
    assert waits == [0.5, 0.5]
    assert {call.path for call in service.calls} == {"/api/v1/transformations/j-1"}


async def test_a_run_is_waited_for_at_its_own_address(service: FakeService, waits):
    service.say(run_document("running"), run_document("succeeded"))
    (event,) = await events(trigger(kind="run", work_id="r-1"))
    assert event["work"]["run_url"] == f"{service.url}/api/v1/script-runs/r-1"
    assert event["work"]["rows"] == [{"id": 1}]
    service.say(run_document("cancelled"))
    await trigger(kind="run", work_id="r-1").on_kill()
    assert [(call.method, call.path) for call in service.calls] == [
        ("GET", "/api/v1/script-runs/r-1"),
        ("GET", "/api/v1/script-runs/r-1"),
        ("DELETE", "/api/v1/script-runs/r-1"),
    ]


async def test_it_outlives_a_restart_of_the_service(service: FakeService, waits):
    gone, starting = Answer(drop=True), Answer(503, {})
    service.say(job_document("running"), gone, starting, gone, job_document("succeeded"))
    (event,) = await events(trigger())
    assert event["status"] == "final"


async def test_it_gives_up_on_a_service_that_stays_away(service: FakeService, waits):
    service.say(Answer(503, {"title": "Unavailable"}))
    (event,) = await events(trigger(patience=0.2))
    assert (event["status"], event["id"]) == ("unreachable", "j-1")
    assert event["message"].startswith("no answer for 0 s; last: GET ")
    assert len(service.calls) > 1


@pytest.mark.parametrize(("status", "told"), [(404, "missing"), (401, "refused")])
async def test_it_does_not_wait_for_what_cannot_come(service: FakeService, waits, status, told):
    service.say(Answer(status, {"title": "No"}))
    (event,) = await events(trigger())
    assert (event["status"], waits) == (told, [])


async def test_a_user_who_stops_the_task_cancels_the_job(service: FakeService, waits):
    service.say(Answer(503, {}), job_document("cancelled"))
    await trigger().on_kill()
    assert [call.method for call in service.calls] == ["DELETE", "DELETE"]


async def test_it_is_cancelled_even_when_airflow_is_tired_of_waiting(service: FakeService):
    service.say(Answer(503, {}), job_document("cancelled"))
    killing = asyncio.create_task(trigger().on_kill())
    while not service.calls:
        await asyncio.sleep(0.01)
    killing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await killing
    async with asyncio.timeout(5):
        while len(service.calls) < 2:
            await asyncio.sleep(0.01)
    assert [call.method for call in service.calls] == ["DELETE", "DELETE"]


async def test_a_triggerer_that_stops_does_not(service: FakeService):
    service.say(job_document("running"))
    instance = trigger()
    task = asyncio.create_task(events(instance))
    while not service.calls:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await instance.cleanup()
    assert {call.method for call in service.calls} == {"GET"}


def test_what_is_stored_rebuilds_the_trigger_and_holds_no_secret():
    path, arguments = trigger(base_url="http://service-1:5000", patience=10.0).serialize()
    module_name, _, name = path.rpartition(".")
    rebuilt = getattr(sys.modules[module_name], name)(**arguments)
    assert rebuilt.serialize() == (path, arguments)
    assert set(arguments) == {"kind", "work_id", "transformation_service_conn_id", "base_url", "patience"}
