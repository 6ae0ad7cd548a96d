"""The platform as tests see it: its hosts over SSH, its addresses, its secrets, and its REST API.

Which set of hosts: ``PLATFORM_NAMESPACE`` (default ``molecule``) names a folder of ``.local`` that role test_host made;
``PLATFORM_INVENTORY`` (default ``inventories/local``; several with a colon between) gives groups and wanted flows. So
the same tests run on the hosts
of ``make up``: ``PLATFORM_NAMESPACE=local pytest molecule/default/tests``. Those that kill things run
on Molecule's hosts alone unless asked for with ``-m kills`` or ``PLATFORM_DISPOSABLE=1``.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import testinfra
import testinfra.host

ROOT = Path(__file__).resolve().parents[2]
PROBES = Path(__file__).resolve().parent / "probes"
T = TypeVar("T")
Figures = Callable[[str], None]
ARTIFACTS = ROOT / ".artifacts"
# The tasks of user_transformation that transform, one for each rule set.
RULE_TASKS = ("apply_rules.normalize_phone", "apply_rules.standardize_email", "apply_rules.deduplicate")
AIRFLOW_PYTHON = "/opt/airflow/venv/bin/python"
# Reads source and data from standard input: nothing of them is in a process list, nor in sudo's log.
LAUNCHER = (
    "import json, sys; given = json.load(sys.stdin); "
    "exec(compile(given['source'], given['name'], 'exec')); json.dump(main(given['data']), sys.stdout)"
)


class Unexpected(AssertionError):
    """The platform gave another answer than the test asked for."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer: status, parsed JSON (or text), and headers with lower-case names."""

    status: int
    body: Any
    headers: Mapping[str, str]


class Api:
    """A client of Airflow's REST API that logs in once; the server limits logins."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url, self.user, self._password = url, user, password

    def send(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> Answer:
        """Send one request, with exactly the token that is given; every status is an answer."""
        request = urllib.request.Request(self.url + path, method=method)
        request.add_header("Accept", "application/json")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        if body is not None:
            request.add_header("Content-Type", "application/json")
            request.data = json.dumps(body).encode()
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                status, text, headers = answer.status, answer.read().decode(), answer.headers
        except urllib.error.HTTPError as error:
            status, text, headers = error.code, error.read().decode(errors="replace"), error.headers
        try:
            parsed = json.loads(text)
        except json.JSONDecodeError:
            parsed = text
        return Answer(status, parsed, {name.lower(): value for name, value in headers.items()})

    def login(self, password: str) -> Answer:
        """Ask for a token."""
        return self.send("POST", "/auth/token", {"username": self.user, "password": password})

    @functools.cached_property
    def token(self) -> str:
        """The token of one login, kept."""
        answer = self.login(self._password)
        if answer.status != 201:
            raise Unexpected(f"login as {self.user}: {answer.status} {answer.body}")
        return str(answer.body["access_token"])

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Return the JSON of a call under ``/api/v2`` that has to succeed."""
        answer = self.send(method, f"/api/v2{path}", body, token=self.token)
        if answer.status >= 300:
            raise Unexpected(f"{method} {path}: {answer.status} {answer.body}")
        return answer.body

    def get(self, path: str) -> Any:
        """Return the JSON of a GET that has to succeed."""
        return self.call("GET", path)


@dataclass(frozen=True)
class Run:
    """A finished run: the API's answer, its task instances by task id, and the ledger before and after it."""

    slot: str
    answer: Mapping[str, Any]
    tasks: Mapping[str, Mapping[str, Any]]
    before: Mapping[str, int]
    after: Mapping[str, int]

    @property
    def run_id(self) -> str:
        """Id of the DAG run."""
        return str(self.answer["dag_run_id"])


@dataclass(frozen=True)
class Platform:
    """One set of hosts. ``addresses``: IPv4 by inventory name; ``secrets``: values by the inventory's variable name."""

    namespace: str
    groups: Mapping[str, Sequence[str]]
    flows: Sequence[Mapping[str, Any]]
    directory: Path
    inventories: Sequence[str] = ("inventories/local",)
    _cache: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def ssh_config(self) -> Path:
        """What ``ssh -F`` takes."""
        return self.directory / "ssh_config"

    @functools.cached_property
    def addresses(self) -> dict[str, str]:
        """IPv4 address of each host, as ssh reaches it."""
        return dict(re.findall(r"^Host (\S+)\n  HostName (\S+)$", self.ssh_config.read_text(), re.MULTILINE))

    @functools.cached_property
    def secrets(self) -> dict[str, str]:
        """Secrets as inventories/local/group_vars/all/20_secrets.yml makes them."""
        values = {path.name: path.read_text().split("\n")[0].strip() for path in (self.directory / "secrets").iterdir()}
        named = {
            {
                "postgresql_airflow": "postgresql_airflow_password",
                "postgresql_celery": "postgresql_celery_password",
                "postgresql_checks": "postgresql_checks_password",
                "postgresql_scripts": "postgresql_scripts_password",
                "postgresql_transformation_service": "postgresql_transformation_service_password",
                "redis_celery": "redis_celery_password",
            }.get(name, name): value
            for name, value in values.items()
        }
        named["airflow_fernet_key"] = base64.b64encode(named.pop("airflow_fernet").encode()).decode()
        return named

    @functools.cached_property
    def api(self) -> Api:
        """The REST API of the first scheduler, as ``admin``."""
        return self.api_at(self.first("airflow_scheduler"))

    def api_at(self, host: str) -> Api:
        """The REST API at the address of one host."""
        return Api(f"http://{self.addresses[host]}:8080", "admin", self.secrets["airflow_admin_password"])

    def first(self, group: str) -> str:
        """Name of the group's first host."""
        return self.groups[group][0]

    def address(self, group: str) -> str:
        """Address of the group's first host."""
        return self.addresses[self.first(group)]

    def host(self, name: str) -> testinfra.host.Host:
        """Testinfra's host, as root over one SSH connection that stays open."""
        if name not in self._cache:
            self._cache[name] = testinfra.get_host(
                f"ssh://{name}", ssh_config=str(self.ssh_config), sudo=True, controlpersist=600
            )
        return self._cache[name]

    def probe(self, name: str, probe: str, data: Any = None, *, python: str = "/usr/bin/python3") -> Any:
        """Run ``probes/<probe>.py`` as root on a host: ``main(data)`` there, its JSON result here."""
        given = {"name": probe, "source": (PROBES / f"{probe}.py").read_text(), "data": data}
        done = subprocess.run(
            ["ssh", "-F", str(self.ssh_config), name, f'sudo -n {python} -c "{LAUNCHER}"'],
            input=json.dumps(given), capture_output=True, text=True, check=False, timeout=180,
        )  # fmt: skip
        if done.returncode:
            raise Unexpected(f"probe {probe} on {name}: {self.redact(done.stderr.strip()[-2000:])}")
        return json.loads(done.stdout)

    def connect_sql(self, source: str, statements: Sequence[str], **dsn: Any) -> dict[str, Any]:
        """Open a connection to PostgreSQL from a host and run statements, as that host's Airflow would.

        Returns ``{"error": text or None, "results": [{"rows": [[...]]} or {"sqlstate": ..., "error": ...}]}``.
        """
        dsn = {"host": self.address("postgresql"), "port": 5432, "sslmode": "require", "connect_timeout": 5, **dsn}
        answer = self.probe(source, "sql", {"dsn": dsn, "statements": list(statements)}, python=AIRFLOW_PYTHON)
        return dict(answer)

    def psql(self, sql: str, database: str = "postgres") -> list[dict[str, Any]]:
        """Rows of a query by the superuser on the PostgreSQL host."""
        wrapped = f"SELECT coalesce(json_agg(q), '[]') FROM ({sql}) q"
        command = "runuser -u postgres -- psql -X -A -t -q -v ON_ERROR_STOP=1 -d %s -c %s"
        return list(json.loads(self.host(self.first("postgresql")).check_output(command, database, wrapped)))

    def redis(self, commands: Sequence[Sequence[str]], **login: str | None) -> list[Any]:
        """Answers of commands sent to Redis by a worker host; ``{"error": text}`` for a refused one."""
        login = {"username": "airflow_celery", "password": self.secrets["redis_celery_password"], **login}
        data = {"host": self.address("redis"), "login": login, "commands": [list(command) for command in commands]}
        return list(self.probe(self.first("airflow_worker"), "redis_commands", data, python=AIRFLOW_PYTHON))

    def redact(self, text: str) -> str:
        """Take the values of secrets out of a text that gets printed."""
        for name, value in self.secrets.items():
            for form in {value, urllib.parse.quote(value, safe="")}:
                text = text.replace(form, f"<{name}>")
        return text

    def journal(self, name: str, unit: str, lines: int = 40) -> str:
        """The end of a unit's journal."""
        output = self.host(name).run("journalctl --no-pager --output=short-iso --unit=%s --lines=%s", unit, str(lines))
        return self.redact(str(output.stdout))

    def power(self, action: str, name: str) -> None:
        """Give a local host a fate: ``kill`` (power off at once), ``start``, ``restart``, ``pause``."""
        subprocess.run(
            ["podman", action, f"{self.namespace}-{name}"],
            env={**os.environ, "CONTAINERS_CONF": str(self.directory / "containers.conf")},
            check=True,
            capture_output=True,
            timeout=120,
        )

    def await_up(self, name: str, seconds: float = 60) -> None:
        """Wait until a host answers and every unit of it runs."""

        def state() -> str:
            try:
                return str(self.host(name).run("systemctl is-system-running").stdout).strip()
            except RuntimeError as error:  # no SSH yet
                return str(error)

        wait_for(state, lambda found: found == "running", f"{name} to be up", seconds)

    def await_api(self, seconds: float = 60) -> None:
        """Wait until the API finds every component healthy."""

        def health() -> dict[str, Any]:
            try:
                return dict(self.api.send("GET", "/api/v2/monitor/health").body)
            except (OSError, ValueError) as error:
                return {"api": {"status": str(error)}}

        wait_for(health, lambda found: all(part["status"] == "healthy" for part in found.values()), "health", seconds)

    # --- DAG runs ------------------------------------------------------------------------------------------------

    def trigger(self, slot: str, dag: str = "user_transformation") -> str:
        """Start a run for a slot; return its id."""
        run = self.api.call("POST", f"/dags/{dag}/dagRuns", {"logical_date": None, "conf": {"slot": slot}})
        return str(run["dag_run_id"])

    def run_path(self, run_id: str, dag: str = "user_transformation") -> str:
        """Path of a run under ``/api/v2``."""
        return f"/dags/{dag}/dagRuns/{urllib.parse.quote(run_id, safe='')}"

    def finish(self, run_id: str, seconds: float = 120, dag: str = "user_transformation") -> dict[str, Any]:
        """Wait for the end of a run, however it ends."""
        return dict(
            wait_for(
                lambda: self.api.get(self.run_path(run_id, dag)),
                lambda run: run["state"] in ("success", "failed"),
                f"the end of {run_id}",
                seconds,
            )
        )

    def tasks(self, run_id: str) -> dict[str, dict[str, Any]]:
        """The run's task instances by task id."""
        found = self.api.get(f"{self.run_path(run_id)}/taskInstances")["task_instances"]
        return {task["task_id"]: task for task in found}

    def log(self, run_id: str, task: str, attempt: int = 1) -> str:
        """A task's log as the API gives it, one message a line."""
        content = self.api.get(f"{self.run_path(run_id)}/taskInstances/{task}/logs/{attempt}")["content"]
        return "\n".join(item if isinstance(item, str) else str(item.get("event", "")) for item in content)

    def ledger(self, slot: str, entity: str = "User") -> dict[str, int]:
        """Count a slot in the ledger: ``rows``, ``records`` (distinct), ``jobs``; ``total``: all User records."""
        answer = self.connect_sql(
            self.first("airflow_worker"),
            [
                "SELECT count(*), count(DISTINCT record_id), count(DISTINCT job_id) FROM transformation_record "
                f"WHERE slot = '{slot}' AND entity_type = '{entity}'",
                "SELECT count(*), coalesce(sum(transform_count), 0) FROM user_record",
            ],
            dbname="transformation_service",
            user="platform_checks",
            password=self.secrets["postgresql_checks_password"],
        )
        if answer["error"]:
            raise Unexpected(answer["error"])
        (rows, records, jobs), (total, transformed) = (result["rows"][0] for result in answer["results"])
        return {"rows": rows, "records": records, "jobs": jobs, "total": total, "transform_count": int(transformed)}


def wait_for(ask: Callable[[], T], good: Callable[[T], bool], what: str, seconds: float, pause: float = 0.3) -> T:
    """Ask until the answer is good; raise ``Unexpected`` with the last one when the time is over."""
    end = time.monotonic() + seconds
    while not good(answer := ask()):
        if time.monotonic() > end:
            raise Unexpected(f"waited {seconds:.0f} s for {what}; last seen: {answer!r:.2000}")
        time.sleep(pause)
    return answer


@functools.cache
def load() -> Platform:
    """Read groups and flows from the inventory; the hosts need not exist yet."""
    inventories = os.environ.get("PLATFORM_INVENTORY", "inventories/local").split(":")
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-inventory")), *(f"-i{name}" for name in inventories), "--list"],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=True,
    )
    listed = json.loads(done.stdout)
    hostvars = listed.pop("_meta")["hostvars"]
    namespace = os.environ.get("PLATFORM_NAMESPACE") or os.environ.get("TEST_HOST_NAMESPACE") or "molecule"
    return Platform(
        namespace=namespace,
        groups={
            name: group["hosts"] for name, group in listed.items() if group.get("hosts") and not name.startswith("_")
        }
        | {"all": sorted(hostvars)},
        flows=next(iter(hostvars.values()))["host_flows"],
        directory=ROOT / ".local" / namespace,
        inventories=inventories,
    )
