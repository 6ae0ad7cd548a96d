"""Ansible filters: the network flows that the inventory asks for, host by host.

One table, ``host_flows``, says which group may reach which port of which group. The firewall, the connectivity check
of preflight, PostgreSQL's client list and the tests all read the result of these filters, so they cannot disagree.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

Flow = dict[str, Any]


def _members(groups: Mapping[str, Sequence[str]], names: Sequence[str]) -> list[str]:
    """Return the hosts of the named groups in inventory order, each once; an absent group has no hosts."""
    return list(dict.fromkeys(str(host) for name in names for host in groups.get(name, [])))


def _address(hostvars: Mapping[str, Mapping[str, Any]], host: str) -> str:
    address = hostvars[host].get("host_address")
    if not address:
        raise AnsibleFilterError(f"platform_flows: host '{host}' has no host_address; set it in the inventory")
    return str(address)


def platform_flows(
    flows: Sequence[Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    hostvars: Mapping[str, Mapping[str, Any]],
) -> list[Flow]:
    """Return every wanted flow between two hosts.

    ``flows``: rows ``{name, to: group or list of groups, port, from: [groups]}``.

    Returns rows ``{name, port, source, source_address, destination, destination_address}``, sorted, without
    duplicates. A flow from a host to itself is listed too: with several groups on one VM, a service does meet
    clients with the host's own address.

    Raises ``AnsibleFilterError`` for a row without one of its keys and for a host without ``host_address``.
    """
    wanted: dict[tuple[str, int, str, str], Flow] = {}
    for flow in flows:
        missing = [key for key in ("name", "to", "port", "from") if key not in flow]
        if missing:
            raise AnsibleFilterError(f"platform_flows: flow {dict(flow)} lacks {', '.join(missing)}")
        targets = [flow["to"]] if isinstance(flow["to"], str) else list(flow["to"])
        sources = [flow["from"]] if isinstance(flow["from"], str) else list(flow["from"])
        for destination in _members(groups, targets):
            for source in _members(groups, sources):
                name, port = str(flow["name"]), int(flow["port"])
                wanted[(name, port, destination, source)] = {
                    "name": name,
                    "port": port,
                    "source": source,
                    "source_address": _address(hostvars, source),
                    "destination": destination,
                    "destination_address": _address(hostvars, destination),
                }
    return [wanted[key] for key in sorted(wanted)]


def platform_inbound(flows: Sequence[Flow], host: str) -> list[dict[str, Any]]:
    """Return what ``host`` has to let in: rows ``{name, port, addresses}``, as the role's ``host_inbound`` wants them.

    ``flows`` is the result of ``platform_flows``. Addresses are sorted; the host's own is left out, because its
    packets to itself never leave the loopback interface.
    """
    inbound: dict[tuple[str, int], set[str]] = {}
    for flow in flows:
        if flow["destination"] == host and flow["source"] != host:
            inbound.setdefault((flow["name"], flow["port"]), set()).add(flow["source_address"])
    return [
        {"name": name, "port": port, "addresses": sorted(addresses)}
        for (name, port), addresses in sorted(inbound.items())
    ]


def platform_reach(
    flows: Sequence[Flow],
    host: str,
    hosts: Sequence[str],
    hostvars: Mapping[str, Mapping[str, Any]],
    closed_ports: Sequence[int] = (),
) -> list[dict[str, Any]]:
    """Return whether ``host`` may reach each known port of each other host: ``{destination, address, port, open}``.

    ``flows`` is the result of ``platform_flows``; SSH and the web UI are open to the networks that the destination
    lists in ``host_admin_networks`` and ``host_ui_networks``. ``closed_ports`` are tried in addition and must be
    closed, for example the scheduler's health port, which is for its own host alone.
    """
    own = ipaddress.ip_address(_address(hostvars, host))
    ports = sorted({int(flow["port"]) for flow in flows} | {int(port) for port in closed_ports})
    wanted = {(flow["destination"], int(flow["port"])) for flow in flows if flow["source"] == host}
    reach = []
    for destination in hosts:
        if destination == host:
            continue
        variables = hostvars[destination]
        for port, networks in (
            (int(variables.get("host_ssh_port", 22)), variables.get("host_admin_networks", [])),
            (int(variables.get("host_ui_port", 0)), variables.get("host_ui_networks", [])),
        ):
            if any(own in ipaddress.ip_network(str(network)) for network in networks):
                wanted.add((destination, port))
        reach += [
            {
                "destination": destination,
                "address": _address(hostvars, destination),
                "port": port,
                "open": (destination, port) in wanted,
            }
            for port in sorted({*ports, int(variables.get("host_ssh_port", 22))})
        ]
    return reach


def platform_reach_errors(connections: Sequence[Mapping[str, Any]], reach: Sequence[Mapping[str, Any]]) -> list[str]:
    """Compare what was tried (``connections`` of the module ``preflight_probe``) with ``platform_reach``.

    A refused connection has passed the firewall; a dropped one times out. Returns one sentence for each difference.
    """
    errors = []
    for tried, wanted in zip(connections, reach, strict=True):
        if tried["result"] not in ("ok", "refused", "timeout"):
            errors.append(f"{wanted['destination']} port {wanted['port']}: {tried['result']}")
        elif (tried["result"] != "timeout") != wanted["open"]:
            state, should = ("closed", "open") if wanted["open"] else ("open", "closed")
            errors.append(f"{wanted['destination']} port {wanted['port']} is {state}, must be {should}")
    return errors


class FilterModule:
    """Make the filters known to Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "platform_flows": platform_flows,
            "platform_inbound": platform_inbound,
            "platform_reach": platform_reach,
            "platform_reach_errors": platform_reach_errors,
        }
