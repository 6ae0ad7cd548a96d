"""Connections and the forward-only schema migrations."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

CONNECT_SECONDS = 5
MIGRATION_LOCK = 0x7472616E73  # any number of our own: "trans"

# A service host that vanishes without a goodbye must not hold a batch's locks for the two hours of the system default,
# and the service must notice a database host that vanished.
SESSION = {
    "application_name": "transformation-service",
    "connect_timeout": CONNECT_SECONDS,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "options": "-c timezone=UTC -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
    " -c lock_timeout=30s -c idle_in_transaction_session_timeout=15min",
}

Connection = AsyncConnection[DictRow]
Pool = AsyncConnectionPool[Connection]


async def connect(url: str) -> Connection:
    """Open one autocommit connection of the engine's own, outside the pool that answers requests.

    Raises:
        psycopg.OperationalError: The database can't be reached.
    """
    options: dict[str, Any] = dict(SESSION)
    return await AsyncConnection.connect(url, autocommit=True, row_factory=dict_row, **options)


def create_pool(url: str) -> Pool:
    """Return a closed pool for requests; it tests a connection before it lends it."""
    return AsyncConnectionPool(
        url,
        kwargs={**SESSION, "row_factory": dict_row},
        connection_class=AsyncConnection[DictRow],
        min_size=1,
        max_size=6,
        timeout=3,
        check=AsyncConnectionPool.check_connection,
        reconnect_timeout=5,
        open=False,
        name="requests",
    )


@dataclass(frozen=True)
class Migration:
    """One file of ``migrations/``: its number, name, text and the SHA-256 of the text."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text in hexadecimal."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


class MigrationError(Exception):
    """The database's schema does not stem from this release's files."""


def migrations() -> list[Migration]:
    """Return the release's migrations in order."""
    files = sorted(
        (item for item in resources.files(__package__).joinpath("migrations").iterdir() if item.name.endswith(".sql")),
        key=lambda item: item.name,
    )
    return [Migration(int(item.name.split("_")[0]), item.name, item.read_text(encoding="utf-8")) for item in files]


def migrate(url: str, wanted: list[Migration] | None = None) -> list[str]:
    """Bring the schema up to this release and return the names of the files applied, none when nothing was to do.

    Processes that start together wait for each other. A schema newer than the release is left alone: migrations only
    add.

    Raises:
        MigrationError: A file that was applied has another content now.
        psycopg.OperationalError: The database can't be reached.
    """
    options: dict[str, Any] = dict(SESSION)
    with psycopg.connect(url, **options) as connection, connection.transaction():
        connection.execute("SET LOCAL lock_timeout = 0")
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migration"
            " (version integer PRIMARY KEY, checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        known = dict(connection.execute("SELECT version, checksum FROM schema_migration").fetchall())
        applied = []
        for migration in migrations() if wanted is None else wanted:
            if migration.version not in known:
                connection.execute(migration.sql.encode())
                connection.execute(
                    "INSERT INTO schema_migration (version, checksum) VALUES (%s, %s)",
                    (migration.version, migration.checksum),
                )
                applied.append(migration.name)
            elif known[migration.version] != migration.checksum:
                raise MigrationError(
                    f"{migration.name} was applied with another content; a migration is never edited, add a new file."
                )
        return applied
