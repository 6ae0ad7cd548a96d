"""Rules over one batch: database steps on the event loop, the rules themselves in a thread beside it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

from transformation_service import ledger
from transformation_service.database import Connection
from transformation_service.entities import Entity, Record
from transformation_service.ledger import Outcome
from transformation_service.metrics import Metrics
from transformation_service.rules import NeighbourRule, Rule, Unprocessable

log = logging.getLogger(__name__)

Marks = list[list[str]]


async def transform(
    connection: Connection,
    entity: Entity,
    rules: Sequence[Rule],
    records: Sequence[Record],
    metrics: Metrics,
    thread: Executor | None = None,
) -> list[Outcome]:
    """Apply the rules in order and return one outcome per record, in the records' order.

    A record that a rule can't process goes on to the next rule as it was; all its reasons end up in its mark. The rules
    run on ``thread``, by default one of the event loop's.
    """
    work = [dict(record) for record in records]
    marks: Marks = [[] for _ in work]
    for rule in rules:
        started = time.perf_counter()
        if isinstance(rule, NeighbourRule):
            await _apply_with_neighbours(connection, entity, rule, work, marks, thread)
        else:
            await asyncio.get_running_loop().run_in_executor(thread, apply_rule, rule, entity, work, marks)
        metrics.rule_seconds.labels(rule.name).observe(time.perf_counter() - started)
    return [
        Outcome(record=record, reason="; ".join(reasons) or None) for record, reasons in zip(work, marks, strict=True)
    ]


def apply_rule(rule: Rule, entity: Entity, work: list[Record], marks: Marks) -> None:
    """Apply a rule to each record in place."""
    for record, reasons in zip(work, marks, strict=True):
        try:
            record.update(rule.apply(entity, record))
        except Unprocessable as reason:
            reasons.append(f"{rule.name}: {reason}")
        except Exception as error:
            # One odd record must not stop the others of its slot; the mark and the log tell of the fault in the rule.
            log.exception("Rule %s broke on %s %s", rule.name, entity.name, record["id"])
            reasons.append(f"{rule.name}: the rule broke ({type(error).__name__})")


async def _apply_with_neighbours(
    connection: Connection,
    entity: Entity,
    rule: NeighbourRule,
    work: list[Record],
    marks: Marks,
    thread: Executor | None,
) -> None:
    loop = asyncio.get_running_loop()
    keys = await loop.run_in_executor(thread, lambda: [rule.keys(entity, record) for record in work])
    wanted = sorted({key for of_record in keys for key in of_record})
    earlier = await ledger.neighbours(connection, entity, wanted, before=work[0]["id"], per_key=rule.per_key)
    results = await loop.run_in_executor(thread, rule.apply_batch, entity, work, earlier)
    originals: list[tuple[int, str]] = []
    for record, of_record, reasons, result in zip(work, keys, marks, results, strict=True):
        if isinstance(result, Unprocessable):
            reasons.append(f"{rule.name}: {result}")
            continue
        record.update(result)
        if record.get("duplicate_of") is None:
            originals += [(record["id"], key) for key in of_record]
    await ledger.replace_match_keys(connection, entity, [record["id"] for record in work], originals)


def error_document(error: BaseException, batch: int) -> dict[str, Any]:
    """Return what the job document tells of a failure: its kind, its first line and the batch that it stopped at."""
    lines = str(error).strip().splitlines()
    return {"type": type(error).__name__, "message": lines[0] if lines else "", "batch": batch}
