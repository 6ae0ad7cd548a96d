"""What every DAG of the repository must keep, whoever adds it; loaded as a release, as the deployment does."""

from __future__ import annotations

import os
import runpy
import shutil
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="airflow-home-"))  # before anything imports airflow

import pytest

if TYPE_CHECKING:
    from airflow.sdk import DAG

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("release")
    for part in ("dags", "plugins", "scripts"):
        if (REPOSITORY / part).is_dir():
            shutil.copytree(REPOSITORY / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / ".airflowignore", root)
    return root


@pytest.fixture(scope="session")
def dags(release: Path) -> dict[str, DAG]:
    from airflow.dag_processing.dagbag import BundleDagBag

    bag = BundleDagBag(release, bundle_path=release, bundle_name="releases")
    assert bag.import_errors == {}
    return bag.dags


def test_the_deployment_accepts_them(release: Path):
    parser = runpy.run_path(str(REPOSITORY / "roles/airflow_release/files/parse_release.py"))
    result = parser["parse"](release)
    assert result["errors"] == []
    assert set(result["dags"].values()) == {str(path.relative_to(release)) for path in (release / "dags").glob("*.py")}


def test_each_can_be_found_and_read_about(dags):
    for dag_id, dag in dags.items():
        assert dag.tags, f"{dag_id}: no tags"
        assert dag.description, f"{dag_id}: no description"
        assert dag.doc_md, f"{dag_id}: the module's docstring is its manual: doc_md=__doc__"
        assert len(dag.doc_md) > 200, f"{dag_id}: a manual says more"


def test_none_makes_up_for_the_past_and_all_run_in_utc(dags):
    for dag_id, dag in dags.items():
        assert dag.catchup is False, f"{dag_id}: catchup"
        assert str(dag.timezone) == "UTC", f"{dag_id}: {dag.timezone}"
        assert dag.max_active_runs <= 4, f"{dag_id}: max_active_runs"


def test_a_lost_worker_costs_no_run(dags):
    for task in _working_tasks(dags):
        assert task.retries >= 2, f"{task.task_id}: retries"
        assert task.retry_exponential_backoff, f"{task.task_id}: retry_exponential_backoff"
        assert task.max_retry_delay is not None, f"{task.task_id}: max_retry_delay"
        assert task.max_retry_delay <= timedelta(minutes=30), f"{task.task_id}: max_retry_delay"
        assert task.owner not in {"", "airflow"}, f"{task.task_id}: owner"


def test_every_task_ends_before_a_worker_may_stop_it(dags):
    longest = timedelta(hours=1)  # roles/airflow: airflow_longest_task_seconds, the worker's TimeoutStopSec
    for task in _working_tasks(dags):
        assert task.execution_timeout is not None, f"{task.task_id}: execution_timeout"
        assert task.execution_timeout < longest, f"{task.task_id}: execution_timeout"


def _working_tasks(dags):
    return [task for dag in dags.values() for task in dag.tasks if not task.inherits_from_empty_operator]


def test_user_transformation(dags):
    dag = dags["user_transformation"]
    assert dag.schedule == "0 2 * * *"
    assert dag.max_active_runs > 1, "a failed run that waits for its retry would hold up every other slot"
    assert [task.task_id for task in dag.topological_sort()] == ["start", "apply_rules", "end"]
    task = dag.get_task("apply_rules")
    assert task.entity_type == "User"
    assert task.rules == ["normalize_phone", "standardize_email", "deduplicate"]
    assert task.batch_size == 1000
    assert task.deferrable is True
    assert task.transformation_service_url == "{{ var.value.transformation_service_url }}"
    assert dag.params["slot"] is None
    dag.params["slot"] = "2026-01-31T02:00:00Z"
    assert dag.params["slot"] == "2026-01-31T02:00:00Z"


def test_parsing_is_light(release: Path):
    """Every task pays for its DAG file's imports. Pandas, cloud clients or requests have no business there."""
    import subprocess
    import sys

    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import airflow.sdk, airflow.serialization.definitions.dag\n"
        "import airflow.dag_processing.dagbag, airflow.providers.standard.operators.empty, httpx\n"
        "before = set(sys.modules); import plugins.operators\n"
        "print(*sorted(name for name in set(sys.modules) - before if not name.startswith('plugins')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(release)], capture_output=True, text=True, check=True, cwd=release
    )
    extra = done.stdout.split()
    assert len(extra) <= 5, extra
