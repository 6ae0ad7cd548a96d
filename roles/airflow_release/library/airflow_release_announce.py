#!/usr/bin/python
"""Ansible module: have a release parsed now, and wait until Airflow schedules from it."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule

if TYPE_CHECKING:
    import sqlalchemy

DOCUMENTATION = r"""
module: airflow_release_announce
short_description: Have the live release parsed now and wait until Airflow schedules from it
description:
  - Files a priority parsing request for every DAG file of the release that the metadata database does not show yet. The
    DAG processor takes requests up in its next loop (1 s), refreshes the bundle for them and thereby sees new and
    removed files too; its own timers would take 30 s for a flip to an older release and up to 5 minutes for a new file.
  - Waits until every DAG of the release is current with this release's version and file, nothing else of the bundle is,
    and no file of it has an import error.
  - Speaks SQL to the metadata database and imports nothing of Airflow, which would cost 3 s. The tables are those of
    Airflow 3.3 (C(airflow/models/{dag,dag_version,dagbag,errors,dagrun}.py), C(airflow/jobs/job.py)).
  - Run it with the interpreter of the Airflow venv.
attributes:
  check_mode: {support: full, details: Reports whether Airflow already schedules from the release.}
options:
  release:
    description: Id of the live release.
    type: str
    required: true
  dags:
    description: File of each DAG of the release, by dag_id.
    type: dict
    required: true
  root:
    description: Directory of C(releases/).
    type: path
    default: /opt/airflow
  bundle:
    description: Name of the DAG bundle.
    type: str
    default: releases
  credential:
    description: File with the SQLAlchemy URL of the metadata database.
    type: path
    default: /etc/airflow/credentials/sql_alchemy_conn
  triggerer:
    description: Wait also for a triggerer of this hostname that started after O(triggerer_after).
    type: str
  triggerer_after:
    description: Seconds since the epoch.
    type: float
    default: 0
  timeout:
    description: Seconds to wait.
    type: int
    default: 120
"""

EXAMPLES = r"""
- name: Have Airflow schedule from the release
  airflow_release_announce:
    release: 0a1b2c3d4e5f
    dags: {user_transformation: dags/01_user_transformation.py}
  vars:
    ansible_python_interpreter: /opt/airflow/venv/bin/python
"""

RETURN = r"""
seconds:
  description: How long it took.
  type: float
  returned: always
in_use:
  description: Releases that unfinished DAG runs are pinned to.
  type: list
  returned: always
"""

REPEAT = 5.0
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
    ready: Callable[[], bool] = lambda: True,
    repeat: float = REPEAT,
    settle: float = SETTLE,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Outcome:
    """Request and wait.

    :param ready: a further condition, such as a restarted triggerer
    """
    started = clock()
    requested = good_since = None
    waited = False
    while True:
        view = database.view()
        missing = pending(view, release=release, dags=dags, releases=releases)
        now = clock()
        if not missing and not view.errors and ready():
            good_since = now if good_since is None else good_since
            if not waited or now - good_since >= (settle if len(database.jobs("DagProcessorJob")) > 1 else 0):
                return Outcome("", waited)
        else:
            good_since = None
            waited = True
            if now - started >= timeout:
                return Outcome(explain(missing, view, bool(database.jobs("DagProcessorJob")), ready()), waited)
            if requested is None or now - requested >= repeat:
                files = {dags[dag_id] for dag_id in missing if dag_id in dags} | {file for file, _ in view.errors}
                known = set(dags.values())
                database.request(sorted(files & known) or sorted(known)[:1])
                requested = now
        sleep(0.25)


def explain(missing: Mapping[str, str], view: View, processor: bool, ready: bool) -> str:
    """Say what did not come about."""
    lines = [f"DAG {dag_id}: {what}" for dag_id, what in sorted(missing.items())]
    lines += [f"import error in {file}: {what}" for file, what in view.errors]
    if not ready:
        lines.append("the restarted triggerer has not reported: journalctl -u airflow-triggerer")
    if not processor:
        lines.append("no DAG processor is alive: journalctl -u airflow-dag-processor")
    return "\n".join(lines)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "release": {"type": "str", "required": True},
            "dags": {"type": "dict", "required": True},
            "root": {"type": "path", "default": "/opt/airflow"},
            "bundle": {"type": "str", "default": "releases"},
            "credential": {"type": "path", "default": "/etc/airflow/credentials/sql_alchemy_conn"},
            "triggerer": {"type": "str"},
            "triggerer_after": {"type": "float", "default": 0.0},
            "timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    params = module.params
    started = time.monotonic()
    database = Database(Path(params["credential"]).read_text().strip(), params["bundle"])
    wanted = {"release": params["release"], "dags": params["dags"], "releases": Path(params["root"], "releases")}
    if module.check_mode:
        view = database.view()
        changed = bool(pending(view, **wanted) or view.errors)
        module.exit_json(changed=changed, in_use=database.in_use(), seconds=time.monotonic() - started)

    def triggerer_ready() -> bool:
        host, after = params["triggerer"], params["triggerer_after"]
        return host is None or any(name == host and start > after for name, start in database.jobs("TriggererJob"))

    outcome = announce(database, timeout=params["timeout"], ready=triggerer_ready, **wanted)
    if outcome.problem:
        module.fail_json(
            msg=f"Release {params['release']} is on disk and live, but Airflow does not schedule all of it after"
            f" {params['timeout']} s:\n{outcome.problem}"
        )
    module.exit_json(changed=outcome.waited, in_use=database.in_use(), seconds=round(time.monotonic() - started, 1))


if __name__ == "__main__":
    main()
