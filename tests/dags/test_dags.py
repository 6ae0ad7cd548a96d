"""Every DAG of the repository, whoever adds it, loaded as a release as the deployment does."""

from __future__ import annotations

import copy
import runpy
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import dag_checks as checks
import pytest

if TYPE_CHECKING:
    from airflow.sdk import DAG

REPOSITORY = Path(__file__).parents[2]
FILES = {
    "00_master_orchestration.py": "master_orchestration",
    "01_user_transformation.py": "user_transformation",
    "02_application_transformation.py": "application_transformation",
    "03_discovery_transformation.py": "discovery_transformation",
    "test_load.py": "test_load",
}
# DAG: schedule, entity, rules by stage, batch size
TRANSFORMATIONS = {
    "user_transformation": ("0 2 * * *", "User", [["normalize_phone", "standardize_email"], ["deduplicate"]], 1000),
    "application_transformation": ("0 3 * * *", "Application", [["normalize_name", "validate_category"]], 500),
    "discovery_transformation": ("0 4 * * *", "DiscoveryMetadata", [["validate_schema"], ["enrich_metadata"]], 2000),
}


@pytest.fixture(scope="session")
def dags(release: Path) -> dict[str, DAG]:
    bag = checks.load(release)
    assert bag.import_errors == {}  # a cycle is one of them
    return bag.dags


def test_the_deployment_accepts_them(release: Path):
    parser = runpy.run_path(str(REPOSITORY / "roles/airflow_release/files/parse_release.py"))
    result = parser["parse"](release)
    assert result["errors"] == []
    assert set(result["dags"].values()) == {str(path.relative_to(release)) for path in (release / "dags").glob("*.py")}


def test_each_file_holds_one(dags, release: Path):
    assert {Path(dag.fileloc).name: dag_id for dag_id, dag in dags.items()} == FILES
    checks.holds_one_dag_a_file(dags.values(), list((release / "dags").glob("*.py")))


@pytest.mark.parametrize("check", checks.EVERY_DAG, ids=lambda check: check.__name__)
@pytest.mark.parametrize("dag_id", FILES.values())
def test_every_dag(dags, dag_id: str, check: Callable[[DAG], None]):
    check(dags[dag_id])


def test_no_dag_triggers_an_unknown_one(dags):
    for dag in dags.values():
        checks.triggers_what_exists(dag, dags)


@pytest.mark.parametrize("check", checks.EVERY_SOURCE, ids=lambda check: check.__name__)
def test_every_source(release: Path, check: Callable[[str], None]):
    for file in [*(release / "dags").glob("*.py"), *(release / "plugins").rglob("*.py")]:
        check(file.read_text())


def rule_tasks(dag: DAG) -> list[Any]:
    return [task for task in dag.tasks if task.task_id.startswith("apply_rules.")]


@pytest.mark.parametrize("dag_id", TRANSFORMATIONS)
def test_transformations(dags, dag_id: str):
    dag = dags[dag_id]
    schedule, entity, stages, batch_size = TRANSFORMATIONS[dag_id]
    assert dag.schedule == schedule
    steps = [
        ["start"],
        ["pre_check"],
        *([f"apply_rules.{rule}" for rule in rules] for rules in stages),
        ["quality_check"],
        ["summary"],
        ["end"],
    ]
    assert sorted(dag.task_ids) == sorted(task_id for step in steps for task_id in step)
    for before, after in pairwise(steps):
        for task_id in after:
            assert dag.get_task(task_id).upstream_task_ids == set(before)
            assert dag.get_task(task_id).trigger_rule == "all_success"
    assert [task.rules for task in rule_tasks(dag)] == [[rule] for rules in stages for rule in rules]
    for task in rule_tasks(dag):
        assert (task.entity_type, task.batch_size, task.deferrable) == (entity, batch_size, True)
        assert task.transformation_service_url == "{{ var.value.transformation_service_url }}"


@pytest.mark.parametrize("dag_id", TRANSFORMATIONS)
def test_the_service_knows_their_rules_and_entities(dags, dag_id: str):
    from transformation_service.entities import ENTITIES
    from transformation_service.rules import RULES

    for task in rule_tasks(dags[dag_id]):
        assert task.entity_type in ENTITIES
        for rule in task.rules:
            assert task.entity_type in RULES[rule].fields


def test_the_checks_look_at_the_service_s_tables_and_columns():
    from plugins import quality
    from transformation_service.entities import ENTITIES

    assert set(quality.ENTITIES) == set(ENTITIES)
    for name, data in quality.ENTITIES.items():
        assert data.table == ENTITIES[name].table
        assert {*data.inputs} <= set(ENTITIES[name].inputs)
        assert {*data.results} <= set(ENTITIES[name].columns)
        assert not data.duplicates or "duplicate_of" in ENTITIES[name].derived


@pytest.mark.parametrize("dag_id", FILES.values())
def test_a_slot_may_be_given(dags, dag_id: str):
    from airflow.sdk.exceptions import ParamValidationError

    params = copy.deepcopy(dags[dag_id].params)
    assert params["slot"] is None
    params["slot"] = "2026-01-31T02:00:00Z"
    assert params["slot"] == "2026-01-31T02:00:00Z"
    with pytest.raises(ParamValidationError):
        params["slot"] = 20260131


def test_the_master_runs_the_three_in_order(dags):
    dag = dags["master_orchestration"]
    assert dag.schedule == "0 1 * * *"
    order = [task.task_id for task in dag.topological_sort()]
    assert order == ["start", *(f"trigger_{dag_id}" for dag_id in TRANSFORMATIONS), "end"]
    for before, after in pairwise(order):
        assert dag.get_task(after).upstream_task_ids == {before}
        assert dag.get_task(after).trigger_rule == "all_success"  # a failure stops what comes after it


def test_the_master_waits_long_enough_for_all_three(dags):
    waits = dags["master_orchestration"].dagrun_timeout
    assert waits >= sum((dags[dag_id].dagrun_timeout for dag_id in TRANSFORMATIONS), type(waits)())


@pytest.fixture
def trigger(dags):
    return dags["master_orchestration"].get_task("trigger_application_transformation")


def test_a_failed_transformation_fails_its_task_in_the_master_without_another_try(trigger):
    from airflow.sdk import RetryAction

    event = {"run_ids": ["run"], "run": "failed"}
    with pytest.raises(Exception, match="application_transformation failed") as failure:
        trigger.execute_complete({}, ("path", event))
    decision = trigger.retry_policy.evaluate(failure.value, 1, trigger.retries)
    assert decision.action is RetryAction.FAIL


def test_a_succeeded_one_lets_the_master_go_on(trigger):
    assert trigger.execute_complete({}, ("path", {"run_ids": ["run"], "run": "success"})) is None


def test_a_paused_transformation_fails_its_task_in_the_master_at_once(trigger):
    from airflow.sdk import RetryAction

    task_instance = SimpleNamespace(get_dag=lambda _: SimpleNamespace(is_paused=True))
    with pytest.raises(Exception, match="application_transformation is paused") as failure:
        trigger.execute({"ti": task_instance})
    assert trigger.retry_policy.evaluate(failure.value, 1, trigger.retries).action is RetryAction.FAIL


def test_faults_of_the_platform_are_tried_again(trigger):
    from airflow.sdk import RetryAction
    from airflow.sdk.exceptions import TaskDeferralError

    for fault in (TaskDeferralError("triggerer"), ConnectionError("api server")):
        assert trigger.retry_policy.evaluate(fault, 1, trigger.retries).action is RetryAction.DEFAULT


def rendered(dag: DAG, task_id: str, run: Any, **params: Any) -> Any:
    """The task as a worker would see it in this run."""
    task = dag.get_task(task_id).prepare_for_execution()
    values = SimpleNamespace(value=SimpleNamespace(transformation_service_url="http://service-1:5000"))
    task.render_template_fields({"params": {"slot": None} | params, "dag_run": run, "task": task, "var": values})
    return task


def tick(day: int, hour: int) -> Any:
    moment = datetime(2026, 1, day, hour, tzinfo=UTC)
    return SimpleNamespace(logical_date=moment, run_after=moment)


def started_by_hand(moment: datetime) -> Any:
    return SimpleNamespace(logical_date=None, run_after=moment)


@pytest.mark.parametrize("dag_id", TRANSFORMATIONS)
def test_both_paths_of_a_day_do_the_same_work(dags, dag_id: str):
    """The master's child may start whenever it does: it is told the slot."""
    from plugins.operators.transformation_service import normalize_slot

    def key(task: Any) -> str:
        return task.work(normalize_slot(task.slot)).key()

    dag, hour = dags[dag_id], int(TRANSFORMATIONS[dag_id][0].split()[1])
    conf = rendered(dags["master_orchestration"], f"trigger_{dag_id}", tick(30, 1)).conf
    late = started_by_hand(datetime(2026, 1, 31, 0, 0, 5, tzinfo=UTC))
    by_hand = started_by_hand(datetime(2026, 1, 30, 18, tzinfo=UTC))
    for task in rule_tasks(dag):
        by_master = rendered(dag, task.task_id, late, **conf)
        by_schedule = rendered(dag, task.task_id, tick(30, hour))
        assert key(by_master) == key(by_schedule)
        assert key(by_schedule) != key(rendered(dag, task.task_id, tick(31, hour)))
        assert key(by_schedule) == key(rendered(dag, task.task_id, by_hand))


def test_a_slot_given_to_the_master_reaches_the_work(dags):
    given = "2025-07-01T00:00:00Z"
    conf = rendered(dags["master_orchestration"], "trigger_user_transformation", tick(30, 1), slot=given).conf
    assert conf == {"slot": given}
    for task in rule_tasks(dags["user_transformation"]):
        assert rendered(dags["user_transformation"], task.task_id, tick(30, 2), **conf).slot == given


def test_the_load_test_takes_its_size_and_a_slot_of_its_own(dags):
    from airflow.sdk.exceptions import ParamValidationError

    dag = dags["test_load"]
    assert dag.schedule is None
    assert dag.task_ids == ["apply_rules"]
    params = copy.deepcopy(dag.params)
    for name, wrong in (("records", 0), ("records", "many"), ("batch_size", 0)):
        with pytest.raises(ParamValidationError):
            params[name] = wrong
    sizes = {"records": 100_000, "batch_size": 500}
    one, two = (started_by_hand(datetime(2026, 1, 30, 18, 0, second, tzinfo=UTC)) for second in (1, 2))
    first, second = (rendered(dag, "apply_rules", run, **sizes) for run in (one, two))
    assert (str(first.max_records), str(first.batch_size)) == ("100000", "500")
    assert first.rules == ["normalize_phone", "standardize_email", "deduplicate"]
    assert datetime.fromisoformat(first.slot) == one.run_after
    assert datetime.fromisoformat(second.slot) == two.run_after
    assert rendered(dag, "apply_rules", one, **sizes, slot="2025-07-01T00:00:00Z").slot == "2025-07-01T00:00:00Z"


def test_parsing_is_light(release: Path):
    """Every task pays for its DAG file's imports. Pandas, cloud clients or requests have no business there."""
    import subprocess
    import sys

    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import airflow.sdk, airflow.serialization.definitions.dag\n"
        "import airflow.dag_processing.dagbag, airflow.providers.standard.operators.empty, httpx\n"
        "import airflow.providers.common.sql.operators.sql\n"
        "before = set(sys.modules); import plugins.operators, plugins.daily\n"
        "print(*sorted(name for name in set(sys.modules) - before if not name.startswith('plugins')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(release)], capture_output=True, text=True, check=True, cwd=release
    )
    extra = done.stdout.split()
    assert len(extra) <= 5, extra
