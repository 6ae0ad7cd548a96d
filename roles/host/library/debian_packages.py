#!/usr/bin/python
"""Ansible module: a set of Debian packages is installed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: debian_packages
short_description: Install the Debian packages that are missing
description:
  - Compares the wanted names with dpkg's own records. Unlike M(ansible.builtin.apt) it loads no package cache when
    nothing is missing, and it needs no package lists to tell in check mode what would be installed, so check mode is
    exact on a host that has never run C(apt-get update).
  - Another package manager that is at work, such as the install of a run whose controller was lost, ends first.
    What one that died has left half done is finished.
  - Updates the package lists before an install when they are older than O(lists_valid_seconds).
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
options:
  packages:
    description: Names of real (not virtual) packages.
    type: list
    elements: str
    required: true
  lists_valid_seconds:
    description: Age up to which the package lists serve.
    type: int
    default: 3600
  lock_seconds:
    description: How long to wait for another package manager to finish.
    type: int
    default: 300
"""

EXAMPLES = r"""
- name: Install what the role needs
  debian_packages:
    packages: [ca-certificates, nftables]
"""

RETURN = r"""
installed:
  description: Packages that were missing.
  type: list
  elements: str
  returned: always
"""

import fcntl
import os
import time
from collections.abc import Sequence

from ansible.module_utils.basic import AnsibleModule

LISTS = "/var/lib/apt/lists"
LOCKS = ("/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock", f"{LISTS}/lock")
# What dpkg has not yet merged into its records: files with numbers as names.
JOURNAL = "/var/lib/dpkg/updates"
ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", "NEEDRESTART_MODE": "l"}


def missing_packages(wanted: list[str], records: str) -> list[str]:
    """Return the wanted packages that ``records`` (lines ``<status>\\t<package>`` of dpkg-query) do not show installed.

    dpkg's abbreviated status is three letters; ``ii`` is wanted and installed, ``hi`` held and installed.
    """
    installed = set()
    for line in records.splitlines():
        status, _, package = line.partition("\t")
        if status[1:2] == "i":
            installed.add(package)
    return [package for package in dict.fromkeys(wanted) if package not in installed]


def lists_are_fresh(valid_seconds: int) -> bool:
    """Tell whether the package lists exist and the last update is recent.

    The lists' own dates are the archive's; the folder's date is that of the last update.
    """
    try:
        has_lists = any(name.endswith(("_Packages", "_InRelease")) for name in os.listdir(LISTS))
        return has_lists and time.time() - os.stat(LISTS).st_mtime < valid_seconds
    except OSError:
        return False


def wait_for_locks(paths: Sequence[str], seconds: float) -> None:
    """Wait until nobody holds a lock of apt or dpkg (fcntl locks both); apt itself waits for the lists' not at all.

    Gives up when the time is over: the command then says who holds it.
    """
    until = time.monotonic() + seconds
    for path in paths:
        if os.path.exists(path):
            wait_for_lock(path, until)


def wait_for_lock(path: str, until: float) -> None:
    """Wait until nobody holds the lock, or until this instant of the monotonic clock."""
    with open(path, "a", encoding="utf-8") as lock:
        while time.monotonic() < until:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                time.sleep(0.5)


def is_interrupted(records: str = JOURNAL) -> bool:
    """Tell whether a dpkg died at work, as dpkg itself does."""
    try:
        return any(name.isdigit() for name in os.listdir(records))
    except OSError:
        return False


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "packages": {"type": "list", "elements": "str", "required": True},
            "lists_valid_seconds": {"type": "int", "default": 3600},
            "lock_seconds": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    module.run_command_environ_update = ENVIRONMENT
    wanted = module.params["packages"]
    # dpkg-query ends with 1 when one of the names is unknown to it; that one is simply missing.
    _, records, _ = module.run_command(
        ["dpkg-query", "--show", "--showformat=${db:Status-Abbrev}\t${Package}\n", *wanted]
    )
    missing = missing_packages(wanted, records)
    if missing and not module.check_mode:
        wait_for_locks(LOCKS, module.params["lock_seconds"])
        apt_get = ["apt-get", "--quiet", f"--option=DPkg::Lock::Timeout={module.params['lock_seconds']}"]
        keep_files = ["--option=Dpkg::Options::=--force-confdef", "--option=Dpkg::Options::=--force-confold"]
        commands = [[*apt_get, *keep_files, "--yes", "--no-install-recommends", "install", *missing]]
        if not lists_are_fresh(module.params["lists_valid_seconds"]):
            commands.insert(0, [*apt_get, "update"])
        if is_interrupted():
            commands.insert(0, ["dpkg", "--force-confdef", "--force-confold", "--configure", "--pending"])
        for command in commands:
            code, output, errors = module.run_command(command)
            if code != 0:
                said = f"'{' '.join(command)}' ended with {code}.\n{errors.strip()}"
                module.fail_json(
                    msg=f"Cannot install {', '.join(missing)}: {said}",
                    stdout=output,
                    stderr=errors,
                )
    module.exit_json(
        changed=bool(missing),
        installed=missing,
        diff={"before": "", "after": "".join(f"{package}\n" for package in missing), "after_header": "packages"},
    )


if __name__ == "__main__":
    main()
