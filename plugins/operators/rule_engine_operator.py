"""Apply transformation rules to all records of an entity, once per slot."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, BaseOperatorLink
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from plugins.hooks.transformation_service import (
    Job,
    TransformationJobNotFound,
    TransformationServiceError,
    TransformationServiceHook,
    TransformationServiceRefused,
    TransformationServiceUnavailable,
    is_final,
    next_poll,
    summary,
)
from plugins.triggers.transformation_job import TransformationJobTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import TaskInstanceKey

DEFAULT_SLOT = "{{ params.get('slot') or dag_run.logical_date or dag_run.run_after.date() }}"
"""The DAG's param `slot` if given, else the tick of the schedule, else (a run without logical date) the day of the
run."""

MOST_RESUBMISSIONS = 100


def normalize_slot(value: str) -> str:
    """Write an instant the one way that keys are made of: UTC, whole seconds, ``2026-01-31T02:00:00Z``.

    A date is its midnight; an instant without offset is UTC.

    :raises ValueError: ``value`` is no ISO 8601 date or instant
    """
    instant = datetime.fromisoformat(value.strip())
    instant = instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
    return instant.strftime("%Y-%m-%dT%H:%M:%SZ")


def idempotency_key(entity_type: str, slot: str, rules: Sequence[str], after: str | None = None) -> str:
    """Name the work, not the attempt: every retry, rerun and path to the same slot computes the same key.

    The batch size is not part of it: how the work is cut does not change what is done. Neither are run id and try
    number.

    :param rules: in the order in which they are applied
    :param after: id of the failed or cancelled job that this one takes over from
    :return: 64 hexadecimal digits, SHA-256 of a canonical JSON list
    """
    parts: list[Any] = [entity_type, slot, list(rules)]
    if after:
        parts.append(after)
    return hashlib.sha256(json.dumps(parts, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


class TransformationJobLink(BaseOperatorLink):
    """Button on the task instance; the API server reads its URL from the task's XCom, without our code."""

    name = "Transformation job"
    xcom_key = "transformation_job_url"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """URL of the job that the task last talked about."""
        return getattr(operator, "job_url", None) or ""


class RuleEngineOperator(BaseOperator):
    """Run a list of rules over every record of an entity in the TransformationService and wait for the result.

    The work is started under a key made of entity, slot and rules, so a retry, a cleared task or a second DAG run for
    the same slot joins the job that exists instead of transforming twice. A job that failed or was cancelled is
    followed by a new one for what it left undone when the task runs again; the service's ledger keeps each record at
    one transformation per slot.

    Passing faults (no connection, 5xx) are retried within the task, in seconds. A refusal (4xx) fails the task at
    once, without Airflow retries. A failed job raises and leaves the decision to the task's ``retries``. Stopping the
    task, deferred or not, cancels the job.

    The XCom ``return_value`` is the job's summary: ``job_id``, ``job_url``, ``state``, ``slot``,
    ``rule_set_version``, ``counts`` (``total``, ``transformed``, ``marked`` records), ``batches``, times.

    :param transformation_service_url: overrides the host of the connection, as ``http://service:5000``; templated
    :param entity_type: ``User``, ``Application`` or ``DiscoveryMetadata``; templated
    :param rules: names of rules in the order of application; templated
    :param batch_size: records per transaction of the service; templated
    :param retry_count: retries of each request within the task
    :param slot: the instant (ISO 8601) that the work belongs to; templated; default: see :data:`DEFAULT_SLOT`
    :param transformation_service_conn_id: connection of type ``http``: host, port, password (bearer token), extra
        ``timeout`` in seconds
    :param deferrable: wait in the triggerer instead of in a worker slot
    :param defer_after: seconds to wait in the worker first; a job that is done by then costs no second task process
    :param patience: seconds without an answer while waiting, after which the task fails (and its ``retries`` apply)
    """

    template_fields: Sequence[str] = ("transformation_service_url", "entity_type", "rules", "batch_size", "slot")
    operator_extra_links = (TransformationJobLink(),)
    ui_color = "#d9ead3"

    def __init__(
        self,
        *,
        entity_type: str,
        rules: Sequence[str],
        transformation_service_url: str | None = None,
        batch_size: int | str = 1000,
        retry_count: int = 3,
        slot: str | None = None,
        transformation_service_conn_id: str = TransformationServiceHook.default_conn_name,
        deferrable: bool = True,
        defer_after: float = 2.0,
        patience: float = 300.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.transformation_service_url = transformation_service_url
        self.entity_type = entity_type
        self.rules = rules
        self.batch_size = batch_size
        self.retry_count = retry_count
        self.slot = DEFAULT_SLOT if slot is None else slot
        self.transformation_service_conn_id = transformation_service_conn_id
        self.deferrable = deferrable
        self.defer_after = defer_after
        self.patience = patience
        self.job_id: str | None = None
        self.job_url: str | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Start or join the job and see it through, deferring when it takes longer than ``defer_after``."""
        hook = self._hook()
        try:
            job = self._submit(hook)
            self._remember(context, job["id"], hook.job_url(job["id"]))
            job = self._wait(hook, job, self.defer_after if self.deferrable else None)
        except TransformationJobNotFound:
            raise  # a service that has lost its jobs accepts the work anew: worth an Airflow retry
        except TransformationServiceRefused as error:
            raise AirflowFailException(str(error)) from error
        if is_final(job):
            return self._conclude(summary(job, hook.job_url(job["id"])))

        self.defer(
            trigger=TransformationJobTrigger(
                job_id=job["id"],
                transformation_service_conn_id=self.transformation_service_conn_id,
                base_url=self.transformation_service_url,
                patience=self.patience,
            ),
            method_name="execute_complete",
            timeout=self.execution_timeout,  # Airflow does not apply it to the deferred part by itself
        )

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Take the trigger's event, see :class:`TransformationJobTrigger`."""
        if event["status"] == "final":
            return self._conclude(event["job"])
        message = f"Transformation job {event['job_id']} is {event['status']}: {event['message']}"
        if event["status"] == "refused":
            raise AirflowFailException(message)
        raise AirflowException(message)

    def on_kill(self) -> None:
        """Cancel the job of a task that is stopped or timed out while it occupies a worker."""
        if self.job_id is None:
            return
        try:
            self._hook(retry_count=1).cancel_job(self.job_id)
            self.log.info("Cancelled transformation job %s", self.job_id)
        except TransformationServiceError as error:
            self.log.warning("Transformation job %s may still run: %s", self.job_id, error)

    def _hook(self, retry_count: int | None = None) -> TransformationServiceHook:
        return TransformationServiceHook(
            self.transformation_service_conn_id,
            base_url=self.transformation_service_url,
            retry_count=self.retry_count if retry_count is None else retry_count,
        )

    def _submit(self, hook: TransformationServiceHook) -> Job:
        """Start or join the job of this slot, or the successor of one that failed or was cancelled earlier.

        The successor's key contains the predecessor's id, so everybody who retries this slot finds the same one.
        """
        try:
            slot = normalize_slot(self.slot)
        except ValueError as error:
            raise AirflowFailException(
                f"slot {self.slot!r} is no ISO 8601 instant such as 2026-01-31T02:00:00Z"
            ) from error
        after: str | None = None
        for _ in range(MOST_RESUBMISSIONS):
            job = hook.submit(
                entity_type=self.entity_type,
                rules=self.rules,
                batch_size=int(self.batch_size),
                slot=slot,
                idempotency_key=idempotency_key(self.entity_type, slot, self.rules, after),
            )
            if not (job.get("replayed") and job["state"] in {"failed", "cancelled"}):
                done = job.get("replayed") and job["state"] == "succeeded"
                self.log.info(
                    "%s transformation job %s: %s, slot %s, rules %s",
                    "Nothing to do, this slot was done by" if done else "Joined" if job.get("replayed") else "Started",
                    job["id"],
                    self.entity_type,
                    slot,
                    ", ".join(self.rules),
                )
                return job
            self.log.info("Job %s of this slot ended as %s; taking over from it", job["id"], job["state"])
            after = job["id"]
        raise AirflowFailException(
            f"{MOST_RESUBMISSIONS} jobs for {self.entity_type}, slot {slot} have failed; look at job {after}"
        )

    def _wait(self, hook: TransformationServiceHook, job: Job, limit: float | None) -> Job:
        """Poll until the job is final or ``limit`` seconds have passed; None waits as long as it takes.

        :raises TransformationServiceUnavailable: without a limit, after ``patience`` seconds of silence
        """
        started = heard = time.monotonic()
        while not is_final(job):
            waited = time.monotonic() - started
            wait = next_poll(waited)
            if limit is not None and waited + wait > limit:
                break
            time.sleep(wait)
            try:
                job = hook.get_job(job["id"])
                heard = time.monotonic()
            except TransformationServiceUnavailable:
                if limit is not None:
                    break  # the trigger has the patience, and no worker slot
                if time.monotonic() - heard >= self.patience:
                    raise
        return job

    def _remember(self, context: Context, job_id: str, job_url: str) -> None:
        """Keep the job for :meth:`on_kill`, and push its link now: a user wants it while the job runs."""
        self.job_id, self.job_url = job_id, job_url
        context["ti"].xcom_push(key=TransformationJobLink.xcom_key, value=job_url)

    def _conclude(self, result: dict[str, Any]) -> dict[str, Any]:
        """Return the summary of a job that succeeded; raise for any other.

        :raises AirflowException: with the job's figures
        """
        self.job_id, self.job_url = None, result["job_url"]
        counts, batches = result["counts"] or {}, result["batches"] or {}
        figures = (
            f"{counts.get('transformed', 0)} of {counts.get('total', 0)} records transformed, "
            f"{counts.get('marked', 0)} marked, {batches.get('done', 0)} of {batches.get('total', 0)} batches done"
        )
        what = f"Transformation job {result['job_id']} ({result['entity_type']}, slot {result['slot']})"
        if result["state"] != "succeeded":
            error = result["error"]
            reason = (
                (error.get("detail") or error.get("title") or json.dumps(error)) if isinstance(error, dict) else error
            )
            raise AirflowException(f"{what} ended as {result['state']}: {figures}" + (f"; {reason}" if reason else ""))
        self.log.info("%s has succeeded: %s", what, figures)
        return result
