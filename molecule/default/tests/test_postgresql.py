"""Who may do what in PostgreSQL, asked of the running server and tried from the hosts that use it."""

from __future__ import annotations

import pytest
from platform_under_test import Platform

pytestmark = pytest.mark.unit("postgresql", "postgresql@*-main.service")
INSUFFICIENT_PRIVILEGE, READ_ONLY_TRANSACTION = "42501", "25006"
ROLES = {"airflow", "airflow_celery", "transformation_service", "platform_checks", "transformation_scripts"}
CELERY_TABLES = {"celery_taskmeta", "celery_tasksetmeta"}


def login(platform: Platform, role: str) -> dict[str, str]:
    """Database, user and password of one of our roles."""
    short = {"airflow_celery": "celery", "platform_checks": "checks", "transformation_scripts": "scripts"}
    secret = short.get(role, role)
    database = "airflow" if role.startswith("airflow") else "transformation_service"
    return {"dbname": database, "user": role, "password": platform.secrets[f"postgresql_{secret}_password"]}


def refusal(platform: Platform, source: str, **dsn: str) -> str:
    """Error of a connection that must not come about."""
    error = platform.connect_sql(platform.first(source), [], **dsn)["error"]
    assert error, "the connection was accepted"
    return str(error)


def test_roles_are_ours_alone_and_none_is_powerful(platform: Platform) -> None:
    roles = platform.psql("SELECT * FROM pg_roles WHERE rolcanlogin AND rolname <> 'postgres'")
    assert {role["rolname"] for role in roles} == ROLES
    for role in roles:
        for right in ("rolsuper", "rolcreatedb", "rolcreaterole", "rolreplication", "rolbypassrls"):
            assert not role[right], f"{role['rolname']} has {right}"
    members = platform.psql("SELECT roleid::regrole::text AS role FROM pg_auth_members WHERE member >= 16384")
    assert members == [], "a role of ours is a member of another"


def test_passwords_are_kept_as_scram_verifiers(platform: Platform) -> None:
    kept = platform.psql("SELECT rolname, left(rolpassword, 14) AS form FROM pg_authid WHERE rolcanlogin")
    assert {row["rolname"]: row["form"] for row in kept} == {"postgres": None} | dict.fromkeys(ROLES, "SCRAM-SHA-256$")


def test_settings_of_the_running_server(platform: Platform) -> None:
    names = "data_checksums", "ssl", "password_encryption", "fsync", "full_page_writes"
    rows = platform.psql(f"SELECT name, setting FROM pg_settings WHERE name IN {names}")
    assert {row["name"]: row["setting"] for row in rows} == {
        "data_checksums": "on",
        "ssl": "on",
        "password_encryption": "scram-sha-256",
        "fsync": "on",
        "full_page_writes": "on",
    }
    assert platform.psql("SELECT name FROM pg_settings WHERE pending_restart") == []
    assert platform.psql("SELECT * FROM pg_file_settings WHERE error IS NOT NULL") == []


def test_pg_hba_lets_nobody_in_without_scram_or_unencrypted(platform: Platform) -> None:
    rules = platform.psql("SELECT type, user_name, auth_method, error FROM pg_hba_file_rules")
    assert [rule for rule in rules if rule["error"]] == []
    assert {rule["auth_method"] for rule in rules if rule["type"] != "local"} == {"scram-sha-256"}
    assert {rule["type"] for rule in rules} == {"local", "hostssl"}
    local = [rule for rule in rules if rule["type"] == "local"]
    assert {(rule["auth_method"], *rule["user_name"]) for rule in local} == {("peer", "postgres")}


def test_data_directory_is_closed(platform: Platform) -> None:
    path = platform.psql("SELECT setting FROM pg_settings WHERE name = 'data_directory'")[0]["setting"]
    folder = platform.host(platform.first("postgresql")).file(path)
    assert (folder.user, folder.mode) == ("postgres", 0o700)


def test_databases_belong_to_their_roles_and_are_closed_to_the_others(platform: Platform) -> None:
    rows = platform.psql(
        "SELECT datname, pg_get_userbyid(datdba) AS owner, r.rolname AS role, "
        "has_database_privilege(r.oid, d.oid, 'CONNECT') AS may FROM pg_database d, pg_roles r "
        "WHERE NOT datistemplate AND datname <> 'postgres' AND rolcanlogin AND NOT rolsuper"
    )
    assert {(row["datname"], row["owner"]) for row in rows} == {
        ("airflow", "airflow"),
        ("transformation_service", "transformation_service"),
    }
    assert {(row["datname"], row["role"]) for row in rows if row["may"]} == {
        ("airflow", "airflow"),
        ("airflow", "airflow_celery"),
        ("transformation_service", "transformation_service"),
        ("transformation_service", "platform_checks"),
        ("transformation_service", "transformation_scripts"),
    }


# --- from the hosts that use it ---------------------------------------------------------------------------------------


def test_connections_are_encrypted(platform: Platform) -> None:
    answer = platform.connect_sql(
        platform.first("airflow_worker"),
        ["SELECT version, bits FROM pg_stat_ssl WHERE pid = pg_backend_pid()"],
        **login(platform, "airflow_celery"),
    )
    assert answer["error"] is None
    version, bits = answer["results"][0]["rows"][0]
    assert version in ("TLSv1.2", "TLSv1.3")
    assert bits >= 128


def test_an_unencrypted_connection_is_refused(platform: Platform) -> None:
    dsn = {**login(platform, "airflow_celery"), "sslmode": "disable"}
    assert "no encryption" in refusal(platform, "airflow_worker", **dsn)


def test_a_wrong_password_is_refused(platform: Platform) -> None:
    wrong = {**login(platform, "airflow_celery"), "password": platform.secrets["postgresql_airflow_password"]}
    assert "password authentication failed" in refusal(platform, "airflow_worker", **wrong)


@pytest.mark.parametrize("role", ["airflow", "transformation_service", "postgres"])
def test_a_worker_cannot_come_as_somebody_else_even_with_the_password(platform: Platform, role: str) -> None:
    dsn = login(platform, role) if role in ROLES else {"dbname": "airflow", "user": role, "password": "x"}
    assert "no pg_hba.conf entry" in refusal(platform, "airflow_worker", **dsn)


def test_workers_see_celerys_two_tables_and_nothing_else(platform: Platform) -> None:
    rows = platform.psql(
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') "
        "AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') "
        "AND has_schema_privilege('airflow_celery', n.oid, 'USAGE') "
        "AND has_table_privilege('airflow_celery', c.oid, 'SELECT, INSERT, UPDATE, DELETE')",
        "airflow",
    )
    assert {row["relname"] for row in rows} == CELERY_TABLES
    secret = ["connection", "dag_run", "variable", "ab_user", "session", "task_instance", "log"]
    answer = platform.connect_sql(
        platform.first("airflow_worker"),
        [
            *(f"SELECT 1 FROM {table}" for table in sorted(CELERY_TABLES)),
            *(f'SELECT 1 FROM public."{table}"' for table in secret),
            "CREATE TABLE public.mine (id int)",
        ],
        **login(platform, "airflow_celery"),
    )
    assert answer["error"] is None
    assert all("rows" in result for result in answer["results"][:2]), answer["results"][:2]
    assert {result.get("sqlstate") for result in answer["results"][2:]} == {INSUFFICIENT_PRIVILEGE}


def test_results_of_tasks_arrive_in_celerys_tables(platform: Platform) -> None:
    rows = platform.psql("SELECT count(*) AS n FROM celery_results.celery_taskmeta WHERE status = 'SUCCESS'", "airflow")
    assert rows[0]["n"] > 0, "tasks ran, and none left a result"


def test_checks_read_everything_of_the_service_and_write_nothing(platform: Platform) -> None:
    public = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    tables = [row["relname"] for row in platform.psql(public, "transformation_service")]
    assert {"user_record", "transformation_job", "transformation_record"} <= set(tables)
    answer = platform.connect_sql(
        platform.first("airflow_worker"),
        [
            *(f"SELECT 1 FROM {table} LIMIT 1" for table in tables),
            "DELETE FROM transformation_record",
            # The read-only default is a seat belt that the role itself could open; the rights must be missing as well.
            "SET default_transaction_read_only = off",
            "DELETE FROM transformation_record",
            "CREATE TABLE mine (id int)",
        ],
        **login(platform, "platform_checks"),
    )
    assert answer["error"] is None
    *reads, plain, _, delete, create = answer["results"]
    assert all("rows" in result for result in reads), reads
    assert plain["sqlstate"] == READ_ONLY_TRANSACTION
    assert (delete["sqlstate"], create["sqlstate"]) == (INSUFFICIENT_PRIVILEGE, INSUFFICIENT_PRIVILEGE)
