"""Client of the TransformationService: the connection, the retries and the meaning of its answers.

The service does two kinds of work: rule jobs (``/api/v1/transformations``) and script runs (``/api/v1/script-runs``).
Both are started by ``POST`` under an idempotency key, read by ``GET`` and cancelled by ``DELETE``, so that each request
may be repeated. The answer is the document of the work or, when the service refuses, an RFC 9457 problem document.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlsplit

import httpx  # the Task SDK's own HTTP client: every task process has it loaded already
from airflow.sdk import BaseHook, Connection
from airflow.sdk.exceptions import AirflowException

Document = dict[str, Any]
"""What the service says of a piece of work: ``id``, ``state``, ``slot``, ``counts``, ``error``, three times, and what
:attr:`Kind.kept` names."""


@dataclass(frozen=True)
class Kind:
    """A kind of work that the service does.

    :param name: ``job`` or ``run``; begins the keys ``job_id`` and ``job_url`` of a summary
    :param noun: what messages call it
    :param path: where it is started; its documents are below
    :param kept: keys of its document that a summary keeps, beside those that every kind has
    """

    name: str
    noun: str
    path: str
    kept: tuple[str, ...]


JOB = Kind(
    "job",
    "transformation job",
    "/api/v1/transformations",
    ("entity_type", "rules", "rule_set_version", "max_records", "batches"),
)
RUN = Kind("run", "script run", "/api/v1/script-runs", ("kind", "script", "version", "statements", "rows"))
KINDS = {kind.name: kind for kind in (JOB, RUN)}

FINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})
OPEN_PATH, GUARDED_PATH = "/health", "/api/v1/rules"
"""Two cheap questions, one without and one with token, as the connection's ``probe`` in the inventory has them."""

DEFAULT_TIMEOUT = 30.0
CONNECT_TIMEOUT = 5.0
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds before the first retry, and the most that one wait may take, whatever ``Retry-After`` asks for."""

LONGEST_OWN_WAIT = 3.0
"""Seconds between retries at most where the service asks for nothing: its return is noticed within them."""

LONGEST_TEST = 10.0
"""Seconds that a test of the connection waits for one answer: somebody looks on."""

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


class TransformationServiceNotFound(TransformationServiceRefused):
    """The service does not know this job or run (404)."""


def next_poll(waited: float) -> float:
    """Seconds until the next look at work that has been running for ``waited`` seconds.

    A tenth of the time waited so far, within 0.5 and 10 seconds: work of seconds is seen at once, that of hours costs
    few requests, and waiting adds at most about a tenth to either.
    """
    return min(10.0, max(0.5, waited / 10))


def is_final(document: Mapping[str, Any]) -> bool:
    """Whether the work will not change any more."""
    return document["state"] in FINAL_STATES


@dataclass(frozen=True)
class Endpoint:
    """Where the service is and how to talk to it. The token never shows in ``repr`` nor in a log line."""

    base_url: str
    token: str | None = field(repr=False, default=None)
    timeout: float = DEFAULT_TIMEOUT
    verify: bool | str = True

    @classmethod
    def of(cls, connection: Connection, base_url: str | None = None) -> Endpoint:
        """Read an Airflow connection of type ``transformation_service`` or ``http``; their fields are the same.

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
        raw = DEFAULT_TIMEOUT if extra.get("timeout") is None else extra["timeout"]  # null: an empty field of the form
        try:
            timeout = float(raw)
        except (TypeError, ValueError):
            timeout = 0.0
        if not timeout > 0:
            raise ValueError(
                f'Connection {connection.conn_id}: extra "timeout" is {raw!r}; write a number of seconds above 0'
            )
        verify = True if extra.get("verify") in (None, "") else extra["verify"]
        return cls(base_url.rstrip("/"), connection.password or None, timeout, verify)

    def url(self, kind: Kind, work_id: str) -> str:
        """Absolute URL of a job or run."""
        return f"{self.base_url}{_path(kind, work_id)}"

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


def _path(kind: Kind, work_id: str) -> str:
    return f"{kind.path}/{quote(work_id, safe='')}"


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
    return min(LONGEST_OWN_WAIT, FIRST_WAIT * 2.0**attempt) * random.uniform(0.5, 1.0)  # noqa: S311


def _problem(response: httpx.Response) -> str:
    """The readable part of an error answer: title and detail of a problem document, else the start of the body."""
    try:
        body = response.json()
        said = ": ".join(str(body[key]) for key in ("title", "detail") if body.get(key))
    except (ValueError, AttributeError):
        said = response.text.strip()
    return said[:500] or response.reason_phrase


def read_answer(response: httpx.Response) -> Document:
    """Turn an HTTP answer into the document of a job or run.

    :raises TransformationServiceUnavailable: a passing error, or an answer that is no such document (a proxy's page,
        for example)
    :raises TransformationServiceNotFound: 404 for a job or run
    :raises TransformationServiceRefused: any other status that is not 2xx
    """
    status, request = response.status_code, response.request
    asked = f"{request.method} {request.url}"
    retry_after = response.headers.get("Retry-After")
    if status in PASSING_STATUSES or (status == 409 and retry_after):
        raise TransformationServiceUnavailable(
            f"{asked}: {status} {_problem(response)}", retry_after=parse_retry_after(retry_after)
        )
    if status == 404 and (kind := next((kind for kind in KINDS.values() if f"{kind.path}/" in request.url.path), None)):
        raise TransformationServiceNotFound(f"{asked}: no such {kind.noun}", status=status)
    if not response.is_success:
        raise TransformationServiceRefused(f"{asked}: {status} {_problem(response)}", status=status)
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict) or not {"id", "state"} <= document.keys():
        raise TransformationServiceUnavailable(f"{asked}: {status} without id and state: {response.text[:200]!r}")
    return document


@contextmanager
def _transport_errors(method: str, url: str) -> Iterator[None]:
    """Translate what httpx raises when there is no answer at all."""
    try:
        yield
    except httpx.TransportError as error:
        raise TransformationServiceUnavailable(f"{method} {url}: {type(error).__name__} {error}".rstrip()) from error


def _reason(error: httpx.TransportError, limit: float) -> str:
    """Say why there was no answer, and what to check; httpx hides the cause behind two layers of its own."""
    cause: BaseException | None = error
    while cause and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.TimeoutException):
        return f"does not answer within {limit:g} s; check its port, and the firewall between here and there"
    if isinstance(cause, socket.gaierror):
        return "has a name that does not resolve here; check the connection's host"
    if isinstance(cause, ConnectionRefusedError):
        return "refuses the connection; check that it runs and listens on this port"
    if isinstance(cause, ssl.SSLError):
        return f'is not trusted: {cause.reason}; check its certificate and the connection\'s extra "verify"'
    return f"cannot be reached: {type(error).__name__} {error}".rstrip()


class TransformationServiceHook(BaseHook):
    """Talks to the TransformationService that an Airflow connection describes, of type ``transformation_service`` or
    ``http``.

    :param transformation_service_conn_id: id of the connection; see :meth:`Endpoint.of` for what it holds
    :param base_url: overrides the connection's host, as ``http://host:5000``
    :param retry_count: retries after the first attempt, for connection errors and passing answers only
    """

    conn_name_attr = "transformation_service_conn_id"
    default_conn_name = "transformation_service"
    conn_type = "transformation_service"
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

    def test_connection(self) -> tuple[bool, str]:
        """Ask whether the service answers and accepts the token.

        :return: yes or no, and one sentence: what answered, or what is wrong and where to look; never the token
        """
        try:
            endpoint = self.endpoint
            options = endpoint.client_options()
        except (ValueError, OSError) as error:  # an unusable host, timeout or CA file
            return False, str(error)
        where = f"The TransformationService at {endpoint.base_url}"
        limit = min(endpoint.timeout, LONGEST_TEST)
        try:
            with httpx.Client(**options | {"timeout": httpx.Timeout(limit)}) as client:
                for path in (OPEN_PATH, GUARDED_PATH):
                    status = client.get(path).status_code
                    if status in (401, 403):
                        told = "refuses the token" if endpoint.token else "wants a token, and there is none"
                        return False, f"{where} {told} ({status}); check the connection's password"
                    if status != 200:
                        return False, f"{where} answers GET {path} with {status}; check host and port, then its log"
        except httpx.TransportError as error:
            return False, f"{where} {_reason(error, limit)}"
        return True, f"{where} answers and accepts the token"

    def url(self, kind: Kind, work_id: str) -> str:
        """Absolute URL of a job or run."""
        return self.endpoint.url(kind, work_id)

    def submit(self, kind: Kind, body: Mapping[str, Any], *, idempotency_key: str) -> Document:
        """Start work, or join what this key has started before.

        :param body: what the service's API asks for
        :return: the document; ``replayed`` tells whether the work existed
        :raises TransformationServiceUnavailable: still no answer after ``retry_count`` retries
        :raises TransformationServiceRefused: the service rejects the request
        """
        return self._call("POST", kind.path, json=body, headers={"Idempotency-Key": idempotency_key})

    def get(self, kind: Kind, work_id: str) -> Document:
        """Read a job or run. Raises as :meth:`submit`, and TransformationServiceNotFound."""
        return self._call("GET", _path(kind, work_id))

    def cancel(self, kind: Kind, work_id: str) -> Document:
        """Stop a job after its current batch, or a run at once. Raises as :meth:`get`."""
        return self._call("DELETE", _path(kind, work_id))

    async def aget(self, client: httpx.AsyncClient, kind: Kind, work_id: str) -> Document:
        """Read with a client of :meth:`aclient`, one attempt: whoever polls repeats anyway. Raises as :meth:`get`."""
        return await self._ask(client, "GET", _path(kind, work_id))

    async def acancel(self, client: httpx.AsyncClient, kind: Kind, work_id: str) -> Document:
        """Stop with a client of :meth:`aclient` and the hook's retries. Raises as :meth:`get`."""
        attempt = 0
        while True:
            try:
                return await self._ask(client, "DELETE", _path(kind, work_id))
            except TransformationServiceUnavailable as error:
                if attempt >= self.retry_count:
                    raise
                await asyncio.sleep(pause(attempt, error.retry_after))
            attempt += 1

    async def _ask(self, client: httpx.AsyncClient, method: str, path: str) -> Document:
        with _transport_errors(method, f"{str(client.base_url).rstrip('/')}{path}"):
            response = await client.request(method, path)
        return read_answer(response)

    async def aclient(self) -> httpx.AsyncClient:
        """Return an asynchronous client; use it in ``async with``."""
        return httpx.AsyncClient(**(await self.aendpoint()).client_options())

    def _call(
        self, method: str, path: str, *, json: Mapping[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> Document:
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


def summary(kind: Kind, document: Document, url: str) -> dict[str, Any]:
    """The part of a document that is small, plain JSON and worth an XCom.

    :return: for a job ``job_id``, ``job_url``, ``state``, ``slot``, ``counts`` (records: total, transformed, marked),
        ``batches`` (total, done), ``entity_type``, ``rules``, ``rule_set_version``, ``max_records``, ``replayed``,
        ``error`` and three times; for a run ``run_id``, ``run_url``, ``state``, ``slot``, ``counts`` (statements,
        rows), ``kind``, ``script``, ``version``, ``statements``, ``rows``, and the same last five
    """
    kept = ("state", "slot", "counts", *kind.kept, "replayed", "error", "created_at", "started_at", "finished_at")
    named = {f"{kind.name}_id": document["id"], f"{kind.name}_url": url}
    return named | {key: document.get(key) for key in kept}
