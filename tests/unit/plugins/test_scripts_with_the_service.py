"""Script operators and trigger against the reference service as a process, on a server with the deployment's roles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred
from conftest import run_task
from fake_service import set_connection

from plugins.operators import DynamicScriptOperator, StaticScriptOperator
from tests.unit.transformation_service.scripts.conftest import (
    TOKEN,
    Platform,
    Service,
    new_service,
    platform,
    provisioned,
)

__all__ = ["platform", "provisioned"]  # fixtures
pytestmark = pytest.mark.database
RECORDS = 300
ENDLESS = "SELECT count(*) FROM user_record AS a CROSS JOIN user_record AS b CROSS JOIN user_record AS c"
ONCE_MORE = "UPDATE user_record SET country = coalesce(country, '') || :mark WHERE id <= 100"


@pytest.fixture
def service(platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    platform.load("User", RECORDS)
    running = new_service(tmp_path, platform.url, platform.scripts_url)
    set_connection(monkeypatch, host="127.0.0.1", port=running.port, password=TOKEN)
    running.start()
    yield running
    running.close()


def static(**changes: Any) -> StaticScriptOperator:
    arguments = {"task_id": "run_script", "script": "count_users_by_country", "version": 1, "slot": "2026-01-31"}
    return StaticScriptOperator(**(arguments | changes))


def dynamic(**changes: Any) -> DynamicScriptOperator:
    arguments = {"task_id": "run_sql", "sql": ONCE_MORE, "parameters": {"mark": "!"}, "slot": "2026-01-31"}
    return DynamicScriptOperator(**(arguments | changes))


def marked(platform: Platform) -> Any:
    return platform.value("SELECT sum(length(country) - length(replace(country, '!', ''))) FROM user_record")


@pytest.mark.parametrize("how", [{"defer_after": 0}, {"deferrable": False}])
async def test_a_script_tells_its_rows(service: Service, how: dict[str, Any]):
    result = await run_task(static(parameters={"at_least": 2}, **how))
    assert (result["state"], result["script"], result["version"]) == ("succeeded", "count_users_by_country", 1)
    assert sum(row["users"] for row in result["rows"]) > RECORDS / 2
    assert result["counts"] == {"statements": 1, "rows": len(result["rows"])}
    again = await run_task(static(parameters={"at_least": 2}))
    assert (again["run_id"], again["replayed"], again["rows"]) == (result["run_id"], True, result["rows"])


async def test_statements_take_effect_once_however_often_the_task_runs(service: Service, platform: Platform):
    first = await run_task(dynamic(defer_after=0))
    for again in (dynamic(), dynamic(deferrable=False), dynamic(task_id="other"), dynamic(limits={"seconds": 9})):
        assert (await run_task(again))["run_id"] == first["run_id"]
    assert (first["statements"], marked(platform)) == ([{"command": "UPDATE", "rows": 100}], 100)
    other = await run_task(dynamic(slot="2026-02-01"))
    assert other["run_id"] != first["run_id"]
    assert marked(platform) == 200


async def test_a_run_beyond_its_limit_leaves_nothing_and_is_done_with_a_higher_one(
    service: Service, platform: Platform
):
    with pytest.raises(AirflowException, match=r"ended as failed: .*; RowLimit: ") as failure:
        await run_task(dynamic(limits={"rows": 99}))
    assert not isinstance(failure.value, AirflowFailException)
    assert marked(platform) == 0
    assert (await run_task(dynamic(limits={"rows": 100})))["state"] == "succeeded"
    assert marked(platform) == 100


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (static(script="no_such_script"), "400 .*no_such_script"),
        (static(version=99), "400 .*99"),
        (static(parameters={"at_least": "many", "days": 1}), "400 .*at_least.*days|400 .*days.*at_least"),
        (dynamic(sql="DROP TABLE user_record"), "400 .*DROP"),
        (dynamic(sql="SELECT pg_sleep(1)", parameters={}), "400 .*pg_sleep"),
        (dynamic(limits={"rows": -1, "statements": 10**6}), "400 .*rows.*statements"),
    ],
)
async def test_a_refusal_spends_no_retry_and_names_every_fault(service: Service, task: Any, says: str):
    with pytest.raises(AirflowFailException, match=says):
        await run_task(task)


async def test_stopping_a_deferred_task_ends_the_run_and_clearing_it_starts_it_again(service: Service):
    task = dynamic(sql=ENDLESS, parameters={}, defer_after=0, limits={"seconds": 200})
    with pytest.raises(TaskDeferred) as deferred:
        task.execute({"ti": type("", (), {"xcom_push": lambda *_, **__: None})()})
    await deferred.value.trigger.on_kill()
    (event,) = [event.payload async for event in deferred.value.trigger.run()]
    with pytest.raises(AirflowException, match="ended as cancelled"):
        task.execute_complete({}, event)
    with pytest.raises(AirflowException, match="TimeLimit") as failure:  # it runs again, now with less time
        await run_task(dynamic(sql=ENDLESS, parameters={}, limits={"seconds": 0.5}))
    assert event["work"]["run_id"] in str(failure.value)
