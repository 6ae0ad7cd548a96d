"""Jobs, batches and the ledger in PostgreSQL: every statement that makes an effect happen exactly once.

A job stands for one piece of work: (entity type, slot, rule set version). Its batches are confirmed one by one; a
batch's effects, its ledger rows and its own row under the key of :func:`batch_key` become visible in one transaction or
not at all.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from transformation_service.database import Connection
from transformation_service.entities import Entity, Record

UNFINISHED = ("queued", "running")


class KeyReused(Exception):
    """The idempotency key belongs to another request body."""


class BatchLost(Exception):
    """The job was cancelled, or its batch confirmed elsewhere, while this process worked on the batch."""


class ScopeDiffers(Exception):
    """The work exists with another ``max_records``, which the exception's argument tells."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a client asks for; ``slot`` is an aware instant, ``max_records`` limits the work to the first records by id.

    The batch size is how the work is cut, not what it is: the same work with another batch size is the same job.
    """

    entity_type: str
    rules: tuple[str, ...]
    rule_set_version: str
    batch_size: int
    slot: datetime
    max_records: int | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one record: the row to write, and by rule why it is marked (empty when all processed it)."""

    record: Record
    marks: Mapping[str, str]

    @property
    def reason(self) -> str | None:
        """All marks in one line, or ``None``."""
        return "; ".join(f"{rule}: {why}" for rule, why in self.marks.items()) or None


def instant(moment: datetime) -> str:
    """Return an aware datetime as ``2026-01-31T02:00:00Z``, with a fraction only when there is one."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def batch_key(entity_type: str, slot: datetime, rule_set_version: str, number: int) -> str:
    """Return the unique key of a batch: the same for every retry, every caller and every process."""
    return hashlib.sha256(f"{entity_type}\n{instant(slot)}\n{rule_set_version}\n{number}".encode()).hexdigest()


async def accept(connection: Connection, entity: Entity, key: str, request: Request) -> tuple[uuid.UUID, bool]:
    """Return the job for a request and whether it existed before.

    The job covers the records that exist now. A job that failed or was cancelled goes on at its first unconfirmed
    batch: only success is final, or the retry of a caller could never repair a slot. A second key for the same work
    gets the same job.

    Raises:
        KeyReused: The key was used for other work.
        ScopeDiffers: The work exists with another ``max_records``.
    """
    async with connection.transaction():
        job_id = await _find_request(connection, key, request)
        if job_id is None:
            created = await _create_job(connection, entity, request)
            row = await (
                await connection.execute(
                    "SELECT id, max_records FROM transformation_job"
                    " WHERE entity_type = %s AND slot = %s AND rule_set_version = %s",
                    (request.entity_type, request.slot, request.rule_set_version),
                )
            ).fetchone()
            assert row is not None  # noqa: S101 - inserted or found in this transaction
            if row["max_records"] != request.max_records:
                raise ScopeDiffers(row["max_records"])
            stored = await connection.execute(
                "INSERT INTO transformation_request (idempotency_key, job_id) VALUES (%s, %s)"
                " ON CONFLICT (idempotency_key) DO NOTHING",
                (key, row["id"]),
            )
            if stored.rowcount and created:
                return row["id"], False
            # A twin of this request won; KeyReused takes our job back with the transaction when it was no twin.
            job_id = row["id"] if stored.rowcount else await _find_request(connection, key, request)
            assert job_id is not None  # noqa: S101 - the insert met that row
        await connection.execute(
            "UPDATE transformation_job SET state = 'queued', error = NULL, finished_at = NULL"
            " WHERE id = %s AND state IN ('failed', 'cancelled')",
            (job_id,),
        )
        return job_id, True


async def _find_request(connection: Connection, key: str, request: Request) -> uuid.UUID | None:
    known = await (
        await connection.execute(
            "SELECT job.* FROM transformation_request JOIN transformation_job AS job ON job.id = job_id"
            " WHERE idempotency_key = %s",
            (key,),
        )
    ).fetchone()
    if known is None:
        return None
    same = (
        known["entity_type"] == request.entity_type
        and known["rules"] == list(request.rules)  # not their version: a retry after an upgrade means the same work
        and known["slot"] == request.slot
        and known["max_records"] == request.max_records
    )
    if not same:
        raise KeyReused(key)
    return uuid.UUID(str(known["id"]))


async def _create_job(connection: Connection, entity: Entity, request: Request) -> bool:
    query = sql.SQL(
        """
        INSERT INTO transformation_job
          (id, entity_type, rules, rule_set_version, batch_size, slot, max_records,
           max_record_id, records_total, batches_total)
        SELECT %(id)s, %(entity)s, %(rules)s, %(version)s, %(size)s, %(slot)s, %(most)s,
               coalesce(max(id), 0), count(*), ceil(count(*) / %(size)s::numeric)
        FROM (SELECT id FROM {table} ORDER BY id LIMIT %(most)s) AS covered
        ON CONFLICT (entity_type, slot, rule_set_version) DO NOTHING
        """
    ).format(table=sql.Identifier(entity.table))
    inserted = await connection.execute(
        query,
        {
            "id": uuid.uuid4(),
            "entity": request.entity_type,
            "rules": list(request.rules),
            "version": request.rule_set_version,
            "size": request.batch_size,
            "slot": request.slot,
            "most": request.max_records,
        },
    )
    return inserted.rowcount == 1


async def document(connection: Connection, job_id: uuid.UUID, *, replayed: bool = False) -> dict[str, Any] | None:
    """Return the job document of the API, or ``None`` for an unknown id."""
    row = await (await connection.execute("SELECT * FROM transformation_job WHERE id = %s", (job_id,))).fetchone()
    if row is None:
        return None
    batches = await (
        await connection.execute(
            "SELECT batch_number, first_id, last_id, transformed, marked, seconds, finished_at"
            " FROM transformation_batch WHERE job_id = %s ORDER BY batch_number",
            (job_id,),
        )
    ).fetchall()
    progress = [
        {
            "batch": batch["batch_number"],
            "first_id": batch["first_id"],
            "last_id": batch["last_id"],
            "transformed": batch["transformed"],
            "marked": batch["marked"],
            "seconds": round(batch["seconds"], 3),
            "finished_at": instant(batch["finished_at"]),
        }
        for batch in batches
    ]
    return {**summary(row), "progress": progress, "replayed": replayed}


def summary(row: dict[str, Any]) -> dict[str, Any]:
    """Return the job document without its per-batch progress."""

    def moment(value: datetime | None) -> str | None:
        return None if value is None else instant(value)

    return {
        "id": str(row["id"]),
        "state": row["state"],
        "entity_type": row["entity_type"],
        "rules": row["rules"],
        "rule_set_version": row["rule_set_version"],
        "batch_size": row["batch_size"],
        "slot": instant(row["slot"]),
        "max_records": row["max_records"],
        "counts": {"total": row["records_total"], "transformed": row["transformed"], "marked": row["marked"]},
        "batches": {"total": row["batches_total"], "done": row["batches_done"]},
        "error": row["error"],
        "created_at": moment(row["created_at"]),
        "started_at": moment(row["started_at"]),
        "finished_at": moment(row["finished_at"]),
    }


async def listing(
    connection: Connection, *, slot: datetime | None, entity_type: str | None, limit: int
) -> list[dict[str, Any]]:
    """Return job summaries, newest first."""
    rows = await (
        await connection.execute(
            "SELECT * FROM transformation_job WHERE (%(slot)s::timestamptz IS NULL OR slot = %(slot)s)"
            " AND (%(entity)s::text IS NULL OR entity_type = %(entity)s) ORDER BY created_at DESC, id LIMIT %(limit)s",
            {"slot": slot, "entity": entity_type, "limit": limit},
        )
    ).fetchall()
    return [summary(row) for row in rows]


async def cancel(connection: Connection, job_id: uuid.UUID) -> None:
    """Stop a job at its last confirmed batch; a finished job stays as it is."""
    await connection.execute(
        "UPDATE transformation_job SET state = 'cancelled', finished_at = now()"
        " WHERE id = %s AND state IN ('queued', 'running')",
        (job_id,),
    )


async def unfinished(connection: Connection) -> list[uuid.UUID]:
    """Return the ids of the jobs with work left, oldest first."""
    rows = await (
        await connection.execute(
            "SELECT id FROM transformation_job WHERE state IN ('queued', 'running') ORDER BY created_at, id"
        )
    ).fetchall()
    return [row["id"] for row in rows]


async def claim(connection: Connection, job_id: uuid.UUID) -> dict[str, Any] | None:
    """Take a job until :func:`release` and show it as running; ``None`` if another process has it or it has ended.

    A lock of the session that writes the batches: whoever loses the lock, loses the batch with it. An advisory lock and
    not a row lock, so that a cancel never waits for a batch.
    """
    locked = await (
        await connection.execute("SELECT pg_try_advisory_lock(%s) AS ours", (_lock_number(job_id),))
    ).fetchone()
    if locked is None or not locked["ours"]:
        return None
    # After the lock: the holder before us may have moved the job on since we saw it.
    job = await (
        await connection.execute(
            "UPDATE transformation_job SET state = 'running', started_at = coalesce(started_at, now())"
            " WHERE id = %s AND state IN ('queued', 'running') RETURNING *",
            (job_id,),
        )
    ).fetchone()
    if job is None:
        await release(connection, job_id)
    return job


async def release(connection: Connection, job_id: uuid.UUID) -> None:
    """Let other processes have the job."""
    await connection.execute("SELECT pg_advisory_unlock(%s)", (_lock_number(job_id),))


def _lock_number(job_id: uuid.UUID) -> int:
    return int.from_bytes(job_id.bytes[:8], signed=True)


async def next_records(connection: Connection, entity: Entity, job: dict[str, Any], after: int) -> list[Record]:
    """Return the records of the job's next batch after record id ``after``, by id; empty when there are no more."""
    return await _records(
        connection, entity, after, job["max_record_id"], sql.SQL("LIMIT {}").format(job["batch_size"])
    )


async def lock_records(connection: Connection, entity: Entity, *, after: int, last: int) -> list[Record]:
    """Lock and return the records with an id above ``after`` and up to ``last``, by id."""
    return await _records(connection, entity, after, last, sql.SQL("FOR NO KEY UPDATE"))


async def _records(
    connection: Connection, entity: Entity, after: int, last: int, ending: sql.Composable
) -> list[Record]:
    query = sql.SQL("SELECT {columns} FROM {table} WHERE id > %s AND id <= %s ORDER BY id {ending}").format(
        columns=sql.SQL(", ").join(map(sql.Identifier, ("id", *entity.columns))),
        table=sql.Identifier(entity.table),
        ending=ending,
    )
    return await (await connection.execute(query, (after, last))).fetchall()


async def write_batch(
    connection: Connection, entity: Entity, job: dict[str, Any], outcomes: Sequence[Outcome], seconds: float
) -> None:
    """Write the effects of the job's next batch, its ledger rows and its confirmation, in the caller's transaction;
    move ``job`` on to the batch after it.

    Raises:
        BatchLost: The job is not ours to change any more; roll back.
    """
    number = job["batches_done"] + 1
    ids = [outcome.record["id"] for outcome in outcomes]
    reasons = [outcome.reason for outcome in outcomes]
    marked = sum(reason is not None for reason in reasons)

    claimed = await connection.execute(
        """
        INSERT INTO transformation_batch
          (batch_key, job_id, batch_number, first_id, last_id, transformed, marked, seconds)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (batch_key) DO NOTHING
        """,
        (
            batch_key(job["entity_type"], job["slot"], job["rule_set_version"], number),
            job["id"],
            number,
            ids[0],
            ids[-1],
            len(ids) - marked,
            marked,
            seconds,
        ),
    )
    if claimed.rowcount != 1:
        raise BatchLost(f"batch {number} of job {job['id']} is confirmed already")

    await connection.execute(
        """
        INSERT INTO transformation_record
          (job_id, entity_type, slot, rule_set_version, record_id, batch_number, outcome, reason)
        SELECT %s, %s, %s, %s, record_id, %s, CASE WHEN reason IS NULL THEN 'transformed' ELSE 'marked' END, reason
        FROM unnest(%s::bigint[], %s::text[]) AS outcome (record_id, reason)
        """,
        (job["id"], job["entity_type"], job["slot"], job["rule_set_version"], number, ids, reasons),
    )

    types = entity.columns
    update = sql.SQL(
        """
        UPDATE {table} AS target
        SET {assignments}, transform_count = target.transform_count + 1, transformed_at = now(),
            marks = {marks}, mark_reason = (
              SELECT string_agg(mark.key || ': ' || mark.value, '; ' ORDER BY mark.key)
              FROM jsonb_each_text({marks}) AS mark)
        FROM unnest(%(ids)s::bigint[], %(new_marks)s::text[], {arrays}) AS source (id, new_marks, {columns})
        WHERE target.id = source.id
        """
    ).format(
        table=sql.Identifier(entity.table),
        # What other rules have marked stays: they may be jobs of their own, at the same time.
        marks=sql.SQL("((target.marks - %(rules)s::text[]) || source.new_marks::jsonb)"),
        assignments=sql.SQL(", ").join(
            sql.SQL("{0} = source.{0}::{1}").format(sql.Identifier(column), sql.SQL(kind))
            for column, kind in types.items()
        ),
        arrays=sql.SQL(", ").join(sql.SQL("{}::text[]").format(sql.Placeholder(column)) for column in types),
        columns=sql.SQL(", ").join(map(sql.Identifier, types)),
    )
    columns = {
        column: [_as_text(outcome.record[column], kind) for outcome in outcomes] for column, kind in types.items()
    }
    marks = [json.dumps(dict(outcome.marks)) for outcome in outcomes]
    await connection.execute(update, {"ids": ids, "new_marks": marks, "rules": job["rules"], **columns})

    moved = await connection.execute(
        """
        UPDATE transformation_job
        SET batches_done = %s, last_record_id = %s, transformed = transformed + %s, marked = marked + %s
        WHERE id = %s AND state = 'running'
        """,
        (number, ids[-1], len(ids) - marked, marked, job["id"]),
    )
    if moved.rowcount != 1:
        raise BatchLost(f"job {job['id']} is no longer running")
    job.update(batches_done=number, last_record_id=ids[-1])


def _as_text(value: object, kind: str) -> str | None:
    if value is None:
        return None
    return json.dumps(value) if kind == "jsonb" else str(value)


async def finish(connection: Connection, job_id: uuid.UUID) -> None:
    """Show a job whose batches are all confirmed as succeeded.

    Raises:
        BatchLost: The job was cancelled just before.
    """
    finished = await connection.execute(
        """
        UPDATE transformation_job
        SET state = 'succeeded', finished_at = now(), batches_total = batches_done, records_total = transformed + marked
        WHERE id = %s AND state IN ('queued', 'running')
        """,
        (job_id,),
    )
    if finished.rowcount != 1:
        raise BatchLost(f"job {job_id} is no longer running")


async def fail(connection: Connection, job_id: uuid.UUID, error: dict[str, Any]) -> None:
    """Show a job as failed, with the reason; its confirmed batches stay."""
    await connection.execute(
        "UPDATE transformation_job SET state = 'failed', finished_at = now(), error = %s"
        " WHERE id = %s AND state IN ('queued', 'running')",
        (Jsonb(error), job_id),
    )


async def replace_match_keys(
    connection: Connection, entity: Entity, ids: Sequence[int], keys: Sequence[tuple[int, str]]
) -> None:
    """Make ``keys`` (record id, key) the only blocking keys of the records ``ids``, without rewriting the same ones."""
    record_ids = [record_id for record_id, _ in keys]
    names = [name for _, name in keys]
    await connection.execute(
        """
        DELETE FROM record_match_key AS old
        WHERE entity_type = %s AND record_id = ANY (%s) AND NOT EXISTS (
          SELECT FROM unnest(%s::bigint[], %s::text[]) AS new (record_id, match_key)
          WHERE new.record_id = old.record_id AND new.match_key = old.match_key)
        """,
        (entity.name, list(ids), record_ids, names),
    )
    await connection.execute(
        """
        INSERT INTO record_match_key (entity_type, match_key, record_id)
        SELECT %s, match_key, record_id FROM unnest(%s::bigint[], %s::text[]) AS new (record_id, match_key)
        ON CONFLICT DO NOTHING
        """,
        (entity.name, record_ids, names),
    )


async def neighbours(
    connection: Connection, entity: Entity, keys: Sequence[str], *, before: int, per_key: int
) -> list[Record]:
    """Return the records with an id under ``before`` that share a blocking key, by id: per key the first ``per_key``
    that are no duplicates themselves."""
    query = sql.SQL(
        """
        SELECT DISTINCT ON (found.id) found.*
        FROM unnest(%s::text[]) AS wanted (match_key)
        CROSS JOIN LATERAL (
          SELECT {columns} FROM record_match_key AS key JOIN {table} AS record ON record.id = key.record_id
          WHERE key.entity_type = %s AND key.match_key = wanted.match_key AND key.record_id < %s
            AND record.duplicate_of IS NULL
          ORDER BY key.record_id LIMIT %s
        ) AS found
        ORDER BY found.id
        """
    ).format(
        columns=sql.SQL(", ").join(sql.Identifier("record", column) for column in ("id", *entity.columns)),
        table=sql.Identifier(entity.table),
    )
    return await (await connection.execute(query, (list(keys), entity.name, before, per_key))).fetchall()
