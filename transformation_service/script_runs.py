"""Runs of scripts: what is asked for, and its execution at most once on a connection that may do little.

The service's own role keeps the runs. The statements execute on a connection that logs in as a role of its own, which
sees no run; the run's success is written by the function ``confirm_script_run`` in the transaction that holds the
effects. Whoever claims a run changes its token, so an attempt that was given up can't confirm any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import psycopg
from psycopg import AsyncConnection, AsyncRawCursor, sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import tuple_row
from psycopg.types.json import Jsonb

from transformation_service import database, script_catalog, script_sql
from transformation_service.database import Connection
from transformation_service.ledger import KeyReused, instant
from transformation_service.problems import Problem
from transformation_service.script_catalog import SLOT, Limits, Script
from transformation_service.script_sql import Statement

log = logging.getLogger(__name__)

Row = dict[str, Any]

CONCURRENCY = 2  # runs side by side in one process; the role has a limit of sessions as well
ATTEMPTS = 3  # of a run whose process or connection is lost each time
SHOWN_ROWS = 100
SHOWN_BYTES = 64 * 1024  # of one row, a longer one is left out of the document; ten times it for all of them
WATCH_SECONDS = 0.5

# For the case that this process dies: the server then ends the statement by itself.
SESSION = {
    **database.SESSION,
    "application_name": "transformation-service-scripts",
    "options": f"{database.SESSION['options']} -c client_connection_check_interval=1s -c lock_timeout=10s"
    " -c idle_in_transaction_session_timeout=30s -c search_path=public",
}

# What the role must not be able to do, each with the words for it. Asked before every run: walls that somebody took
# down by hand are noticed.
WALL = """
SELECT array_remove(ARRAY[
  CASE WHEN role.rolsuper OR role.rolcreatedb OR role.rolcreaterole OR role.rolreplication OR role.rolbypassrls
       THEN 'it is an administrator' END,
  CASE WHEN EXISTS (SELECT FROM pg_auth_members WHERE member = role.oid) THEN 'it is a member of another role' END,
  CASE WHEN has_database_privilege(current_database(), 'CREATE, TEMPORARY') THEN 'it may make (temporary) tables' END,
  CASE WHEN EXISTS (SELECT FROM pg_namespace WHERE has_schema_privilege(oid, 'CREATE')) THEN 'it may make objects' END,
  (SELECT 'it has rights on ' || string_agg(relname, ', ') FROM pg_class
   WHERE relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace) AND relkind IN
     ('r', 'p', 'v', 'm', 'f') AND (relname <> ALL ($1) OR relnamespace <> 'public'::regnamespace)
     AND has_any_column_privilege(oid, 'SELECT, INSERT, UPDATE, REFERENCES')),
  (SELECT 'it may change ' || string_agg(DISTINCT attname, ', ') FROM pg_attribute
   WHERE attrelid IN (SELECT oid FROM pg_class WHERE relname = ANY ($1) AND relnamespace = 'public'::regnamespace)
     AND attname = ANY ($2) AND has_column_privilege(attrelid, attnum, 'UPDATE')),
  (SELECT 'it may call ' || string_agg(DISTINCT proname, ', ') FROM pg_proc
   WHERE pronamespace = 'pg_catalog'::regnamespace AND has_function_privilege(oid, 'EXECUTE') AND proname ~
     '^(lo_(creat|from_bytea|open|put|unlink|import|export)|lo(read|write)$|pg_(try_)?advisory|pg_(notify|sleep)|'
     'set_config$|pg_(terminate|cancel)_backend$|query_to_xml|pg_logical_emit_message$|pg_read_(binary_)?file$|pg_ls_)')
], NULL) AS gaps
FROM pg_roles AS role WHERE role.rolname = session_user
"""


class RunLost(Exception):
    """The run was cancelled, or is another process's, while this one worked on it."""


class RunFailed(Exception):
    """The run ends as failed; its arguments are the error's type and message."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a client asks for. ``limits`` are how the work is done, not what it is: they don't make it another run."""

    script: Script | None
    source: str
    parameters: dict[str, Any]
    slot: datetime
    limits: Limits

    @property
    def work_hash(self) -> str:
        """SHA-256 of the work: what is executed, with which parameters, for which slot."""
        name = [self.script.name, self.script.version] if self.script else None
        meaning = [name, script_catalog.checksum(self.source), self.parameters, instant(self.slot)]
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()


def prepare(url: str, scripts_url: str | None, scripts: dict[str, dict[int, Script]]) -> None:
    """Publish the release's scripts, and give the scripts' role exactly its rights on tables.

    Raises:
        ScriptError: A version that was published has another content now, or the role is the service's own.
        psycopg.OperationalError: The database can't be reached.
    """
    options: dict[str, Any] = dict(database.SESSION)
    with psycopg.connect(url, **options) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (database.MIGRATION_LOCK,))
        for script in (script for versions in scripts.values() for script in versions.values()):
            row = connection.execute(
                "INSERT INTO script_version AS known (script, version, checksum) VALUES (%s, %s, %s)"
                " ON CONFLICT (script, version) DO UPDATE SET checksum = known.checksum RETURNING checksum",
                (script.name, script.version, script.checksum),
            ).fetchone()
            if row is None or row[0] != script.checksum:
                raise script_catalog.ScriptError(
                    f"scripts/{script.name}/{script.version}.sql was published with another content;"
                    " a version is never edited, add the next one."
                )
        if scripts_url:
            _grant(connection, str(conninfo_to_dict(scripts_url).get("user", "")))


def _grant(connection: psycopg.Connection[Any], user: str) -> None:
    if user in ("", connection.info.user):
        raise script_catalog.ScriptError("the URL for scripts must name a database role of its own.")
    if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", (user,)).fetchone() is None:
        raise script_catalog.ScriptError(f"the URL for scripts names the database role {user}, which does not exist.")
    role = sql.Identifier(user)
    # Not ALL TABLES: one that an administrator has made beside ours is not the service's to change.
    own = connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND pg_has_role(relowner, 'USAGE')"
        " AND relkind IN ('r', 'p', 'v', 'm', 'f')"
    ).fetchall()
    for (table,) in own:
        connection.execute(sql.SQL("REVOKE ALL ON public.{} FROM {}").format(sql.Identifier(table), role))
    connection.execute(
        sql.SQL("GRANT EXECUTE ON FUNCTION public.confirm_script_run(uuid, uuid, jsonb) TO {}").format(role)
    )
    columns = connection.execute(
        "SELECT table_name, array_agg(column_name::text) FROM information_schema.columns"
        " WHERE table_schema = 'public' AND table_name = ANY (%s) AND column_name <> ALL (%s) GROUP BY table_name",
        (list(script_sql.TABLES), list(script_sql.BOOKKEEPING)),
    ).fetchall()
    for table, names in columns:
        connection.execute(
            sql.SQL("GRANT SELECT, UPDATE ({}) ON public.{} TO {}").format(
                sql.SQL(", ").join(map(sql.Identifier, names)), sql.Identifier(table), role
            )
        )


async def accept(connection: Connection, key: str, request: Request) -> tuple[uuid.UUID, bool]:
    """Return the run for a request and whether it existed before; one that failed or was cancelled is queued again.

    Raises:
        KeyReused: The key was used for other work.
    """
    script = request.script
    async with connection.transaction():
        created = await connection.execute(
            """
            INSERT INTO script_run (id, work_hash, kind, script, version, source, checksum, parameters, slot, limits)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (work_hash) DO NOTHING
            """,
            (
                *(uuid.uuid4(), request.work_hash, "static" if script else "dynamic"),
                *((script.name, script.version) if script else (None, None)),
                *(request.source, script_catalog.checksum(request.source), Jsonb(request.parameters)),
                *(request.slot, Jsonb(vars(request.limits))),
            ),
        )
        run = await _one(connection, "SELECT id FROM script_run WHERE work_hash = %s", request.work_hash)
        await connection.execute(
            "INSERT INTO script_request (idempotency_key, run_id) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            (key, run["id"]),
        )
        known = await _one(connection, "SELECT run_id FROM script_request WHERE idempotency_key = %s", key)
        if known["run_id"] != run["id"]:
            raise KeyReused(key)
        await connection.execute(
            "UPDATE script_run SET state = 'queued', error = NULL, finished_at = NULL, attempts = 0, limits = %s"
            " WHERE id = %s AND state IN ('failed', 'cancelled')",
            (Jsonb(vars(request.limits)), run["id"]),
        )
    return run["id"], created.rowcount == 0


async def _one(connection: Connection, query: str, *values: object) -> Row:
    row = await (await connection.execute(query.encode(), values)).fetchone()
    assert row is not None  # noqa: S101 - inserted or found in this transaction
    return row


async def document(connection: Connection, run_id: uuid.UUID, *, replayed: bool = False) -> Row | None:
    """Return the run document of the API, or ``None`` for an unknown id."""
    row = await (await connection.execute("SELECT * FROM script_run WHERE id = %s", (run_id,))).fetchone()
    if row is None:
        return None
    result = row["result"] or {"statements": [], "rows": []}
    moments = {
        name: None if row[name] is None else instant(row[name]) for name in ("created_at", "started_at", "finished_at")
    }
    return {
        "id": str(row["id"]),
        **{name: row[name] for name in ("state", "kind", "script", "version", "checksum")},
        "slot": instant(row["slot"]),
        **{name: row[name] for name in ("limits", "parameters")},
        "counts": {
            "statements": len(result["statements"]),
            "rows": sum(statement["rows"] for statement in result["statements"]),
        },
        **result,
        "error": row["error"],
        "replayed": replayed,
        **moments,
    }


async def cancel(connection: Connection, run_id: uuid.UUID) -> None:
    """End a run that has not ended; what it did is rolled back."""
    await connection.execute(
        "UPDATE script_run SET state = 'cancelled', finished_at = now(), claim_token = NULL"
        " WHERE id = %s AND state IN ('queued', 'running')",
        (run_id,),
    )


class Runner:
    """Executes runs in this process, and those that an earlier process left behind."""

    def __init__(self, url: str, scripts_url: str, poll_seconds: float, most: Limits) -> None:
        self._url = url
        self._scripts_url = scripts_url
        self._poll_seconds = poll_seconds
        self._most = most
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the workers."""
        self._tasks = [asyncio.create_task(self._work(), name=f"scripts-{number}") for number in range(CONCURRENCY)]

    def wake(self) -> None:
        """Tell the workers that a run was accepted."""
        self._wake.set()

    async def stop(self) -> None:
        """Roll back what is in hand; the next process does it again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            try:
                async with await database.connect(self._url) as connection:
                    while True:
                        self._wake.clear()
                        if not await self._run_some(connection):
                            with contextlib.suppress(TimeoutError):
                                await asyncio.wait_for(self._wake.wait(), self._poll_seconds)
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                log.warning("The database failed (%s); scripts wait", str(error).strip() or error)
                await asyncio.sleep(min(self._poll_seconds, 5))
            except Exception:
                log.exception("A worker for scripts broke; it starts anew")
                await asyncio.sleep(5)

    async def _run_some(self, connection: Connection) -> bool:
        """Execute every run that is free, the oldest first; false if there was none."""
        rows = await (
            await connection.execute(
                "SELECT id FROM script_run WHERE state IN ('queued', 'running') ORDER BY created_at, id"
            )
        ).fetchall()
        worked = False
        for row in rows:
            # The session holds it, so it ends with this process: whoever gets it, gets an attempt that nobody works on.
            number = int.from_bytes(row["id"].bytes[:8], signed=True)
            locked = await _one(connection, "SELECT pg_try_advisory_lock(%s) AS ours", number)
            if not locked["ours"]:
                continue
            try:
                worked = await self._attempt(connection, row["id"]) or worked
            finally:
                # A broken session has lost it anyway, and what broke it is the error to tell.
                with contextlib.suppress(psycopg.Error):
                    await connection.execute("SELECT pg_advisory_unlock(%s)", (number,))
        return worked

    async def _attempt(self, connection: Connection, run_id: uuid.UUID) -> bool:
        run = await (
            await connection.execute(
                """
                UPDATE script_run
                SET state = 'running', claim_token = gen_random_uuid(), attempts = attempts + 1,
                    started_at = coalesce(started_at, now())
                WHERE id = %s AND state IN ('queued', 'running') RETURNING *
                """,
                (run_id,),
            )
        ).fetchone()
        if run is None:
            return False
        try:
            if run["attempts"] > ATTEMPTS:
                raise RunFailed("Attempts", f"Its process or its connection was lost {ATTEMPTS} times.")
            await self._watched(connection, run)
            log.info("Script run %s succeeded", run_id)
        except RunLost:
            log.info("Script run %s was cancelled", run_id)
        except RunFailed as failure:
            kind, message = failure.args
            log.warning("Script run %s failed: %s: %s", run_id, kind, message)
            await connection.execute(
                "UPDATE script_run SET state = 'failed', finished_at = now(), error = %s, claim_token = NULL"
                " WHERE id = %s AND claim_token = %s AND state = 'running'",
                (Jsonb({"type": kind, "message": message}), run_id, run["claim_token"]),
            )
        return True

    async def _watched(self, connection: Connection, run: Row) -> None:
        """Execute a run, and give it up when it is no longer ours."""
        statements, values = await asyncio.to_thread(read_run, run, self._most)
        work = asyncio.create_task(execute(self._scripts_url, run, statements, values))
        try:
            while not (await asyncio.wait([work], timeout=WATCH_SECONDS))[0]:
                ours = await _one(
                    connection,
                    "SELECT count(*) AS n FROM script_run WHERE id = %s AND claim_token = %s",
                    *(run["id"], run["claim_token"]),
                )
                # Zero as well in the instant after the confirmation; then the work is done and its result counts.
                if not ours["n"] and not (await asyncio.wait([work], timeout=WATCH_SECONDS))[0]:
                    raise RunLost(run["id"])
            await work
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)


def read_run(run: Row, most: Limits) -> tuple[list[Statement], Row]:
    """Return a stored run's statements, and its parameters as the driver takes them.

    Raises:
        RunFailed: This release does not allow the statements any more.
    """
    try:
        if run["kind"] == "static":
            kinds = script_catalog.parse(run["script"], run["version"], run["source"], most).types
        else:
            kinds = undeclared_types(run["parameters"])
        statements = script_sql.read(run["source"], parameters=kinds, most=run["limits"]["statements"])
    except (Problem, ValueError) as error:
        raise RunFailed("NotAllowed", str(error)) from error
    values = {name: script_catalog.typed(value, kinds[name]) for name, value in run["parameters"].items()}
    return statements, {**values, SLOT: run["slot"]}


def undeclared_types(parameters: Row) -> dict[str, str | None]:
    """Return the types of a dynamic script's parameters, the slot's included."""
    return {SLOT: "timestamp", **{name: script_sql.infer_type(value) for name, value in parameters.items()}}


async def execute(url: str, run: Row, statements: Sequence[Statement], values: Row) -> None:
    """Execute a claimed run on a connection of its own and commit its effects with its success, or nothing.

    Raises:
        RunFailed: A statement failed or a limit was reached.
        RunLost: The run is no longer this attempt's.
        psycopg.OperationalError: The database was lost; whether the run succeeded stands in the database.
    """
    limits = Limits(**run["limits"])
    options: dict[str, Any] = dict(SESSION)
    async with await AsyncConnection.connect(
        url, cursor_factory=AsyncRawCursor, row_factory=tuple_row, **options
    ) as own:
        # Plans are never kept under a name: each statement is parsed on its own.
        own.prepare_threshold = None
        try:
            # The server's timeout is for the case that this process is gone; the limit is kept here.
            async with asyncio.timeout(limits.seconds):
                await _check_wall(own)
                await own.execute(f"SET LOCAL statement_timeout = {int(limits.seconds * 1000) + 1000}".encode())
                result = await _perform(own, statements, values, limits)
        except TimeoutError:
            raise RunFailed("TimeLimit", f"It took longer than {limits.seconds:g} s.") from None
        except psycopg.errors.QueryCanceled as error:
            raise RunFailed("TimeLimit", str(error).strip()) from error
        except psycopg.Error as error:
            if own.closed or error.sqlstate is None:
                raise
            kind = "Locked" if isinstance(error, psycopg.errors.LockNotAvailable) else type(error).__name__
            raise RunFailed(kind, str(error).strip()[:1000]) from error
        confirmed = await own.execute(
            "SELECT confirm_script_run($1, $2, $3)", (run["id"], run["claim_token"], Jsonb(result))
        )
        if await confirmed.fetchone() != (True,):
            raise RunLost(run["id"])
    # Leaving the block has committed.


async def _check_wall(connection: AsyncConnection[Any]) -> None:
    row = await (
        await connection.execute(WALL.encode(), (list(script_sql.TABLES), list(script_sql.BOOKKEEPING)))
    ).fetchone()
    gaps = row[0] if row else ["it is unknown"]
    if gaps:
        raise RunFailed("OpenWall", f"No script runs while its database role may do too much: {'; '.join(gaps)}.")


async def _perform(
    connection: AsyncConnection[Any], statements: Sequence[Statement], values: Row, limits: Limits
) -> Row:
    done: list[Row] = []
    shown: list[Any] = []
    left = limits.rows
    for number, statement in enumerate(statements, 1):
        arguments = [values[name] for name in statement.names]
        text = statement.text if statement.command == "UPDATE" else _rows_as_json(statement.text)
        await _check_plan(connection, text, arguments, statement.command, number)
        if statement.command == "UPDATE":
            # binary: the extended protocol, which takes one statement.
            rows = (await connection.execute(text.encode(), arguments, binary=True)).rowcount
        else:
            rows, shown = await _select(connection, text, arguments, left)
        left -= rows
        if left < 0:
            raise RunFailed("RowLimit", f"Statement {number} went beyond {limits.rows} rows.")
        done.append({"command": statement.command, "rows": rows})
    return {"statements": done, "rows": shown}


def _rows_as_json(text: str) -> str:
    """Let the server make each row one JSON text, and one beyond the size NULL: it would be this process's memory."""
    return (
        f"SELECT CASE WHEN octet_length(shown.line) <= {SHOWN_BYTES} THEN shown.line END"  # noqa: S608 - from the tree
        f" FROM (SELECT row_to_json(asked)::text AS line FROM ({text}\n) AS asked) AS shown"
    )


async def _select(
    connection: AsyncConnection[Any], text: str, arguments: Sequence[Any], most: int
) -> tuple[int, list[Any]]:
    """Read at most one row more than allowed."""
    count, size = 0, 0
    shown: list[Any] = []
    stream = cast("AsyncGenerator[tuple[str | None]]", connection.cursor().stream(text.encode(), arguments))
    async with contextlib.aclosing(stream) as rows:
        async for (line,) in rows:
            count += 1
            if count > most:
                break
            size += len(line or "")
            if line is not None and len(shown) < SHOWN_ROWS and size <= 10 * SHOWN_BYTES:
                shown.append(json.loads(line))
    return count, shown


async def _check_plan(
    connection: AsyncConnection[Any], text: str, arguments: Sequence[Any], command: str, number: int
) -> None:
    """Let the server read the statement, as the only one, and look at what it understood.

    EXPLAIN takes no COMMIT, SET, COPY, DO...; the plan shows each table, a change within a query, and locks.
    """
    found = await (
        await connection.execute(f"EXPLAIN (VERBOSE, COSTS OFF, FORMAT JSON) {text}".encode(), arguments, binary=True)
    ).fetchone()
    plans = [found[0][0].get("Plan", {})] if found else []
    root = True
    while plans:
        plan = plans.pop()
        kind, relation = plan.get("Node Type", "a utility statement"), plan.get("Relation Name")
        fault = (
            (kind == "ModifyTable") != (root and command == "UPDATE")
            or (kind == "ModifyTable" and plan.get("Operation") != "Update")
            or kind in ("LockRows", "a utility statement")
            or "Function Name" in plan
            or (
                relation is not None
                and (plan.get("Schema"), relation) not in {("public", t) for t in script_sql.TABLES}
            )
        )
        if fault:
            what = plan.get("Operation") or plan.get("Function Name") or relation or kind
            raise RunFailed("NotAllowed", f"Statement {number} would do what scripts may not: {kind} {what}.")
        root = False
        plans += plan.get("Plans", [])
