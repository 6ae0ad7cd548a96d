"""The module makes what is wanted, sees every difference, takes back what is not wanted, and shows no secret."""

import base64
import hashlib
import hmac
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import ansible.module_utils
import psycopg2
import pytest
import yaml

from tests.unit.host.run_module import run_module
from tests.unit.postgresql.conftest import Server

pytestmark = pytest.mark.database

ROLE = Path(__file__).parents[3] / "roles" / "postgresql"
MODULE = "postgresql/library/postgresql_objects.py"
PASSWORD = "a long enough 'password' with \\ and %"


def wanted() -> dict[str, Any]:
    """The role's own defaults: what the platform really asks for."""
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
    roles = [{**role, "password": PASSWORD} for role in defaults["postgresql_roles"]]
    return {"roles": roles, "databases": defaults["postgresql_databases"]}


def run(server: Server, *, check: bool = False, **changed: Any) -> dict[str, Any]:
    result = run_module(MODULE, {**server.parameters, **wanted(), **changed}, check=check)
    assert not result.get("failed"), result["msg"]
    return result


@pytest.fixture(scope="module")
def module() -> ModuleType:
    ansible.module_utils.__path__.append(str(ROLE / "module_utils"))
    spec = importlib.util.spec_from_file_location("postgresql_objects", ROLE / "library" / "postgresql_objects.py")
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    sys.modules["postgresql_objects"] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def test_verifier_proves_the_server_of_rfc_7677_section_3(module: ModuleType) -> None:
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    verifier = module.scram_verifier("pencil", salt, 4096)
    server_key = base64.b64decode(verifier.rsplit(":", 1)[1])
    message = (
        b"n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
        b"s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    )
    signature = hmac.digest(server_key, message, hashlib.sha256)
    assert base64.b64encode(signature) == b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


@pytest.mark.parametrize("stored", [None, "", "md5f8f2b5e9d1c2a3b4c5d6e7f8a9b0c1d2", "SCRAM-SHA-256$broken"])
def test_other_ways_to_store_a_password_never_match(module: ModuleType, stored: str | None) -> None:
    assert not module.password_matches("pencil", stored)


def test_check_mode_says_what_the_run_then_does_and_a_second_run_nothing(server: Server) -> None:
    foreseen = run(server, check=True)
    assert server.query("SELECT 1 FROM pg_roles WHERE rolname = 'airflow'") == []

    first, second = run(server), run(server)

    assert foreseen["changes"] == first["changes"]
    assert foreseen["diff"] == first["diff"]
    assert second["changes"] == []


def test_the_given_password_logs_in(server: Server) -> None:
    run(server)
    assert server.query("SELECT current_user", "airflow", "airflow", PASSWORD) == [("airflow",)]
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        server.query("SELECT 1", "airflow", "airflow", "another one")


def test_a_changed_password_is_one_change_that_shows_no_secret(server: Server) -> None:
    run(server)
    roles = wanted()["roles"]
    roles[1] = {**roles[1], "password": "battery-staple-9"}

    foreseen, done = run(server, check=True, roles=roles), run(server, roles=roles)

    assert foreseen["changes"] == done["changes"] == ["role airflow_celery: password"]
    assert done["diff"] == {
        "before": "role airflow_celery: password = <hidden, another one>\n",
        "after": "role airflow_celery: password = <hidden>\n",
    }
    assert "battery" not in str(done)
    assert PASSWORD not in str(done)
    assert server.query("SELECT 1", "airflow", "airflow_celery", "battery-staple-9") == [(1,)]


def test_neither_password_nor_verifier_reach_the_log(server: Server) -> None:
    server.query("ALTER SYSTEM SET log_statement = 'all'")
    server.query("SELECT pg_reload_conf()")
    try:
        run(server)
    finally:
        server.query("ALTER SYSTEM RESET log_statement")
        server.query("SELECT pg_reload_conf()")
    log = (server.server.directory / "log").read_text()
    assert "log_statement" in log, "the server did log statements"
    assert "SCRAM-SHA-256" not in log
    assert "long enough" not in log


def test_celery_has_its_schema_and_nothing_of_airflow(server: Server) -> None:
    run(server)
    server.query("CREATE TABLE secret_connection (password text)", "airflow", "airflow", PASSWORD)

    server.query("CREATE TABLE celery_taskmeta (id int)", "airflow", "airflow_celery", PASSWORD)

    where = "SELECT schemaname::text FROM pg_tables WHERE tablename = 'celery_taskmeta'"
    assert server.query(where, "airflow") == [("celery_results",)]
    for sql in (
        "SELECT * FROM public.secret_connection",
        "CREATE TABLE public.mine (id int)",
        "CREATE SCHEMA mine",
        "CREATE TEMPORARY TABLE mine (id int)",
    ):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            server.query(sql, "airflow", "airflow_celery", PASSWORD)
    for database in ("transformation_service", "template1"):
        with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
            server.query("SELECT 1", database, "airflow_celery", PASSWORD)


def test_checks_read_tables_of_today_and_tomorrow_and_write_none(server: Server) -> None:
    run(server)
    service = ("transformation_service", "transformation_service", PASSWORD)
    server.query("CREATE TABLE made_later (id int); INSERT INTO made_later VALUES (7)", *service)

    checks = ("transformation_service", "platform_checks", PASSWORD)
    assert server.query("SELECT id FROM made_later", *checks) == [(7,)]
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
        server.query("DELETE FROM made_later", *checks)
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        server.query("BEGIN READ WRITE; DELETE FROM made_later", *checks)
    assert run(server)["changes"] == [], "a table with the default privileges is no difference"


@pytest.mark.parametrize(
    ("database", "drift", "shown"),
    [
        ("postgres", "ALTER ROLE airflow_celery SUPERUSER CONNECTION LIMIT 3", "role airflow_celery: attributes"),
        ("postgres", "ALTER ROLE platform_checks VALID UNTIL '2001-01-01'", "role platform_checks: attributes"),
        ("postgres", "ALTER ROLE airflow_celery SET work_mem = '1GB'", "role airflow_celery: setting work_mem"),
        ("postgres", "ALTER ROLE airflow_celery RESET search_path", "role airflow_celery: setting search_path"),
        ("postgres", "GRANT airflow TO airflow_celery", "role airflow_celery: member of airflow"),
        ("postgres", "ALTER ROLE airflow PASSWORD NULL", "role airflow: password"),
        ("postgres", "GRANT CONNECT ON DATABASE airflow TO PUBLIC", "database airflow: privileges of PUBLIC"),
        ("postgres", "ALTER DATABASE airflow OWNER TO postgres", "database airflow: owner"),
        ("airflow", "GRANT CREATE ON SCHEMA public TO PUBLIC", "schema airflow.public: privileges of PUBLIC"),
        ("airflow", "ALTER SCHEMA celery_results OWNER TO airflow", "schema airflow.celery_results: owner"),
        (
            "airflow",
            "CREATE TABLE t (id int); GRANT SELECT ON t TO airflow_celery",
            "tables airflow.public: privileges of airflow_celery",
        ),
        (
            "transformation_service",
            "GRANT USAGE ON LANGUAGE plpgsql TO PUBLIC",
            "language transformation_service.plpgsql: privileges of PUBLIC",
        ),
        (
            "transformation_service",
            "GRANT EXECUTE ON FUNCTION lo_create(oid) TO PUBLIC",
            "functions transformation_service.lo_.*|loread|lowrite: privileges of PUBLIC",
        ),
        (
            "transformation_service",
            "CREATE TABLE t (id int); CREATE TABLE u (id int); GRANT SELECT ON t TO platform_checks",
            "tables transformation_service.public: privileges of platform_checks",
        ),
        (
            "transformation_service",
            "ALTER DEFAULT PRIVILEGES FOR ROLE transformation_service IN SCHEMA public"
            " GRANT ALL ON TABLES TO platform_checks",
            "future tables transformation_service.public: privileges of platform_checks",
        ),
    ],
)
def test_drift_is_seen_and_taken_back(server: Server, database: str, drift: str, shown: str) -> None:
    run(server)
    server.query(drift, database)

    assert shown in run(server, check=True)["changes"]
    assert shown in run(server)["changes"]
    assert run(server)["changes"] == []


def test_a_user_of_a_schema_keeps_what_the_owner_gives_it_and_functions_are_the_owners(server: Server) -> None:
    run(server)
    owner = ("transformation_service", "transformation_service", PASSWORD)
    scripts = ("transformation_service", "transformation_scripts", PASSWORD)
    server.query("CREATE TABLE t (id int); GRANT SELECT ON t TO transformation_scripts", *owner)
    assert run(server)["changes"] == []
    assert server.query("SELECT count(*) FROM t", *scripts) == [(0,)]
    assert server.query("SELECT pg_try_advisory_lock(1)", *owner) == [(True,)]
    for sql in ("SELECT pg_try_advisory_lock(1)", "SELECT lo_create(0)", "CREATE TABLE mine (id int)"):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            server.query(sql, *scripts)


def test_privileges_of_roles_that_were_not_given_stay(server: Server) -> None:
    run(server)
    server.query("CREATE ROLE auditor; GRANT CONNECT ON DATABASE airflow TO auditor")
    assert run(server)["changes"] == []


def test_a_list_of_schemas_as_search_path_is_stable(server: Server) -> None:
    roles = [{"name": "reader", "password": PASSWORD, "settings": {"search_path": ["$user", "public"]}}]
    run(server, roles=roles, databases=[])
    assert run(server, roles=roles, databases=[])["changes"] == []


@pytest.mark.parametrize(
    ("role", "message"),
    [
        ({"name": "Upper", "password": PASSWORD}, "'Upper'"),
        ({"name": "umlaut", "password": "pässword"}, "printable ASCII"),
        ({"name": "empty", "password": ""}, "must not be empty"),
    ],
)
def test_bad_input_is_refused_with_its_name(server: Server, role: dict[str, Any], message: str) -> None:
    result = run_module(MODULE, {**server.parameters, "roles": [role], "databases": []})
    assert result["failed"]
    assert message in result["msg"]


def test_a_pristine_host_in_check_mode_shows_everything(tmp_path: Path) -> None:
    result = run_module(MODULE, {"socket_directory": str(tmp_path), **wanted()}, check=True)
    assert result["changed"]
    assert "database airflow: owner" in result["changes"]


def test_no_server_outside_of_check_mode_is_a_failure(tmp_path: Path) -> None:
    result = run_module(MODULE, {"socket_directory": str(tmp_path), **wanted()})
    assert result["failed"]
    assert f"no PostgreSQL listens on {tmp_path}" in result["msg"]
