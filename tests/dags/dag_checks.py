"""What every DAG must keep: each check takes one DAG (or its source) and fails with the name of what is wrong."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from airflow.dag_processing.dagbag import DagBag
    from airflow.sdk import DAG
    from airflow.sdk.bases.operator import BaseOperator

POOLS = {"default_pool"}
LONGEST_TASK = timedelta(hours=1)  # roles/airflow: airflow_longest_task_seconds, the worker's TimeoutStopSec
OLD_IMPORT = re.compile(
    r"^\s*(?:from|import)\s+(airflow\.(?:models|operators|sensors|hooks|utils|contrib|decorators)\b.*|airflow\s+import\b.*)",
    re.MULTILINE,
)


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
    assert len(dag.doc_md) > 200, "a manual says more"


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


def imports_what_airflow_3_has(source: str) -> None:
    found = OLD_IMPORT.search(source)
    assert not found, f"import from Airflow 2: {found and found[1]}"


EVERY_DAG = (
    can_be_found_and_read_about,
    makes_up_for_no_past,
    runs_in_utc,
    limits_its_runs,
    survives_a_lost_worker,
    has_an_owner,
    ends_before_a_worker_may_stop_it,
    uses_pools_that_exist,
    waits_without_a_worker,
)
