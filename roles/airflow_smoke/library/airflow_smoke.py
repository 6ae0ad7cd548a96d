#!/usr/bin/python
"""Prove a running platform from outside: REST API, broker, a DAG run on a worker, and the ledger of its records."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from ansible.module_utils.airflow_api import Api, ApiFailed
from ansible.module_utils.airflow_workers import BrokerFailed, active_queues, consumed, without_credentials
from ansible.module_utils.basic import AnsibleModule

if TYPE_CHECKING:
    import redis

DOCUMENTATION = r"""
module: airflow_smoke
short_description: Prove that Airflow works, as a client of it would
description:
  - Logs in to the REST API; checks that all components are healthy, version, import errors, DAGs and their release;
    asks each worker over the broker which queues it consumes; triggers a DAG run, waits for its success and checks
    that its task ran on a worker host; then counts in the ledger that each record was transformed exactly once.
  - A check that depends on a failed one is skipped; all others run, and all failures come in one list.
  - Runs with the Python of the Airflow venv on a scheduler host and does not import Airflow.
  - Never reports a change. The DAG run is an effect on data, which belongs to a slot of its own; no setting changes.
  - In check mode only the checks that read run, and failures are warnings, as nothing the run would change is in place.
options:
  url:
    description: Address of the API server, such as C(https://scheduler-1:8080).
    type: str
    required: true
  user:
    description: User to log in as.
    type: str
    default: admin
  password:
    description: The user's password.
    type: str
    required: true
  ca_file:
    description: File with the CA certificate that signed the API server's certificate. Empty = the host's trust store.
    type: path
  version:
    description: The Airflow version that must answer.
    type: str
  release:
    description: The release that every DAG of C(dags) must be served from.
    type: str
  dags:
    description: DAG ids that must be there.
    type: list
    elements: str
    default: []
  workers:
    description: Worker hosts that must consume, by the name that their tasks show as hostname.
    type: list
    elements: str
    default: []
  queues:
    description: Celery queues that must be consumed and drain.
    type: list
    elements: str
    default: [default]
  broker_url_file:
    description: File with the broker's URL.
    type: path
    default: /etc/airflow/credentials/broker_url
  run:
    description: Trigger a DAG run. It transforms every record of the entity once, in a slot of its own.
    type: bool
    default: true
  dag:
    description: The DAG to run; it takes the slot from C(conf).
    type: str
    default: user_transformation
  task:
    description: The task of it that transforms, or the task group, one task for each rule set; runs on C(workers).
    type: str
    default: apply_rules
  unpause:
    description: Unpause a paused DAG for the length of the run. Without it a paused DAG is a failed check.
    type: bool
    default: false
  ledger:
    description: Where the ledger of the transformed records is. Empty = not checked, as with another service.
    type: dict
    suboptions:
      host: {description: PostgreSQL host., type: str, required: true}
      port: {description: PostgreSQL port., type: int, default: 5432}
      database: {description: Database., type: str, default: transformation_service}
      user: {description: Role that may read it., type: str, default: platform_checks}
      password: {description: The role's password., type: str, required: true}
      sslmode: {description: As libpq's., type: str, default: require}
      sslrootcert: {description: As libpq's., type: path}
      entity: {description: Entity type that the DAG transforms., type: str, default: User}
      table: {description: The entity's table., type: str, default: user_record}
      minimum: {description: Records below which a run proves nothing and fails., type: int, default: 1}
  settle_seconds:
    description: How long checks that may need a moment after a start are repeated.
    type: int
    default: 60
  run_seconds:
    description: How long the DAG run may take.
    type: int
    default: 300
  report_only:
    description: Report failing checks without failing.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Prove that the platform works
  airflow_smoke:
    url: http://scheduler-1:8080
    password: "{{ airflow_admin_password }}"
    workers: [worker-1, worker-2]
    dags: [user_transformation]
  vars:
    ansible_python_interpreter: /opt/airflow/venv/bin/python
"""

RETURN = r"""
checks:
  description: What was checked; C(ok) is null for a skipped check.
  type: list
  returned: on success
  sample: [{name: health, ok: true, seconds: 0.02, detail: "metadatabase, scheduler, triggerer, dag_processor"}]
table:
  description: The same as lines to print.
  type: list
  returned: on success
run_id:
  description: The DAG run that was triggered.
  type: str
  returned: when one was
"""

POLL_SECONDS: Final = 0.5
LOG_LINES: Final = 15
# kombu appends these to a queue's name for messages of higher priority (kombu.transport.redis.Channel).
_PRIORITY_SUFFIXES: Final = ("", "\x06\x163", "\x06\x166", "\x06\x169")


class CheckFailed(Exception):
    """A check found something wrong; the text says what, and what to do where that is known."""


class Skipped(Exception):
    """A check has nothing to look at; the text says why."""


@dataclasses.dataclass(frozen=True)
class Result:
    """One line of the table. `ok` is None for a skipped check."""

    name: str
    ok: bool | None
    seconds: float
    detail: str


# --- judging answers (pure) -------------------------------------------------------------------------------------------


def judge_health(answer: Mapping[str, Any]) -> str:
    """Judge `/monitor/health`, which is HTTP 200 whatever it says; a component that never ran has status null."""
    wanted = ("metadatabase", "scheduler", "triggerer", "dag_processor")
    states = {name: (answer.get(name) or {}).get("status") for name in wanted}
    bad = [f"{name} is {status or 'not running'}" for name, status in states.items() if status != "healthy"]
    if bad:
        raise CheckFailed("; ".join(bad) + ". See `systemctl status airflow-*` on the scheduler hosts")
    return ", ".join(wanted) + " healthy"


def judge_import_errors(errors: Sequence[Mapping[str, Any]]) -> str:
    """Refuse any file that the dag-processor could not import; show file and last line of each."""
    if errors:
        found = [f"{error['filename']}: {_last_line(error.get('stack_trace'))}" for error in errors[:5]]
        more = f" and {len(errors) - 5} more" if len(errors) > 5 else ""
        raise CheckFailed("; ".join(found) + more)
    return "none"


def _last_line(text: str | None) -> str:
    return next((line.strip() for line in reversed((text or "").splitlines()) if line.strip()), "no trace")[:200]


def judge_dags(dags: Sequence[Mapping[str, Any]], expected: Sequence[str], release: str | None) -> str:
    """Check that the expected DAGs are served, and from the expected release.

    `dags`: items of `/dags`. Stale ones, whose file is gone, do not count.
    """
    present = {dag["dag_id"]: dag for dag in dags if not dag.get("is_stale")}
    problems = [f"{dag_id} is missing" for dag_id in expected if dag_id not in present]
    versions = {dag_id: present[dag_id].get("bundle_version") for dag_id in expected or present if dag_id in present}
    if release:
        problems += [
            f"{dag_id} is served from release {version or 'unknown'}, not {release}"
            for dag_id, version in versions.items()
            if version != release
        ]
    if problems:
        raise CheckFailed("; ".join(problems))
    served = sorted({version for version in versions.values() if version})
    paused = sum(bool(dag.get("is_paused")) for dag in present.values())
    return f"{len(present)} served" + (f" from {', '.join(served)}" if served else "") + f", {paused} paused"


def judge_workers(
    replies: Mapping[str, Sequence[Mapping[str, Any]]], workers: Sequence[str], queues: Sequence[str]
) -> str:
    """Check that each expected worker consumes, and that each queue has a consumer.

    `replies`: Celery's `active_queues`, node name (`celery@worker-1`) -> queues.
    """
    consuming = consumed(replies)
    problems = [f"{worker} does not answer over the broker" for worker in workers if worker not in consuming]
    problems += [f"{worker} answers and consumes no queue" for worker in workers if consuming.get(worker) == set()]
    served = set[str]().union(*consuming.values())
    problems += [f"no worker consumes queue {queue}" for queue in queues if queue not in served]
    if problems:
        others = sorted(set(consuming) - set(workers))
        seen = f" (answering: {', '.join(others)})" if others else ""
        raise CheckFailed("; ".join(problems) + seen + ". See `systemctl status airflow-worker` there")
    return f"{', '.join(sorted(consuming))} consuming {', '.join(sorted(served))}"


def tasks_of(instances: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """Return the task instances of a task, or of all tasks in a task group."""
    return [item for item in instances if item["task_id"] == name or item["task_id"].startswith(f"{name}.")]


def judge_placement(instances: Sequence[Mapping[str, Any]], task: str, workers: Sequence[str]) -> str:
    """Check where the task, or each task of the group, ran; a deferred task shows the worker that finished it."""
    hosts = {str(item["task_id"]): str(item["hostname"]) for item in tasks_of(instances, task)}
    if not hosts:
        raise CheckFailed(f"the run has no task {task}")
    strangers = [f"{name} ran on {host}" for name, host in sorted(hosts.items()) if workers and host not in workers]
    if strangers:
        raise CheckFailed(f"{', '.join(strangers)}, expected one of {', '.join(workers)}")
    names = {name: name.removeprefix(f"{task}.") for name in hosts}
    return ", ".join(f"{names[name]} ran on {host}" for name, host in sorted(hosts.items()))


def judge_ledger(before: Mapping[str, int], jobs: Sequence[Mapping[str, Any]], minimum: int) -> str:
    """Check that each job covered every record and that the ledger and the records count the same effects.

    `before` and `jobs`: rows of `LEDGER_BEFORE` and `LEDGER_AFTER`. Each is one statement, so one snapshot.
    """
    problems = []
    for job in jobs:
        faults = []
        if job["state"] != "succeeded":
            faults.append(f"the job is {job['state']}")
        if job["ledger_rows"] != job["distinct_records"]:
            many = job["ledger_rows"] - job["distinct_records"]
            faults.append(f"{many} ledger rows too many: a record was done twice")
        if job["ledger_rows"] != job["records_total"]:
            faults.append(f"the job took {job['records_total']} records, the ledger holds {job['ledger_rows']}")
        if job["missing"]:
            faults.append(f"{job['missing']} records are not in the ledger")
        if job["ledger_rows"] < minimum:
            faults.append(
                f"only {job['ledger_rows']} records, {minimum} are needed to prove something: load records first"
            )
        problems += [f"{job['rules']}: {fault}" for fault in faults]
    # Other jobs may run at the same time, so both sides are the entity's totals. Deleted records would only lower one.
    effects = jobs[0]["effects"] - before["effects"]
    confirmed = jobs[0]["confirmed"] - before["confirmed"]
    if effects != confirmed:
        problems.append(f"the records show {effects} transformations and the jobs {confirmed}")
    if problems:
        raise CheckFailed("; ".join(problems))
    records = " and ".join(sorted({str(job["ledger_rows"]) for job in jobs}))
    outcomes = (f"{job['rules']} {job['transformed']} transformed, {job['marked']} marked" for job in jobs)
    return f"{records} records, each once per rule set: {'; '.join(outcomes)}"


def format_table(results: Sequence[Result]) -> list[str]:
    """Align the results; further lines of a detail, such as a log, are indented below it."""
    width = max((len(result.name) for result in results), default=0)
    states = {True: "ok", False: "FAILED", None: "skipped"}
    lines = []
    for result in results:
        first, *rest = result.detail.splitlines() or [""]
        lines.append(f"{states[result.ok]:<7}  {result.name:<{width}}  {result.seconds:6.2f} s  {first}".rstrip())
        lines += [f"{'':<7}  {'':<{width}}            {line}" for line in rest]
    total = sum(result.seconds for result in results)
    failed = sum(result.ok is False for result in results)
    verdict = f"{failed} of {len(results)} checks failed" if failed else f"{len(results)} checks"
    return [*lines, f"{'':<7}  {'total':<{width}}  {total:6.2f} s  {verdict}"]


# --- the ledger -------------------------------------------------------------------------------------------------------

LEDGER_BEFORE: Final = """
SELECT (SELECT coalesce(sum(transform_count), 0) FROM {table}) AS effects,
       (SELECT coalesce(sum(transformed + marked), 0) FROM transformation_job
         WHERE entity_type = %(entity)s) AS confirmed
"""
LEDGER_AFTER: Final = """
SELECT array_to_string(job.rules, ', ') AS rules, job.state, job.records_total,
       ledger.rows AS ledger_rows, ledger.records AS distinct_records, ledger.transformed, ledger.marked,
       (SELECT count(*) FROM {table} AS record WHERE id <= job.max_record_id
          AND NOT EXISTS (
            SELECT FROM transformation_record WHERE job_id = job.id AND record_id = record.id)) AS missing,
       (SELECT coalesce(sum(transform_count), 0) FROM {table}) AS effects,
       (SELECT coalesce(sum(transformed + marked), 0) FROM transformation_job
         WHERE entity_type = %(entity)s) AS confirmed
FROM transformation_job AS job
CROSS JOIN LATERAL (
    SELECT count(*) AS rows, count(DISTINCT record_id) AS records,
           count(*) FILTER (WHERE outcome = 'transformed') AS transformed,
           count(*) FILTER (WHERE outcome = 'marked') AS marked
    FROM transformation_record WHERE job_id = job.id
) AS ledger
WHERE job.entity_type = %(entity)s AND job.slot = %(slot)s::timestamptz
ORDER BY job.created_at, job.id
"""


class Ledger:
    """The TransformationService's database, read with a role that can do nothing else."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings

    def query(self, statement: str, **values: object) -> list[dict[str, Any]]:
        """Return the rows of a statement."""
        import psycopg2
        import psycopg2.extras
        from psycopg2 import sql

        wanted = self._settings
        try:
            connection = psycopg2.connect(
                host=wanted["host"],
                port=wanted["port"],
                dbname=wanted["database"],
                user=wanted["user"],
                password=wanted["password"],
                sslmode=wanted["sslmode"],
                sslrootcert=wanted.get("sslrootcert"),
                connect_timeout=5,
                options="-c statement_timeout=60s",
                cursor_factory=psycopg2.extras.RealDictCursor,
            )
            with contextlib.closing(connection), connection.cursor() as cursor:
                text = sql.SQL(statement).format(table=sql.Identifier(wanted["table"]))
                cursor.execute(text, {"entity": wanted["entity"], **values})
                rows = [dict(row) for row in cursor.fetchall()]
            return [{key: int(value) if _countable(value) else value for key, value in row.items()} for row in rows]
        except psycopg2.Error as error:
            where = f"{wanted['database']} at {wanted['host']}:{wanted['port']} as {wanted['user']}"
            raise CheckFailed(f"{where}: {' '.join(str(error).split())}") from None


def _countable(value: object) -> bool:
    return value is not None and not isinstance(value, str)  # sums arrive as Decimal


# --- the run of the checks --------------------------------------------------------------------------------------------


class Smoke:
    """The checks over one platform, in order; `results` grows with each."""

    def __init__(self, options: Mapping[str, Any], *, read_only: bool) -> None:
        self._options = options
        self._read_only = read_only
        self._api = Api(options["url"], ca_file=options["ca_file"])
        self._instances: list[Mapping[str, Any]] = []
        self._slot = ""
        self._settled_at = 0.0
        self._release: str | None = None
        self._before: Mapping[str, int] | CheckFailed | None = None
        self.results: list[Result] = []
        self.run_id: str | None = None

    def run(self) -> list[Result]:
        """Do every check and return the results."""
        self._settled_at = time.monotonic() + self._options["settle_seconds"]
        self._check("login", self._login, settle=True)
        self._check("health", lambda: judge_health(self._api.get("/monitor/health")), settle=True)
        self._check("version", self._version)
        self._check("import errors", self._import_errors, needs=["login"], settle=True)
        self._check("DAGs", self._dags, needs=["login"], settle=True)
        self._check("pools", self._pools, needs=["login"])
        self._check("workers", self._workers, settle=True)
        if not self._read_only and self._options["run"]:
            self._check("DAG run", self._dag_run, needs=["login", "health", "workers"])
            self._check("placement", self._placement, needs=["DAG run"])
            self._check("ledger", self._ledger, needs=["DAG run"])
        self._settled_at = time.monotonic() + self._options["settle_seconds"]
        # Without its workers a queue has no reason to drain, and its length is still worth knowing.
        self._check("queues", self._queues, settle=self._passed("workers"))
        return self.results

    def _check(self, name: str, action: Callable[[], str], *, needs: Sequence[str] = (), settle: bool = False) -> None:
        """Do one check; `settle` repeats a failing one, as right after a start it may only be early.

        The repeating checks share one time limit: a platform settles as a whole.
        """
        broken = [need for need in needs if not self._passed(need)]
        begin = time.monotonic()
        if broken:
            self.results.append(Result(name, None, 0.0, f"needs {', '.join(broken)}"))
            return
        deadline = self._settled_at if settle else begin
        ok: bool | None
        while True:
            try:
                ok, detail = True, action()
            except Skipped as reason:
                ok, detail = None, str(reason)
            except (CheckFailed, ApiFailed) as failure:
                ok, detail = False, str(failure)
                if not getattr(failure, "final", False) and time.monotonic() + POLL_SECONDS < deadline:
                    time.sleep(POLL_SECONDS)
                    continue
            break
        self.results.append(Result(name, ok, round(time.monotonic() - begin, 3), detail))

    def _passed(self, name: str) -> bool:
        return any(result.name == name and result.ok for result in self.results)

    def _login(self) -> str:
        self._api.login(self._options["user"], self._options["password"])
        return f"{self._options['user']} at {self._api.url}"

    def _version(self) -> str:
        found, wanted = self._api.get("/version")["version"], self._options["version"]
        if wanted and found != wanted:
            raise CheckFailed(f"Airflow {found} answers, expected {wanted}: was the API server restarted?")
        return f"Airflow {found}"

    def _import_errors(self) -> str:
        return judge_import_errors(list(self._api.every("/importErrors", "import_errors")))

    def _dags(self) -> str:
        return judge_dags(list(self._api.every("/dags", "dags")), self._options["dags"], self._options["release"])

    def _pools(self) -> str:
        pools = self._api.every("/pools", "pools")
        return ", ".join(f"{pool['name']} {pool['occupied_slots']}/{_slots(pool['slots'])} used" for pool in pools)

    def _broker_url(self) -> str:
        try:
            with open(self._options["broker_url_file"], encoding="utf-8") as file:
                return file.read().strip()
        except OSError as error:
            raise CheckFailed(f"{self._options['broker_url_file']}: {error.strerror}") from None

    def _workers(self) -> str:
        url, workers = self._broker_url(), self._options["workers"]
        try:
            found = active_queues(url, workers)
            if workers and len(found) < len(workers):  # who else answers, for the message
                found = active_queues(url, seconds=1) | found
        except BrokerFailed as error:
            raise CheckFailed(f"broker: {error}") from None
        return judge_workers(found, workers, self._options["queues"])

    def _queues(self) -> str:
        import redis

        client = redis.Redis.from_url(self._broker_url(), socket_connect_timeout=3, socket_timeout=5)
        try:
            waiting = {
                name: sum(_length(client, name + suffix) for suffix in _PRIORITY_SUFFIXES)
                for name in self._options["queues"]
            }
        except redis.RedisError as error:
            raise CheckFailed(f"broker: {without_credentials(error)}") from None
        finally:
            client.close()
        if any(waiting.values()):
            full = ", ".join(f"{count} in {name}" for name, count in waiting.items() if count)
            raise CheckFailed(f"messages wait: {full}. More work than the workers take, or a worker that is stuck")
        return f"{', '.join(waiting)} empty"

    def _dag_run(self) -> str:
        path = f"/dags/{self._options['dag']}"
        dag = self._api.get(path)
        paused = dag["is_paused"]
        if paused and not self._options["unpause"]:
            raise CheckFailed(
                f"{self._options['dag']} is paused, so a run would stay queued. Unpause it, or set "
                "airflow_smoke_unpause: true (for the length of the test) or airflow_smoke_run: false (no run at all)"
            )
        if self._options["ledger"]:
            try:
                (self._before,) = Ledger(self._options["ledger"]).query(LEDGER_BEFORE)
            except CheckFailed as failure:
                self._before = failure  # told by the check "ledger"; the run itself needs no ledger
        if paused:
            self._api.call("PATCH", f"/api/v2{path}?update_mask=is_paused", {"is_paused": False})
        try:
            deadline = time.monotonic() + self._options["run_seconds"]
            self._wait_for_room(path, dag["max_active_runs"], deadline)
            return self._trigger_and_wait(path, deadline)
        finally:
            if paused:
                self._api.call("PATCH", f"/api/v2{path}?update_mask=is_paused", {"is_paused": True})

    def _wait_for_room(self, path: str, limit: int | None, deadline: float) -> None:
        """Wait until the DAG's `max_active_runs` lets one more run start.

        A run that only waits for its next try would hold the place for minutes; what it waits for is told at once.
        """
        while limit and len(running := list(self._api.every(f"{path}/dagRuns", "dag_runs", state="running"))) >= limit:
            for run in running:
                where = self._run_path(path, run["dag_run_id"])
                tasks = self._tasks(where)
                idle = not any(task["state"] in ("scheduled", "queued", "running", "deferred") for task in tasks)
                if idle and any(task["state"] == "up_for_retry" for task in tasks):
                    raise CheckFailed(
                        f"{run['dag_run_id']} waits for a retry, and max_active_runs is {limit}. "
                        f"Clear its task to retry now, or mark the run failed{self._story(where, tasks)}"
                    )
            if time.monotonic() > deadline:
                names = ", ".join(run["dag_run_id"] for run in running)
                raise CheckFailed(
                    f"{names} still running after {self._options['run_seconds']} s, max_active_runs is {limit}"
                )
            time.sleep(POLL_SECONDS)

    def _trigger_and_wait(self, path: str, deadline: float) -> str:
        # Whole seconds: a slot of its own, which no schedule's tick and no earlier test shares.
        self._slot = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        body = {"dag_run_id": f"smoke__{self._slot}", "logical_date": None, "conf": {"slot": self._slot}}
        self.run_id = str(self._api.call("POST", f"/api/v2{path}/dagRuns", body)["dag_run_id"])
        run = self._run_path(path, self.run_id)
        while (answer := self._api.get(run))["state"] not in ("success", "failed"):
            if time.monotonic() > deadline:
                story = self._story(run, self._tasks(run))
                # Left alone it would run some day, unasked.
                self._api.call("PATCH", f"/api/v2{run}?update_mask=state", {"state": "failed"})
                waited = f"{self.run_id} still {answer['state']} after {self._options['run_seconds']} s, marked failed"
                raise CheckFailed(waited + story)
            time.sleep(POLL_SECONDS)
        self._release = answer.get("bundle_version")
        self._instances = self._tasks(run)
        if answer["state"] == "failed":
            raise CheckFailed(f"{self.run_id} failed{self._story(run, self._instances)}")
        return f"{self.run_id} succeeded"

    @staticmethod
    def _run_path(path: str, run_id: str) -> str:
        return f"{path}/dagRuns/{urllib.parse.quote(run_id, safe='')}"

    def _tasks(self, run: str) -> list[Mapping[str, Any]]:
        return list(self._api.every(f"{run}/taskInstances", "task_instances"))

    def _story(self, run: str, tasks: Sequence[Mapping[str, Any]]) -> str:
        """Tell the tasks' states and the end of the log of the one that failed or hangs."""
        states = ", ".join(f"{task['task_id']} {task['state'] or 'not scheduled'}" for task in tasks)
        lines = [f": {states}" if states else ""]
        by_state = {task["state"]: task for task in tasks}
        telling = ("failed", "up_for_retry", "running", "deferred")
        task = next((by_state[state] for state in telling if state in by_state), None)
        if task is not None:
            attempt = max(1, int(task["try_number"]))
            try:
                tail = log_tail(self._api.get(f"{run}/taskInstances/{task['task_id']}/logs/{attempt}"))
            except ApiFailed as failure:
                tail = [f"not readable: {failure}"]
            lines.append(f"end of the log of {task['task_id']} try {attempt} on {task['hostname'] or 'no host'}:")
            lines += [f"  {line}" for line in tail]
        return "\n".join(lines)

    def _placement(self) -> str:
        wanted = self._options["release"]
        if wanted and self._release != wanted:
            raise CheckFailed(f"the run used release {self._release or 'unknown'}, expected {wanted}")
        where = judge_placement(self._instances, self._options["task"], self._options["workers"])
        return where + (f", release {self._release}" if self._release else "")

    def _ledger(self) -> str:
        settings = self._options["ledger"]
        if not settings:
            raise Skipped("no ledger is configured (airflow_smoke_ledger_host)")
        if self._before is None or isinstance(self._before, CheckFailed):
            raise self._before or CheckFailed("no count from before the run")
        jobs = Ledger(settings).query(LEDGER_AFTER, slot=self._slot)
        tasks = len(tasks_of(self._instances, self._options["task"]))
        if not jobs or len(jobs) != tasks:
            raise CheckFailed(
                f"{len(jobs)} jobs for {settings['entity']} in slot {self._slot}, expected one for each of the {tasks} "
                f"tasks in {self._options['task']}"
            )
        return judge_ledger(self._before, jobs, settings["minimum"])


def log_tail(answer: Mapping[str, Any]) -> list[str]:
    """Return the last lines of a task's log as the API gives it: structured messages, or plain lines."""
    lines = []
    for item in answer.get("content", ()):
        if isinstance(item, str):
            lines += item.splitlines()
            continue
        lines += str(item.get("event", "")).splitlines()
        for error in item.get("error_detail") or ():
            lines.append(f"{error.get('exc_type')}: {error.get('exc_value')}")
    return [line[:300] for line in lines if line.strip() and not line.startswith("::")][-LOG_LINES:]


def _length(client: redis.Redis, name: str) -> int:
    return int(client.llen(name))  # type: ignore[arg-type]  # typed for the asynchronous client too


def _slots(slots: int) -> str:
    return "unlimited" if slots == -1 else str(slots)


# --- Ansible ----------------------------------------------------------------------------------------------------------

ARGUMENTS: Final[dict[str, Any]] = {
    "url": {"type": "str", "required": True},
    "user": {"type": "str", "default": "admin"},
    "password": {"type": "str", "required": True, "no_log": True},
    "ca_file": {"type": "path"},
    "version": {"type": "str"},
    "release": {"type": "str"},
    "dags": {"type": "list", "elements": "str", "default": []},
    "workers": {"type": "list", "elements": "str", "default": []},
    "queues": {"type": "list", "elements": "str", "default": ["default"]},
    "broker_url_file": {"type": "path", "default": "/etc/airflow/credentials/broker_url"},
    "run": {"type": "bool", "default": True},
    "dag": {"type": "str", "default": "user_transformation"},
    "task": {"type": "str", "default": "apply_rules"},
    "unpause": {"type": "bool", "default": False},
    "ledger": {
        "type": "dict",
        "options": {
            "host": {"type": "str", "required": True},
            "port": {"type": "int", "default": 5432},
            "database": {"type": "str", "default": "transformation_service"},
            "user": {"type": "str", "default": "platform_checks"},
            "password": {"type": "str", "required": True, "no_log": True},
            "sslmode": {"type": "str", "default": "require"},
            "sslrootcert": {"type": "path"},
            "entity": {"type": "str", "default": "User"},
            "table": {"type": "str", "default": "user_record"},
            "minimum": {"type": "int", "default": 1},
        },
    },
    "settle_seconds": {"type": "int", "default": 60},
    "run_seconds": {"type": "int", "default": 300},
    "report_only": {"type": "bool", "default": False},
}


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    if importlib.util.find_spec("airflow") is None:
        message = "Airflow is not installed here yet; nothing was tested"
        if module.check_mode or module.params["report_only"]:
            module.exit_json(changed=False, skipped=True, msg=message, table=[message], checks=[])
        module.fail_json(msg=f"{message}. Run site.yml first.")

    smoke = Smoke(module.params, read_only=module.check_mode)
    results = smoke.run()
    table = format_table(results)
    answer: dict[str, Any] = {
        "changed": False,
        "checks": [dataclasses.asdict(result) for result in results],
        "table": table,
        "run_id": smoke.run_id,
    }
    failures = [f"- {result.name}: {result.detail}" for result in results if result.ok is False]
    if failures and not module.params["report_only"]:
        message = "\n".join([f"{len(failures)} of {len(results)} smoke checks failed:", *failures])
        if not module.check_mode:
            # The list and the table alone: whatever else comes along is printed with them.
            module.fail_json(msg="\n".join([message, "", *table]), changed=False)
        module.warn(f"{message}\nCheck mode: this may be what the run would repair.")
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
