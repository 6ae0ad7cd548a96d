"""Action: put the problems of all hosts into one list, show it, and refuse; or show what was checked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.action import ActionBase

sys.path.append(str(Path(__file__).parents[3]))  # see preflight_inventory.py

from roles.preflight.action_plugins.preflight_host import probes_of_play
from roles.preflight.checks.host import check_clocks
from roles.preflight.checks.problem import Problem, join_hosts, render_problems, render_success


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible has no types
    """The action ``preflight_report``."""

    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Show the list; fail when it is not empty."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables, args = task_vars or {}, self._task.args
        inventory, hosts = args["inventory"], list(args["inventory"]["hosts"])
        probes = probes_of_play(variables)
        connections = probes_of_play(variables, "__preflight_connections")
        phases = [*probes.values(), *connections.values()]
        problems: list[Problem] = [*inventory["problems"], *(row for phase in phases for row in phase["problems"])]
        problems += check_clocks(narrowest(probes, connections), float(args["clock_difference"]))
        result.update(changed=False, problems=problems)
        if problems:
            self._display.display(render_problems(problems, hosts), color=constants.COLOR_ERROR)
            count = len(join_hosts(problems, hosts))
            result.update(
                failed=True, msg=f"Preflight refuses, see the list above ({count} in all). No host was changed."
            )
            # The list was shown; the result keeps the codes for programs.
            result["problems"] = sorted({row["code"] for row in problems})
            return result

        def slowest(phase: dict[str, dict[str, Any]]) -> float:
            return max((row["seconds"] for row in phase.values()), default=0.0)

        ports = sum(row.get("ports", 0) for row in probes.values())
        tried = sum(row.get("tried", 0) for row in connections.values())
        names = len({name for plan in inventory["hosts"].values() for name in plan["names"]})
        rows = [
            ("Inventory", f"{len(hosts)} hosts, {inventory['variables']} variables of ours", inventory["seconds"]),
            ("Secrets", f"{inventory['secrets']} are set, strong and different", 0.0),
            ("Hosts", f"{len(probes)} have the system, size, clock and rights they need", slowest(probes)),
            ("Names", f"{names} from URLs resolve", 0.0),
            ("Ports", f"{ports} are free or held by their own service", 0.0),
            ("Connections", f"{tried} ways between hosts are open", slowest(connections)),
        ]
        result["problems"] = []
        self._display.display(render_success(rows), color=constants.COLOR_OK)
        return result


def narrowest(*phases: dict[str, dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return the clock's offset of each host as all calls together bound it."""
    offsets: dict[str, tuple[float, float]] = {}
    for phase in phases:
        for host, row in phase.items():
            if row.get("offset"):
                low, high = row["offset"]
                known = offsets.get(host, (low, high))
                offsets[host] = (max(low, known[0]), min(high, known[1]))
    return offsets
