"""The checks find what they are for: each fails on a DAG that has just that fault, and passes on the sound one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import dag_checks as checks
import pytest

if TYPE_CHECKING:
    from airflow.dag_processing.dagbag import DagBag
    from airflow.sdk import DAG

SOUND = """
\'\'\'
| Schedule | 05:00 UTC |
|---|---|
| Rules | `normalize_phone`, `deduplicate` |
| Batch | 500 records |
| Owner | somebody, Slack `#somewhere` |
| Runbook | `README.md` |
\'\'\'

from datetime import UTC, datetime, timedelta

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG

from plugins.operators import RuleEngineOperator

with DAG(
    dag_id="{name}",
    description="A sound DAG",
    doc_md=__doc__,
    schedule="0 5 * * *",
    start_date=datetime(2024, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=4,
    dagrun_timeout=timedelta(hours=1),
    tags=["test"],
    default_args={{
        "owner": "somebody",
        "retries": 2,
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(minutes=15),
        "execution_timeout": timedelta(minutes=30),
    }},
):
    start = EmptyOperator(task_id="start")
    work = TriggerDagRunOperator(
        task_id="work",
        trigger_dag_id="sound",
        wait_for_completion=True,
        deferrable=True,
        poke_interval=1,
        fail_when_dag_is_paused=True,
        pool="default_pool",
    )
    rules = RuleEngineOperator(
        task_id="rules",
        entity_type="User",
        rules=["normalize_phone", "deduplicate"],
        batch_size=500,
        transformation_service_url="{{{{ var.value.transformation_service_url }}}}",
        slot="{{{{ ts }}}}",
    )
    start >> work >> rules
"""

# name: (what to replace, by what, the check that must notice, what it must say)
FAULTS: dict[str, tuple[str, str, Callable[[DAG], None], str]] = {
    "untagged": ('["test"]', "[]", checks.can_be_found_and_read_about, "no tags"),
    "undescribed": ('"A sound DAG"', "None", checks.can_be_found_and_read_about, "no description"),
    "unexplained": ("=__doc__", "=None", checks.can_be_found_and_read_about, "manual"),
    "rule_left_out": ("| `normalize_phone`, ", "| ", checks.tells_what_it_does, "Rules differ in normalize_phone"),
    "rule_made_up": (
        "| `normalize_phone`",
        "| `guess`, `normalize_phone`",
        checks.tells_what_it_does,
        "differ in guess",
    ),
    "other_batch": ("batch_size=500", "batch_size=50", checks.tells_what_it_does, "begin with 50 records"),
    "other_schedule": ('"0 5 * * *"', '"30 5 * * *"', checks.tells_what_it_does, "begin with 05:30 UTC"),
    "unscheduled": ('"0 5 * * *"', "None", checks.tells_what_it_does, "begin with none"),
    "other_owner": ('"owner": "somebody"', '"owner": "me"', checks.tells_what_it_does, "begin with me"),
    "no_channel": ("Slack `#somewhere`", "by mail", checks.tells_what_it_does, "no Slack channel"),
    "no_runbook": ("| Runbook | `README.md` |\n", "", checks.tells_what_it_does, "no row Runbook"),
    "lost_runbook": ("`README.md`", "`docs/no.md`", checks.tells_what_it_does, "docs/no.md does not exist"),
    "unknown_connection": (
        "batch_size=500",
        'batch_size=500, transformation_service_conn_id="nowhere"',
        checks.uses_connections_that_exist,
        "rules: connection nowhere",
    ),
    "unknown_connection_in_a_template": (
        "{{ ts }}",
        "{{ conn.elsewhere.host }}",
        checks.uses_connections_that_exist,
        "rules: connection elsewhere",
    ),
    "unknown_variable": (
        "value.transformation_service_url",
        "value.no_such",
        checks.uses_variables_that_exist,
        "rules: variable no_such",
    ),
    "unknown_variable_asked_for": (
        "{{ ts }}",
        "{{ var.json.get('no_such') }}",
        checks.uses_variables_that_exist,
        "rules: variable no_such",
    ),
    "catching_up": ("catchup=False", "catchup=True", checks.makes_up_for_no_past, "catchup"),
    "zone_left_out": (", tzinfo=UTC", "", checks.runs_in_utc, "Asia/Kathmandu"),
    "no_start_date": ("    start_date=datetime(2024, 1, 1, tzinfo=UTC),\n", "", checks.runs_in_utc, "Asia/Kathmandu"),
    "one_run": ("max_active_runs=4", "max_active_runs=1", checks.limits_its_runs, "max_active_runs"),
    "many_runs": ("    max_active_runs=4,\n", "", checks.limits_its_runs, "max_active_runs"),
    "endless": ("    dagrun_timeout=timedelta(hours=1),\n", "", checks.limits_its_runs, "dagrun_timeout"),
    "one_try": ('"retries": 2', '"retries": 1', checks.survives_a_lost_worker, "work: retries"),
    "even_retries": ('_backoff": True', '_backoff": False', checks.survives_a_lost_worker, "exponential_backoff"),
    "no_cap": ('"max_retry_delay": timedelta(minutes=15),', "", checks.survives_a_lost_worker, "max_retry_delay"),
    "high_cap": ("minutes=15", "minutes=31", checks.survives_a_lost_worker, "max_retry_delay"),
    "nobodys": ("somebody", "airflow", checks.has_an_owner, "work: owner"),
    "unlimited": ('"execution_timeout": timedelta(minutes=30),', "", checks.ends_before_a_worker_may_stop_it, "work"),
    "too_long": ("minutes=30", "minutes=60", checks.ends_before_a_worker_may_stop_it, "work: execution_timeout"),
    "unknown_pool": ("default_pool", "no_such_pool", checks.uses_pools_that_exist, "pool no_such_pool"),
    "holds_a_worker": ("deferrable=True", "deferrable=False", checks.waits_without_a_worker, "deferrable"),
    "slow_poll": ("poke_interval=1", "poke_interval=60", checks.waits_without_a_worker, "poke_interval"),
    "waits_for_paused": ("is_paused=True", "is_paused=False", checks.waits_without_a_worker, "is_paused"),
}
CYCLE = ("start >> work", "start >> work >> start")
TWO = ("start >> work >> rules", 'start >> work >> rules\n\nsecond = DAG(dag_id="second", schedule=None)')
UNKNOWN = ('trigger_dag_id="sound"', 'trigger_dag_id="no_such_dag"')


def source(name: str, *change: str) -> str:
    text = SOUND.format(name=name)
    if change:
        assert change[0] in text
        text = text.replace(*change)
    return text


@pytest.fixture(scope="session")
def bag(tmp_path_factory: pytest.TempPathFactory) -> DagBag:
    root: Path = tmp_path_factory.mktemp("faulty")
    (root / "sound.py").write_text(source("sound"))
    for name, (old, new, _, _) in FAULTS.items():
        (root / f"{name}.py").write_text(source(name, old, new))
    (root / "two.py").write_text(source("two", *TWO))
    (root / "none.py").write_text("# airflow: a file without a DAG\n")
    (root / "cycle.py").write_text(source("cycle", *CYCLE))
    (root / "unknown.py").write_text(source("unknown", *UNKNOWN))
    return checks.load(root)


@pytest.mark.parametrize("check", checks.EVERY_DAG, ids=lambda check: check.__name__)
def test_a_sound_dag_passes(bag: DagBag, check: Callable[[DAG], None]):
    check(bag.dags["sound"])


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_dag_fails_its_check_and_no_other(bag: DagBag, name: str):
    _, _, check, says = FAULTS[name]
    with pytest.raises(AssertionError, match=says):
        check(bag.dags[name])
    for other in checks.EVERY_DAG:
        if other is not check:
            other(bag.dags[name])


def test_every_check_has_a_fault():
    assert {check for _, _, check, _ in FAULTS.values()} == set(checks.EVERY_DAG)


def test_a_cycle_does_not_load(bag: DagBag):
    assert list(bag.import_errors) == ["cycle.py"]
    assert "Cycle detected" in bag.import_errors["cycle.py"]


def test_an_unknown_triggered_dag_is_named(bag: DagBag):
    checks.triggers_what_exists(bag.dags["sound"], bag.dags)
    with pytest.raises(AssertionError, match="work: no DAG no_such_dag"):
        checks.triggers_what_exists(bag.dags["unknown"], bag.dags)


def test_a_file_with_none_or_two_is_named(bag: DagBag):
    def held(*names: str) -> None:
        checks.holds_one_dag_a_file(bag.dags.values(), [Path(name) for name in names])

    held("sound.py", "unknown.py")
    with pytest.raises(AssertionError, match=r"two\.py holds 2"):
        held("sound.py", "two.py")
    with pytest.raises(AssertionError, match=r"none\.py holds 0"):
        held("none.py")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("from airflow import DAG", "import from airflow"),
        ("from airflow.models import Variable", "import from airflow.models"),
        ("from airflow.operators.bash import BashOperator", "import from airflow.operators.bash"),
        ("if True:\n    from airflow.utils.task_group import TaskGroup", "import from airflow.utils.task_group"),
        ("import airflow.sensors.base", "import airflow.sensors.base"),
        ("from airflow.providers.http.operators.http import SimpleHttpOperator", "SimpleHttpOperator"),
        ('DAG("a", schedule_interval="@daily")', "argument schedule_interval"),
        ('Work(task_id="a", sla=60)', "argument sla"),
        ('Work(command="echo {{ execution_date }}")', "template variable execution_date"),
    ],
)
def test_what_airflow_3_has_not_is_named(line: str, says: str):
    with pytest.raises(AssertionError, match=f"of Airflow 2: {says}$"):
        checks.uses_what_airflow_3_has(f'"""Manual."""\n\n{line}\n')
    checks.uses_what_airflow_3_has(source("sound"))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('Variable.get("no_such")', "variable no_such"),
        ('BaseHook.get_connection("nowhere")', "connection nowhere"),
        ('Connection.get("nowhere")', "connection nowhere"),
    ],
)
def test_what_the_code_reads_has_to_be_defined(line: str, says: str):
    with pytest.raises(AssertionError, match=says):
        checks.reads_nothing_that_is_undefined(f"def work():\n    return {line}\n")
    checks.reads_nothing_that_is_undefined('Variable.get("no_such", default=1), Variable.get("default_batch_size")')
    checks.reads_nothing_that_is_undefined('BaseHook.get_connection("transformation_db")')


def test_the_names_come_from_the_inventories():
    assert {"transformation_db", "transformation_service"} <= checks.CONNECTIONS
    assert {"transformation_service_url", "default_batch_size"} <= checks.VARIABLES
    assert "default_pool" in checks.POOLS
