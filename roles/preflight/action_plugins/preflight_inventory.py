"""Action: check the inventory as a whole on the controller, and say what every host has to be asked.

Runs once. Arguments are the tables of roles/preflight/vars. Returns ``problems``, ``hosts`` (what the probe of each
host needs, by name), ``flows`` and ``seconds``; fails never, because the report is to hold all problems.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible import context
from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase

ROLES = Path(__file__).parents[2]
sys.path.append(str(ROLES.parent))  # Ansible loads this file by its path; the checks are a package below `roles`

from roles.host.filter_plugins.platform_flows import platform_flows  # noqa: E402
from roles.preflight.checks import inventory as checks  # noqa: E402

# What a host is taken for where the inventory leaves a variable of role host out; its defaults say the same.
DEFAULTS: dict[str, Any] = {
    "host_time_sync_required": True,
    "host_firewall": True,
    "host_admin_networks": [],
    "host_ssh_port": 22,
}
OPTION_LINE = re.compile(r"^ {6}([a-z]\w*):", re.MULTILINE)
NAME = re.compile(r"(?<![\w.'\"{])['\"]?([A-Za-z_]\w*)['\"]?\s*[:=]")


def known_names(roles: Path, common: Path) -> set[str]:
    """Return the names of every role's options, whatever the entry point, and of the shared wiring."""
    names: set[str] = set()
    for specs in sorted(roles.glob("*/meta/argument_specs.yml")):
        names |= set(OPTION_LINE.findall(specs.read_text(encoding="utf-8")))
    for wiring in sorted(common.glob("*.yml")):
        names |= set(re.findall(r"^(\w+):", wiring.read_text(encoding="utf-8"), re.MULTILINE))
    return names


def inventory_files(sources: list[str]) -> Iterator[Path]:
    """Yield the inventories' files in the order in which they override each other, then those of extra variables."""
    for source in map(Path, sources):
        base = source if source.is_dir() else source.parent
        tops = sorted(path for path in base.iterdir() if path.is_file()) if source.is_dir() else [source]
        yield from (path for path in tops if path.is_file())
        for folder in ("group_vars", "host_vars"):
            yield from sorted(path for path in (base / folder).rglob("*") if path.is_file())
    for extra in context.CLIARGS.get("extra_vars") or ():
        if str(extra).startswith("@"):
            yield Path(str(extra)[1:])


def locations(sources: list[str]) -> dict[str, str]:
    """Return ``file:line`` by variable name; the last setting counts, as it does for Ansible."""
    found = {}
    for path in inventory_files(sources):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        for number, line in enumerate(lines, start=1):
            if not line.lstrip().startswith("#"):
                for name in NAME.findall(line):
                    found[name] = f"{shown}:{number}"
    return found


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible has no types
    """The action ``preflight_inventory``."""

    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Check the inventory and return what was found."""
        started = time.monotonic()
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables, tables = task_vars or {}, self._task.args
        hostvars: Mapping[str, Mapping[str, Any]] = variables["hostvars"]
        groups = {name: list(hosts) for name, hosts in variables["groups"].items()}
        members = {host for name in tables["groups"] for host in groups.get(name, [])}
        hosts = [host for host in groups["all"] if host in members]

        def read(host: str, name: str) -> Any:
            if name not in hostvars[host]:
                raise checks.Unavailable("not set")
            try:
                return plain(hostvars[host][name])
            except AnsibleError as error:
                said = str(error).splitlines()[0]
                locked = "vault secret" in said.lower() or "decryption failed" in said.lower()
                raise checks.Unavailable("a vault without its password" if locked else f"fails: {said}") from error

        def read_or_default(host: str, name: str) -> Any:
            try:
                return read(host, name)
            except checks.Unavailable:
                return DEFAULTS[name]

        where = locations(list(variables.get("ansible_inventory_sources") or []))

        def locate(name: str) -> str:
            return where.get(name, "-e, or an encrypted file")

        problems = checks.check_groups(groups, tables["groups"])
        address_problems, addresses = checks.check_addresses(hosts, read)
        problems += address_problems
        flow_table = read(hosts[0], "host_flows") if hosts and "host_flows" in hostvars[hosts[0]] else []
        flow_problems = checks.check_flows(flow_table)
        problems += flow_problems

        known = known_names(ROLES, ROLES.parent / "inventories/common") | set(tables["facts"])
        known |= {str(row["name"]) for row in tables["secrets"]}
        prefixes = [path.name for path in ROLES.iterdir() if path.is_dir()]
        names = {name for host in hosts for name in hostvars[host]}
        problems += checks.check_names(names, known, prefixes, locate)
        url_problems, url_names = checks.check_urls(tables["urls"], hosts, read, locate)
        problems += url_problems
        problems += checks.check_ranges(tables["ranges"], hosts, read, locate)
        problems += checks.check_networks(tables["networks"], hosts, read, locate)
        problems += checks.check_secrets(tables["secrets"], groups, read, locate)

        own_groups = {name: [host for host in groups.get(name, []) if host in addresses] for name in groups}
        known_addresses = {host: {"host_address": address} for host, address in addresses.items()}
        flows = [] if flow_problems else platform_flows(flow_table, own_groups, known_addresses)
        plans = {}
        for host in hosts:
            wanted_names = {name: variable for name, variable in url_names[host].items() if name not in hosts}
            wanted_names |= {name: "preflight_names" for name in tables["names"]}
            plans[host] = {
                "address": addresses.get(host, ""),
                "groups": [name for name in tables["groups"] if host in groups.get(name, [])],
                "names": wanted_names,
                "time_sync_required": bool(read_or_default(host, "host_time_sync_required")),
                "login": {
                    "firewall": bool(read_or_default(host, "host_firewall")),
                    "networks": list(read_or_default(host, "host_admin_networks")),
                    "port": int(read_or_default(host, "host_ssh_port")),
                },
            }
        result.update(
            changed=False,
            problems=problems,
            hosts=plans,
            flows=flows,
            secrets=len(tables["secrets"]),
            variables=len(names & known),
            seconds=time.monotonic() - started,
        )
        return result


def plain(value: object) -> Any:
    """Return a variable's value as plain Python, which evaluates every expression in it."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
