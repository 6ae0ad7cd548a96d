"""Rules over one batch: database steps on the event loop, the rules themselves in a thread beside it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from transformation_service import ledger
from transformation_service.database import Connection
from transformation_service.entities import Entity, Record
from transformation_service.ledger import Outcome
from transformation_service.metrics import Metrics
from transformation_service.rules import NeighbourRule, Rule, Unprocessable

log = logging.getLogger(__name__)

Marks = list[dict[str, str]]


@dataclass(frozen=True)
class Draft:
    """A batch before its transaction: the records as read, and what the rules so far make of them."""

    records: list[Record]
    work: list[Record]
    marks: Marks


def split(rules: Sequence[Rule]) -> tuple[list[Rule], list[Rule]]:
    """Return the rules that a draft can take, and from the first that looks at earlier batches on, the rest."""
    first = next((number for number, rule in enumerate(rules) if isinstance(rule, NeighbourRule)), len(rules))
    return list(rules[:first]), list(rules[first:])


async def draft(
    entity: Entity, rules: Sequence[Rule], records: list[Record], metrics: Metrics, thread: Executor | None = None
) -> Draft:
    """Apply rules of the first part of :func:`split` to a batch that is not locked yet.

    A record that a rule can't process goes on to the next rule as it was; all its reasons end up in its marks. The
    rules run on ``thread``, by default one of the event loop's.
    """
    made = Draft(records, [dict(record) for record in records], [{} for _ in records])
    for rule in rules:
        with metrics.rule_seconds.labels(rule.name).time():
            await asyncio.get_running_loop().run_in_executor(thread, apply_rule, rule, entity, made.work, made.marks)
    return made


async def complete(
    connection: Connection,
    entity: Entity,
    rules: Sequence[Rule],
    made: Draft,
    metrics: Metrics,
    thread: Executor | None = None,
) -> list[Outcome]:
    """Apply rules of the second part of :func:`split`, in the batch's transaction: one outcome per record, in order."""
    for rule in rules:
        with metrics.rule_seconds.labels(rule.name).time():
            if isinstance(rule, NeighbourRule):
                await _apply_with_neighbours(connection, entity, rule, made.work, made.marks, thread)
            else:
                await asyncio.get_running_loop().run_in_executor(
                    thread, apply_rule, rule, entity, made.work, made.marks
                )
    return [Outcome(record=record, marks=marks) for record, marks in zip(made.work, made.marks, strict=True)]


def apply_rule(rule: Rule, entity: Entity, work: list[Record], marks: Marks) -> None:
    """Apply a rule to each record in place."""
    for record, reasons in zip(work, marks, strict=True):
        try:
            record.update(rule.apply(entity, record))
        except Unprocessable as reason:
            reasons[rule.name] = str(reason)
        except Exception as error:
            # One odd record must not stop the others of its slot; the mark and the log tell of the fault in the rule.
            log.exception("Rule %s broke on %s %s", rule.name, entity.name, record["id"])
            reasons[rule.name] = f"the rule broke ({type(error).__name__})"


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
            reasons[rule.name] = str(result)
            continue
        record.update(result)
        if record.get("duplicate_of") is None:
            originals += [(record["id"], key) for key in of_record]
    await ledger.replace_match_keys(connection, entity, [record["id"] for record in work], originals)


def error_document(error: BaseException, batch: int) -> dict[str, Any]:
    """Return what the job document tells of a failure: its kind, its first line and the batch that it stopped at."""
    lines = str(error).strip().splitlines()
    return {"type": type(error).__name__, "message": lines[0] if lines else "", "batch": batch}
