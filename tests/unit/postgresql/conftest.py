"""A PostgreSQL server of these tests' own, since roles belong to the whole server; passwords count in it."""

import shutil
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

from tests.unit.conftest import PostgresqlServer, make_postgresql, start_postgresql, stop_postgresql


class Server:
    """What the tests need of the server: connections and the modules' common parameters."""

    def __init__(self, server: PostgresqlServer) -> None:
        self.server = server
        self.parameters = {"socket_directory": str(server.directory)}
        self.settings = server.directory / "data" / "postgresql.auto.conf"
        self.hba = server.directory / "data" / "pg_hba.conf"

    def query(self, sql: str, database: str = "postgres", user: str = "postgres", password: str = "") -> list[Any]:
        """Run statements in a session of `user` and return the rows of the last one."""
        connection = psycopg2.connect(
            host=str(self.server.directory), dbname=database, user=user, password=password, connect_timeout=5
        )
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()


@pytest.fixture(scope="package")
def running_server() -> Iterator[Server]:
    throwaway = make_postgresql()
    server = Server(throwaway)
    server.hba.write_text("local all postgres trust\nlocal all all scram-sha-256\n")
    process = start_postgresql(throwaway)
    try:
        yield server
    finally:
        stop_postgresql(process)
        shutil.rmtree(throwaway.directory, ignore_errors=True)


@pytest.fixture
def server(running_server: Server) -> Iterator[Server]:
    """The server, emptied after the test."""
    yield running_server
    names = "SELECT datname FROM pg_database WHERE datname NOT IN ('postgres', 'template0', 'template1')"
    for (name,) in running_server.query(names):
        running_server.query(f'DROP DATABASE "{name}" WITH (FORCE)')
    for (name,) in running_server.query("SELECT rolname FROM pg_roles WHERE rolname !~ '^(pg_|postgres$)'"):
        running_server.query(f'DROP OWNED BY "{name}"')
        running_server.query(f'DROP ROLE "{name}"')
