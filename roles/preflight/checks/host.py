"""What can be wrong with a host, told from what `preflight_probe` says about it."""

from __future__ import annotations

import fnmatch
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from roles.preflight.checks.problem import Problem, problem

# Kernels keep a part of a machine's nominal memory, and file systems a part of the disk.
TOLERANCE = 0.95


def floor_of(groups: Iterable[str], minimum: Mapping[str, Mapping[str, int]]) -> dict[str, tuple[int, str]]:
    """Return the largest floor of a host's groups: size by name (cpus, memory_mb, disk_mb) with its group.

    The largest, not the sum: the floors are those of machines that run one thing, and the sum would forbid the
    single VM that a small installation starts with.
    """
    floor: dict[str, tuple[int, str]] = {}
    for group in groups:
        for name, value in minimum.get(group, {}).items():
            if int(value) > floor.get(name, (0, ""))[0]:
                floor[name] = (int(value), group)
    return floor


def check_machine(host: str, facts: Mapping[str, Any], supported: Mapping[str, Any]) -> list[Problem]:
    """Check distribution, architecture, Python and systemd against ``supported``."""
    problems = []
    rows = (
        ("E-HOST-OS", "operating system", facts["distribution"], supported["distributions"], "install a supported one"),
        ("E-HOST-ARCHITECTURE", "architecture", facts["architecture"], supported["architectures"], "use another VM"),
    )
    for code, subject, found, wanted, fix in rows:
        if found not in wanted:
            problems.append(problem(code, subject, host=host, found=found, wanted=" or ".join(wanted), fix=fix))
    python = tuple(int(part) for part in facts["python"].split(".")[:2])
    first, last = (tuple(int(part) for part in text.split(".")) for text in supported["python"])
    if not first <= python <= last:
        problems.append(
            problem(
                "E-HOST-PYTHON",
                "/usr/bin/python3",
                host=host,
                found=facts["python"],
                wanted=f"{supported['python'][0]} to {supported['python'][1]}, which the package lock covers",
                fix="use the Python of a supported distribution",
            )
        )
    if facts["systemd"] not in ("running", "degraded", "starting"):
        problems.append(
            problem(
                "E-HOST-SYSTEMD",
                "systemd",
                host=host,
                found=facts["systemd"] or "not the first process",
                wanted="running",
                fix="boot the host with systemd",
            )
        )
    if not facts["root"]:
        problems.append(
            problem(
                "E-HOST-ROOT",
                "ansible_become",
                host=host,
                found="an unprivileged user",
                wanted="root, by sudo",
                fix="set ansible_become to true in the inventory, and let the user run sudo",
            )
        )
    return problems


def check_size(host: str, facts: Mapping[str, Any], floor: Mapping[str, tuple[int, str]]) -> list[Problem]:
    """Check processors, memory and free disk space against ``floor_of`` the host's groups."""
    problems = []

    def check(code: str, name: str, subject: str, found: int, unit: str, fix: str, share: float = TOLERANCE) -> None:
        wanted, group = floor.get(name, (0, ""))
        if found < wanted * share:
            problems.append(
                problem(
                    code,
                    subject,
                    host=host,
                    found=f"{found} {unit}".rstrip(),
                    wanted=f"{wanted} {unit}".rstrip() + f" or more (preflight_minimum.{group}.{name})",
                    fix=fix,
                )
            )

    check("E-HOST-CPUS", "cpus", "processors", facts["cpus"], "", "give the VM more of them", 1)
    check("E-HOST-MEMORY", "memory_mb", "memory", facts["memory_mb"], "MB", "give the VM more memory")
    smallest: dict[int, tuple[int, list[str]]] = {}
    for folder, info in facts["disks"].items():
        free, folders = smallest.get(info["device"], (info["free_mb"], []))
        smallest[info["device"]] = (min(free, info["free_mb"]), [*folders, folder])
    for free, folders in smallest.values():
        check("E-HOST-DISK", "disk_mb", f"free space of {', '.join(folders)}", free, "MB", "make room or a larger disk")
    return problems


def check_login(host: str, facts: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Problem]:
    """Check that the firewall would let the current SSH connection come back.

    ``wanted``: ``firewall`` (is it on), ``networks``, ``port``.
    """
    ssh = facts["ssh"]
    if not wanted["firewall"] or ssh is None:
        return []
    problems = []
    client = ipaddress.ip_address(ssh["client"].split("%")[0])
    if isinstance(client, ipaddress.IPv6Address) and client.ipv4_mapped:
        client = client.ipv4_mapped
    networks = []
    for text in wanted["networks"]:
        try:
            networks.append(ipaddress.ip_network(str(text)))
        except ValueError:
            continue  # E-NETWORK-INVALID says so
    if not any(client in network for network in networks):
        problems.append(
            problem(
                "E-HOST-LOCKOUT",
                "host_admin_networks",
                host=host,
                found=f"{', '.join(map(str, networks)) or 'no network'}; this connection comes from {client}",
                wanted="a network that holds the address which this connection comes from",
                fix=f"add {client} or its network to host_admin_networks; the firewall would cut SSH off",
            )
        )
    if ssh["port"] != int(wanted["port"]):
        problems.append(
            problem(
                "E-HOST-LOCKOUT",
                "host_ssh_port",
                host=host,
                found=f"{wanted['port']}; this connection uses port {ssh['port']} of the host",
                wanted=str(ssh["port"]),
                fix=f"set host_ssh_port to {ssh['port']}; the firewall would cut SSH off",
            )
        )
    return problems


def check_names(host: str, facts: Mapping[str, Any], names: Mapping[str, str]) -> list[Problem]:
    """Report what the host cannot resolve; ``names`` gives the variable that asks for each name."""
    return [
        problem(
            "E-NAME-UNRESOLVED",
            f"{name} (in {names.get(name, 'the inventory')})",
            host=host,
            found=error,
            wanted="a name that resolves on the host",
            fix="correct the name, or the host's DNS",
        )
        for name, error in facts["unresolved"].items()
    ]


def check_address(host: str, facts: Mapping[str, Any], address: str) -> list[Problem]:
    """Report an address that none of the host's interfaces has."""
    if facts["address_is_local"] is not False:
        return []
    return [
        problem(
            "E-ADDRESS-FOREIGN",
            "host_address",
            host=host,
            found=f"{address}, which no interface of the host has",
            wanted="an address that services of the host can bind",
            fix="set host_address to the host's own (private) address, and keep the public one in ansible_host",
        )
    ]


def check_airflow(host: str, facts: Mapping[str, Any], wanted: str) -> list[Problem]:
    """Report a platform of another Airflow version than the one that would be installed; ``wanted`` empty: any."""
    found = facts["airflow_version"]
    if not found or not wanted or found == wanted:
        return []
    return [
        problem(
            "E-HOST-AIRFLOW",
            "Airflow",
            host=host,
            found=f"{found}, installed",
            wanted=f"{wanted}, as roles/airflow/files/requirements.txt or airflow_requirements says",
            fix=f"make upgrade, which backs up, drains and can go back; or check out the revision that has {found}",
        )
    ]


def check_ports(host: str, facts: Mapping[str, Any], listeners: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """Report needed ports that something else than their own unit holds.

    ``listeners``: rows ``{port, units: patterns}``.
    """
    problems = []
    for row in listeners:
        for holder in facts["holders"].get(str(row["port"]), []):
            unit = holder["unit"]
            if any(fnmatch.fnmatch(unit, pattern) for pattern in row["units"]):
                continue
            if holder["address"].startswith("127.") and not row.get("local"):
                continue  # the service binds the host's address; both fit
            who = f"{holder['command'] or 'a process'} (pid {holder['pid'] or 'unknown'}{', ' + unit if unit else ''})"
            problems.append(
                problem(
                    "E-PORT-TAKEN",
                    f"port {row['port']}",
                    host=host,
                    found=f"held by {who} at {holder['address']}",
                    wanted=f"free, or held by {' or '.join(row['units'])}",
                    fix=f"systemctl disable --now {unit}" if unit.endswith(".service") else "end that process",
                )
            )
    return problems


# --- clocks ------------------------------------------------------------------------------------------------------


def clock_offset(before: float, begun: float, ended: float, after: float) -> tuple[float, float]:
    """Return between which seconds a host's clock is ahead of the controller's.

    The controller called between ``before`` and ``after`` by its own clock, the module ran between ``begun`` and
    ``ended`` by the host's. What the call and the answer took is not known apart, so the truth is an interval.
    """
    return ended - after, begun - before


def check_clocks(offsets: Mapping[str, tuple[float, float]], limit: float) -> list[Problem]:
    """Report hosts whose clock certainly differs from the controller's by over ``limit``, and the worst pair."""
    problems = []

    def report(host: str, subject: str, seconds: float) -> None:
        problems.append(
            problem(
                "E-CLOCK-DIFFERENCE",
                subject,
                host=host,
                found=f"{seconds:.1f} s or more",
                wanted=f"{limit:g} s or less (preflight_clock_difference)",
                fix="let systemd-timesyncd or chrony keep the clocks; Airflow refuses its own tokens from 10 s on",
            )
        )

    for host, (low, high) in offsets.items():
        apart = max(low, -high, 0.0)
        if apart > limit:
            report(host, "clock against the controller's", apart)
    if not problems and len(offsets) > 1:
        ahead = max(offsets, key=lambda host: offsets[host][0])
        behind = min(offsets, key=lambda host: offsets[host][1])
        apart = offsets[ahead][0] - offsets[behind][1]
        if apart > limit:
            report(ahead, f"clock against that of {behind}", apart)
    return problems


def check_synchroniser(host: str, facts: Mapping[str, Any], required: bool) -> list[Problem]:
    """Report a host whose clock nobody keeps right."""
    if not required or facts["clock"]["synchronised"]:
        return []
    return [
        problem(
            "E-CLOCK-UNSYNCHRONISED",
            "clock",
            host=host,
            found="no time synchroniser runs",
            wanted="systemd-timesyncd, chrony or another one (host_time_sync_required)",
            fix="install systemd-timesyncd; where the machine below keeps the clock: host_time_sync_required: false",
        )
    ]
