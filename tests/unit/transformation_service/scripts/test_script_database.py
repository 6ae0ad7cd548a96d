"""The same escapes, the service's wall taken away: the database alone holds. (No service runs: it would claim runs.)"""

from __future__ import annotations

import uuid
from typing import Any

import psycopg
import pytest

from tests.unit.transformation_service.scripts.conftest import SLOT, Platform
from tests.unit.transformation_service.scripts.escapes import ENDLESS, ESCAPES, Escape, ids
from transformation_service import script_catalog, script_runs, script_sql
from transformation_service.script_catalog import Limits
from transformation_service.script_sql import Statement

pytestmark = pytest.mark.database


async def bypass(provisioned: Platform, sql: str, command: str) -> BaseException | None:
    """Execute a text as it is, as if the service had read it as one allowed statement; return what ended it."""
    run = {"id": uuid.uuid4(), "claim_token": uuid.uuid4(), "limits": vars(Limits(seconds=2, rows=1000, statements=1))}
    provisioned.rows(
        "INSERT INTO script_run (id, work_hash, kind, source, checksum, parameters, slot, limits, state, claim_token)"
        " VALUES (%s, gen_random_uuid(), 'dynamic', 'x', 'x', '{}', %s, '{}', 'running', %s)",
        *(run["id"], SLOT, run["claim_token"]),
    )
    try:
        await script_runs.execute(provisioned.scripts_url, run, [Statement(command, sql, ())], {})
    except (script_runs.RunFailed, psycopg.Error) as error:
        return error
    finally:
        provisioned.rows("DELETE FROM script_run WHERE id = %s", run["id"])
    return None


@pytest.mark.parametrize("command", ["SELECT", "UPDATE"])
@pytest.mark.parametrize("escape", ESCAPES + ENDLESS, ids=ids(ESCAPES + ENDLESS))
async def test_the_database_refuses_without_the_service(
    provisioned: Platform, data: str, escape: Escape, command: str
) -> None:
    ended = await bypass(provisioned, escape.sql, command)
    if not escape.harmless:
        assert ended is not None, "it was executed and committed"
    assert provisioned.everything() == data
    sessions = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    assert provisioned.value(sessions) == 0


async def test_what_is_allowed_passes_the_same_way(provisioned: Platform, data: str) -> None:
    assert await bypass(provisioned, "UPDATE user_record SET phone = 'x' WHERE id = 1", "UPDATE") is None
    assert await bypass(provisioned, "SELECT id FROM user_record", "SELECT") is None
    assert provisioned.everything() != data


@pytest.mark.parametrize("query", [
    "SET ROLE transformation_service", "SET SESSION AUTHORIZATION transformation_service",
    "CREATE TEMP TABLE t (i int)",
    "SET temp_file_limit = -1", "DO $$ BEGIN NULL; END $$", "SELECT * FROM script_run", "DELETE FROM user_record",
    "SELECT lo_create(0)", "SELECT pg_sleep(0)", "SELECT set_config('work_mem', '1GB', false)",
    "ALTER ROLE transformation_scripts CONNECTION LIMIT 100", "COPY user_record TO PROGRAM 'id'",
    "UPDATE user_record SET transform_count = 9", "CREATE TABLE t (i int)",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
])  # fmt: skip
def test_a_session_of_the_role_itself_gets_nowhere(provisioned: Platform, data: str, query: str) -> None:
    """Not through the service at all: somebody with the password."""
    with psycopg.connect(provisioned.scripts_url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(query.encode())
    assert provisioned.everything() == data


def test_the_role_sees_one_function_and_three_tables(provisioned: Platform) -> None:
    with psycopg.connect(provisioned.scripts_url) as connection:
        tables = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S', 'v')"
            " AND has_any_column_privilege(oid, 'SELECT, INSERT, UPDATE, REFERENCES')"
        ).fetchall()
        functions = connection.execute(
            "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
            " AND has_function_privilege(oid, 'EXECUTE')"
        ).fetchall()
    assert {name for (name,) in tables} == script_sql.TABLES
    assert functions == [("confirm_script_run",)]


def test_a_table_of_somebody_else_does_not_stop_the_service(provisioned: Platform) -> None:
    provisioned.rows("CREATE TABLE notes (text text)")
    provisioned.rows("GRANT SELECT ON schema_migration TO transformation_scripts")
    try:
        script_runs.prepare(provisioned.url, provisioned.scripts_url, script_catalog.load())
    finally:
        provisioned.rows("DROP TABLE notes")
    test_the_role_sees_one_function_and_three_tables(provisioned)


def test_the_confirmation_needs_the_token_of_this_attempt(provisioned: Platform, data: str) -> None:
    run, token = uuid.uuid4(), uuid.uuid4()
    provisioned.rows(
        "INSERT INTO script_run (id, work_hash, kind, source, checksum, parameters, slot, limits, state, claim_token)"
        " VALUES (%s, 'w', 'dynamic', 'x', 'x', '{}', %s, '{}', 'running', %s)",
        *(run, SLOT, token),
    )

    def confirm(given: Any) -> Any:
        with psycopg.connect(provisioned.scripts_url) as connection:
            row = connection.execute("SELECT confirm_script_run(%s, %s, '{}')", (run, given)).fetchone()
            return row and row[0]

    assert [confirm(uuid.uuid4()), confirm(None)] == [False, False]
    assert provisioned.value("SELECT state FROM script_run") == "running"
    assert [confirm(token), confirm(token)] == [True, False]
