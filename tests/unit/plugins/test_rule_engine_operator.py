from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred
from fake_service import Answer, FakeService, job_document

from plugins.operators import RuleEngineOperator
from plugins.operators.rule_engine_operator import TransformationJobLink, idempotency_key, normalize_slot
from plugins.triggers.transformation_job import TransformationJobTrigger

SLOT = "2026-01-31T02:00:00Z"
RULES = ["normalize_phone", "deduplicate"]


class TaskInstance:
    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


@pytest.fixture
def context() -> dict[str, Any]:
    return {"ti": TaskInstance()}


def operator(**changes: Any) -> RuleEngineOperator:
    arguments = {"task_id": "apply_rules", "entity_type": "User", "rules": RULES, "slot": SLOT, "retry_count": 1}
    return RuleEngineOperator(**(arguments | changes))


def test_a_short_job_ends_in_the_first_process(service: FakeService, waits, context):
    service.say(Answer(202, job_document("queued")), job_document("running"), job_document("succeeded"))
    result = operator().execute(context)
    assert result["counts"] == {"total": 2500, "transformed": 2490, "marked": 10}
    assert result["job_url"] == f"{service.url}/api/v1/transformations/{result['job_id']}"
    assert [call.method for call in service.calls] == ["POST", "GET", "GET"]


def test_the_request_is_the_documented_one(service: FakeService, context):
    service.say(job_document("succeeded"))
    operator(batch_size="500").execute(context)
    (call,) = service.calls
    assert call.body == {"entity_type": "User", "rules": RULES, "batch_size": 500, "slot": SLOT}
    assert call.headers["Idempotency-Key"] == idempotency_key("User", SLOT, RULES)


def test_the_key_names_the_work():
    base = idempotency_key("User", SLOT, RULES)
    assert len(base) == 64
    assert base == idempotency_key("User", SLOT, tuple(RULES))
    others = [
        idempotency_key("Application", SLOT, RULES),
        idempotency_key("User", "2026-02-01T02:00:00Z", RULES),
        idempotency_key("User", SLOT, RULES[::-1]),
        idempotency_key("User", SLOT, RULES[:1]),
        idempotency_key("User", SLOT, RULES, "job"),
    ]
    assert len({base, *others}) == 6


def test_key_stays_the_same_across_releases():
    # Changing this value makes every slot that is being retried during the deployment start a second job.
    assert idempotency_key("User", SLOT, ["a"]) == "172ea6e8c7ad7d3f7bb578d56f13d8f13f6522d799ae7b1d58318ac262cede21"


@pytest.mark.parametrize(
    ("given", "slot"),
    [
        (SLOT, SLOT),
        ("2026-01-31T03:00:00+01:00", SLOT),
        ("2026-01-31 02:00:00+00:00", SLOT),
        ("2026-01-31T02:00:00.500Z", SLOT),
        ("2026-01-31T02:00:00", SLOT),
        (" 2026-01-31 ", "2026-01-31T00:00:00Z"),
    ],
)
def test_one_instant_has_one_spelling(given, slot):
    assert normalize_slot(given) == slot


@pytest.mark.parametrize(
    ("params", "logical_date", "slot"),
    [
        ({"slot": "2026-01-30T02:00:00Z"}, datetime(2026, 1, 31, 2, tzinfo=UTC), "2026-01-30T02:00:00Z"),
        ({"slot": None}, datetime(2026, 1, 31, 2, tzinfo=UTC), SLOT),
        ({}, datetime(2026, 1, 31, 2, tzinfo=UTC), SLOT),
        ({}, None, "2026-02-01T00:00:00Z"),
    ],
)
def test_the_slot_of_a_run(params, logical_date, slot):
    with DAG("d", schedule=None):
        task = operator(slot=None)
    run = SimpleNamespace(logical_date=logical_date, run_after=datetime(2026, 2, 1, 11, 30, tzinfo=UTC))
    task.render_template_fields({"params": params, "dag_run": run, "task": task})
    assert normalize_slot(task.slot) == slot


def test_a_slot_that_is_no_instant_fails_at_once(service: FakeService, context):
    with pytest.raises(AirflowFailException, match="slot 'tomorrow' is no ISO 8601 instant"):
        operator(slot="tomorrow").execute(context)
    assert service.calls == []


def test_a_long_job_is_deferred_with_nothing_secret(service: FakeService, waits, context):
    service.say(Answer(202, job_document("queued")), job_document("running"))
    with pytest.raises(TaskDeferred) as deferred:
        operator(defer_after=0, execution_timeout=timedelta(minutes=30)).execute(context)
    path, arguments = deferred.value.trigger.serialize()
    assert path == f"{TransformationJobTrigger.__module__}.{TransformationJobTrigger.__qualname__}"
    assert arguments["job_id"] == job_document()["id"]
    assert "s3cret-token" not in str(arguments)
    assert deferred.value.method_name == "execute_complete"
    assert deferred.value.timeout == timedelta(minutes=30)
    assert TransformationJobTrigger(**arguments).serialize() == (path, arguments)


def test_without_deferring_it_waits_here(service: FakeService, waits, context):
    service.say(*[job_document("running")] * 30, job_document("succeeded"))
    assert operator(deferrable=False, defer_after=0).execute(context)["state"] == "succeeded"
    assert len(waits) == 30


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
    assert not isinstance(failure.value, AirflowFailException)
    assert str(failure.value).endswith(
        "(User, slot 2026-01-31T02:00:00Z) ended as failed: 990 of 2500 records transformed, 10 marked,"
        " 1 of 3 batches done; disk full"
    )


def test_a_refusal_spends_no_airflow_retry(service: FakeService, context):
    service.say(Answer(400, {"title": "Unknown rule", "detail": "known: deduplicate, normalize_phone"}))
    with pytest.raises(AirflowFailException, match="known: deduplicate, normalize_phone"):
        operator().execute(context)
    assert len(service.calls) == 1


def test_an_outage_does_spend_one(service: FakeService, waits, context):
    service.stop()
    with pytest.raises(AirflowException) as failure:
        operator().execute(context)
    assert not isinstance(failure.value, AirflowFailException)


def test_a_service_that_goes_away_meanwhile_is_left_to_the_trigger(service: FakeService, waits, context):
    service.say(Answer(202, job_document("running")), Answer(503, {}))
    with pytest.raises(TaskDeferred):
        operator().execute(context)


def test_without_a_trigger_the_worker_has_the_patience(service: FakeService, waits, context):
    gone = [Answer(503, {})] * 20
    service.say(Answer(202, job_document("running")), *gone, job_document("succeeded"))
    assert operator(deferrable=False).execute(context)["state"] == "succeeded"
    service.say(Answer(202, job_document("running")), Answer(503, {}))
    with pytest.raises(AirflowException, match="503"):
        operator(deferrable=False, patience=0.1).execute(context)


def test_a_job_that_the_service_lost_is_worth_a_retry(service: FakeService, waits, context):
    service.say(Answer(202, job_document("running")), Answer(404, {}))
    with pytest.raises(AirflowException, match="no such job") as failure:
        operator().execute(context)
    assert not isinstance(failure.value, AirflowFailException)


def test_a_job_that_the_service_resumes_is_joined(service: FakeService, waits, context):
    service.say(job_document("queued", replayed=True), job_document("succeeded", replayed=True))
    assert operator().execute(context)["state"] == "succeeded"


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_a_job_that_stays_dead_gets_the_same_successor_every_time(service: FakeService, context, state):
    dead = job_document(state, id="first", replayed=True)
    for _ in range(2):
        service.say(dead, job_document("succeeded", id="second"))
        assert operator().execute(context)["job_id"] == "second"
    keys = [call.headers["Idempotency-Key"] for call in service.calls]
    assert keys[0] == keys[2] == idempotency_key("User", SLOT, RULES)
    assert keys[1] == keys[3] == idempotency_key("User", SLOT, RULES, "first")


@pytest.mark.parametrize(
    ("first", "says"),
    [
        (job_document("succeeded", replayed=True), "Nothing to do, this slot was done by"),
        (job_document("running", replayed=True), "Joined"),
        (job_document("succeeded"), "Started"),
    ],
)
def test_it_says_who_does_the_work(service: FakeService, waits, context, monkeypatch, first, says):
    said: list[str] = []
    log = SimpleNamespace(info=lambda text, *values: said.append(text % values), warning=lambda _: None)
    monkeypatch.setattr(RuleEngineOperator, "log", log)
    service.say(first, job_document("succeeded"))
    assert operator().execute(context)["state"] == "succeeded"
    assert said[0].startswith(f"{says} transformation job {first['id']}: User, slot {SLOT}, rules ")


def test_a_job_that_has_succeeded_before_is_not_repeated(service: FakeService, context):
    service.say(job_document("succeeded", replayed=True))
    assert operator().execute(context)["replayed"] is True
    assert len(service.calls) == 1


def test_the_link_is_there_while_the_job_runs_and_after(service: FakeService, waits, context):
    service.say(Answer(202, job_document("running")))
    with pytest.raises(TaskDeferred):
        operator(defer_after=0).execute(context)
    url = f"{service.url}/api/v1/transformations/{job_document()['id']}"
    assert context["ti"].pushed == {TransformationJobLink().xcom_key: url}

    resumed = operator()
    resumed.execute_complete(context, {"status": "final", "job": {**_summary(service), "state": "succeeded"}})
    assert TransformationJobLink().get_link(resumed, ti_key=None) == url
    assert TransformationJobLink().get_link(operator(), ti_key=None) == ""


def _summary(service: FakeService) -> dict[str, Any]:
    from plugins.hooks.transformation_service import summary

    job = job_document("succeeded")
    return summary(job, f"{service.url}/api/v1/transformations/{job['id']}")


@pytest.mark.parametrize(
    ("status", "expected"),
    [("missing", AirflowException), ("unreachable", AirflowException), ("refused", AirflowFailException)],
)
def test_what_the_trigger_gives_up_on_fails_the_task(context, status, expected):
    event = {"status": status, "job_id": "5d9c", "message": "why"}
    with pytest.raises(AirflowException, match=f"job 5d9c is {status}: why") as failure:
        operator().execute_complete(context, event)
    assert type(failure.value) is expected


def test_killing_the_task_cancels_the_job(service: FakeService, waits, context):
    task = operator(deferrable=False)
    service.say(Answer(202, job_document("running")), Answer(500, {}), job_document("cancelled"))
    task._remember(context, task._submit(task._hook())["id"], "url")
    task.on_kill()
    assert [call.method for call in service.calls] == ["POST", "DELETE", "DELETE"]


def test_killing_it_cancels_nothing_when_there_is_nothing_to_cancel(service: FakeService, context):
    operator().on_kill()
    service.say(job_document("succeeded"))
    task = operator()
    task.execute(context)
    task.on_kill()
    assert [call.method for call in service.calls] == ["POST"]


def test_killing_it_never_raises(service: FakeService, waits, context):
    service.say(Answer(202, job_document("running")))
    task = operator(defer_after=0)
    with pytest.raises(TaskDeferred):
        task.execute(context)
    service.say(Answer(404, {}))
    task.on_kill()
    service.stop()
    task.on_kill()


def test_the_url_argument_wins_over_the_connection(service: FakeService, monkeypatch, context):
    from fake_service import set_connection

    set_connection(monkeypatch, host="nowhere.invalid")
    service.say(job_document("succeeded"))
    operator(transformation_service_url=service.url).execute(context)
    assert service.calls[0].headers["Authorization"] == "Bearer s3cret-token"
