"""Ansible filters: the network flows that the inventory asks for, host by host.

One table, ``host_flows``, says which group may reach which port of which group. The firewall, the connectivity check
of preflight, PostgreSQL's client list and the tests all read the result of these filters, so they cannot disagree.
"""

from __future__ import annotations

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


class FilterModule:
    """Make the filters known to Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"platform_flows": platform_flows, "platform_inbound": platform_inbound}
