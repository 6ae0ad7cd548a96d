"""The test's hold on the world: the service, the line to it, and the tries of tasks, each with one fault."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg

from tests.exactly_once.processes import PROCESSES, Try, serve, wait, work

SESSIONS = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'transformation-service'"
MOST_TRIES = 8


class Place(Enum):
    """Where inside a batch's transaction a job is held; the value is the lock that holds it there."""

    NOT_BEGUN = None
    LEDGER_WRITTEN = "LOCK TABLE user_record IN SHARE MODE"
    RECORDS_WRITTEN = "SELECT FROM transformation_job FOR NO KEY UPDATE"


@dataclass(frozen=True)
class InExchange:
    """At a try's HTTP exchange: before the service has the request, or when its answer is under way."""

    number: int
    answered: bool


@dataclass(frozen=True)
class InBatch:
    """When the job has come to this record."""

    record: int
    place: Place


class Blow(Enum):
    """What happens at the moment."""

    ANSWER_LOST = "answer lost"
    WORKER_KILLED = "worker or triggerer killed"
    SERVICE_KILLED = "service killed"
    DATABASE_LOST = "database connections ended"
    CANCELLED = "task stopped by a user"


@dataclass(frozen=True)
class Fault:
    """One blow at one moment; a moment that never comes is none."""

    moment: InExchange | InBatch
    blow: Blow


@dataclass(frozen=True)
class Run:
    """A DAG run."""

    path: str
    instant: datetime
    rules: tuple[str, ...]

    @property
    def slot(self) -> datetime:
        return self.instant.replace(hour=0, minute=0)


class Service:
    """The service's process, always on the same port."""

    def __init__(self, directory: Path, database_url: str, log: Path, mutant: str | None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        (directory / "url").write_text(database_url)
        (directory / "token").write_text("a-token")
        prefix = "TRANSFORMATION_SERVICE_"
        self._environment = {
            f"{prefix}DATABASE_URL_FILE": str(directory / "url"),
            f"{prefix}TOKEN_FILE": str(directory / "token"),
            f"{prefix}PORT": str(self.port),
            f"{prefix}POLL_SECONDS": "0.1",
        }
        self._log = log
        self._mutant = mutant
        self._process: Any = None
        self._one_at_a_time = threading.Lock()

    def ensure(self) -> None:
        """Start it if it is down, as systemd would, and wait until it answers."""
        with self._one_at_a_time:
            if self._process is not None and self._process.is_alive():
                return
            process = PROCESSES.Process(target=serve, args=(self._environment, self._log, self._mutant))
            process.start()
            self._process = process
            until(lambda: self._process.exitcode == -9 or self._answers(), "the service")  # or killed at its start

    def _answers(self) -> bool:
        assert self._process.exitcode in {None, -9}, "the service has ended"
        try:
            return self.ask("GET", "/health", {}, None)[0] == 200
        except OSError:
            return False

    def ask(self, method: str, path: str, headers: dict[str, str], body: bytes | None) -> tuple[int, Any, bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.join()


class Attempt:
    """One try of a run's task, from worker to triggerer and back, and what befalls it."""

    def __init__(self, world: World, given: Try, fault: Fault | None) -> None:
        self._world = world
        self._given = replace(given, url=world.line.url(self))
        self._fault = fault
        self._struck = threading.Lock()
        self._exchanges = 0
        self._process: Any = None
        self._over = threading.Event()

    def succeeds(self) -> bool:
        """Whether the task has reported success."""
        try:
            with self._held_up():
                return self._execute()
        finally:
            self._over.set()

    def _execute(self) -> bool:
        kind, told = self._run(work, self._given, None)
        if kind != "deferred":
            return kind == "success"
        event = None
        while event is None:
            kind, event = self._run(wait, told)
            if kind == "stopped":
                return False  # by its on_kill
        return self._run(work, self._given, json.loads(event))[0] == "success"

    def _run(self, target: Callable[..., None], *arguments: Any) -> tuple[str, Any]:
        """What a process tells; ``killed`` or ``stopped`` if it ends without a word."""
        ours, theirs = PROCESSES.Pipe(duplex=False)
        with ours:
            process = PROCESSES.Process(target=target, args=(self._world.log, *arguments, theirs))
            process.start()
            self._process = process
            theirs.close()
            assert ours.poll(15), f"a try does not end: {self._given}"
            try:
                answer: tuple[str, Any] = ours.recv()
            except EOFError:
                answer = ("", None)
            process.join(15)
        code = process.exitcode
        if answer[0]:
            return answer
        assert code == -9 or (self._fault and self._fault.blow is Blow.CANCELLED), f"a try broke: {code}, {self._given}"
        return ("killed" if code == -9 else "stopped"), None

    # --- moments ---------------------------------------------------------------------------------------------------

    def exchange(self, forward: Callable[[], Any]) -> Any:
        """Let one request through, or not: ``None`` is a connection that ends without an answer."""
        number, self._exchanges = self._exchanges, self._exchanges + 1
        moment = self._fault.moment if self._fault else None
        here = isinstance(moment, InExchange) and moment.number == number
        if here and not moment.answered and self._strike():
            return None
        answer = forward()
        return None if here and moment.answered and self._strike() else answer

    @contextmanager
    def _held_up(self) -> Iterator[None]:
        moment = self._fault.moment if self._fault else None
        if not isinstance(moment, InBatch):
            yield
            return
        with psycopg.connect(self._world.url) as row, ThreadPoolExecutor(1) as side:
            row.execute("SELECT FROM user_record WHERE id = %s FOR UPDATE", [moment.record])
            holding = side.submit(self._hold, row, moment.place)
            try:
                yield
            finally:
                self._over.set()
                holding.result()

    def _hold(self, row: psycopg.Connection[Any], place: Place) -> None:
        try:
            if not self._is_reached():
                return
            with psycopg.connect(self._world.url) as inner:
                if place.value:
                    inner.execute("SET lock_timeout = '5s'")
                    inner.execute(place.value.encode())
                    row.rollback()
                    if not self._is_reached():
                        return
                self._strike()
        finally:
            row.rollback()

    def _is_reached(self) -> bool:
        """Wait until the service stands at our lock; false when the try ends before."""
        held = f"SELECT count(*) {SESSIONS} AND wait_event_type = 'Lock'"
        # Work that a try before this one left behind may stand there first, before ours has a process to strike.
        until(lambda: self._over.is_set() or (self._process and self._world.value(held) > 0), "the lock")
        return not self._over.is_set()

    def _strike(self) -> bool:
        """Do what the fault says, once; true when the exchange at hand ends with it."""
        assert self._fault is not None
        if not self._struck.acquire(blocking=False):
            return False
        blow = self._fault.blow
        self._world.blows[blow, type(self._fault.moment)] += 1
        if blow is Blow.WORKER_KILLED:
            self._process.kill()
        elif blow is Blow.CANCELLED:
            self._process.terminate()
        elif blow is Blow.DATABASE_LOST:
            self._world.value(f"SELECT count(pg_terminate_backend(pid)) {SESSIONS}")
        elif blow is Blow.SERVICE_KILLED:
            self._world.service.kill()
            threading.Thread(target=self._world.service.ensure).start()
        return blow in {Blow.ANSWER_LOST, Blow.WORKER_KILLED, Blow.SERVICE_KILLED}


class Line:
    """HTTP between tasks and service: each try has an address of its own here."""

    def __init__(self, service: Service) -> None:
        attempts: list[Attempt] = []
        self._attempts = attempts

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self) -> None:
                _, number, path = self.path.split("/", 2)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
                headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                try:
                    answer = attempts[int(number)].exchange(
                        lambda: service.ask(self.command, f"/{path}", headers, body)
                    )
                except (OSError, HTTPException):
                    answer = None
                if answer is None:
                    self.close_connection = True
                    return
                status, headers, content = answer
                self.send_response_only(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_DELETE = pass_on

            def log_message(self, *_: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None: ...  # a killed client's end of the line

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, attempt: Attempt) -> str:
        self._attempts.append(attempt)
        return f"http://127.0.0.1:{self._server.server_address[1]}/{len(self._attempts) - 1}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class World:
    """Database, service, line; and Airflow's memory of runs, tries and successes."""

    def __init__(self, url: str, directory: Path, mutant: str | None) -> None:
        self.url = url
        self.mutant = mutant
        self.log = directory / "log"  # of all processes, for the sequence at hand
        self.service = Service(directory, url, self.log, mutant)
        self.line = Line(self.service)
        self.blows: Counter[Any] = Counter()
        self._database = psycopg.connect(url, autocommit=True)
        self._one_at_a_time = threading.Lock()
        self._tries: Counter[Run] = Counter()
        self._succeeded: dict[Run, bool] = {}

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self._one_at_a_time:
            return self._database.execute(query.encode()).fetchall()

    def value(self, query: str) -> Any:
        return self.rows(query)[0][0]

    def reset(self) -> None:
        """As after loading the records: nothing transformed, nothing asked for."""
        self._tries.clear()
        self._succeeded.clear()
        self.log.write_text("")
        tables = "transformation_record, transformation_batch, transformation_request, transformation_job"
        with self._one_at_a_time:
            self._database.execute("SET lock_timeout = '20s'")
            self._database.execute(f"TRUNCATE user_record, record_match_key, {tables}".encode())
            self._database.execute("INSERT INTO user_record OVERRIDING SYSTEM VALUE SELECT * FROM pristine")
        self.service.ensure()

    def attempt(
        self,
        run: Run,
        fault: Fault | None = None,
        *,
        fails: str | None = None,
        defer_after: float = 0.6,
        batch_size: int = 7,
    ) -> None:
        """The next try of a run's task: its first, a retry, or a new one after it was cleared."""
        self._tries[run] += 1
        given = Try(
            url="",
            run_id=f"{run.path}__{run.instant.isoformat()}",
            path=run.path,
            instant=run.instant,
            number=self._tries[run],
            rules=run.rules,
            batch_size=batch_size,
            defer_after=defer_after,
            fails=fails,
            mutant=self.mutant,
        )
        self._succeeded[run] = Attempt(self, given, fault).succeeds()

    def settle(self) -> None:
        """Retry as Airflow does what has not succeeded yet."""
        for run in list(self._succeeded):
            for _ in range(MOST_TRIES):
                if self._succeeded[run]:
                    break
                self.service.ensure()
                self.attempt(run)
            assert self._succeeded[run], f"{run} does not succeed in {MOST_TRIES} tries"

    def close(self) -> None:
        self.service.kill()
        self.line.close()
        self._database.close()


def until(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.005)
