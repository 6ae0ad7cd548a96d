"""What the operators of the TransformationService share: the slot, the key of the work, and seeing it through."""

from __future__ import annotations

import hashlib
import json
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from airflow.sdk import BaseOperator, BaseOperatorLink
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferralTimeout

from plugins.hooks.transformation_service import (
    Document,
    Kind,
    TransformationServiceError,
    TransformationServiceHook,
    TransformationServiceNotFound,
    TransformationServiceRefused,
    TransformationServiceUnavailable,
    is_final,
    next_poll,
    summary,
)
from plugins.triggers.transformation_service import TransformationServiceTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import TaskInstanceKey

DEFAULT_SLOT = "{{ params.get('slot') or dag_run.logical_date or dag_run.run_after.date() }}"
"""The DAG's param `slot` if given, else the tick of the schedule, else (a run without logical date) the day of the
run."""

MOST_RESUBMISSIONS = 100


def normalize_slot(value: str | date) -> str:
    """Write an instant the one way that keys are made of: UTC, whole seconds, ``2026-01-31T02:00:00Z``.

    A date is its midnight; an instant without offset is UTC. DAGs that render to native objects give either as such.

    :raises ValueError: ``value`` is no ISO 8601 date or instant
    """
    return _instant(value if isinstance(value, datetime) else datetime.fromisoformat(str(value).strip()))


def _instant(moment: datetime) -> str:
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def canonical(value: Any) -> str:
    """Write JSON the one way that keys are made of: sorted keys, no spaces, dates and instants as ISO 8601 text.

    :raises ValueError: something in ``value`` has no form in JSON
    """

    def text(item: object) -> str:
        if isinstance(item, datetime):
            return _instant(item)
        if isinstance(item, date):
            return item.isoformat()
        raise ValueError(f"{item!r} has no form in JSON")

    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=text)


def number(name: str, value: float | str) -> float:
    """Read an argument that may have come from a template; a whole number comes back as ``int``.

    :raises AirflowFailException: it is no number
    """
    try:
        found = float(value)
        return int(found) if found == int(found) else found
    except (TypeError, ValueError, OverflowError) as error:
        raise AirflowFailException(f"{name} is {value!r}; give a number") from error


def is_empty(value: object) -> bool:
    """Whether an optional argument was left out, or rendered by a template from nothing."""
    return value in (None, "", "None")


class Work(NamedTuple):
    """What an operator wants done in one slot.

    ``title`` says it to people, ``body`` to the service; ``identity`` is what makes it another work than any other.
    """

    title: str
    identity: Sequence[Any]
    body: Mapping[str, Any]

    def key(self, after: str | None = None) -> str:
        """Name the work, not the attempt: every retry, rerun and path to it computes the same key.

        :param after: id of the failed or cancelled work that this one takes over from
        :return: 64 hexadecimal digits, SHA-256 of a canonical JSON list; run id and try number are no part of it
        :raises ValueError: something in the identity has no form in JSON
        """
        return hashlib.sha256(canonical([*self.identity, *([after] if after else [])]).encode()).hexdigest()


class TransformationServiceLink(BaseOperatorLink):
    """Button on the task instance; the API server reads its URL from the task's XCom, without our code.

    :param kind: names the button (*Transformation job*) and the XCom (``transformation_job_url``)
    """

    def __init__(self, kind: Kind) -> None:
        self.noun = kind.noun

    @property
    def name(self) -> str:
        """Text of the button."""
        return self.noun.capitalize()

    @property
    def xcom_key(self) -> str:
        """Key of the XCom that holds the URL."""
        return f"{self.noun.replace(' ', '_')}_url"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """URL of the work that the task last talked about."""
        return getattr(operator, "work_url", None) or ""


class TransformationServiceOperator(BaseOperator):
    """Have the TransformationService do work of a slot and wait for the result. The base of the others.

    The work is started under a key made of what it is, so a retry, a cleared task or a second DAG run for the same
    slot joins the work that exists instead of doing it twice. Work that failed or was cancelled is taken up again when
    the task runs again.

    Passing faults (no connection, 5xx) are retried within the task, in seconds. A refusal (4xx) fails the task at
    once, without Airflow retries. Failed work raises and leaves the decision to the task's ``retries``. Stopping the
    task, deferred or not, cancels the work.

    :param slot: the instant (ISO 8601) that the work belongs to; default: the DAG's param ``slot``, else the tick of
        the schedule, else the day of the run
    :param transformation_service_url: overrides the host of the connection, as ``http://service:5000``
    :param transformation_service_conn_id: connection with host, port, password (bearer token), extra ``timeout`` in
        seconds
    :param retry_count: retries of each request within the task; 15 outlast an outage of 20 seconds
    :param deferrable: wait in the triggerer instead of in a worker slot
    :param defer_after: seconds to wait in the worker first; work that is done by then costs no second task process
    :param patience: seconds without an answer while waiting, after which the task fails (and its ``retries`` apply)
    """

    kind: ClassVar[Kind]
    template_fields: Sequence[str] = ("transformation_service_url", "slot")
    ui_color = "#d9ead3"

    def __init__(
        self,
        *,
        slot: str | None = None,
        transformation_service_url: str | None = None,
        transformation_service_conn_id: str = TransformationServiceHook.default_conn_name,
        retry_count: int = 15,
        deferrable: bool = True,
        defer_after: float = 2.0,
        patience: float = 300.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.slot = DEFAULT_SLOT if slot is None else slot
        self.transformation_service_url = transformation_service_url
        self.transformation_service_conn_id = transformation_service_conn_id
        self.retry_count = retry_count
        self.deferrable = deferrable
        self.defer_after = defer_after
        self.patience = patience
        self.work_id: str | None = None
        self.work_url: str | None = None

    @abstractmethod
    def work(self, slot: str) -> Work:
        """Say what to do in this slot, arguments being rendered."""

    @abstractmethod
    def figures(self, result: Mapping[str, Any]) -> str:
        """Say in a few words what a summary counted."""

    def execute(self, context: Context) -> dict[str, Any]:
        """Start or join the work and see it through, deferring when it takes longer than ``defer_after``."""
        hook = self._hook()
        try:
            document = self._submit(hook)
            self._remember(context, document["id"], hook.url(self.kind, document["id"]))
            document = self._wait(hook, document, self.defer_after if self.deferrable else None)
        except TransformationServiceNotFound:
            raise  # a service that has lost its work accepts it anew: worth an Airflow retry
        except TransformationServiceRefused as error:
            raise AirflowFailException(str(error)) from error
        if is_final(document):
            return self._conclude(summary(self.kind, document, hook.url(self.kind, document["id"])))

        self.defer(
            trigger=TransformationServiceTrigger(
                kind=self.kind.name,
                work_id=document["id"],
                transformation_service_conn_id=self.transformation_service_conn_id,
                base_url=self.transformation_service_url,
                patience=self.patience,
            ),
            method_name="execute_complete",
            timeout=self.execution_timeout,  # Airflow does not apply it to the deferred part by itself
        )

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Take the trigger's event, see :class:`TransformationServiceTrigger`."""
        if event["status"] == "final":
            return self._conclude(event["work"])
        message = f"{self.kind.noun.capitalize()} {event['id']} is {event['status']}: {event['message']}"
        if event["status"] == "refused":
            raise AirflowFailException(message)
        raise AirflowException(message)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after the trigger. Where the task's time was over before, cancel the work, as a worker does.

        :raises AirflowException: the time was over
        """
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout as error:
            url = context["ti"].xcom_pull(key=TransformationServiceLink(self.kind).xcom_key)
            self.work_id = str(url).rpartition("/")[2]
            self.on_kill()
            raise AirflowException(
                f"{self.kind.noun.capitalize()} {self.work_id} was not done within the task's execution_timeout"
                f" ({self.execution_timeout}) and is cancelled; the next try goes on where it stopped"
            ) from error

    def on_kill(self) -> None:
        """Cancel the work of a task that is stopped or timed out while it occupies a worker."""
        if self.work_id is None:
            return
        try:
            self._hook(retry_count=1).cancel(self.kind, self.work_id)
            self.log.info("Cancelled %s %s", self.kind.noun, self.work_id)
        except TransformationServiceError as error:
            self.log.warning("%s %s may still run: %s", self.kind.noun.capitalize(), self.work_id, error)

    def _hook(self, retry_count: int | None = None) -> TransformationServiceHook:
        return TransformationServiceHook(
            self.transformation_service_conn_id,
            base_url=self.transformation_service_url,
            retry_count=self.retry_count if retry_count is None else retry_count,
        )

    def _submit(self, hook: TransformationServiceHook) -> Document:
        """Start or join the work, or the successor of work that failed or was cancelled and stays so.

        The reference service takes such work up again under the same key; another one may answer with the dead work
        for ever. The successor's key contains the predecessor's id, so everybody who retries finds the same one.
        """
        try:
            slot = normalize_slot(self.slot)
        except ValueError as error:
            raise AirflowFailException(
                f"slot {self.slot!r} is no ISO 8601 instant such as 2026-01-31T02:00:00Z"
            ) from error
        try:
            work = self.work(slot)
            key = work.key()
        except ValueError as error:
            raise AirflowFailException(str(error)) from error
        after: str | None = None
        for _ in range(MOST_RESUBMISSIONS):
            document = hook.submit(self.kind, work.body, idempotency_key=key)
            dead = document.get("replayed") and document["state"] in {"failed", "cancelled"}
            if not dead or document["id"] == after:
                done = document.get("replayed") and document["state"] == "succeeded"
                joined = "Joined" if document.get("replayed") else "Started"
                self.log.info(
                    "%s %s %s: %s",
                    "Nothing to do, this slot was done by" if done else joined,
                    self.kind.noun,
                    document["id"],
                    work.title,
                )
                return document
            self.log.info("%s of this slot ended as %s; taking over from it", document["id"], document["state"])
            after = document["id"]
            key = work.key(after)
        raise AirflowFailException(f"{MOST_RESUBMISSIONS} attempts at {work.title} have failed; look at {after}")

    def _wait(self, hook: TransformationServiceHook, document: Document, limit: float | None) -> Document:
        """Poll until the work is final or ``limit`` seconds have passed; None waits as long as it takes.

        :raises TransformationServiceUnavailable: without a limit, after ``patience`` seconds of silence
        """
        started = heard = time.monotonic()
        while not is_final(document):
            waited = time.monotonic() - started
            wait = next_poll(waited)
            if limit is not None and waited + wait > limit:
                break
            time.sleep(wait)
            try:
                document = hook.get(self.kind, document["id"])
                heard = time.monotonic()
            except TransformationServiceUnavailable:
                if limit is not None:
                    break  # the trigger has the patience, and no worker slot
                if time.monotonic() - heard >= self.patience:
                    raise
        return document

    def _remember(self, context: Context, work_id: str, work_url: str) -> None:
        """Keep the work for :meth:`on_kill`, and push its link now: a user wants it while the work runs."""
        self.work_id, self.work_url = work_id, work_url
        context["ti"].xcom_push(key=TransformationServiceLink(self.kind).xcom_key, value=work_url)

    def _conclude(self, result: dict[str, Any]) -> dict[str, Any]:
        """Return the summary of work that succeeded; raise for any other.

        :raises AirflowException: with the figures
        """
        self.work_id, self.work_url = None, result[f"{self.kind.name}_url"]
        what = f"{self.kind.noun.capitalize()} {result[f'{self.kind.name}_id']} (slot {result['slot']})"
        figures = self.figures(result)
        if result["state"] != "succeeded":
            error = result["error"]
            if isinstance(error, dict):
                told = error.get("message") or error.get("detail") or error.get("title") or json.dumps(error)
                error = f"{error['type']}: {told}" if error.get("type") else told
            raise AirflowException(f"{what} ended as {result['state']}: {figures}" + (f"; {error}" if error else ""))
        self.log.info("%s has succeeded: %s", what, figures)
        return result
