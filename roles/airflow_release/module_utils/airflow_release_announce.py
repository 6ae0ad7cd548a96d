"""Have the live release parsed now, and wait until Airflow schedules and serves it.

Files a priority parsing request for every DAG file that the metadata database does not show yet. The DAG processor
takes requests up in its next loop (1 s), refreshes the bundle for them and thereby sees new and removed files too; its
own timers would take 30 s for a flip to an older release and up to 5 minutes for a new file.

Speaks SQL to the metadata database and imports nothing of Airflow, which would cost 3 s. The tables are those of
Airflow 3.3 (``airflow/models/{dag,dag_version,dagbag,errors,dagrun}.py``, ``airflow/jobs/job.py``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.airflow_api import Api, ApiFailed

if TYPE_CHECKING:
    import sqlalchemy

REPEAT = 2.0
"""Seconds after which a request is repeated: a file that is being parsed when its request arrives is dropped from the
queue."""
SETTLE = 8.0
"""Seconds for which the result must hold with several DAG processors: one that has not refreshed yet (every
``bundle_refresh_check_interval`` = 5 s) may still write what it parsed from the release before."""
ALIVE = 60.0


@dataclasses.dataclass(frozen=True)
class View:
    """What the metadata database shows of the bundle.

    ``dags``: the current ones, dag_id -> (bundle version, file, file within the bundle, newest DagVersion's version);
    ``errors``: (file, last line of the stack trace)
    """

    dags: Mapping[str, tuple[str | None, str | None, str | None, str | None]]
    errors: Sequence[tuple[str, str]]


def pending(view: View, *, release: str, dags: Mapping[str, str], releases: Path) -> dict[str, str]:
    """Say for each DAG that is not as the release wants it what is missing, by dag_id.

    The file counts beside the version: a parse of the former release that ends after the flip is stored under the new
    version.
    """
    missing = {}
    for dag_id, file in dags.items():
        version, fileloc, _, newest = view.dags.get(dag_id, (None,) * 4)
        if dag_id not in view.dags:
            missing[dag_id] = "not there yet"
        elif version != release or newest != release:
            missing[dag_id] = f"still of release {version if version != release else newest}"
        elif fileloc != str(releases / release / file):
            missing[dag_id] = f"still read from {fileloc}"
    for dag_id in view.dags.keys() - dags.keys():
        # A DAG that was renamed within its file leaves by itself, but only after `stale_dag_threshold` and a minute.
        if view.dags[dag_id][2] not in dags.values():
            missing[dag_id] = "still there, but not part of the release"
    return missing


class Database:
    """The few statements that this module needs."""

    def __init__(self, url: str, bundle: str) -> None:
        import sqlalchemy

        self._text = sqlalchemy.text
        self._engine: sqlalchemy.Engine = sqlalchemy.create_engine(url, hide_parameters=True)
        self._bundle = bundle

    def _rows(self, statement: str, **values: object) -> list[Any]:
        with self._engine.connect() as connection:
            return list(connection.execute(self._text(statement), {"bundle": self._bundle, **values}))

    def view(self) -> View:
        """Read what :class:`View` holds."""
        dags = self._rows(
            "SELECT d.dag_id, d.bundle_version, d.fileloc, d.relative_fileloc,"
            " (SELECT v.bundle_version FROM dag_version v WHERE v.dag_id = d.dag_id"
            " ORDER BY v.version_number DESC LIMIT 1)"
            " FROM dag d WHERE d.bundle_name = :bundle AND NOT d.is_stale"
        )
        errors = self._rows("SELECT filename, stacktrace FROM import_error WHERE bundle_name = :bundle")
        return View(
            {row[0]: (row[1], row[2], row[3], row[4]) for row in dags},
            [(file, (trace or "").strip().rpartition("\n")[2].strip()) for file, trace in errors],
        )

    def request(self, files: Sequence[str]) -> None:
        """File parsing requests; one that is pending already stays as it is."""
        if not files:
            return
        rows = [
            {
                "id": hashlib.md5(f"{self._bundle}:{file}".encode(), usedforsecurity=False).hexdigest(),
                "bundle": self._bundle,
                "file": file,
            }
            for file in files
        ]
        with self._engine.begin() as connection:
            connection.execute(
                self._text(
                    "INSERT INTO dag_priority_parsing_request (id, bundle_name, relative_fileloc)"
                    " VALUES (:id, :bundle, :file) ON CONFLICT DO NOTHING"
                ),
                rows,
            )

    def in_use(self) -> list[str]:
        """Releases that unfinished runs are pinned to."""
        rows = self._rows(
            "SELECT DISTINCT r.bundle_version FROM dag_run r JOIN dag d ON d.dag_id = r.dag_id"
            " WHERE d.bundle_name = :bundle AND r.bundle_version IS NOT NULL AND r.state NOT IN ('success', 'failed')"
        )
        return sorted(row[0] for row in rows)

    def jobs(self, job_type: str) -> list[tuple[str, float]]:
        """Host name and start (seconds since the epoch) of every live process of a type."""
        rows = self._engine_jobs(job_type)
        return [(host, start) for host, start, beat in rows if time.time() - beat < ALIVE]

    def _engine_jobs(self, job_type: str) -> list[tuple[str, float, float]]:
        import sqlalchemy

        moment = sqlalchemy.TIMESTAMP(timezone=True)
        job = sqlalchemy.table(
            "job",
            *(sqlalchemy.column(name) for name in ("hostname", "job_type", "state")),
            *(sqlalchemy.column(name, moment) for name in ("start_date", "latest_heartbeat")),
        )
        statement = sqlalchemy.select(job.c.hostname, job.c.start_date, job.c.latest_heartbeat).where(
            job.c.job_type == job_type, job.c.state == "running"
        )
        with self._engine.connect() as connection:
            return [(host, start.timestamp(), beat.timestamp()) for host, start, beat in connection.execute(statement)]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How the wait ended: ``problem`` is empty on success; ``waited`` tells whether anything had to be done."""

    problem: str
    waited: bool


def announce(
    database: Database,
    *,
    release: str,
    dags: Mapping[str, str],
    releases: Path,
    timeout: float,
    requested: Callable[[], None] = lambda: None,
    unready: Callable[[], str] = lambda: "",
    repeat: float = REPEAT,
    settle: float = SETTLE,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Outcome:
    """Request and wait.

    :param requested: called once, after the first request
    :param unready: what else is still missing, such as a restarted triggerer; asked once the database is as wanted
    """
    started = clock()
    asked = good_since = None
    waited = False
    while True:
        view = database.view()
        missing = pending(view, release=release, dags=dags, releases=releases)
        reason = "" if missing or view.errors else unready()
        at = clock()
        if not missing and not view.errors and not reason:
            good_since = at if good_since is None else good_since
            if not waited or at - good_since >= (settle if len(database.jobs("DagProcessorJob")) > 1 else 0):
                return Outcome("", waited)
        else:
            good_since = None
            waited = True
            if at - started >= timeout:
                return Outcome(explain(missing, view, bool(database.jobs("DagProcessorJob")), reason), waited)
            if (missing or view.errors) and (asked is None or at - asked >= repeat):
                files = {dags[dag_id] for dag_id in missing if dag_id in dags} | {file for file, _ in view.errors}
                known = set(dags.values())
                database.request(sorted(files & known) or sorted(known)[:1])
                if asked is None:
                    requested()
                asked = at
        sleep(0.25)


def explain(missing: Mapping[str, str], view: View, processor: bool, reason: str) -> str:
    """Say what did not come about."""
    lines = [f"DAG {dag_id}: {what}" for dag_id, what in sorted(missing.items())]
    lines += [f"import error in {file}: {what}" for file, what in view.errors]
    lines += [reason] if reason else []
    if not processor:
        lines.append("no DAG processor is alive: journalctl -u airflow-dag-processor")
    return "\n".join(lines)


class Served:
    """What the public API says of the bundle."""

    def __init__(self, settings: Mapping[str, Any], bundle: str) -> None:
        self._api = Api(settings["url"], ca_file=settings["ca_file"])
        self._login = settings["user"], settings["password"]
        self._bundle = bundle
        self._token = False

    def pending(self, release: str, dags: Iterable[str]) -> str:
        """Say what the API does not serve as the release wants it; empty if all is well."""
        try:
            if not self._token:
                self._api.login(*self._login)
                self._token = True
            served = {dag["dag_id"]: dag.get("bundle_version") for dag in self._api.every("/dags", "dags")}
            errors = [
                error["filename"]
                for error in self._api.every("/importErrors", "import_errors")
                if error["bundle_name"] == self._bundle
            ]
        except ApiFailed as failure:
            return f"API: {failure}"
        lines = [
            f"API: DAG {dag} is of release {served.get(dag)}" for dag in sorted(dags) if served.get(dag) != release
        ]
        return "\n".join(lines + [f"API: import error in {file}" for file in errors])
