from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from fake_service import FakeService, run_document

from plugins.operators import DynamicScriptOperator, StaticScriptOperator
from plugins.operators.transformation_service import normalize_slot

SLOT = "2026-01-31T02:00:00Z"


def static(**changes: Any) -> StaticScriptOperator:
    arguments = {"task_id": "run_script", "script": "mark_inactive_users", "version": 1, "slot": SLOT, "retry_count": 1}
    return StaticScriptOperator(**(arguments | changes))


def dynamic(**changes: Any) -> DynamicScriptOperator:
    arguments = {"task_id": "run_sql", "sql": "SELECT 1", "slot": SLOT, "retry_count": 1}
    return DynamicScriptOperator(**(arguments | changes))


def test_the_requests_are_the_documented_ones(service: FakeService, context):
    service.say(run_document("succeeded"))
    static(version="2", parameters={"days": 90}).execute(context)
    dynamic(parameters={"days": 90}, limits={"seconds": "0.5", "rows": "5"}).execute(context)
    dynamic().execute(context)
    assert [call.body for call in service.calls] == [
        {"script": "mark_inactive_users", "version": 2, "parameters": {"days": 90}, "slot": SLOT},
        {"sql": "SELECT 1", "parameters": {"days": 90}, "slot": SLOT, "limits": {"seconds": 0.5, "rows": 5}},
        {"sql": "SELECT 1", "parameters": {}, "slot": SLOT},
    ]
    assert {(call.method, call.path) for call in service.calls} == {("POST", "/api/v1/script-runs")}


def test_keys_stay_the_same_across_releases():
    # Changing a value makes every slot that is being retried during the deployment start a second run.
    keys = [static(parameters={"b": 1, "a": "ä"}).work(SLOT).key(), dynamic().work(SLOT).key()]
    assert keys == [
        "e6d8a00013017930980dc8a29960c1149ab61bbea5d22d0e188c3a63172efae5",
        "e3593ed00d9149d2a9a06091c2a7965e18ba38a89d69b4a8308582ad3aeae0d4",
    ]


def test_empty_limits_are_the_services_own(service: FakeService, context):
    service.say(run_document("succeeded"))
    dynamic(limits={"seconds": "", "rows": None, "statements": "None"}).execute(context)
    assert "limits" not in service.calls[0].body


def test_dates_of_native_templates_become_text(service: FakeService, context):
    service.say(run_document("succeeded"))
    moment = datetime(2026, 1, 31, 3, tzinfo=UTC)
    static(parameters={"until": date(2026, 1, 31), "since": moment}).execute(context)
    assert service.calls[0].body["parameters"] == {"until": "2026-01-31", "since": "2026-01-31T03:00:00Z"}


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (static(version="two"), "version is 'two'; give a number"),
        (static(parameters={"a": b"x"}), "b'x' has no form in JSON"),
        (static(parameters={"a": float("nan")}), "JSON"),
        (dynamic(limits={"rows": "many"}), "limits: rows is 'many'; give a number"),
    ],
)
def test_arguments_that_cannot_be_sent_fail_at_once(service: FakeService, context, task, says):
    with pytest.raises(AirflowFailException, match=says):
        task.execute(context)
    assert service.calls == []


def test_a_failed_run_fails_with_its_figures(service: FakeService, context):
    error = {"type": "RowLimit", "message": "Statement 2 went beyond 10000 rows."}
    service.say(run_document("failed", error=error))
    with pytest.raises(AirflowException) as failure:
        dynamic().execute(context)
    assert str(failure.value).endswith(
        "ended as failed: 2 statements, 13 rows (UPDATE 12, SELECT 1); RowLimit: Statement 2 went beyond 10000 rows."
    )


def test_the_rows_of_the_last_select_are_in_the_result(service: FakeService, context):
    service.say(run_document("succeeded"))
    result = dynamic().execute(context)
    assert (result["rows"], result["statements"][0]) == ([{"id": 1}], {"command": "UPDATE", "rows": 12})


def test_templates_reach_into_parameters_and_limits():
    with DAG("d", schedule=None):
        first = static(
            script="{{ params.name }}", version="{{ params.version }}", parameters={"days": "{{ params.d }}"}
        )
        second = dynamic(
            sql="SELECT {{ params.d }}", parameters={"l": ["{{ params.d }}"]}, limits={"rows": "{{ params.d }}"}
        )
    for task in (first, second):
        task.render_template_fields({"params": {"name": "s", "version": 4, "d": 90}, "task": task})
    assert first.work(SLOT).body == {"script": "s", "version": 4, "parameters": {"days": "90"}, "slot": SLOT}
    assert second.work(SLOT).body == {
        "sql": "SELECT 90",
        "parameters": {"l": ["90"]},
        "slot": SLOT,
        "limits": {"rows": 90},
    }


def test_a_dag_that_renders_native_objects_gives_numbers_dates_and_its_own_slot():
    with DAG("d", schedule=None, render_template_as_native_obj=True):
        task = static(
            version="{{ params.version }}",
            slot=None,
            parameters={"days": "{{ params.days }}", "until": "{{ dag_run.run_after.date() }}"},
        )
    moment = datetime(2026, 1, 31, 2, tzinfo=UTC)
    for logical_date, slot in ((moment, SLOT), (None, "2026-01-31T00:00:00Z")):
        copy = task.prepare_for_execution()
        run = SimpleNamespace(logical_date=logical_date, run_after=moment)
        copy.render_template_fields({"params": {"version": 1, "days": 90}, "dag_run": run, "task": copy})
        body = copy.work(normalize_slot(copy.slot)).body
        assert (body["version"], body["slot"]) == (1, slot)
        assert body["parameters"] == {"days": 90, "until": "2026-01-31"}


def test_statements_may_live_in_a_file_beside_the_dag(tmp_path: Path):
    (tmp_path / "report.sql").write_text("SELECT count(*) FROM user_record WHERE id < {{ params.below }}")
    with DAG("d", schedule=None, template_searchpath=str(tmp_path)) as dag:
        task = dynamic(sql="report.sql")
    dag.resolve_template_files()
    task.render_template_fields({"params": {"below": 7}, "task": task})
    assert task.work(SLOT).body["sql"] == "SELECT count(*) FROM user_record WHERE id < 7"
