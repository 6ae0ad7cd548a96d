"""What holds for every operator of the TransformationService."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.bases.operator import TriggerFailureReason
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred
from fake_service import Answer, FakeService, job_document, run_document, set_connection

from plugins.hooks.transformation_service import summary
from plugins.operators import (
    DynamicScriptOperator,
    RuleEngineOperator,
    StaticScriptOperator,
    TransformationServiceOperator,
)
from plugins.operators.transformation_service import canonical, normalize_slot
from plugins.triggers.transformation_service import TransformationServiceTrigger

SLOT = "2026-01-31T02:00:00Z"


@dataclass
class Case:
    """An operator, the arguments that it needs, and the documents that it gets."""

    operator: type[TransformationServiceOperator]
    arguments: dict[str, Any]
    document: Callable[..., dict[str, Any]]

    def make(self, **changes: Any) -> TransformationServiceOperator:
        return self.operator(**({"task_id": "work", "slot": SLOT, "retry_count": 1} | self.arguments | changes))

    def url(self, service: FakeService, work_id: str) -> str:
        return f"{service.url}{self.operator.kind.path}/{work_id}"

    def summary(self, service: FakeService, **changes: Any) -> dict[str, Any]:
        document = self.document("succeeded", **changes)
        return summary(self.operator.kind, document, self.url(service, document["id"]))


CASES = {
    "rules": Case(RuleEngineOperator, {"entity_type": "User", "rules": ["normalize_phone", "b"]}, job_document),
    "static": Case(
        StaticScriptOperator, {"script": "mark_inactive", "version": 2, "parameters": {"a": 1}}, run_document
    ),
    "dynamic": Case(DynamicScriptOperator, {"sql": "SELECT 1", "parameters": {"a": 1}}, run_document),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def key(task: TransformationServiceOperator) -> str:
    return task.work(normalize_slot(task.slot)).key()


def test_a_retry_a_cleared_task_and_another_run_send_the_same_request(service: FakeService, case: Case, contexts):
    service.say(case.document("succeeded"))
    for context in contexts:
        case.make(task_id=f"work_{context['ti'].try_number}").execute(context)
    requests = [(call.path, call.headers["Idempotency-Key"], canonical(call.body)) for call in service.calls]
    assert len(requests) == len(contexts) > 2
    assert len(set(requests)) == 1


def test_no_two_works_share_a_key():
    others = [
        CASES["rules"].make(),
        CASES["rules"].make(entity_type="Application"),
        CASES["rules"].make(rules=["b", "normalize_phone"]),
        CASES["rules"].make(rules=["normalize_phone"]),
        CASES["rules"].make(slot="2026-02-01T02:00:00Z"),
        CASES["rules"].make(max_records=10),
        CASES["rules"].make(max_records=11),
        CASES["static"].make(),
        CASES["static"].make(version=3),
        CASES["static"].make(script="other"),
        CASES["static"].make(parameters={"a": 2}),
        CASES["static"].make(parameters={"b": 1}),
        CASES["static"].make(slot="2026-02-01T02:00:00Z"),
        CASES["dynamic"].make(),
        CASES["dynamic"].make(sql="SELECT 2"),
        CASES["dynamic"].make(parameters={}),
        CASES["dynamic"].make(slot="2026-02-01T02:00:00Z"),
    ]
    keys = {key(task) for task in others}
    assert len(keys) == len(others)
    assert all(len(one) == 64 for one in keys)


def test_what_does_not_change_the_work_does_not_change_its_key():
    assert key(CASES["rules"].make(batch_size=1)) == key(
        CASES["rules"].make(batch_size="2", rules=("normalize_phone", "b"))
    )
    assert key(CASES["rules"].make(max_records="7")) == key(CASES["rules"].make(max_records=7))
    static, dynamic = CASES["static"], CASES["dynamic"]
    assert key(static.make(version="2")) == key(static.make())
    assert key(static.make(parameters={"a": 1, "b": 2})) == key(static.make(parameters={"b": 2, "a": 1}))
    assert key(dynamic.make(limits={"seconds": 5})) == key(dynamic.make())
    for case in CASES.values():
        assert key(case.make(slot="2026-01-31T03:00:00+01:00")) == key(case.make())


@pytest.mark.parametrize(
    ("given", "slot"),
    [
        (SLOT, SLOT),
        ("2026-01-31T03:00:00+01:00", SLOT),
        ("2026-01-31 02:00:00+00:00", SLOT),
        ("2026-01-31T02:00:00.500Z", SLOT),
        ("2026-01-31T02:00:00", SLOT),
        (" 2026-01-31 ", "2026-01-31T00:00:00Z"),
        (date(2026, 1, 31), "2026-01-31T00:00:00Z"),
        (datetime(2026, 1, 31, 2, tzinfo=UTC), SLOT),
    ],
)
def test_one_instant_has_one_spelling(given, slot):
    assert normalize_slot(given) == slot


def test_one_value_has_one_spelling():
    moment = datetime(2026, 1, 31, 3, tzinfo=UTC)
    assert (
        canonical({"b": moment, "a": [date(2026, 1, 31), "ä"]}) == '{"a":["2026-01-31","ä"],"b":"2026-01-31T03:00:00Z"}'
    )
    for nothing in (float("nan"), object(), b"x"):
        with pytest.raises(ValueError, match="JSON"):
            canonical({"a": nothing})


@pytest.mark.parametrize(
    ("params", "logical_date", "slot"),
    [
        ({"slot": "2026-01-30T02:00:00Z"}, datetime(2026, 1, 31, 2, tzinfo=UTC), "2026-01-30T02:00:00Z"),
        ({"slot": None}, datetime(2026, 1, 31, 2, tzinfo=UTC), SLOT),
        ({}, datetime(2026, 1, 31, 2, tzinfo=UTC), SLOT),
        ({}, None, "2026-02-01T00:00:00Z"),
    ],
)
def test_the_slot_of_a_run(case: Case, params, logical_date, slot):
    with DAG("d", schedule=None):
        task = case.make(slot=None)
    run = SimpleNamespace(logical_date=logical_date, run_after=datetime(2026, 2, 1, 11, 30, tzinfo=UTC))
    task.render_template_fields({"params": params, "dag_run": run, "task": task})
    assert normalize_slot(task.slot) == slot


def test_a_slot_that_is_no_instant_fails_at_once(service: FakeService, case: Case, context):
    with pytest.raises(AirflowFailException, match="slot 'tomorrow' is no ISO 8601 instant"):
        case.make(slot="tomorrow").execute(context)
    assert service.calls == []


def test_short_work_ends_in_the_first_process(service: FakeService, waits, case: Case, context):
    service.say(Answer(202, case.document("queued")), case.document("running"), case.document("succeeded"))
    result = case.make().execute(context)
    assert result == case.summary(service)
    assert [call.method for call in service.calls] == ["POST", "GET", "GET"]


def test_long_work_is_deferred_with_nothing_secret(service: FakeService, waits, case: Case, context):
    service.say(Answer(202, case.document("queued")), case.document("running"))
    with pytest.raises(TaskDeferred) as deferred:
        case.make(defer_after=0, execution_timeout=timedelta(minutes=30)).execute(context)
    path, arguments = deferred.value.trigger.serialize()
    assert path == f"{TransformationServiceTrigger.__module__}.{TransformationServiceTrigger.__qualname__}"
    assert (arguments["kind"], arguments["work_id"]) == (case.operator.kind.name, case.document()["id"])
    assert "s3cret-token" not in str(arguments)
    assert deferred.value.method_name == "execute_complete"
    assert deferred.value.timeout == timedelta(minutes=30)
    assert TransformationServiceTrigger(**arguments).serialize() == (path, arguments)


def test_without_deferring_it_waits_here(service: FakeService, waits, case: Case, context):
    service.say(*[case.document("running")] * 30, case.document("succeeded"))
    assert case.make(deferrable=False, defer_after=0).execute(context)["state"] == "succeeded"
    assert len(waits) == 30


def test_a_refusal_spends_no_airflow_retry(service: FakeService, case: Case, context):
    service.say(Answer(400, {"title": "Unknown", "detail": "known: a, b"}))
    with pytest.raises(AirflowFailException, match="400 Unknown: known: a, b"):
        case.make().execute(context)
    assert len(service.calls) == 1


def test_an_outage_does_spend_one(service: FakeService, waits, case: Case, context):
    service.stop()
    with pytest.raises(AirflowException) as failure:
        case.make().execute(context)
    assert not isinstance(failure.value, AirflowFailException)


def test_failed_work_spends_one(service: FakeService, case: Case, context):
    service.say(case.document("failed", error={"type": "TimeLimit", "title": "Too long", "detail": "took 31 s of 30"}))
    with pytest.raises(AirflowException, match=r"slot 2026-01-31T02:00:00Z\) ended as failed: .*took 31 s") as failure:
        case.make().execute(context)
    assert not isinstance(failure.value, AirflowFailException)


def test_a_service_that_goes_away_meanwhile_is_left_to_the_trigger(service: FakeService, waits, case: Case, context):
    service.say(Answer(202, case.document("running")), Answer(503, {}))
    with pytest.raises(TaskDeferred):
        case.make().execute(context)
    assert [call.method for call in service.calls] == ["POST", "GET", "GET"]  # with the one retry of the request


def test_without_a_trigger_the_worker_has_the_patience(service: FakeService, waits, case: Case, context):
    gone = [Answer(503, {})] * 20
    service.say(Answer(202, case.document("running")), *gone, case.document("succeeded"))
    assert case.make(deferrable=False).execute(context)["state"] == "succeeded"
    service.say(Answer(202, case.document("running")), Answer(503, {}))
    with pytest.raises(AirflowException, match="503"):
        case.make(deferrable=False, patience=0.1).execute(context)


def test_work_that_the_service_lost_is_worth_a_retry(service: FakeService, waits, case: Case, context):
    service.say(Answer(202, case.document("running")), Answer(404, {}))
    with pytest.raises(AirflowException, match=f"no such {case.operator.kind.noun}") as failure:
        case.make().execute(context)
    assert not isinstance(failure.value, AirflowFailException)


def test_work_that_the_service_takes_up_again_is_joined(service: FakeService, waits, case: Case, context):
    service.say(case.document("queued", replayed=True), case.document("succeeded", replayed=True))
    assert case.make().execute(context)["state"] == "succeeded"


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_work_that_stays_dead_gets_the_same_successor_every_time(service: FakeService, case: Case, context, state):
    dead = case.document(state, id="first", replayed=True)
    for _ in range(2):
        service.say(dead, case.document("succeeded", id="second"))
        assert case.make().execute(context)[f"{case.operator.kind.name}_id"] == "second"
    keys = [call.headers["Idempotency-Key"] for call in service.calls]
    assert keys[0] == keys[2] == key(case.make())
    assert keys[1] == keys[3] == case.make().work(SLOT).key("first")
    assert keys[0] != keys[1]


def test_a_service_that_knows_one_work_only_is_not_asked_again_and_again(service: FakeService, case: Case, context):
    service.say(case.document("failed", replayed=True))
    with pytest.raises(AirflowException, match="ended as failed"):
        case.make().execute(context)
    assert len(service.calls) == 2


@pytest.mark.parametrize(
    ("state", "replayed", "says"),
    [
        ("succeeded", True, "Nothing to do, this slot was done by"),
        ("running", True, "Joined"),
        ("succeeded", False, "Started"),
    ],
)
def test_it_says_who_does_the_work(
    service: FakeService, waits, case: Case, context, monkeypatch, state, replayed, says
):
    said: list[str] = []
    log = SimpleNamespace(info=lambda text, *values: said.append(text % values), warning=lambda _: None)
    monkeypatch.setattr(case.operator, "log", log)
    first = case.document(state, replayed=replayed)
    service.say(first, case.document("succeeded"))
    assert case.make().execute(context)["state"] == "succeeded"
    assert said[0].startswith(f"{says} {case.operator.kind.noun} {first['id']}: ")
    assert SLOT in said[0]


def test_work_that_has_succeeded_before_is_not_repeated(service: FakeService, case: Case, context):
    service.say(case.document("succeeded", replayed=True))
    assert case.make().execute(context)["replayed"] is True
    assert len(service.calls) == 1


def test_the_link_is_there_while_the_work_runs_and_after(service: FakeService, waits, case: Case, context):
    (link,) = case.operator.operator_extra_links
    service.say(Answer(202, case.document("running")))
    with pytest.raises(TaskDeferred):
        case.make(defer_after=0).execute(context)
    url = case.url(service, case.document()["id"])
    assert context["ti"].pushed == {link.xcom_key: url}

    resumed = case.make()
    resumed.execute_complete(context, {"status": "final", "work": case.summary(service)})
    assert link.get_link(resumed, ti_key=None) == url
    assert link.get_link(case.make(), ti_key=None) == ""


def test_each_kind_has_a_button_of_its_own():
    links = [(link.name, link.xcom_key) for case in CASES.values() for link in case.operator.operator_extra_links]
    job, run = ("Transformation job", "transformation_job_url"), ("Script run", "script_run_url")
    assert links == [job, run, run]


def test_the_button_survives_the_way_to_the_api_server(case: Case):
    from airflow.serialization.serialized_objects import DagSerialization

    (link,) = case.operator.operator_extra_links
    with DAG("d", schedule=None) as dag:
        case.make()
    (task,) = DagSerialization.from_dict(DagSerialization.to_dict(dag)).tasks
    assert {one.name: one.xcom_key for one in task.operator_extra_links} == {link.name: link.xcom_key}


@pytest.mark.parametrize(
    ("status", "expected"),
    [("missing", AirflowException), ("unreachable", AirflowException), ("refused", AirflowFailException)],
)
def test_what_the_trigger_gives_up_on_fails_the_task(case: Case, context, status, expected):
    event = {"status": status, "id": "5d9c", "message": "why"}
    with pytest.raises(AirflowException, match=f"{case.operator.kind.noun[1:]} 5d9c is {status}: why") as failure:
        case.make().execute_complete(context, event)
    assert type(failure.value) is expected


def test_killing_the_task_cancels_the_work(service: FakeService, monkeypatch, case: Case, context):
    """The kill comes while the task waits, as from Airflow's signal handler."""
    import time

    task = case.make(deferrable=False)

    class Killed(BaseException): ...

    def kill(_: float) -> None:
        monkeypatch.undo()
        set_connection(monkeypatch, host="127.0.0.1", port=service.port)
        task.on_kill()
        raise Killed

    monkeypatch.setattr(time, "sleep", kill)
    service.say(Answer(202, case.document("running")), case.document("cancelled"))
    with pytest.raises(Killed):
        task.execute(context)
    assert [call.method for call in service.calls] == ["POST", "DELETE"]
    assert service.url + service.calls[1].path == case.url(service, case.document()["id"])


def test_work_whose_time_is_over_while_the_trigger_waits_is_cancelled(service: FakeService, case: Case, context):
    """Airflow ends such a trigger without a word to the service, and starts the task to fail it."""
    task = case.make(execution_timeout=timedelta(minutes=30))
    context["ti"].xcom_pull = lambda key: context["ti"].pushed[key]
    service.say(Answer(202, case.document("running")), case.document("cancelled"))
    with pytest.raises(TaskDeferred):
        case.make(defer_after=0).execute(context)
    with pytest.raises(AirflowException, match=r"execution_timeout \(0:30:00\) and is cancelled"):
        task.resume_execution("__fail__", {"error": TriggerFailureReason.TRIGGER_TIMEOUT}, context)
    assert [call.method for call in service.calls] == ["POST", "DELETE"]
    assert service.url + service.calls[1].path == case.url(service, case.document()["id"])


def test_killing_it_cancels_nothing_when_there_is_nothing_to_cancel(service: FakeService, case: Case, context):
    case.make().on_kill()
    service.say(case.document("succeeded"))
    task = case.make()
    task.execute(context)
    task.on_kill()
    assert [call.method for call in service.calls] == ["POST"]


def test_killing_it_never_raises(service: FakeService, waits, case: Case, context):
    service.say(Answer(202, case.document("running")))
    task = case.make(defer_after=0)
    with pytest.raises(TaskDeferred):
        task.execute(context)
    service.say(Answer(404, {}))
    task.on_kill()
    service.stop()
    task.on_kill()


def test_the_url_argument_wins_over_the_connection(service: FakeService, monkeypatch, case: Case, context):
    set_connection(monkeypatch, host="nowhere.invalid")
    service.say(case.document("succeeded"))
    case.make(transformation_service_url=service.url).execute(context)
    assert service.calls[0].headers["Authorization"] == "Bearer s3cret-token"


def test_a_dag_may_set_what_all_have_in_common(case: Case):
    with DAG("d", schedule=None, default_args={"deferrable": False, "patience": 7.0, "retry_count": 9}):
        task = case.operator(task_id="work", **case.arguments)
    assert (task.deferrable, task.patience, task.retry_count) == (False, 7.0, 9)
