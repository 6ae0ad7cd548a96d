"""A migrated database for each test and the service in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from psycopg.rows import dict_row

from transformation_service import database, loading, samples
from transformation_service.app import create_app
from transformation_service.entities import ENTITIES
from transformation_service.settings import Settings

TOKEN = "test-token-7c1f"


@pytest.fixture(scope="session")
def migrated_url(postgresql_server: Any) -> str:
    """A migrated database, one for all tests: a database of its own for each would cost more than the tests."""
    url: str = postgresql_server.url("transformation_service")
    with psycopg.connect(postgresql_server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE transformation_service")
    database.migrate(url)
    return url


@pytest.fixture
def database_url(migrated_url: str) -> str:
    """The migrated database, empty."""
    tables = [
        "transformation_record, transformation_batch, transformation_request, transformation_job, record_match_key"
    ]
    tables += [entity.table for entity in ENTITIES.values()]
    with psycopg.connect(migrated_url, autocommit=True) as connection:
        connection.execute(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY".encode())
    return migrated_url


class Database:
    """A test's view into its database, past the service."""

    def __init__(self, url: str) -> None:
        self.url = url

    def rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        with psycopg.connect(self.url, row_factory=dict_row, autocommit=True) as connection:
            cursor = connection.execute(query.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def value(self, query: str, *values: object) -> Any:
        return next(iter(self.rows(query, *values)[0].values()))

    def load(self, entity: str, count: int, seed: int = 7) -> None:
        assert loading.load(self.url, ENTITIES[entity], samples.generate(entity, count, seed)) == count

    def assert_each_record_once(self, entity: str, count: int, *, times: int = 1) -> None:
        """Ledger, effects, batches: each of ``count`` records was transformed once in each of ``times`` jobs."""
        table = ENTITIES[entity].table
        assert self.value(f"SELECT count(*) FROM {table}") == count
        assert self.rows(f"SELECT DISTINCT transform_count AS times FROM {table}") == [{"times": times}]
        ledger = self.rows(
            "SELECT record_id, count(*) AS times FROM transformation_record WHERE entity_type = %s GROUP BY record_id",
            entity,
        )
        assert len(ledger) == count
        assert {row["times"] for row in ledger} == {times}
        assert self.value("SELECT sum(transformed + marked)::int FROM transformation_batch") == count * times


@pytest.fixture
def db(database_url: str) -> Database:
    return Database(database_url)


@pytest.fixture
def settings(database_url: str) -> Settings:
    return Settings(database_url=database_url, token=TOKEN, concurrency=2, poll_seconds=0.2)


class Client:
    """Calls the API as an operator would."""

    def __init__(self, http: httpx.AsyncClient, app: FastAPI) -> None:
        self.http = http
        self.app = app

    async def post(self, key: str | None = "key-1", /, **changes: Any) -> httpx.Response:
        body = {
            "entity_type": "User",
            "rules": ["normalize_phone", "standardize_email", "deduplicate"],
            "batch_size": 100,
            "slot": "2026-01-31T02:00:00Z",
            **changes,
        }
        body = {name: value for name, value in body.items() if value is not ...}
        headers = {} if key is None else {"Idempotency-Key": key}
        return await self.http.post("/api/v1/transformations", json=body, headers=headers)

    async def accepted(self, key: str = "key-1", /, **changes: Any) -> dict[str, Any]:
        response = await self.post(key, **changes)
        assert response.status_code == 202, response.text
        return response.json()

    async def show(self, job_id: str) -> dict[str, Any]:
        response = await self.http.get(f"/api/v1/transformations/{job_id}")
        assert response.status_code == 200, response.text
        return response.json()


ClientFactory = Callable[[Settings], Any]


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Client]:
    """The service with its engine, until the block ends."""
    app = create_app(settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {settings.token}"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service", headers=headers, timeout=30) as http,
    ):
        yield Client(http, app)


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[Client]:
    async with running(settings) as client:
        yield client


@pytest.fixture
def start_service() -> Any:
    """The context manager that runs a service of given settings in this process."""
    return running


@pytest.fixture
def secret_files(tmp_path: Path, database_url: str) -> dict[str, str]:
    """The environment that names the secrets' files."""
    (tmp_path / "url").write_text(database_url + "\n")
    (tmp_path / "token").write_text(TOKEN + "\n")
    return {
        "TRANSFORMATION_SERVICE_DATABASE_URL_FILE": str(tmp_path / "url"),
        "TRANSFORMATION_SERVICE_TOKEN_FILE": str(tmp_path / "token"),
    }


@pytest.fixture
async def finished() -> Any:
    """Wait for a job's end state and return its document."""
    import asyncio

    async def wait(client: Client, job_id: str, within: float = 30) -> dict[str, Any]:
        async with asyncio.timeout(within):
            while (job := await client.show(job_id))["state"] in ("queued", "running"):
                await asyncio.sleep(0.02)
        return job

    return wait
