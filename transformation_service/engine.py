"""Runs accepted jobs, batch by batch, until none is left.

A job's batches are drafted some ahead, without a lock: read, and rules applied that look at nothing else. Then one
after the other becomes a transaction: lock the records, draft again if one has changed, apply the other rules, write
effects, ledger and confirmation. Whatever ends the process between two instructions ends that transaction too, and any
process of the service continues at the same batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import psycopg

from transformation_service import database, ledger, pipeline
from transformation_service.database import Connection
from transformation_service.entities import ENTITIES, Entity, Record
from transformation_service.metrics import Metrics
from transformation_service.rules import RULES, Rule
from transformation_service.settings import Settings

log = logging.getLogger(__name__)

Row = dict[str, Any]

DRAFTS_AHEAD = 4  # of one job; more of them at once would only wait for the one thread that applies the rules
STOP_SECONDS = 10  # how long a stopping process lets a batch in hand come to its commit

# Faults of the moment: the same batch is tried again and the job stays running.
TRANSIENT = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.InternalError)


class Counts(NamedTuple):
    """One confirmed batch."""

    records: int
    marked: int
    seconds: float


class Engine:
    """The workers of one process: at most ``settings.concurrency`` jobs side by side."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._here: set[uuid.UUID] = set()
        self._tasks: list[asyncio.Task[None]] = []
        # One thread for the rules of all jobs: they hold the interpreter's lock, and more of them would only keep the
        # event loop from it for longer.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rules")

    def start(self) -> None:
        """Start the workers; they first look for jobs that an earlier process left unfinished."""
        self._tasks = [
            asyncio.create_task(self._work(), name=f"engine-{number}") for number in range(self._settings.concurrency)
        ]

    def wake(self) -> None:
        """Tell the workers that a job was accepted."""
        self._wake.set()

    async def stop(self) -> None:
        """Let batches in hand reach their commit, for a while; the rest is rolled back and done by the next process."""
        self._stopping.set()
        self._wake.set()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=STOP_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                async with await database.connect(self._settings.database_url) as connection:
                    self._metrics.database_up.set(1)
                    while not self._stopping.is_set():
                        self._wake.clear()
                        if not await self._run_some_job(connection):
                            await self._rest(self._settings.poll_seconds)
                        failures = 0
            except TRANSIENT as error:
                failures += 1
                self._metrics.database_up.set(0)
                pause = min(10.0, 0.25 * 2**failures) * random.uniform(0.5, 1)  # noqa: S311 - spreads the processes
                log.warning("The database failed (%s); next attempt in %.1f s", str(error).strip() or error, pause)
                await self._pause(pause)
            except Exception:
                log.exception("A worker broke; it starts anew")
                await self._pause(5)

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _run_some_job(self, connection: Connection) -> bool:
        """Work on the oldest jobs that are free; false if there is none."""
        worked = False
        for job_id in await ledger.unfinished(connection):
            if job_id in self._here or self._stopping.is_set():
                continue
            self._here.add(job_id)
            self._metrics.running.set(len(self._here))
            try:
                job = await ledger.claim(connection, job_id)
                if job is not None:
                    worked = True
                    await self._run_job(connection, job)
                    await ledger.release(connection, job_id)
            finally:
                self._here.discard(job_id)
                self._metrics.running.set(len(self._here))
        return worked

    async def _run_job(self, connection: Connection, job: Row) -> None:
        """Do the batches of a claimed job until it ends, is cancelled or this process stops."""
        try:
            async with contextlib.aclosing(self._drafts(connection, job)) as drafts:
                async for started, draft in drafts:
                    counts = await self._confirm(connection, job, draft, started)
                    self._tell_batch(job, counts)
                    if self._stopping.is_set():
                        return
            if self._stopping.is_set():
                return
            await ledger.finish(connection, job["id"])
        except ledger.BatchLost as reason:
            log.info("A batch was rolled back: %s", reason)
        except TRANSIENT:
            raise
        except Exception as error:
            batch = job["batches_done"] + 1
            log.exception("Job %s failed at batch %s", job["id"], batch)
            await ledger.fail(connection, job["id"], pipeline.error_document(error, batch))
            self._metrics.jobs.labels(job["entity_type"], "failed").inc()
        else:
            self._tell_success(job)

    async def _drafts(self, connection: Connection, job: Row) -> AsyncGenerator[tuple[float, pipeline.Draft]]:
        """Yield the job's batches in order, each with the time of its reading, drafting the next meanwhile."""
        entity = ENTITIES[job["entity_type"]]
        first_rules, _ = self._rules(job)
        ahead: deque[tuple[float, asyncio.Task[pipeline.Draft]]] = deque()
        read_to: int | None = job["last_record_id"]
        try:
            while read_to is not None or ahead:
                while read_to is not None and len(ahead) < DRAFTS_AHEAD:
                    started = time.perf_counter()
                    records = await ledger.next_records(connection, entity, job, read_to)
                    read_to = records[-1]["id"] if records else None
                    if records:
                        ahead.append((started, asyncio.create_task(self._draft(entity, first_rules, records))))
                if ahead:
                    started, task = ahead.popleft()
                    yield started, await task
        finally:
            for _, task in ahead:
                task.cancel()

    async def _draft(self, entity: Entity, rules: Sequence[Rule], records: list[Record]) -> pipeline.Draft:
        draft = await pipeline.draft(entity, rules, records, self._metrics, self._thread)
        if self._settings.simulated_ms_per_record:
            await asyncio.sleep(len(records) * self._settings.simulated_ms_per_record / 1000)
        return draft

    async def _confirm(self, connection: Connection, job: Row, draft: pipeline.Draft, started: float) -> Counts:
        """Make a drafted batch's effects and its confirmation one transaction."""
        entity = ENTITIES[job["entity_type"]]
        first_rules, other_rules = self._rules(job)
        async with connection.transaction():
            records = await ledger.lock_records(
                connection, entity, after=job["last_record_id"], last=draft.records[-1]["id"]
            )
            if records != draft.records:  # another job was here meanwhile
                draft = await pipeline.draft(entity, first_rules, records, self._metrics, self._thread)
            outcomes = await pipeline.complete(connection, entity, other_rules, draft, self._metrics, self._thread)
            seconds = time.perf_counter() - started
            if outcomes:
                await ledger.write_batch(connection, entity, job, outcomes, seconds)
        return Counts(len(outcomes), sum(bool(outcome.marks) for outcome in outcomes), seconds)

    @staticmethod
    def _rules(job: Row) -> tuple[list[Rule], list[Rule]]:
        # By name only: a job accepted before an upgrade ends with the new rules under its old version, because a start
        # under a new version would transform its confirmed records twice.
        return pipeline.split([RULES[name] for name in job["rules"]])

    def _tell_success(self, job: Row) -> None:
        """Count and log a job that is committed."""
        seconds = time.time() - job["started_at"].timestamp()
        self._metrics.jobs.labels(job["entity_type"], "succeeded").inc()
        self._metrics.job_seconds.labels(job["entity_type"]).observe(seconds)
        log.info("Job %s succeeded after %.1f s", job["id"], seconds)

    def _tell_batch(self, job: Row, counts: Counts) -> None:
        """Count and log a batch that is committed."""
        name = job["entity_type"]
        self._metrics.batches.labels(name).inc()
        self._metrics.batch_seconds.labels(name).observe(counts.seconds)
        self._metrics.records.labels(name, "transformed").inc(counts.records - counts.marked)
        self._metrics.records.labels(name, "marked").inc(counts.marked)
        log.info(
            "Job %s: batch %s of %s, %s records, %s marked, %.2f s",
            *(job["id"], job["batches_done"], job["batches_total"], counts.records, counts.marked, counts.seconds),
        )
