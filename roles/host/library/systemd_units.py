#!/usr/bin/python
"""systemd units of one host as one desired state: enabled, started, and restarted when what they run from is newer."""

from __future__ import annotations

DOCUMENTATION = r"""
module: systemd_units
short_description: Keep a set of units enabled, started and up to date
description:
  - One call for all units of a role, with one diff.
  - Whether a unit must restart is read from the host, not from a handler. A unit restarts when a file of
    O(units[].restart_after) is newer than its start, so a play that died between a change and its restart is
    completed by the next one. Reloads systemd's own files when a unit asks for it.
  - A unit that cannot start fails with the last lines of its journal.
options:
  units:
    description: The units, in the order in which they are started.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: Full name with suffix., type: str, required: true}
      enabled: {description: Start at boot; without a value this is left as it is., type: bool}
      state: {description: Wanted state., type: str, choices: [started, stopped], default: started}
      restart_after:
        description: Files that the unit reads at start only.
        type: list
        elements: path
        default: []
  changed_paths:
    description: Paths that earlier tasks changed. Check mode needs them to foresee the restart.
    type: list
    elements: path
    default: []
  restart:
    description: With C(false), what runs goes on running; O(units) that must restart come back as RV(pending).
    type: bool
    default: true
"""

RETURN = r"""
actions:
  description: What was (in check mode, would be) done, for example C(restart redis-server.service).
  type: list
  returned: always
pending:
  description: Units that must restart and were left running.
  type: list
  returned: always
"""

import os
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

# The main process, not the unit: a unit between two automatic restarts counts as leaving 'inactive' already.
STARTED = "ExecMainStartTimestampMonotonic"
PROPERTIES = ("Id", "LoadState", "ActiveState", "UnitFileState", "NeedDaemonReload", "DropInPaths", "Unit", STARTED)


def parse_show(text: str) -> list[dict[str, str]]:
    """Split the output of `systemctl show` for several units: one block of KEY=VALUE lines each."""
    blocks = [block for block in text.strip().split("\n\n") if block]
    return [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks]


def newer_files(paths: list[str], start: float, changed: set[str]) -> list[str]:
    """Return the paths whose file is newer than `start` (seconds since the epoch) or which just changed."""

    def is_newer(path: str) -> bool:
        try:
            return os.stat(path).st_mtime > start
        except FileNotFoundError:
            return False

    return [path for path in paths if path in changed or is_newer(path)]


def needs_reload(unit: dict[str, Any], shown: dict[str, str]) -> bool:
    """Tell whether systemd knows an older state of the unit's files, or none.

    systemd 252 (Debian 12) says no to NeedDaemonReload when the folder of a drop-in is new, so those are compared too.
    """
    known = shown.get("DropInPaths", "").split()
    drop_ins = [path for path in unit["restart_after"] if path.split("/")[-2:-1] == [f"{unit['name']}.d"]]
    unread = any(path not in known and os.path.exists(path) for path in drop_ins)
    return unread or shown.get("NeedDaemonReload") == "yes" or shown.get("LoadState") == "not-found"


def plan(unit: dict[str, Any], shown: dict[str, str], boot: float, changed: set[str]) -> tuple[list[str], list[str]]:
    """Compare one unit with its wanted state.

    `boot` is the wall clock time at which the monotonic clock was 0. Returns the verbs for systemctl and the reason
    (files) of a restart.
    """
    verbs, reasons = [], []
    enabled = shown.get("UnitFileState", "") in ("enabled", "enabled-runtime", "alias", "static", "generated")
    if unit["enabled"] is not None and unit["enabled"] != enabled:
        verbs.append("enable" if unit["enabled"] else "disable")
    running = shown.get("ActiveState", "inactive") in ("active", "reloading", "refreshing")
    if unit["state"] == "stopped":
        # 'activating' waits for a restart: it must be stopped too.
        if shown.get("ActiveState", "inactive") not in ("inactive", "failed"):
            verbs.append("stop")
    elif not running:
        verbs.append("start")
    else:
        start = boot + int(shown.get(STARTED) or 0) / 1e6
        reasons = newer_files(unit["restart_after"], start, changed)
        if reasons:
            verbs.append("restart")
    return verbs, reasons


def _systemctl(module: AnsibleModule, *arguments: str) -> str:
    code, out, err = module.run_command(["systemctl", *arguments])
    if code != 0:
        message = (err or out).strip()
        if arguments[0] in ("start", "restart"):
            _, journal, _ = module.run_command(
                ["journalctl", "--no-pager", "--output=cat", "--lines=25", "--unit", arguments[-1]]
            )
            message += f"\nLast lines of its journal:\n{journal.strip()}"
        module.fail_json(msg=f"systemctl {' '.join(arguments)}: {message}")
    return str(out)


def _show(module: AnsibleModule, names: list[str]) -> list[dict[str, str]]:
    return parse_show(_systemctl(module, "show", f"--property={','.join(PROPERTIES)}", "--", *names))


def main() -> None:
    """Read all units at once, then do what differs."""
    module = AnsibleModule(
        argument_spec={
            "units": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "enabled": {"type": "bool"},
                    "state": {"type": "str", "choices": ["started", "stopped"], "default": "started"},
                    "restart_after": {"type": "list", "elements": "path", "default": []},
                },
            },
            "changed_paths": {"type": "list", "elements": "path", "default": []},
            "restart": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    units = module.params["units"]
    names = [unit["name"] for unit in units]
    shown = _show(module, names)
    # A timer keeps its service loaded, and would start it from the text of before.
    timed = [entry["Unit"] for entry in shown if entry.get("Unit")]
    outdated = bool(timed) and any(entry.get("NeedDaemonReload") == "yes" for entry in _show(module, timed))
    if not module.check_mode and (outdated or any(map(needs_reload, units, shown))):
        _systemctl(module, "daemon-reload")
        shown = _show(module, names)

    boot = time.time() - time.monotonic()
    changed = set(module.params["changed_paths"])
    actions, pending, before, after = [], [], "", ""
    for unit, entry in zip(units, shown, strict=True):
        verbs, reasons = plan(unit, entry, boot, changed)
        if reasons and not module.params["restart"]:
            verbs.remove("restart")
            pending.append(unit["name"])
        for verb in verbs:
            actions.append(f"{verb} {unit['name']}")
            before += f"{unit['name']}: {entry.get('ActiveState')}, {entry.get('UnitFileState') or 'no unit file'}\n"
            because = f" (newer than its start: {', '.join(reasons)})" if verb == "restart" else ""
            after += f"{unit['name']}: {verb}{because}\n"
            if not module.check_mode:
                _systemctl(module, verb, unit["name"])

    module.exit_json(changed=bool(actions), actions=actions, pending=pending, diff={"before": before, "after": after})


if __name__ == "__main__":
    main()
