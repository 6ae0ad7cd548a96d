"""What every DAG must keep: each check takes one DAG (or its source) and fails with the name of what is wrong."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Collection, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from airflow.dag_processing.dagbag import DagBag
    from airflow.sdk import DAG
    from airflow.sdk.bases.operator import BaseOperator

REPOSITORY = Path(__file__).parents[2]
LONGEST_TASK = timedelta(hours=1)  # roles/airflow: airflow_longest_task_seconds, the worker's TimeoutStopSec
MOVED = re.compile(
    r"airflow\.(models|operators|sensors|hooks|utils|contrib|decorators|datasets|exceptions|io|notifications)(\..*)?"
)
REMOVED_NAMES = {"SimpleHttpOperator", "DummyOperator", "SubDagOperator", "days_ago", "Dataset"}
REMOVED_ARGUMENTS = {
    *("schedule_interval", "timetable", "concurrency", "sla", "sla_miss_callback", "default_view", "orientation"),
    *("fail_stop", "provide_context", "task_concurrency", "http_conn_id", "execution_date"),
}
REMOVED_CONTEXT = re.compile(
    r"\{\{[^}]*\b(execution_date|(?:next|prev)_execution_date|(?:next|prev)_ds|(?:yesterday|tomorrow)_ds|conf)\b"
)
# A default makes an undefined one harmless: var.value.get('name', 'default').
VARIABLE = re.compile(r"\bvar\.(?:value|json)\.(?:get\(\s*['\"](\w+)['\"]\s*\)|(?!get\()(\w+))")
CONNECTION = re.compile(r"\bconn\.(?:get\(\s*['\"](\w+)['\"]|(?!get\()(\w+))")


def defined(kind: str, name: str) -> set[str]:
    """Names of the objects (connections, variables, pools) that the wiring and any inventory define."""
    found = set()
    for file in (REPOSITORY / "inventories").glob("**/*.yml"):
        text = file.read_text()
        if text.startswith("$ANSIBLE_VAULT"):
            continue
        settings = yaml.safe_load(text) or {}
        for key in (f"wiring_{kind}", f"platform_{kind}"):
            found |= {item[name] for item in settings.get(key) or () if isinstance(item, dict)}
    return found


CONNECTIONS = defined("connections", "conn_id")
VARIABLES = defined("variables", "key")
POOLS = defined("pools", "name") | {"default_pool"}


def load(root: Path) -> DagBag:
    """Load a release, with a default zone other than UTC, so that a DAG that leaves its zone out shows."""
    import pendulum
    from airflow import settings
    from airflow.dag_processing.dagbag import BundleDagBag

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "TIMEZONE", pendulum.timezone("Asia/Kathmandu"))
        return BundleDagBag(root, bundle_path=root, bundle_name="releases")


def working_tasks(dag: DAG) -> list[BaseOperator]:
    """Tasks that run on a worker."""
    return [task for task in dag.tasks if not task.inherits_from_empty_operator]


def can_be_found_and_read_about(dag: DAG) -> None:
    assert dag.tags, "no tags"
    assert dag.description, "no description"
    assert dag.doc_md, "the module's docstring is its manual: doc_md=__doc__"


def tells_what_it_does(dag: DAG) -> None:
    """The manual has a table of the rules, batch, schedule, owner and help that the code has."""
    if not dag.doc_md:
        return
    rows = dict(re.findall(r"^\| (\w+)[^|]* \| (.+) \|$", dag.doc_md, re.MULTILINE))

    def row(name: str) -> str:
        assert name in rows, f"the manual has no row {name}"
        return rows[name]

    schedule = dag.schedule
    at = re.fullmatch(r"(\d+) (\d+) \* \* \*", schedule) if isinstance(schedule, str) else None
    wanted = "none" if schedule is None else f"{int(at[2]):02}:{int(at[1]):02} UTC" if at else str(schedule)
    assert row("Schedule").startswith(wanted), f"the manual's Schedule does not begin with {wanted}"
    working = [task for task in dag.tasks if hasattr(task, "rules")]
    if working:
        rules = {rule for task in working for rule in task.rules}
        named = set(re.findall(r"`(\w+)`", row("Rules")))
        assert named == rules, f"the manual's Rules differ in {', '.join(sorted(named ^ rules))}"
    for task in working:
        size = task.batch_size
        template = re.fullmatch(r"\{\{ params\.(\w+) \}\}", str(size))
        size = dag.params[template[1]] if template else size
        assert row("Batch").startswith(f"{size} records"), f"the manual's Batch does not begin with {size} records"
    for task in working_tasks(dag):
        assert row("Owner").startswith(f"{task.owner}, "), f"the manual's Owner does not begin with {task.owner}"
    assert re.search(r"Slack `#[\w-]+`", row("Owner")), "the manual's Owner names no Slack channel"
    runbook = re.match(r"`([^`]+)`", row("Runbook"))
    assert runbook, "the manual's Runbook names no file"
    assert (REPOSITORY / runbook[1]).is_file(), f"the manual's Runbook {runbook[1]} does not exist"


def makes_up_for_no_past(dag: DAG) -> None:
    assert dag.catchup is False, "catchup"


def runs_in_utc(dag: DAG) -> None:
    assert str(dag.timezone) == "UTC", f"timezone is {dag.timezone}, give start_date tzinfo=UTC"


def limits_its_runs(dag: DAG) -> None:
    assert 1 < dag.max_active_runs <= 4, "max_active_runs: one failed run would hold up every slot, or no limit"
    assert dag.dagrun_timeout, "dagrun_timeout"
    assert dag.dagrun_timeout < timedelta(hours=24), "dagrun_timeout"


def survives_a_lost_worker(dag: DAG) -> None:
    for task in working_tasks(dag):
        assert task.retries >= 2, f"{task.task_id}: retries"
        assert task.retry_exponential_backoff, f"{task.task_id}: retry_exponential_backoff"
        assert task.max_retry_delay is not None, f"{task.task_id}: max_retry_delay"
        assert task.max_retry_delay <= timedelta(minutes=30), f"{task.task_id}: max_retry_delay"


def has_an_owner(dag: DAG) -> None:
    for task in working_tasks(dag):
        assert task.owner not in {"", "airflow"}, f"{task.task_id}: owner"


def ends_before_a_worker_may_stop_it(dag: DAG) -> None:
    for task in working_tasks(dag):
        assert task.execution_timeout is not None, f"{task.task_id}: execution_timeout"
        assert task.execution_timeout < LONGEST_TASK, f"{task.task_id}: execution_timeout"


def uses_pools_that_exist(dag: DAG) -> None:
    for task in dag.tasks:
        assert task.pool in POOLS, f"{task.task_id}: pool {task.pool}"


def strings(value: Any) -> Iterator[str]:
    """Every text within a template field's value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.items():
            yield from strings(item)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from strings(item)


def named(pattern: re.Pattern[str], task: BaseOperator) -> set[str]:
    """Names that a pattern finds in a task's templates."""
    fields = [text for name in task.template_fields for text in strings(getattr(task, name, None))]
    return {first or second for text in fields for first, second in pattern.findall(text)}


def uses_connections_that_exist(dag: DAG) -> None:
    for task in dag.tasks:
        literal = {value for name, value in vars(task).items() if name.endswith("conn_id") and isinstance(value, str)}
        used = {name for name in literal if "{" not in name} | named(CONNECTION, task)
        assert used <= CONNECTIONS, f"{task.task_id}: connection {', '.join(sorted(used - CONNECTIONS))}"


def uses_variables_that_exist(dag: DAG) -> None:
    for task in dag.tasks:
        used = named(VARIABLE, task)
        assert used <= VARIABLES, f"{task.task_id}: variable {', '.join(sorted(used - VARIABLES))}"


def holds_one_dag_a_file(dags: Collection[DAG], files: Collection[Path]) -> None:
    """A file with none is a leftover; one with two hides the second."""
    held = Counter(Path(dag.fileloc).name for dag in dags)
    wrong = [f"{file.name} holds {held[file.name]}" for file in files if held[file.name] != 1]
    assert not wrong, ", ".join(wrong)


def triggers_what_exists(dag: DAG, known: Collection[str]) -> None:
    for task in dag.tasks:
        target = getattr(task, "trigger_dag_id", None)
        assert target is None or target in known, f"{task.task_id}: no DAG {target}"


def waits_without_a_worker(dag: DAG) -> None:
    for task in dag.tasks:
        if getattr(task, "wait_for_completion", False):
            assert task.deferrable, f"{task.task_id}: deferrable"
            assert task.poke_interval <= 5, f"{task.task_id}: poke_interval"
            assert task.fail_when_dag_is_paused, f"{task.task_id}: fail_when_dag_is_paused"


def uses_what_airflow_3_has(source: str) -> None:
    """No import, name, argument or template variable that Airflow 3 has moved or removed."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found += [f"import from {module}"] if module == "airflow" or MOVED.fullmatch(module) else []
            found += [alias.name for alias in node.names if alias.name in REMOVED_NAMES]
        elif isinstance(node, ast.Import):
            found += [f"import {alias.name}" for alias in node.names if MOVED.fullmatch(alias.name)]
        elif isinstance(node, ast.keyword) and node.arg in REMOVED_ARGUMENTS:
            found.append(f"argument {node.arg}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += [f"template variable {name}" for name in REMOVED_CONTEXT.findall(node.value)]
    assert not found, f"of Airflow 2: {', '.join(found)}"


def reads_nothing_that_is_undefined(source: str) -> None:
    """Names of variables and connections that the code itself reads, in a task's function."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        asked = ast.unparse(call.func)
        name = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else None
        if asked == "Variable.get" and len(call.args) + len(call.keywords) == 1:
            assert name is None or name in VARIABLES, f"variable {name}"
        if asked.endswith(("get_connection", "Connection.get")):
            assert name is None or name in CONNECTIONS, f"connection {name}"


EVERY_DAG = (
    can_be_found_and_read_about,
    tells_what_it_does,
    makes_up_for_no_past,
    runs_in_utc,
    limits_its_runs,
    survives_a_lost_worker,
    has_an_owner,
    ends_before_a_worker_may_stop_it,
    uses_pools_that_exist,
    uses_connections_that_exist,
    uses_variables_that_exist,
    waits_without_a_worker,
)
EVERY_SOURCE = (uses_what_airflow_3_has, reads_nothing_that_is_undefined)
