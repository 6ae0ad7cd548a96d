"""Against the tables that the installed Airflow defines, in SQLite, with a stand-in for the DAG processor."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sqlalchemy
from release_host import load

RELEASES = Path("/opt/airflow/releases")
DAGS = {"one": "dags/one.py", "two": "dags/two.py"}


@pytest.fixture(scope="module")
def announcement() -> ModuleType:
    return load("module_utils/airflow_release_announce.py")


class Metadata:
    """The metadata database, and what a DAG processor does to it."""

    def __init__(self, url: str) -> None:
        from airflow.jobs.job import Job
        from airflow.models import DagModel, DagRun
        from airflow.models.base import Base
        from airflow.models.dag_version import DagVersion
        from airflow.models.dagbag import DagPriorityParsingRequest
        from airflow.models.errors import ParseImportError
        from airflow.models.tasklog import LogTemplate

        self.engine = sqlalchemy.create_engine(url)
        self.tables = {
            model.__tablename__: model.__table__
            for model in (DagModel, DagRun, DagVersion, DagPriorityParsingRequest, ParseImportError, LogTemplate, Job)
        }
        Base.metadata.create_all(self.engine, tables=list(self.tables.values()))

    def insert(self, table: str, **row: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(self.tables[table].insert().values(**row))

    def delete(self, table: str) -> None:
        with self.engine.begin() as connection:
            connection.execute(self.tables[table].delete())

    def requested(self) -> list[str]:
        table = self.tables["dag_priority_parsing_request"]
        with self.engine.begin() as connection:
            return sorted(connection.execute(sqlalchemy.select(table.c.relative_fileloc)).scalars())

    def dag(self, dag_id: str, release: str, *, file: str = "", path: Path | None = None, **changes: Any) -> None:
        """What a parse leaves behind."""
        file = file or DAGS[dag_id]
        with self.engine.begin() as connection:
            for table in ("dag", "dag_version"):
                connection.execute(self.tables[table].delete().where(self.tables[table].c.dag_id == dag_id))
        row = {
            "dag_id": dag_id,
            "bundle_name": "releases",
            "bundle_version": release,
            "relative_fileloc": file,
            "fileloc": str((path or RELEASES / release) / file),
            "is_stale": False,
            "is_paused": False,
            "max_active_tasks": 1,
            "max_consecutive_failed_dag_runs": 0,
            "has_task_concurrency_limits": False,
        }
        self.insert("dag", **(row | {key: value for key, value in changes.items() if key != "newest"}))
        newest = changes.get("newest", release)
        self.insert("dag_version", dag_id=dag_id, version_number=1, bundle_name="releases", bundle_version="old")
        self.insert("dag_version", dag_id=dag_id, version_number=2, bundle_name="releases", bundle_version=newest)

    def job(self, kind: str, *, age: float = 1, host: str = "scheduler-1", start: datetime | None = None) -> None:
        now = datetime.now(UTC)
        self.insert(
            "job",
            job_type=kind,
            state="running",
            hostname=host,
            start_date=start or now,
            latest_heartbeat=now - timedelta(seconds=age),
        )


@pytest.fixture
def metadata(tmp_path: Path) -> Metadata:
    return Metadata(f"sqlite:///{tmp_path}/airflow.db")


@pytest.fixture
def run(announcement: ModuleType, metadata: Metadata) -> Callable[..., Any]:
    """Run the wait on a clock of its own; ``at`` maps seconds to what the DAG processor does then."""

    def announce(at: dict[float, Callable[[], None]] | None = None, **options: Any) -> Any:
        now = 0.0
        pending = dict(at or {})

        def sleep(seconds: float) -> None:
            nonlocal now
            now += seconds
            for moment in [moment for moment in pending if moment <= now]:
                pending.pop(moment)()

        database = announcement.Database(str(metadata.engine.url), "releases")
        wanted = {"release": "new", "dags": DAGS, "releases": RELEASES, "timeout": 60}
        outcome = announcement.announce(database, **(wanted | options), clock=lambda: now, sleep=sleep)
        return outcome, now

    return announce


def parsed(metadata: Metadata) -> None:
    for dag_id in DAGS:
        metadata.dag(dag_id, "new")


def test_nothing_to_do_asks_for_nothing(run, metadata):
    parsed(metadata)
    outcome, seconds = run()
    assert (outcome.problem, outcome.waited, seconds) == ("", False, 0.0)
    assert metadata.requested() == []


def test_every_file_that_is_not_current_is_requested_once(run, metadata):
    metadata.job("DagProcessorJob")
    metadata.dag("one", "old")
    seen: list[list[str]] = []
    outcome, seconds = run({1: lambda: seen.append(metadata.requested()), 2: lambda: parsed(metadata)})
    assert (outcome.problem, outcome.waited, seconds) == ("", True, 2.0)
    assert seen == [["dags/one.py", "dags/two.py"]]


def test_the_request_is_the_one_that_airflow_itself_would_file(run, metadata):
    from airflow.models.dagbag import DagPriorityParsingRequest
    from sqlalchemy.orm import Session

    with Session(metadata.engine) as session:
        session.add(DagPriorityParsingRequest(bundle_name="releases", relative_fileloc="dags/one.py"))
        session.commit()
    metadata.job("DagProcessorJob")
    run({1: lambda: parsed(metadata)})
    assert metadata.requested() == ["dags/one.py", "dags/two.py"]


def test_a_late_parse_of_the_former_release_does_not_count(run, metadata):
    metadata.job("DagProcessorJob")

    def late() -> None:
        parsed(metadata)
        metadata.dag("one", "new", path=RELEASES / "old")
        metadata.delete("dag_priority_parsing_request")

    again: list[list[str]] = []
    outcome, seconds = run({1: late, 6: lambda: again.append(metadata.requested()), 7: lambda: parsed(metadata)})
    assert (outcome.problem, seconds) == ("", 7.0)
    assert again == [["dags/one.py"]]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"release": "old"}, "DAG one: still of release old"),
        ({"release": "new", "newest": "old"}, "DAG one: still of release old"),
        ({"release": "new", "is_stale": True}, "DAG one: not there yet"),
        ({"release": "new", "bundle_name": "other"}, "DAG one: not there yet"),
        ({"release": "new", "path": Path("/x")}, "DAG one: still read from /x/dags/one.py"),
    ],
)
def test_what_is_missing_is_told(run, metadata, change, told):
    metadata.job("DagProcessorJob")
    parsed(metadata)
    metadata.dag("one", **change)
    outcome, seconds = run()
    assert outcome.problem == told
    assert seconds >= 60


def test_a_dag_of_a_removed_file_must_be_gone(run, metadata):
    metadata.job("DagProcessorJob")
    parsed(metadata)
    metadata.dag("three", "old", file="dags/three.py")
    outcome, _ = run()
    assert outcome.problem == "DAG three: still there, but not part of the release"
    assert metadata.requested() != []


def test_a_dag_that_was_renamed_within_its_file_leaves_in_its_own_time(run, metadata):
    parsed(metadata)
    metadata.dag("once", "old", file="dags/one.py")
    assert run()[0].problem == ""


def test_an_import_error_is_reported_with_its_file(run, metadata):
    metadata.job("DagProcessorJob")
    parsed(metadata)
    metadata.insert(
        "import_error", filename="dags/one.py", bundle_name="releases", stacktrace="Traceback\n  x\nKeyError: 'y'\n"
    )
    metadata.insert("import_error", filename="x.py", bundle_name="other", stacktrace="no business of ours")
    assert run()[0].problem == "import error in dags/one.py: KeyError: 'y'"
    assert metadata.requested() == ["dags/one.py"]


def test_a_dead_dag_processor_is_named(run, metadata):
    metadata.job("DagProcessorJob", age=300)
    assert "no DAG processor is alive" in run()[0].problem


def test_with_two_dag_processors_the_result_must_hold(run, metadata):
    metadata.job("DagProcessorJob")
    metadata.job("DagProcessorJob", host="scheduler-2")
    outcome, seconds = run(
        {1: lambda: parsed(metadata), 4: lambda: metadata.dag("one", "old"), 6: lambda: parsed(metadata)}
    )
    assert outcome.problem == ""
    assert 14 <= seconds <= 15


def test_a_further_condition_holds_it_up(run, metadata):
    metadata.job("DagProcessorJob")
    parsed(metadata)
    answers = iter(["no", "not yet", ""])
    outcome, seconds = run(unready=lambda: next(answers))
    assert (outcome.problem, seconds) == ("", 0.5)
    assert metadata.requested() == []  # the DAGs are as wanted; parsing them again would not help
    assert run(unready=lambda: "still not")[0].problem == "still not"


def test_unfinished_runs_name_the_releases_in_use(announcement, metadata):
    parsed(metadata)
    metadata.dag("else", "9", file="x.py", bundle_name="other")
    now = datetime.now(UTC)
    runs = [("one", "queued", "a"), ("one", "running", "b"), ("two", "success", "c"), ("two", "failed", "d")]
    for number, (dag_id, state, version) in enumerate([*runs, ("one", "running", None), ("else", "running", "e")]):
        metadata.insert(
            "dag_run",
            dag_id=dag_id,
            run_id=str(number),
            state=state,
            bundle_version=version,
            run_type="manual",
            run_after=now,
            conf={},
        )
    database = announcement.Database(str(metadata.engine.url), "releases")
    assert database.in_use() == ["a", "b"]


def test_living_processes_are_told_from_dead_ones(announcement, metadata):
    start = datetime(2026, 1, 31, 2, tzinfo=UTC)
    metadata.job("TriggererJob", start=start)
    metadata.job("TriggererJob", age=300, host="scheduler-2")
    metadata.job("SchedulerJob")
    database = announcement.Database(str(metadata.engine.url), "releases")
    assert [host for host, _ in database.jobs("TriggererJob")] == ["scheduler-1"]
