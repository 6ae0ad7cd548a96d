"""Records for load tests, and their removal with all that the tests left behind."""

from __future__ import annotations

from typing import Any

import psycopg

from transformation_service import loading, samples
from transformation_service.database import SESSION
from transformation_service.entities import ENTITIES

USER = ENTITIES["User"]
SLOTS = "slot >= '2000-01-01T00:00:00Z' AND slot < '2001-01-01T00:00:00Z'"
"""Slots of the year 2000 belong to load tests."""


def prepare(url: str, count: int) -> dict[str, int]:
    """Remove what load tests have left, then add sample users until there are ``count``; 0 only removes.

    Returns:
        ``removed_jobs``, ``removed_records`` and ``added_records``.

    Raises:
        psycopg.OperationalError: The database can't be reached.
    """
    options: dict[str, Any] = dict(SESSION)
    with psycopg.connect(url, **options) as connection, connection.transaction():
        jobs = [job_id for (job_id,) in connection.execute(f"SELECT id FROM transformation_job WHERE {SLOTS}")]  # noqa: S608 - a constant
        for table in ("transformation_record", "transformation_batch", "transformation_request"):
            connection.execute(f"DELETE FROM {table} WHERE job_id = ANY (%s)", (jobs,))  # noqa: S608
        connection.execute("DELETE FROM transformation_job WHERE id = ANY (%s)", (jobs,))
        connection.execute(
            "DELETE FROM record_match_key WHERE entity_type = 'User' AND record_id IN"
            " (SELECT id FROM user_record WHERE created_at IN (SELECT created_at FROM load_test_records))"
        )
        removed = connection.execute(
            "DELETE FROM user_record WHERE created_at IN (SELECT created_at FROM load_test_records)"
        ).rowcount
        connection.execute("DELETE FROM load_test_records")
        row = connection.execute("SELECT count(*) FROM user_record").fetchone()
        missing = max(0, count - (row[0] if row else 0))
        if missing:
            # One transaction gives all its rows one creation time, which no other row has: that marks them as ours.
            connection.execute("INSERT INTO load_test_records DEFAULT VALUES")
            loading.copy(connection, USER, samples.generate(USER.name, missing, seed=11))
    return {"removed_jobs": len(jobs), "removed_records": removed, "added_records": missing}
