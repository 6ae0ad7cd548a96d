"""Wait for work of the TransformationService in the triggerer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from plugins.hooks.transformation_service import (
    KINDS,
    TransformationServiceHook,
    TransformationServiceNotFound,
    TransformationServiceRefused,
    TransformationServiceUnavailable,
    is_final,
    next_poll,
    summary,
)

_cancelling: set[asyncio.Task[None]] = set()
"""The event loop keeps no task alive that nobody else refers to."""


class TransformationServiceTrigger(BaseTrigger):
    """Poll a job or run until it is final and fire one event, plain JSON:

    - ``{"status": "final", "work": {...}}`` with its summary, whichever final state it has
    - ``{"status": "missing" | "refused" | "unreachable", "id": ..., "message": ...}``

    Only the id of the connection is stored with the trigger, never what the connection holds. A restarted triggerer
    polls on; a user who clears the deferred task or sets its state cancels the work (:meth:`on_kill`).

    :param kind: ``job`` or ``run``
    :param work_id: id of the job or run
    :param transformation_service_conn_id: connection of the service
    :param base_url: overrides the connection's host
    :param patience: seconds without any usable answer after which the service counts as unreachable; a service that
        restarts resumes its work, so this should exceed the time that a restart takes
    """

    def __init__(
        self,
        *,
        kind: str,
        work_id: str,
        transformation_service_conn_id: str,
        base_url: str | None = None,
        patience: float = 300.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kind = kind
        self.work_id = work_id
        self.transformation_service_conn_id = transformation_service_conn_id
        self.base_url = base_url
        self.patience = patience

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and keyword arguments, as the metadata database keeps them."""
        return (
            "plugins.triggers.transformation_service.TransformationServiceTrigger",
            {
                "kind": self.kind,
                "work_id": self.work_id,
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
        hook, kind = self._hook(), KINDS[self.kind]
        url = (await hook.aendpoint()).url(kind, self.work_id)
        started = heard = time.monotonic()
        async with await hook.aclient() as client:
            while True:
                wait = next_poll(time.monotonic() - started)
                try:
                    document = await hook.aget(client, kind, self.work_id)
                except TransformationServiceUnavailable as error:
                    silent = time.monotonic() - heard
                    if silent >= self.patience:
                        return self._gave_up("unreachable", f"no answer for {silent:.0f} s; last: {error}")
                    self.log.warning("%s; asking again in %.1f s", error, max(wait, error.retry_after or 0))
                    wait = min(max(wait, error.retry_after or 0), self.patience)
                except TransformationServiceNotFound as error:
                    return self._gave_up("missing", str(error))
                except TransformationServiceRefused as error:
                    return self._gave_up("refused", str(error))
                else:
                    heard = time.monotonic()
                    if is_final(document):
                        return {"status": "final", "work": summary(kind, document, url)}
                await asyncio.sleep(wait)

    def _gave_up(self, status: str, message: str) -> dict[str, Any]:
        return {"status": status, "id": self.work_id, "message": message}

    async def on_kill(self) -> None:
        """Cancel the work. Airflow calls this when a user acts on the deferred task, not when a triggerer stops.

        A second later it cancels the call itself, as the trigger is still there (``cancel_triggers`` of 3.3.2), so the
        request goes its way without it.
        """
        cancelling = asyncio.create_task(self._cancel())
        _cancelling.add(cancelling)
        cancelling.add_done_callback(_cancelling.discard)
        await asyncio.shield(cancelling)

    async def _cancel(self) -> None:
        hook, kind = self._hook(), KINDS[self.kind]
        async with await hook.aclient() as client:
            await hook.acancel(client, kind, self.work_id)
        self.log.info("Cancelled %s %s", kind.noun, self.work_id)
