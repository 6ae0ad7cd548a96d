"""The service as a process, on a server whose roles and rights are those that role postgresql makes."""

from __future__ import annotations

import contextlib
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml
from psycopg.rows import dict_row

from tests.unit.conftest import PostgresqlServer, make_postgresql, start_postgresql, stop_postgresql
from tests.unit.host.run_module import run_module
from tests.unit.transformation_service.test_kill import Process
from transformation_service import database, loading, samples, script_catalog, script_runs
from transformation_service.entities import ENTITIES

DEFAULTS = Path(__file__).parents[4] / "roles" / "postgresql" / "defaults" / "main.yml"
TOKEN = "test-token-7c1f"
PASSWORD = "a-password-for-tests"
SLOT = "2026-01-31T02:00:00Z"
# Everything that a script could leave behind, as one text.
EVERYTHING = """
SELECT jsonb_build_object(
  'users', (SELECT jsonb_agg(to_jsonb(r) ORDER BY id) FROM user_record r),
  'applications', (SELECT jsonb_agg(to_jsonb(r) ORDER BY id) FROM application_record r),
  'discovery', (SELECT jsonb_agg(to_jsonb(r) ORDER BY id) FROM discovery_metadata_record r),
  'jobs', (SELECT jsonb_agg(to_jsonb(r)) FROM transformation_job r),
  'requests', (SELECT jsonb_agg(to_jsonb(r)) FROM transformation_request r),
  'records', (SELECT jsonb_agg(to_jsonb(r)) FROM transformation_record r),
  'large objects', (SELECT count(*) FROM pg_largeobject_metadata),
  'relations', (SELECT count(*) FROM pg_class WHERE relname !~ '^pg_toast'),
  'functions', (SELECT count(*) FROM pg_proc),
  'roles', (SELECT jsonb_agg(to_jsonb(r) ORDER BY oid) FROM pg_roles r),
  'prepared', (SELECT count(*) FROM pg_prepared_xacts)
)::text
"""


class Platform:
    """The database past the service: ``url`` is that of its owner, ``scripts_url`` that of the scripts' role."""

    def __init__(self, server: PostgresqlServer) -> None:
        self.server = server
        self.made = ""
        self.superuser_url = server.url("transformation_service")
        self.url = self._url("transformation_service")
        self.scripts_url = self._url("transformation_scripts")

    def _url(self, role: str) -> str:
        return f"postgresql:///transformation_service?host={self.server.directory}&user={role}&password={PASSWORD}"

    def rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        with psycopg.connect(self.superuser_url, row_factory=dict_row, autocommit=True) as connection:
            cursor = connection.execute(query.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def value(self, query: str, *values: object) -> Any:
        return next(iter(self.rows(query, *values)[0].values()))

    def everything(self) -> str:
        return str(self.value(EVERYTHING))

    def empty(self) -> None:
        tables = [row["t"] for row in self.rows("SELECT tablename AS t FROM pg_tables WHERE schemaname = 'public'")]
        kept = {"schema_migration", "script_version"}
        for _ in range(5):
            # A service of the test before may be in the middle of a transaction.
            with contextlib.suppress(psycopg.errors.DeadlockDetected):
                self.rows(f"TRUNCATE {', '.join(sorted(set(tables) - kept))} RESTART IDENTITY")
                return
        raise AssertionError("the tables are never free")

    def load(self, entity: str, count: int) -> None:
        loading.load(self.url, ENTITIES[entity], samples.generate(entity, count, 7))


def provision(server: PostgresqlServer) -> None:
    """Make the roles and databases that the deployment makes, from the same defaults by the same module."""
    defaults = yaml.safe_load(DEFAULTS.read_text())
    roles = [{**role, "password": PASSWORD} for role in defaults["postgresql_roles"]]
    result = run_module(
        "postgresql/library/postgresql_objects.py",
        {"socket_directory": str(server.directory), "roles": roles, "databases": defaults["postgresql_databases"]},
    )
    assert not result.get("failed"), result["msg"]


@pytest.fixture(scope="session")
def provisioned() -> Iterator[Platform]:
    server = make_postgresql()
    (server.directory / "data" / "pg_hba.conf").write_text("local all postgres trust\nlocal all all scram-sha-256\n")
    process = start_postgresql(server)
    try:
        provision(server)
        platform = Platform(server)
        database.migrate(platform.url)
        script_runs.prepare(platform.url, platform.scripts_url, script_catalog.load())
        yield platform
    finally:
        stop_postgresql(process)
        shutil.rmtree(server.directory, ignore_errors=True)


@pytest.fixture
def platform(provisioned: Platform) -> Platform:
    """An empty database."""
    provisioned.empty()
    return provisioned


@pytest.fixture
def data(provisioned: Platform) -> str:
    """Records, a job and its ledger; returns how everything looks. Made anew only where a test has changed it."""
    provisioned.rows("TRUNCATE script_run, script_request")
    if provisioned.made and provisioned.everything() == provisioned.made:
        return provisioned.made
    provisioned.empty()
    provisioned.load("User", 300)
    provisioned.load("Application", 5)
    provisioned.rows(
        "INSERT INTO transformation_job (id, entity_type, rules, rule_set_version, batch_size, slot, state,"
        " max_record_id, records_total, batches_total) VALUES (gen_random_uuid(), 'User', '{normalize_phone}', 'v', 10,"
        " now(), 'succeeded', 1, 1, 1)"
    )
    provisioned.rows(
        "INSERT INTO transformation_request (idempotency_key, job_id) SELECT 'k', id FROM transformation_job"
    )
    provisioned.made = provisioned.everything()
    return provisioned.made


class Service(Process):
    """The service with its calls for scripts."""

    def run(self, key: str = "", **body: Any) -> httpx.Response:
        """Ask for a run; without a key the work gets one of its own."""
        headers = {"Idempotency-Key": key or str(uuid.uuid4())}
        return self.http.post("/api/v1/script-runs", headers=headers, json={"slot": SLOT, **body})

    def accepted(self, key: str = "", **body: Any) -> dict[str, Any]:
        answer = self.run(key, **body)
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    def ended(self, run: dict[str, Any], within: float = 30) -> dict[str, Any]:
        """Wait for the end of a run and return its document."""
        path = f"/api/v1/script-runs/{run['id']}"
        deadline = time.monotonic() + within
        while (now := self.http.get(path).json())["state"] in ("queued", "running"):
            assert time.monotonic() < deadline, now
            time.sleep(0.02)
        return dict(now)

    def done(self, key: str = "", **body: Any) -> dict[str, Any]:
        return self.ended(self.accepted(key, **body))


def new_service(folder: Path, url: str, scripts_url: str | None, **environment: str) -> Service:
    files = {"DATABASE_URL": url, "TOKEN": TOKEN, **({"SCRIPTS_DATABASE_URL": scripts_url} if scripts_url else {})}
    for name, content in files.items():
        (folder / name).write_text(content)
    return Service({**{f"TRANSFORMATION_SERVICE_{name}_FILE": str(folder / name) for name in files}, **environment})


@pytest.fixture(scope="module")
def running(provisioned: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One process for all tests of a module."""
    service = new_service(tmp_path_factory.mktemp("service"), provisioned.url, provisioned.scripts_url)
    service.start()
    yield service
    service.close()


@pytest.fixture
def service(running: Service, platform: Platform) -> Service:
    """The service over an empty database."""
    return running


@pytest.fixture
def own_service(platform: Platform, tmp_path: Path) -> Iterator[Service]:
    """A service of the test's own, not started, which it may kill."""
    service = new_service(tmp_path, platform.url, platform.scripts_url)
    yield service
    service.close()
