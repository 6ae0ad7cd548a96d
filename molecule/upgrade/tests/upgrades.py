"""This repository's playbooks as an operator starts them on this scenario's hosts, and runs to be in the middle of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from platform_under_test import ROOT, Platform, Unexpected, wait_for

PROBE = "upgrade_probe"


@dataclass
class Operator:
    """Starts playbooks against this scenario's hosts, and watches runs of the DAG upgrade_probe."""

    platform: Platform

    def start(self, playbook: str, *options: str, root: Path = ROOT, **variables: Any) -> subprocess.Popen[str]:
        """Start a playbook of this repository, or of the former revision."""
        return subprocess.Popen(
            [
                os.path.join(os.path.dirname(sys.executable), "ansible-playbook"),
                *("-i", "molecule/upgrade/inventory", "-i", "molecule/shared/inventory"),
                f"--extra-vars=test_host_state_directory={self.platform.directory}",
                f"playbooks/{playbook}.yml",
                *("-e", json.dumps(variables)),
                *options,
            ],
            cwd=root,
            env={**os.environ, "ANSIBLE_CONFIG": str(root / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self, process: subprocess.Popen[str], *, fails: bool = False) -> str:
        """Wait for a playbook's end; return its output."""
        output = process.communicate(timeout=900)[0]
        if bool(process.returncode) != fails:
            raise Unexpected(f"ended with {process.returncode}:\n{self.platform.redact(output)}")
        return output

    def run(self, playbook: str, *options: str, fails: bool = False, root: Path = ROOT, **variables: Any) -> str:
        """Run a playbook to its end."""
        return self.end(self.start(playbook, *options, root=root, **variables), fails=fails)

    # --- what runs -----------------------------------------------------------------------------------------------

    def version(self) -> str:
        """The version that answers."""
        return str(self.platform.api.send("GET", "/api/v2/version").body["version"])

    def active(self, unit: str, name: str = "control-1") -> str:
        """What systemd says of a unit."""
        return str(self.platform.host(name).run("systemctl is-active airflow-%s", unit).stdout).strip()

    def databases(self) -> list[str]:
        """Every database of the server."""
        return [row["datname"] for row in self.platform.psql("SELECT datname FROM pg_database ORDER BY 1")]

    def schema(self) -> str:
        """Migration that Airflow's metadata is at."""
        return str(self.platform.psql("SELECT version_num AS v FROM alembic_version", "airflow")[0]["v"])

    # --- runs of upgrade_probe -----------------------------------------------------------------------------------

    def trigger(self, gate: str, deferred_seconds: float) -> str:
        """Start a run whose 20 tasks wait for a file, and one in the triggerer for an instant."""
        until = (datetime.now(UTC) + timedelta(seconds=deferred_seconds)).isoformat()
        body = {"logical_date": None, "conf": {"gate": gate, "until": until}}
        return str(self.platform.api.call("POST", f"/dags/{PROBE}/dagRuns", body)["dag_run_id"])

    def tasks(self, run_id: str) -> list[dict[str, Any]]:
        """The run's task instances, from the database: the API may be down."""
        return self.platform.psql(
            f"SELECT task_id, map_index, state, try_number FROM task_instance WHERE run_id = '{run_id}'", "airflow"
        )

    def await_states(self, run_id: str, good: Callable[[list[str]], bool], what: str, seconds: float = 120) -> None:
        """Wait until the states of the run's tasks are good."""
        wait_for(lambda: [str(t["state"]) for t in self.tasks(run_id)], good, what, seconds, 0.5)

    def open(self, gate: str) -> None:
        """Let the tasks that wait for the file end."""
        for name in self.platform.groups["airflow_worker"]:
            self.platform.host(name).check_output("touch %s", gate)
