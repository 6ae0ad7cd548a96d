from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from transformation_service import database
from transformation_service.database import Migration, MigrationError


@pytest.fixture
def empty_url(postgresql_server: Any) -> Any:
    with psycopg.connect(postgresql_server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE empty")
        yield postgresql_server.url("empty")
        connection.execute("DROP DATABASE empty WITH (FORCE)")


FIRST = Migration(1, "0001_first.sql", "CREATE TABLE one (id int); INSERT INTO one VALUES (1);")
SECOND = Migration(2, "0002_second.sql", "CREATE TABLE two (id int);")


def test_migrations_are_applied_once_and_in_order(empty_url: str) -> None:
    assert database.migrate(empty_url, [FIRST]) == ["0001_first.sql"]
    assert database.migrate(empty_url, [FIRST]) == []
    assert database.migrate(empty_url, [FIRST, SECOND]) == ["0002_second.sql"]
    # The release before runs on the newer schema.
    assert database.migrate(empty_url, [FIRST]) == []


def test_an_edited_migration_is_refused_and_nothing_applied(empty_url: str) -> None:
    database.migrate(empty_url, [FIRST])
    with pytest.raises(MigrationError, match=r"0001_first\.sql was applied with another content"):
        database.migrate(empty_url, [Migration(1, FIRST.name, FIRST.sql + " "), SECOND])
    assert database.migrate(empty_url, [FIRST, SECOND]) == [SECOND.name]


def test_a_migration_that_breaks_leaves_nothing(empty_url: str) -> None:
    broken = Migration(2, "0002_broken.sql", "CREATE TABLE half (id int); SELECT 1 / 0;")
    with pytest.raises(psycopg.errors.DivisionByZero):
        database.migrate(empty_url, [FIRST, broken])
    assert database.migrate(empty_url, [FIRST]) == [FIRST.name]


def test_services_that_start_together_migrate_once(empty_url: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        applied = list(threads.map(lambda _: database.migrate(empty_url), range(4)))
    assert sorted(applied, key=len, reverse=True) == [[item.name for item in database.migrations()], [], [], []]
