#!/usr/bin/python
"""The metadata database around an upgrade: look at it, hand queued tasks back, keep a copy of it, put the copy back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: airflow_database
short_description: Look at Airflow's metadata database, keep a copy of it beside it, put the copy back
description:
  - Runs on the PostgreSQL host as its superuser, so it needs no password and none can be wrong.
  - "C(state=look): versions of the schema, what runs and waits, sizes, the state of the backups. Changes nothing."
  - "C(state=drained): for a platform whose scheduler and workers stand still. Tasks that wait in the queue are tasks
    that the scheduler has still to queue, with the same try number: their messages hold tokens of before. What runs
    must have ended; the module fails otherwise, and names it."
  - "C(state=kept): a copy of the database beside it, made by the server itself (C(CREATE DATABASE … TEMPLATE)), file by
    file, so it is exact. One that is there stays as it is. A restore point with a name is in the log of changes."
  - "C(state=restored): the copy is the database again; what was written since it was made is gone. Without a copy
    nothing happens. Fails if a scheduler ran on the database after the copy was made and before O(since)."
  - "C(state=dropped): there is no copy."
options:
  state: {description: What to reach., type: str, choices: [look, drained, kept, restored, dropped], required: true}
  database: {description: Name of the metadata database., type: str, default: airflow}
  note: {description: What the copy is from; a restore point gets its C(name)., type: dict, default: {}}
  since: {description: Start of this run in seconds since the epoch; for C(restored)., type: float, default: 0}
  backup_status: {description: What the backups said last., type: path, default: /var/lib/backup/status.json}
  socket_directory: {description: Folder of the server's Unix socket., type: path, default: /run/postgresql}
  port: {description: The server's port., type: int, default: 5432}
  login_user: {description: Role and system user of the session., type: str, default: postgres}
attributes:
  check_mode: {support: full}
"""
EXAMPLES = r"""
- name: Keep the database as it is
  airflow_database:
    state: kept
    note: {from: 3.2.2-1a2b3c4d, to: 3.3.2-5e6f7a8b}
"""
RETURN = r"""
found:
  description: What C(state=look) has seen.
  type: dict
  returned: with C(state=look)
  contains:
    versions: {description: Migration heads by version table., type: dict}
    running: {description: "Tasks that run, longest first: dag, task, run, host, seconds, silent.", type: list}
    queued: {description: Number of tasks in the queue., type: int}
    deferred: {description: Number of tasks that wait in the triggerer., type: int}
    megabytes: {description: Size of the database., type: float}
    free_megabytes: {description: Free space beside it., type: float}
    copy: {description: The note of a copy that is there; null without one., type: dict}
    backup_problems: {description: What is wrong with the backups., type: list}
requeued: {description: Number of tasks handed back., type: int, returned: with C(state=drained)}
restore_point: {description: Name of the point in the log of changes., type: str, returned: with C(state=kept)}
at: {description: The server's time in UTC., type: str, returned: with C(state=kept)}
seconds: {description: How long it took., type: float, returned: always}
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.postgresql_session import OPTIONS, NoServerError, session

VERSION_TABLES = ("alembic_version", "alembic_version_fab")
BUSY_SECONDS = 30
COPY_SECONDS = 3600
ALIVE_SECONDS = 20  # a task sends a heartbeat each second
RUNNING = """
SELECT ti.dag_id AS dag, ti.task_id AS task, ti.run_id AS run, ti.hostname AS host,
       extract(epoch FROM now() - ti.start_date)::float8 AS seconds,
       coalesce(extract(epoch FROM now() - ti.last_heartbeat_at), 0)::float8 AS silent
FROM public.task_instance ti WHERE ti.state IN ('running', 'restarting') ORDER BY ti.start_date
"""
REQUEUE = """
UPDATE public.task_instance
SET state = 'scheduled', scheduled_dttm = now(), queued_dttm = NULL, queued_by_job_id = NULL,
    external_executor_id = NULL
WHERE state = 'queued'
"""
SCHEDULER_RAN = (
    "SELECT count(*) FROM public.job WHERE job_type = 'SchedulerJob' AND start_date > %s AND start_date < %s"
)


class Unfit(Exception):
    """It can't be done; the text says why and what to do."""


def rows(connection: Any, query: str, *values: Any) -> list[dict[str, Any]]:
    """Return the rows of a query by column name."""
    with connection.cursor() as cursor:
        cursor.execute(query, values or None)
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def one(connection: Any, query: str, *values: Any) -> Any:
    """Return the only value of a query."""
    with connection.cursor() as cursor:
        cursor.execute(query, values or None)
        return cursor.fetchone()[0]


def execute(connection: Any, statement: str, *values: Any) -> int:
    """Run a statement; return the number of its rows."""
    with connection.cursor() as cursor:
        cursor.execute(statement, values or None)
        return int(cursor.rowcount)


def quoted(name: str) -> str:
    """Quote an identifier."""
    return '"' + name.replace('"', '""') + '"'


def note_of(control: Any, database: str) -> dict[str, Any] | None:
    """Return the note on a database; None when it is not there, {} when it has none of ours."""
    query = "SELECT shobj_description(oid, 'pg_database') AS note FROM pg_database WHERE datname = %s"
    found = rows(control, query, database)
    if not found:
        return None
    try:
        note = json.loads(found[0]["note"] or "{}")
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}


def versions(connection: Any) -> dict[str, list[str]]:
    """Return the migration heads by version table; empty before the first migration."""
    found = {}
    for table in VERSION_TABLES:
        if one(connection, "SELECT to_regclass(%s) IS NOT NULL", f"public.{table}"):
            heads = rows(connection, f"SELECT version_num AS head FROM public.{table} ORDER BY 1")  # noqa: S608 - ours
            found[table] = [row["head"] for row in heads]
    return found


def backup_problems(path: Path) -> list[str]:
    """Return what the backups' last look has found wrong; no backups are a problem too."""
    try:
        status = json.loads(path.read_text())
    except (OSError, ValueError):
        return ["there are no backups"]
    return [str(problem) for problem in status.get("problems", [])]


class Upgrade:
    """The states, on one server."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params
        self.database: str = params["database"]
        self.copy = f"{self.database}_before_upgrade"
        self.failed = f"{self.database}_failed_upgrade"

    def look(self) -> dict[str, Any]:
        """Read everything that a plan needs."""
        with session(self.params) as control:
            folder = one(control, "SHOW data_directory")
            found: dict[str, Any] = {
                "copy": note_of(control, self.copy),
                "megabytes": 0.0,
                "free_megabytes": round(shutil.disk_usage(folder).free / 1e6, 1),
                "backup_problems": backup_problems(Path(self.params["backup_status"])),
                "versions": {}, "running": [], "queued": 0, "deferred": 0,
            }  # fmt: skip
            if note_of(control, self.database) is None:
                return found
            found["megabytes"] = round(one(control, "SELECT pg_database_size(%s)", self.database) / 1e6, 1)
        with session(self.params, self.database) as connection:
            found["versions"] = versions(connection)
            if found["versions"]:
                found["running"] = rows(connection, RUNNING)
                for state in ("queued", "deferred"):
                    query = "SELECT count(*) FROM public.task_instance WHERE state = %s"
                    found[state] = one(connection, query, state)
        return found

    def drain(self) -> int:
        """Hand queued tasks and callbacks back to the scheduler; return how many."""
        with session(self.params, self.database) as connection:
            # What sends no heartbeat any more was lost with its host; the scheduler finds that by itself.
            busy = rows(connection, f"SELECT * FROM ({RUNNING}) r WHERE r.silent < {ALIVE_SECONDS}")  # noqa: S608 - ours
            if busy:
                raise Unfit("still running: " + ", ".join(f"{row['dag']}.{row['task']}" for row in busy[:10]))
            if self.params["check_mode"]:
                return 0
            count = execute(connection, REQUEUE)
            if one(connection, "SELECT to_regclass('public.callback') IS NOT NULL"):
                count += execute(
                    connection,
                    "UPDATE public.callback SET state = 'pending' WHERE type = 'executor' AND state = 'queued'",
                )
            return count

    def keep(self) -> dict[str, Any]:
        """Make the copy unless it is there."""
        with session(self.params) as control:
            execute(control, f"SET statement_timeout = '{COPY_SECONDS}s'")
            known = note_of(control, self.copy)
            if known:
                return {"changed": False, **{name: known.get(name) for name in ("restore_point", "at")}}
            if not self.params["check_mode"]:
                # Without our note the server died while it copied.
                execute(control, f"DROP DATABASE IF EXISTS {quoted(self.copy)} WITH (FORCE)")
                execute(control, f"DROP DATABASE IF EXISTS {quoted(self.failed)} WITH (FORCE)")
                point = f"before_upgrade_{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
                execute(control, "SELECT pg_create_restore_point(%s)", point)
                at = one(control, "SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
                self.duplicate(control)
                note = {**self.params["note"], "restore_point": point, "at": at}
                literal = json.dumps(note)
                execute(control, f"COMMENT ON DATABASE {quoted(self.copy)} IS %s", literal)
                return {"changed": True, "restore_point": point, "at": at}
            return {"changed": True}

    def duplicate(self, control: Any) -> None:
        """Have the server copy the files, with owner and rights of the database."""
        import psycopg2

        owner = one(
            control,
            "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s",
            self.database,
        )
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            execute(
                control,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
                self.database,
            )
            try:
                execute(
                    control,
                    f"CREATE DATABASE {quoted(self.copy)} TEMPLATE {quoted(self.database)} OWNER {quoted(owner)}"
                    " STRATEGY file_copy",
                )
                break
            except psycopg2.errors.ObjectInUse as error:
                if time.monotonic() > deadline:
                    raise Unfit(f"something connects to {self.database} again and again: {error}") from error
        execute(control, f"REVOKE ALL ON DATABASE {quoted(self.copy)} FROM PUBLIC")
        rights = rows(
            control,
            "SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END AS grantee,"
            " privilege_type AS privilege FROM pg_database, aclexplode(coalesce(datacl, acldefault('d', datdba)))"
            " WHERE datname = %s",
            self.database,
        )
        for right in rights:
            execute(control, f"GRANT {right['privilege']} ON DATABASE {quoted(self.copy)} TO {right['grantee']}")

    def restore(self) -> bool:
        """Put the copy into the database's place; tell whether there was one."""
        with session(self.params) as control:
            note = note_of(control, self.copy)
            if not note:
                return False
            there = note_of(control, self.database) is not None
        if there:
            with session(self.params, self.database) as connection:
                began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.params["since"]))
                ran = one(connection, SCHEDULER_RAN, note["at"], began)
            if ran:
                raise Unfit(
                    f"the copy of the database is of {note['at']}, and Airflow has run since, before this run: its work"
                    f" would be forgotten. Look first; then, if you want that state back: make restore"
                    f" TARGET_TIME={note['at']}"
                )
        if self.params["check_mode"]:
            return True
        with session(self.params) as control:
            if there:
                execute(control, f"DROP DATABASE IF EXISTS {quoted(self.failed)} WITH (FORCE)")
            # Both renames or none, and nobody may be connected.
            swap = (
                f"ALTER DATABASE {quoted(self.database)} RENAME TO {quoted(self.failed)};" if there else ""
            ) + f"ALTER DATABASE {quoted(self.copy)} RENAME TO {quoted(self.database)}"
            self.swap(control, swap)
            execute(control, f"COMMENT ON DATABASE {quoted(self.database)} IS NULL")
            execute(control, f"DROP DATABASE IF EXISTS {quoted(self.failed)} WITH (FORCE)")
        return True

    def swap(self, control: Any, statements: str) -> None:
        """Run statements as one transaction, without other sessions on either database."""
        import psycopg2

        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            execute(
                control,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IN (%s, %s)",
                self.database,
                self.copy,
            )
            try:
                execute(control, statements)  # sent as one message: one transaction
                return
            except psycopg2.errors.ObjectInUse as error:
                if time.monotonic() > deadline:
                    raise Unfit(f"something connects to {self.database} again and again: {error}") from error

    def drop(self) -> bool:
        """Remove the copy; tell whether there was one."""
        with session(self.params) as control:
            there = note_of(control, self.copy) is not None
            if there and not self.params["check_mode"]:
                execute(control, f"DROP DATABASE {quoted(self.copy)} WITH (FORCE)")
            return there


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"choices": ["look", "drained", "kept", "restored", "dropped"], "required": True},
            "database": {"default": "airflow"},
            "note": {"type": "dict", "default": {}},
            "since": {"type": "float", "default": 0},
            "backup_status": {"type": "path", "default": "/var/lib/backup/status.json"},
            **OPTIONS,
        },
        supports_check_mode=True,
    )
    state, began = module.params["state"], time.monotonic()
    upgrade = Upgrade({**module.params, "check_mode": module.check_mode})
    try:
        if state == "look":
            result: dict[str, Any] = {"changed": False, "found": upgrade.look()}
        elif state == "drained":
            count = upgrade.drain()
            result = {"changed": count > 0, "requeued": count}
        elif state == "kept":
            result = upgrade.keep()
        elif state == "restored":
            result = {"changed": upgrade.restore()}
        else:
            result = {"changed": upgrade.drop()}
    except (NoServerError, Unfit) as error:
        module.fail_json(msg=f"{upgrade.database}: {error}")
    except Exception as error:  # psycopg2's; its texts hold no secret, as there is none
        module.fail_json(msg=f"{upgrade.database}: {type(error).__name__}: {' '.join(str(error).split())}")
    module.exit_json(**result, seconds=round(time.monotonic() - began, 1))


if __name__ == "__main__":
    main()
