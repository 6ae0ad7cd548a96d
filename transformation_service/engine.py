"""Runs accepted jobs, batch by batch, until none is left.

A batch is one transaction: claim the job, read the records, apply the rules, write effects, ledger and confirmation.
Whatever ends the process between two instructions ends that transaction too, and any process of the service continues
at the same batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from enum import Enum, auto
from typing import Any, NamedTuple

import psycopg

from transformation_service import database, ledger, pipeline
from transformation_service.database import Connection
from transformation_service.entities import ENTITIES
from transformation_service.metrics import Metrics
from transformation_service.rules import RULES
from transformation_service.settings import Settings

log = logging.getLogger(__name__)

Row = dict[str, Any]

STOP_SECONDS = 10  # how long a stopping process lets a batch in hand come to its commit

# Faults of the moment: the same batch is tried again and the job stays running.
TRANSIENT = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.InternalError)


class Step(Enum):
    """What became of an attempt at a job's next batch."""

    CONFIRMED = auto()
    FINISHED = auto()
    NOT_OURS = auto()


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
        """Work on the oldest job that is free; false if there is none."""
        worked = False
        for job_id in await ledger.unfinished(connection):
            if job_id in self._here:
                continue
            self._here.add(job_id)
            self._metrics.running.set(len(self._here))
            try:
                while not self._stopping.is_set():
                    step = await self._run_batch(connection, job_id)
                    worked = worked or step is not Step.NOT_OURS
                    if step is not Step.CONFIRMED:
                        break
            finally:
                self._here.discard(job_id)
                self._metrics.running.set(len(self._here))
        return worked

    async def _run_batch(self, connection: Connection, job_id: uuid.UUID) -> Step:
        job: Row | None = None
        try:
            # Outside the batch's transaction, so that clients see the job running while its first batch is in work.
            await ledger.start(connection, job_id)
            async with connection.transaction():
                job = await ledger.claim(connection, job_id)
                if job is None:
                    return Step.NOT_OURS
                counts = await self._next_batch(connection, job)
        except ledger.BatchLost as reason:
            log.info("A batch was rolled back: %s", reason)
            return Step.NOT_OURS
        except TRANSIENT:
            raise
        except Exception as error:
            if job is None:
                raise
            batch = job["batches_done"] + 1
            log.exception("Job %s failed at batch %s", job_id, batch)
            await ledger.fail(connection, job_id, pipeline.error_document(error, batch))
            self._metrics.jobs.labels(job["entity_type"], "failed").inc()
            return Step.FINISHED
        self._tell(job, counts)
        return Step.FINISHED if counts is None else Step.CONFIRMED

    async def _next_batch(self, connection: Connection, job: Row) -> Counts | None:
        """Do the job's next batch in the caller's transaction; ``None`` when that finds the job finished."""
        started = time.perf_counter()
        entity = ENTITIES[job["entity_type"]]
        records = await ledger.next_records(connection, entity, job)
        if not records:
            await ledger.finish(connection, job["id"])
            return None
        # By name only: a job accepted before an upgrade ends with the new rules under its old version, because a start
        # under a new version would transform its confirmed records twice.
        rules = [RULES[name] for name in job["rules"]]
        outcomes = await pipeline.transform(connection, entity, rules, records, self._metrics, self._thread)
        if self._settings.simulated_ms_per_record:
            await asyncio.sleep(len(records) * self._settings.simulated_ms_per_record / 1000)
        seconds = time.perf_counter() - started
        await ledger.write_batch(connection, entity, job, outcomes, seconds)
        return Counts(len(outcomes), sum(outcome.reason is not None for outcome in outcomes), seconds)

    def _tell(self, job: Row, counts: Counts | None) -> None:
        """Count and log what is committed."""
        name = job["entity_type"]
        if counts is None:
            seconds = time.time() - job["started_at"].timestamp()
            self._metrics.jobs.labels(name, "succeeded").inc()
            self._metrics.job_seconds.labels(name).observe(seconds)
            log.info("Job %s succeeded after %.1f s", job["id"], seconds)
            return
        self._metrics.batches.labels(name).inc()
        self._metrics.batch_seconds.labels(name).observe(counts.seconds)
        self._metrics.records.labels(name, "transformed").inc(counts.records - counts.marked)
        self._metrics.records.labels(name, "marked").inc(counts.marked)
        log.info(
            "Job %s: batch %s of %s, %s records, %s marked, %.2f s",
            *(job["id"], job["batches_done"] + 1, job["batches_total"], counts.records, counts.marked, counts.seconds),
        )
