"""Deploys and rollbacks as an operator starts them, from sources that a test may spoil; what users see meanwhile."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from platform_under_test import ROOT, Platform, Unexpected, wait_for

PARTS = ("dags", "plugins", "scripts")
LOG = "/var/lib/airflow_release/log.jsonl"
LOCK = "/run/airflow_release.lock"
# Two values that show where code comes from: one of the operator, one of the DAG file; tasks wait for a gate, a file.
PROBE_OPERATOR = """
from __future__ import annotations

import os
import time
from typing import Any

from airflow.sdk import BaseOperator

VALUE = "@"


class DeployProbeOperator(BaseOperator):
    template_fields = ("gate",)

    def __init__(self, *, dag_value: str, gate: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dag_value = dag_value
        self.gate = gate

    def execute(self, context: Any) -> list[str]:
        while not os.path.exists(self.gate):
            time.sleep(0.2)
        return [VALUE, self.dag_value]
"""
PROBE_DAG = """
from airflow.sdk import DAG

from plugins.operators.deploy_probe import DeployProbeOperator

with DAG("deploy_probe", schedule=None, is_paused_upon_creation=False, max_active_runs=4, max_active_tasks=64):
    DeployProbeOperator.partial(task_id="held", dag_value="@").expand(gate=["{{ dag_run.conf['gate'] }}"] * 20)
"""
PROBE_DAG_FILE, PROBE_OPERATOR_FILE = "dags/deploy_probe.py", "plugins/operators/deploy_probe.py"


@dataclass
class Deployer:
    """Starts the playbooks against one set of hosts; ``source`` is what gets released, a copy of this repository's."""

    platform: Platform
    source: Path
    arguments: Sequence[str] = field(default_factory=list)

    @classmethod
    def make(cls, platform: Platform, source: Path) -> Deployer:
        """Copy the sources of this repository."""
        for part in PARTS:
            shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / ".airflowignore", source)
        network = platform.address("airflow_scheduler").rpartition(".")[0]
        hosts = {
            "test_host_namespace": platform.namespace,
            "test_host_network_prefix": network,
            "airflow_release_source": str(source),
        }
        return cls(platform, source, ["-e", json.dumps(hosts)])

    def write(self, name: str, text: str) -> None:
        """Put a file into the sources."""
        (self.source / name).parent.mkdir(parents=True, exist_ok=True)
        (self.source / name).write_text(text)

    def probe_dag(self, value: str) -> None:
        """Have the DAG deploy_probe and its operator write this value."""
        self.write(PROBE_DAG_FILE, PROBE_DAG.replace("@", value))
        self.write(PROBE_OPERATOR_FILE, PROBE_OPERATOR.replace("@", value))

    def start(self, playbook: str = "deploy", **variables: Any) -> subprocess.Popen[str]:
        """Start a playbook."""
        return subprocess.Popen(
            [
                str(Path(sys.executable).with_name("ansible-playbook")),
                *(f"-i{name}" for name in self.platform.inventories),
                f"playbooks/{playbook}.yml",
                *self.arguments,
                *("-e", json.dumps(variables)),
            ],
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_FORCE_COLOR": "0"},  # Molecule forces colours, which hide the recap
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, playbook: str = "deploy", *, fails: bool = False, **variables: Any) -> str:
        """Run a playbook to its end; return its output."""
        process = self.start(playbook, **variables)
        output = process.communicate(timeout=600)[0]
        if bool(process.returncode) != fails:
            raise Unexpected(f"{playbook} ended with {process.returncode}:\n{self.platform.redact(output)}")
        return output

    @property
    def hosts(self) -> list[str]:
        """Every host that has releases."""
        return list(
            dict.fromkeys([*self.platform.groups["airflow_scheduler"], *self.platform.groups["airflow_worker"]])
        )

    def live(self) -> str:
        """The release that is live on every host."""
        found = {
            self.platform.host(name).check_output("readlink /opt/airflow/current").removeprefix("releases/")
            for name in self.hosts
        }
        if len(found) != 1:
            raise Unexpected(f"hosts differ: {found}")
        return found.pop()

    def log(self, name: str) -> list[dict[str, Any]]:
        """The deploy log of a host."""
        return [json.loads(line) for line in self.platform.host(name).check_output(f"cat {LOG}").splitlines()]

    def lock_owner(self) -> str:
        """Who has the lock, as its file says; empty if nobody has it."""
        found = self.platform.host(self.platform.first("airflow_scheduler")).run(
            f"test -e {LOCK} && ! flock -n {LOCK} true && cat {LOCK}"
        )
        return str(found.stdout).strip()

    # --- what users see ------------------------------------------------------------------------------------------

    def served(self) -> dict[str, str]:
        """Release of each DAG, by the public API; ``import error``: what did not import."""
        api = self.platform.api
        found = {dag["dag_id"]: dag["bundle_version"] for dag in api.get("/dags?limit=100")["dags"]}
        for error in api.get("/importErrors")["import_errors"]:
            found["import error"] = error["filename"]
        return found

    @contextmanager
    def watched(self, seconds: float = 1.0) -> Iterator[list[tuple[float, dict[str, str]]]]:
        """Ask the API all the time; yields (time, what it serves), of which the last is from after the block."""
        seen: list[tuple[float, dict[str, str]]] = [(time.time(), self.served())]
        over = threading.Event()
        failures: list[BaseException] = []

        def ask() -> None:
            while not over.wait(seconds):
                try:
                    seen.append((time.time(), self.served()))
                except BaseException as failure:  # told by the thread that waits
                    failures.append(failure)
                    return

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield seen
        finally:
            over.set()
            thread.join()
        if failures:
            raise failures[0]
        seen.append((time.time(), self.served()))

    # --- runs of deploy_probe ------------------------------------------------------------------------------------

    def trigger(self, gate: str) -> str:
        """Start a run whose 20 tasks wait for a gate."""
        body = {"logical_date": None, "conf": {"gate": gate}}
        return str(self.platform.api.call("POST", "/dags/deploy_probe/dagRuns", body)["dag_run_id"])

    def open(self, gate: str, *hosts: str) -> None:
        """Let the tasks that wait for the gate end, on every worker or on some."""
        for name in hosts or self.platform.groups["airflow_worker"]:
            self.platform.host(name).check_output("touch %s", gate)

    def held(self, run_id: str) -> list[dict[str, Any]]:
        """The run's task instances."""
        path = self.platform.run_path(run_id, "deploy_probe")
        return list(self.ask(f"{path}/taskInstances?limit=100")["task_instances"])

    def await_running(self, run_id: str, count: int) -> None:
        """Wait until so many of the run's tasks run."""
        wait_for(
            lambda: [task["state"] for task in self.held(run_id)],
            lambda states: states.count("running") >= count,
            f"{count} running tasks of {run_id}",
            120,
            1,
        )

    def values(self, run_id: str) -> set[tuple[str, ...]]:
        """What the run's tasks wrote: (the operator's value, the DAG file's value)."""
        path = self.platform.run_path(run_id, "deploy_probe")
        wait_for(
            lambda: self.ask(path)["state"],
            lambda state: state in ("success", "failed"),
            f"the end of {run_id}",
            240,
            1,
        )
        result = f"{path}/taskInstances/held/xcomEntries/return_value?deserialize=true&map_index="
        return {tuple(self.ask(f"{result}{task['map_index']}")["value"]) for task in self.held(run_id)}

    def ask(self, path: str) -> dict[str, Any]:
        """GET, again if there was no answer: 20 tasks that start at once keep a small API server busy."""
        for _ in range(3):
            with suppress(TimeoutError):
                return dict(self.platform.api.get(path))
        return dict(self.platform.api.get(path))


@contextmanager
def probe_released(platform: Platform, source: Path, value: str) -> Iterator[Deployer]:
    """The DAG deploy_probe, live beside the repository's; the release from before is live again at the end."""
    made = Deployer.make(platform, source)
    before = made.live()
    made.probe_dag(value)
    made.run(airflow_release_smoke=False)
    yield made
    # Released anew: after many deploys it is not on the hosts any more. The same sources are the same release.
    made.run(airflow_release_source=str(ROOT), airflow_release_allow_removal=True, airflow_release_smoke=False)
    assert made.live() == before
    assert platform.api.send("DELETE", "/api/v2/dags/deploy_probe", token=platform.api.token).status in (204, 404)


def kill(process: subprocess.Popen[str]) -> str:
    """Kill a playbook with its workers, as a lost controller would; return what it had printed and nobody has read."""
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()  # sessions of their own
    for pid in [process.pid, *map(int, workers)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return process.communicate()[0]


def changed(output: str) -> dict[str, int]:
    """Changes by host, from a play's recap, which has to be there."""
    found = {name: int(count) for name, count in re.findall(r"^(\S+) +: ok=\d+ +changed=(\d+)", output, re.MULTILINE)}
    if not found:
        raise Unexpected(f"no recap in:\n{output}")
    return found
