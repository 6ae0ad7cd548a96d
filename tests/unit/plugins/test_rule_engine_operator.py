from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from fake_service import FakeService, job_document

from plugins.operators import RuleEngineOperator

SLOT = "2026-01-31T02:00:00Z"
RULES = ["normalize_phone", "deduplicate"]


def operator(**changes: Any) -> RuleEngineOperator:
    arguments = {"task_id": "apply_rules", "entity_type": "User", "rules": RULES, "slot": SLOT, "retry_count": 1}
    return RuleEngineOperator(**(arguments | changes))


def test_the_request_is_the_documented_one(service: FakeService, context):
    service.say(job_document("succeeded"))
    operator(batch_size="500").execute(context)
    assert service.calls[0].body == {"entity_type": "User", "rules": RULES, "batch_size": 500, "slot": SLOT}


@pytest.mark.parametrize("given", [250, "250"])
def test_a_number_of_records_is_part_of_request_and_key(service: FakeService, context, given):
    service.say(job_document("succeeded"))
    operator(max_records=given).execute(context)
    operator().execute(context)
    some, every = service.calls
    assert some.body == every.body | {"max_records": 250}
    assert some.headers["Idempotency-Key"] != every.headers["Idempotency-Key"]


@pytest.mark.parametrize("param", [None, ""])
def test_an_empty_number_of_records_is_all(service: FakeService, context, param):
    with DAG("d", schedule=None):
        task = operator(max_records="{{ params.records }}")
    task.render_template_fields({"params": {"records": param}, "task": task})
    service.say(job_document("succeeded"))
    task.execute(context)
    operator().execute(context)
    first, second = service.calls
    assert first.body == second.body == {"entity_type": "User", "rules": RULES, "batch_size": 1000, "slot": SLOT}
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]


@pytest.mark.parametrize("name", ["batch_size", "max_records"])
def test_a_number_that_is_none_fails_at_once(service: FakeService, context, name):
    with pytest.raises(AirflowFailException, match=f"{name} is 'many'; give a number"):
        operator(**{name: "many"}).execute(context)
    assert service.calls == []


def test_key_stays_the_same_across_releases():
    # Changing this value makes every slot that is being retried during the deployment start a second job.
    key = operator(rules=["a"]).work(SLOT).key()
    assert key == "172ea6e8c7ad7d3f7bb578d56f13d8f13f6522d799ae7b1d58318ac262cede21"


def test_a_failed_job_fails_with_its_figures(service: FakeService, context):
    service.say(
        job_document(
            "failed",
            counts={"total": 2500, "transformed": 990, "marked": 10},
            batches={"total": 3, "done": 1},
            error={"title": "Database", "detail": "disk full"},
        )
    )
    with pytest.raises(AirflowException) as failure:
        operator().execute(context)
    assert str(failure.value).endswith(
        "(slot 2026-01-31T02:00:00Z) ended as failed: 990 of 2500 User records transformed, 10 marked,"
        " 1 of 3 batches done; disk full"
    )


def test_all_that_names_the_work_may_come_from_the_run():
    with DAG("d", schedule=None):
        task = RuleEngineOperator(
            task_id="apply_rules",
            entity_type="{{ params.entity }}",
            rules=["{{ params.rule }}"],
            batch_size="{{ params.size }}",
            max_records="{{ params.records }}",
            slot="{{ params.slot }}",
            transformation_service_url="http://{{ params.host }}:5000",
        )
    params = {"entity": "User", "rule": "a", "size": 5, "records": 9, "slot": SLOT, "host": "service-1"}
    task.render_template_fields({"params": params, "task": task, "dag_run": SimpleNamespace()})
    assert task.work(task.slot).body == {
        "entity_type": "User",
        "rules": ["a"],
        "batch_size": 5,
        "max_records": 9,
        "slot": SLOT,
    }
    assert task.transformation_service_url == "http://service-1:5000"
