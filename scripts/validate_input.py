#!/usr/bin/env python3
"""Check the records of an entity before they are transformed, as the task pre_check of its DAG does.

The database is the one that libpq finds: PGSERVICE, or PGHOST, PGPORT, PGDATABASE, PGUSER with PGPASSFILE or
PGPASSWORD. --connection NAME takes a URI from the environment variable NAME instead.

On a scheduler or worker host:

  PGHOST=... PGUSER=platform_checks PGDATABASE=transformation_service \\
    /opt/airflow/venv/bin/python /opt/airflow/current/scripts/validate_input.py --entity User

Exit codes: 0 all figures keep their limits, or there are no records; 1 some do not; 2 it could not be checked.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the release, or the repository

from plugins import quality

Rows = list[tuple[Any, ...]]


class Unchecked(Exception):
    """There is no answer; the text says why and holds no password."""


def connect(uri: str) -> Any:
    """Open a read-only session with the driver that is there: psycopg2 beside Airflow, psycopg beside the service.

    :param uri: libpq URI; empty: what libpq's environment says
    """
    try:
        import psycopg2 as driver
    except ImportError:
        try:
            import psycopg as driver  # type: ignore[no-redef]
        except ImportError:
            raise Unchecked("neither psycopg2 nor psycopg is installed; use the Python of a venv") from None
    os.environ.setdefault("PGCONNECT_TIMEOUT", "10")
    os.environ.setdefault("PGAPPNAME", "validate_input")
    try:
        connection = driver.connect(uri)
        with connection.cursor() as cursor:
            cursor.execute("SET default_transaction_read_only = on")
        connection.commit()
    except driver.Error as error:
        raise Unchecked(f"no connection: {' '.join(str(error).split())}") from None
    return connection


def query(connection: Any, statement: str) -> Rows:
    """Return the rows of a statement."""
    with connection.cursor() as cursor:
        try:
            cursor.execute(statement)
            rows: Rows = cursor.fetchall()
        except connection.Error as error:  # PEP 249 has the driver's exceptions on its connections
            raise Unchecked(" ".join(str(error).split())) from None
    return rows


def check(connection: Any, entity_type: str) -> int:
    """Print the entity's figures beside their limits; return how many are beyond them."""
    table = quality.ENTITIES[entity_type].table
    if missing := [row[0] for row in query(connection, quality.columns_query(entity_type))]:
        print(f"{table} lacks {', '.join(missing)}")
        return len(missing)
    if not query(connection, quality.records_query(entity_type))[0][0]:
        print(f"no {entity_type} records: nothing to transform")
        return 0
    figures = quality.input_figures(entity_type)
    width = max(map(len, figures))
    failed = 0
    for name, value in query(connection, quality.query(figures)):
        kept = figures[name].keeps(float(value))
        failed += not kept
        print(f"{'ok' if kept else 'FAILED':<7} {name:<{width}} {float(value):>12g}   {figures[name].limits}")
    return failed


def main() -> int:
    """Run as a program; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entity", required=True, choices=sorted(quality.ENTITIES), help="what to check")
    parser.add_argument("--connection", metavar="NAME", help="environment variable that holds a connection URI")
    given = parser.parse_args()
    uri = os.environ.get(given.connection, "") if given.connection else ""
    if given.connection and not uri:
        parser.error(f"the environment has no variable {given.connection}")
    try:
        with contextlib.closing(connect(uri)) as connection:
            return 1 if check(connection, given.entity) else 0
    except Unchecked as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
