"""Which hosts reach which ports: what to try, and what the result means."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from roles.preflight.checks.problem import Problem, problem

Flow = Mapping[str, Any]


def wanted_listeners(flows: Sequence[Flow], host: str, sources: Sequence[str]) -> list[dict[str, Any]]:
    """Return ``{port, sources}`` for each port of ``host`` that hosts in ``sources`` will try."""
    ports: dict[int, set[str]] = {}
    for flow in flows:
        if flow["destination"] == host and flow["source"] != host and flow["source"] in sources:
            ports.setdefault(flow["port"], set()).add(flow["source"])
    return [{"port": port, "sources": sorted(names)} for port, names in sorted(ports.items())]


def wanted_connections(
    flows: Sequence[Flow], host: str, facts: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return what ``host`` has to try: ``{address, port, greet, destination, names}``.

    ``facts``: what the probe said about each host that it reached; a host without is tried, but not greeted.
    """
    targets: dict[tuple[str, int], dict[str, Any]] = {}
    for flow in flows:
        if flow["source"] != host or flow["destination"] == host:
            continue
        listener = facts.get(flow["destination"], {}).get("listener", {})
        target = targets.setdefault(
            (flow["destination_address"], flow["port"]),
            {
                "address": flow["destination_address"],
                "port": flow["port"],
                "greet": flow["port"] in listener.get("ports", []),
                "destination": flow["destination"],
                "names": [],
            },
        )
        target["names"].append(flow["name"])
    return list(targets.values())


def lets_in(own: Mapping[str, Sequence[str]], port: int, address: str) -> bool:
    """Tell whether the loaded table of the platform already lets the address in."""
    source = ipaddress.ip_address(address)
    for text in own.get(str(port), []):
        first, _, last = text.partition("-")
        if last and ipaddress.ip_address(first) <= source <= ipaddress.ip_address(last):  # type: ignore[operator]
            return True
        if not last and source in ipaddress.ip_network(text):
            return True
    return False


def check_connections(
    host: str,
    address: str,
    targets: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Mapping[str, Any]],
) -> list[Problem]:
    """Judge the connections that ``host`` tried; ``targets`` and ``results`` are in the same order."""
    problems = []
    for target, result in zip(targets, results, strict=True):
        destination, port = target["destination"], target["port"]
        other = facts.get(destination)
        if result["result"] == "ok":
            continue
        starts_later = not target["greet"] and (other is None or port not in other["listener"]["busy"])
        if result["result"] == "refused" and starts_later:
            continue  # the host itself answered, so the way is open
        firewalls = other["firewalls"] if other else {"foreign": [], "own": None}
        if (
            result["result"] == "timeout"
            and firewalls["own"] is not None
            and not lets_in(firewalls["own"], port, address)
        ):
            continue  # only our own firewall of an earlier run closes it, and this run opens it
        found, fix = {
            "timeout": ("no answer", "open the port in the firewall or security group between the two hosts"),
            "refused": ("refused", f"let the service on {destination} listen at {target['address']}"),
        }.get(result["result"], (result["result"], "repair the route between the two hosts"))
        if result["result"] != "refused" and firewalls["foreign"]:
            found += f"; {destination} has a firewall of its own: {', '.join(firewalls['foreign'])}"
            fix = f"let these hosts reach port {port} in that firewall; the platform leaves it as it is"
        problems.append(
            problem(
                "E-CONNECTION-BLOCKED",
                f"{destination} port {port} ({', '.join(target['names'])})",
                host=host,
                found=found,
                wanted=f"a connection to {target['address']}:{port}",
                fix=fix,
            )
        )
    return problems
