"""Action: run the module ``preflight_probe`` on a host, judge what it says, and never fail.

With ``connect: false`` (phase 1) the host is described and listens; with ``connect: true`` (phase 2) it tries to reach
the others. A host that cannot be reached, or on which the module cannot run, becomes a problem like any other.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase

sys.path.append(str(Path(__file__).parents[3]))  # see preflight_inventory.py

from roles.preflight.checks import host as host_checks
from roles.preflight.checks import network
from roles.preflight.checks.problem import Problem, problem


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible has no types
    """The action ``preflight_host``."""

    _requires_connection = False  # the module call connects, and its failure is caught here

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Probe one host."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables, args = task_vars or {}, self._task.args
        host, inventory = variables["inventory_hostname"], args["inventory"]
        plan = inventory["hosts"][host]
        started = time.monotonic()
        if args["connect"]:
            result.update(self._connect(host, plan, inventory["flows"], variables))
        else:
            result.update(self._describe(host, plan, inventory["flows"], variables))
        result.update(changed=False, seconds=time.monotonic() - started)
        return result

    def _call(self, host: str, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Run the module; return its result with ``offset`` of the clock, or ``problems``."""
        before = time.time()
        try:
            said: dict[str, Any] = self._execute_module("preflight_probe", module_args=arguments, task_vars=variables)
        except AnsibleConnectionFailure as error:
            return {"problems": [_unreachable(host, str(error))]}
        except AnsibleError as error:
            said = {"failed": True, "msg": str(error)}
        after = time.time()
        if said.get("unreachable"):
            return {"problems": [_unreachable(host, str(said.get("msg", "")))]}
        if said.get("failed") or "ended" not in said:
            words = str(said.get("module_stderr") or said.get("msg") or "no answer").strip().splitlines()
            return {"problems": [_unusable(host, words[-1] if words else "no answer")]}
        said["offset"] = host_checks.clock_offset(before, said["begun"], said["ended"], after)
        return said

    def _describe(
        self, host: str, plan: dict[str, Any], flows: list[dict[str, Any]], variables: dict[str, Any]
    ) -> dict[str, Any]:
        args = self._task.args
        listeners = [row for group in plan["groups"] for row in args["listeners"].get(group, [])]
        said = self._call(
            host,
            {
                "address": plan["address"] or None,
                "ports": sorted({int(row["port"]) for row in listeners}),
                "listen": network.wanted_listeners(flows, host, variables["ansible_play_hosts_all"]),
                "listener_seconds": args["listener_seconds"],
                "names": sorted(plan["names"]),
                "folders": args["folders"],
            },
            variables,
        )
        if "problems" in said:
            return said
        facts = said["facts"]
        problems: list[Problem] = []
        problems += host_checks.check_machine(host, facts, args["supported"])
        problems += host_checks.check_size(host, facts, host_checks.floor_of(plan["groups"], args["minimum"]))
        problems += host_checks.check_address(host, facts, plan["address"])
        problems += host_checks.check_login(host, facts, plan["login"])
        problems += host_checks.check_synchroniser(host, facts, plan["time_sync_required"])
        problems += host_checks.check_airflow(host, facts, args["airflow_version"])
        problems += host_checks.check_names(host, facts, plan["names"])
        problems += host_checks.check_ports(host, facts, listeners)
        return {"problems": problems, "facts": facts, "offset": said["offset"], "ports": len(listeners)}

    def _connect(
        self, host: str, plan: dict[str, Any], flows: list[dict[str, Any]], variables: dict[str, Any]
    ) -> dict[str, Any]:
        nothing: dict[str, Any] = {"problems": [], "tried": 0}
        probes = probes_of_play(variables)
        if not probes.get(host, {}).get("facts"):
            return nothing
        facts = {name: probe["facts"] for name, probe in probes.items() if probe.get("facts")}
        # What cannot answer is in the list already; trying it would only name its ports one by one.
        silent = {name for name in probes if name not in facts or facts[name]["address_is_local"] is False}
        targets = network.wanted_connections([flow for flow in flows if flow["destination"] not in silent], host, facts)
        if not targets:
            return nothing
        connect = [{name: target[name] for name in ("address", "port", "greet")} for target in targets]
        said = self._call(
            host,
            {"connect": connect, "source": host, "connect_seconds": self._task.args["connect_seconds"]},
            variables,
        )
        if "problems" in said:
            return said
        problems = network.check_connections(host, plan["address"], targets, said["connections"], facts)
        return {"problems": problems, "tried": len(targets), "offset": said["offset"]}


def probes_of_play(variables: Mapping[str, Any], name: str = "__preflight_probe") -> dict[str, dict[str, Any]]:
    """Return the registered results of a phase by host, for the hosts of this play."""
    hostvars = variables["hostvars"]
    found = {host: hostvars[host].get(name) for host in variables["ansible_play_hosts_all"]}
    return {host: probe for host, probe in found.items() if probe and not probe.get("skipped")}


def _unreachable(host: str, words: str) -> Problem:
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return problem(
        "E-HOST-UNREACHABLE",
        "SSH",
        host=host,
        # The part behind the last "ssh: " is what ssh itself said.
        found=lines[-1].rpartition("ssh: ")[2] if lines else "no connection",
        wanted="a login",
        fix="check ansible_host, ansible_user, the key, and the known_hosts file",
    )


def _unusable(host: str, words: str) -> Problem:
    return problem(
        "E-HOST-PROBE",
        "Python and sudo",
        host=host,
        found=words,
        wanted="/usr/bin/python3, run as root by sudo without a question",
        fix="install python3, allow the user to run sudo without a password, or give --ask-become-pass",
    )
