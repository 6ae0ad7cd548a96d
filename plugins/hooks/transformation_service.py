"""Client of the TransformationService: the connection, the retries and the meaning of its answers.

The service answers with *job documents* (``POST/GET/DELETE /api/v1/transformations``) and, when it refuses, with
RFC 9457 problem documents. Every request here may be repeated: a job is created under an idempotency key, reading and
cancelling change nothing twice.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, cast
from urllib.parse import quote, urlsplit

import httpx  # the Task SDK's own HTTP client: every task process has it loaded already
from airflow.sdk import BaseHook, Connection
from airflow.sdk.exceptions import AirflowException

Job = dict[str, Any]
"""A job document: id, state, entity_type, rules, slot, counts, batches, progress, error, created_at, started_at,
finished_at."""

FINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})
JOBS = "/api/v1/transformations"

DEFAULT_TIMEOUT = 30.0
CONNECT_TIMEOUT = 5.0
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds before the first retry, and the most that one wait may take, whatever ``Retry-After`` asks for."""

PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that a later, equal request can turn into a good one (RFC 9110, RFC 6585, RFC 8470)."""


class TransformationServiceError(AirflowException):
    """The service gave no usable answer."""


class TransformationServiceUnavailable(TransformationServiceError):
    """No connection, a timeout or a passing error (5xx, 429): the same request may succeed later.

    :param retry_after: seconds that the service asked to wait, if it did
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TransformationServiceRefused(TransformationServiceError):
    """The service understood and said no (4xx): repeating the request cannot help.

    :param status: the HTTP status
    """

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class TransformationJobNotFound(TransformationServiceRefused):
    """The service does not know this job (404)."""


def next_poll(waited: float) -> float:
    """Seconds until the next look at a job that has been running for ``waited`` seconds.

    A tenth of the time waited so far, within 0.5 and 10 seconds: a job of seconds is seen at once, one of hours costs
    few requests, and waiting adds at most about a tenth to either.
    """
    return min(10.0, max(0.5, waited / 10))


def is_final(job: Mapping[str, Any]) -> bool:
    """Whether the job will not change any more."""
    return job["state"] in FINAL_STATES


@dataclass(frozen=True)
class Endpoint:
    """Where the service is and how to talk to it. The token never shows in ``repr`` nor in a log line."""

    base_url: str
    token: str | None = field(repr=False, default=None)
    timeout: float = DEFAULT_TIMEOUT
    verify: bool | str = True

    @classmethod
    def of(cls, connection: Connection, base_url: str | None = None) -> Endpoint:
        """Read an Airflow connection of type ``http``.

        :param connection: host (with or without scheme), port, schema (the URL scheme), password (the bearer token),
            and the extras ``timeout`` (seconds) and ``verify`` (false, or the path of a CA file)
        :param base_url: overrides scheme, host and port; token and extras still come from the connection
        :raises ValueError: there is no host, or ``timeout`` is no positive number
        """
        extra = connection.extra_dejson
        if not base_url:
            host = connection.host or ""
            base_url = host if "://" in host else f"{connection.schema or 'http'}://{host}"
            if connection.port and urlsplit(base_url).port is None:
                base_url = f"{base_url.rstrip('/')}:{connection.port}"
        if not urlsplit(base_url).hostname:
            raise ValueError(f"Connection {connection.conn_id}: {base_url!r} names no host; set the connection's host")
        raw = extra.get("timeout", DEFAULT_TIMEOUT)
        try:
            timeout = float(raw)
        except (TypeError, ValueError):
            timeout = 0.0
        if not timeout > 0:
            raise ValueError(
                f'Connection {connection.conn_id}: extra "timeout" is {raw!r}; write a number of seconds above 0'
            )
        return cls(base_url.rstrip("/"), connection.password or None, timeout, extra.get("verify", True))

    def job_url(self, job_id: str) -> str:
        """Absolute URL of a job."""
        return f"{self.base_url}{JOBS}/{quote(job_id, safe='')}"

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments for ``httpx.Client`` and ``httpx.AsyncClient``."""
        verify: bool | ssl.SSLContext = (
            self.verify if isinstance(self.verify, bool) else ssl.create_default_context(cafile=self.verify)
        )
        if self.base_url.startswith("http://"):
            verify = (
                False  # httpx would load the whole CA bundle, tens of milliseconds, for a client that never speaks TLS
            )
        return {
            "base_url": self.base_url,
            "headers": {"Authorization": f"Bearer {self.token}"} if self.token else {},
            "timeout": httpx.Timeout(self.timeout, connect=min(self.timeout, CONNECT_TIMEOUT)),
            "verify": verify,
        }


def parse_retry_after(value: str | None, *, now: datetime | None = None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for: a number or an HTTP date (RFC 9110, 10.2.3); None if absent or
    unreadable."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - (now or datetime.now(UTC))).total_seconds())
    except (TypeError, ValueError):
        return None


def pause(attempt: int, retry_after: float | None) -> float:
    """Seconds to wait after failed attempt number ``attempt`` (0-based): what the service asks for, else exponential,
    both jittered.

    Jitter is a factor of 0.5 to 1 (1 to 1.25 on top of ``Retry-After``), so that the tasks of one outage do not come
    back in one wave.
    """
    if retry_after is not None:
        return min(LONGEST_WAIT, retry_after * random.uniform(1.0, 1.25))  # noqa: S311 - spreads load, guards nothing
    return min(LONGEST_WAIT, FIRST_WAIT * 2.0**attempt) * random.uniform(0.5, 1.0)  # noqa: S311


def _problem(response: httpx.Response) -> str:
    """The readable part of an error answer: title and detail of a problem document, else the start of the body."""
    try:
        body = response.json()
        said = ": ".join(str(body[key]) for key in ("title", "detail") if body.get(key))
    except (ValueError, AttributeError):
        said = response.text.strip()
    return said[:500] or response.reason_phrase


def read_answer(response: httpx.Response) -> Job:
    """Turn an HTTP answer into a job document.

    :raises TransformationServiceUnavailable: a passing error, or an answer that is no job document (a proxy's page,
        for example)
    :raises TransformationJobNotFound: 404 for a job
    :raises TransformationServiceRefused: any other status that is not 2xx
    """
    status, request = response.status_code, response.request
    asked = f"{request.method} {request.url}"
    retry_after = response.headers.get("Retry-After")
    if status in PASSING_STATUSES or (status == 409 and retry_after):
        raise TransformationServiceUnavailable(
            f"{asked}: {status} {_problem(response)}", retry_after=parse_retry_after(retry_after)
        )
    if status == 404 and f"{JOBS}/" in request.url.path:
        raise TransformationJobNotFound(f"{asked}: no such job", status=status)
    if not response.is_success:
        raise TransformationServiceRefused(f"{asked}: {status} {_problem(response)}", status=status)
    try:
        job = response.json()
    except ValueError:
        job = None
    if not isinstance(job, dict) or not {"id", "state"} <= job.keys():
        raise TransformationServiceUnavailable(f"{asked}: {status} without a job document: {response.text[:200]!r}")
    return job


@contextmanager
def _transport_errors(method: str, url: str) -> Iterator[None]:
    """Translate what httpx raises when there is no answer at all."""
    try:
        yield
    except httpx.TransportError as error:
        raise TransformationServiceUnavailable(f"{method} {url}: {type(error).__name__} {error}".rstrip()) from error


class TransformationServiceHook(BaseHook):
    """Talks to the TransformationService that an Airflow connection of type ``http`` describes.

    :param transformation_service_conn_id: id of the connection; see :meth:`Endpoint.of` for what it holds
    :param base_url: overrides the connection's host, as ``http://host:5000``
    :param retry_count: retries after the first attempt, for connection errors and passing answers only
    """

    conn_name_attr = "transformation_service_conn_id"
    default_conn_name = "transformation_service"
    conn_type = "http"
    hook_name = "TransformationService"

    def __init__(
        self,
        transformation_service_conn_id: str = default_conn_name,
        *,
        base_url: str | None = None,
        retry_count: int = 3,
    ) -> None:
        super().__init__()
        self.transformation_service_conn_id = transformation_service_conn_id
        self.base_url = base_url
        self.retry_count = retry_count
        self._endpoint: Endpoint | None = None

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint; the first use reads the connection."""
        if self._endpoint is None:
            self._endpoint = Endpoint.of(self.get_connection(self.transformation_service_conn_id), self.base_url)
        return self._endpoint

    async def aendpoint(self) -> Endpoint:
        """The endpoint, read without blocking the event loop."""
        if self._endpoint is None:
            self._endpoint = Endpoint.of(await self.aget_connection(self.transformation_service_conn_id), self.base_url)
        return self._endpoint

    def get_conn(self) -> httpx.Client:
        """Return a client with base URL, token and timeouts set; the caller closes it."""
        return httpx.Client(**self.endpoint.client_options())

    def job_url(self, job_id: str) -> str:
        """Absolute URL of a job."""
        return self.endpoint.job_url(job_id)

    def submit(
        self, *, entity_type: str, rules: Sequence[str], batch_size: int, slot: str, idempotency_key: str
    ) -> Job:
        """Start a transformation, or join the one that this key has started before.

        :param slot: the UTC instant that the work belongs to, as ``2026-01-31T02:00:00Z``
        :return: the job document; ``replayed`` tells whether the job existed
        :raises TransformationServiceUnavailable: still no answer after ``retry_count`` retries
        :raises TransformationServiceRefused: the service rejects the request
        """
        body = {"entity_type": entity_type, "rules": list(rules), "batch_size": batch_size, "slot": slot}
        return self._call("POST", JOBS, json=body, headers={"Idempotency-Key": idempotency_key})

    def get_job(self, job_id: str) -> Job:
        """Read a job. Raises as :meth:`submit`, and TransformationJobNotFound."""
        return self._call("GET", f"{JOBS}/{quote(job_id, safe='')}")

    def cancel_job(self, job_id: str) -> Job:
        """Stop a job after its current batch. Raises as :meth:`get_job`."""
        return self._call("DELETE", f"{JOBS}/{quote(job_id, safe='')}")

    async def aget_job(self, client: httpx.AsyncClient, job_id: str) -> Job:
        """Read a job with a client of :meth:`aclient`, one attempt: whoever polls repeats anyway. Raises as
        :meth:`get_job`."""
        url = f"{JOBS}/{quote(job_id, safe='')}"
        with _transport_errors("GET", f"{client.base_url}{url}"):
            response = await client.get(url)
        return read_answer(response)

    async def acancel_job(self, client: httpx.AsyncClient, job_id: str) -> Job:
        """Stop a job, with the hook's retries. Raises as :meth:`get_job`."""
        url = f"{JOBS}/{quote(job_id, safe='')}"
        attempt = 0
        while True:
            try:
                with _transport_errors("DELETE", f"{client.base_url}{url}"):
                    response = await client.delete(url)
                return read_answer(response)
            except TransformationServiceUnavailable as error:
                if attempt >= self.retry_count:
                    raise
                await asyncio.sleep(pause(attempt, error.retry_after))
            attempt += 1

    async def aclient(self) -> httpx.AsyncClient:
        """Return an asynchronous client; use it in ``async with``."""
        return httpx.AsyncClient(**(await self.aendpoint()).client_options())

    def _call(
        self, method: str, path: str, *, json: dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> Job:
        attempt = 0
        with self.get_conn() as client:
            while True:
                try:
                    with _transport_errors(method, f"{self.endpoint.base_url}{path}"):
                        response = client.request(method, path, json=json, headers=headers)
                    return read_answer(response)
                except TransformationServiceUnavailable as error:
                    if attempt >= self.retry_count:
                        raise
                    wait = pause(attempt, error.retry_after)
                    self.log.warning("%s; retry %s of %s in %.1f s", error, attempt + 1, self.retry_count, wait)
                    time.sleep(wait)
                attempt += 1


def summary(job: Job, job_url: str) -> dict[str, Any]:
    """The part of a job document that is small, plain JSON and worth an XCom: everything but the per-batch progress.

    :return: ``job_id``, ``job_url``, ``state``, ``entity_type``, ``slot``, ``rules``, ``rule_set_version``,
        ``counts`` (records: total, transformed, marked), ``batches`` (total, done), ``replayed``, ``error``, and the
        three times
    """
    kept = ("state", "entity_type", "slot", "rules", "rule_set_version", "counts", "batches", "replayed", "error")
    times = ("created_at", "started_at", "finished_at")
    return {"job_id": cast("str", job["id"]), "job_url": job_url} | {key: job.get(key) for key in (*kept, *times)}
