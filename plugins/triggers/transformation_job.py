"""Wait for a transformation job in the triggerer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from plugins.hooks.transformation_service import (
    TransformationJobNotFound,
    TransformationServiceHook,
    TransformationServiceRefused,
    TransformationServiceUnavailable,
    is_final,
    next_poll,
    summary,
)


class TransformationJobTrigger(BaseTrigger):
    """Poll a job until it is final and fire one event, plain JSON:

    - ``{"status": "final", "job": {...}}`` with the job's summary, whichever final state it has
    - ``{"status": "missing" | "refused" | "unreachable", "job_id": ..., "message": ...}``

    Only the id of the connection is stored with the trigger, never what the connection holds. A restarted triggerer
    polls on; a user who clears the deferred task or sets its state cancels the job (:meth:`on_kill`).

    :param job_id: the job
    :param transformation_service_conn_id: connection of the service
    :param base_url: overrides the connection's host
    :param patience: seconds without any usable answer after which the service counts as unreachable; a service that
        restarts resumes its jobs, so this should exceed the time that a restart takes
    """

    def __init__(
        self,
        *,
        job_id: str,
        transformation_service_conn_id: str,
        base_url: str | None = None,
        patience: float = 300.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.job_id = job_id
        self.transformation_service_conn_id = transformation_service_conn_id
        self.base_url = base_url
        self.patience = patience

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and keyword arguments, as the metadata database keeps them."""
        return (
            "plugins.triggers.transformation_job.TransformationJobTrigger",
            {
                "job_id": self.job_id,
                "transformation_service_conn_id": self.transformation_service_conn_id,
                "base_url": self.base_url,
                "patience": self.patience,
            },
        )

    def _hook(self) -> TransformationServiceHook:
        return TransformationServiceHook(self.transformation_service_conn_id, base_url=self.base_url, retry_count=3)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll, first at once, then at growing intervals."""
        yield TriggerEvent(await self._wait())  # type: ignore[no-untyped-call]

    async def _wait(self) -> dict[str, Any]:
        hook = self._hook()
        job_url = (await hook.aendpoint()).job_url(self.job_id)
        started = heard = time.monotonic()
        async with await hook.aclient() as client:
            while True:
                wait = next_poll(time.monotonic() - started)
                try:
                    job = await hook.aget_job(client, self.job_id)
                except TransformationServiceUnavailable as error:
                    silent = time.monotonic() - heard
                    if silent >= self.patience:
                        return self._gave_up("unreachable", f"no answer for {silent:.0f} s; last: {error}")
                    self.log.warning("%s; asking again in %.1f s", error, max(wait, error.retry_after or 0))
                    wait = min(max(wait, error.retry_after or 0), self.patience)
                except TransformationJobNotFound as error:
                    return self._gave_up("missing", str(error))
                except TransformationServiceRefused as error:
                    return self._gave_up("refused", str(error))
                else:
                    heard = time.monotonic()
                    if is_final(job):
                        return {"status": "final", "job": summary(job, job_url)}
                await asyncio.sleep(wait)

    def _gave_up(self, status: str, message: str) -> dict[str, Any]:
        return {"status": status, "job_id": self.job_id, "message": message}

    async def on_kill(self) -> None:
        """Cancel the job. Airflow calls this when a user acts on the deferred task, not when a triggerer stops."""
        hook = self._hook()
        async with await hook.aclient() as client:
            await hook.acancel_job(client, self.job_id)
        self.log.info("Cancelled transformation job %s", self.job_id)
