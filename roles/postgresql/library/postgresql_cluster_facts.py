#!/usr/bin/python
"""What role postgresql must know about a host before it changes anything."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_cluster_facts
short_description: Read a host's memory, missing packages and the state of its PostgreSQL cluster
description:
  - Reads without a running server, so it works on pristine and on stopped hosts.
options:
  binaries: {description: Folder of PostgreSQL's programs., type: path, required: true}
  data_directory: {description: Folder of the cluster's data., type: path, required: true}
  packages:
    description: Debian packages to look for; asking here saves a call of its own on a run without changes.
    type: list
    elements: str
    default: []
"""

RETURN = r"""
memory_mb:
  description: The host's memory in MiB.
  type: int
  returned: always
missing_packages:
  description: Those of O(packages) that are not installed.
  type: list
  returned: always
cluster_exists:
  description: Whether O(data_directory) holds a cluster.
  type: bool
  returned: always
data_checksums:
  description: Whether its pages carry checksums; without a cluster C(null).
  type: bool
  returned: always
"""

import os
import re

from ansible.module_utils.basic import AnsibleModule


def memory_mb(meminfo: str) -> int:
    """Return MemTotal of /proc/meminfo in MiB."""
    found = re.search(r"^MemTotal:\s+(\d+) kB$", meminfo, re.MULTILINE)
    return int(found.group(1)) // 1024 if found else 0


def has_checksums(control_data: str) -> bool:
    """Return whether pg_controldata (run with LC_ALL=C) names a checksum version other than 0."""
    found = re.search(r"^Data page checksum version:\s+(\d+)$", control_data, re.MULTILINE)
    return bool(found and int(found.group(1)))


def missing(packages: list[str], dpkg_query: str) -> list[str]:
    """Return the packages that have no line "NAME install ok installed" in dpkg-query's output."""
    installed = {line.split()[0] for line in dpkg_query.splitlines() if line.endswith(" install ok installed")}
    return [package for package in packages if package not in installed]


def main() -> None:
    """Read /proc/meminfo, dpkg's database and the cluster's control file."""
    module = AnsibleModule(
        argument_spec={
            "binaries": {"type": "path", "required": True},
            "data_directory": {"type": "path", "required": True},
            "packages": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    data_directory = module.params["data_directory"]
    with open("/proc/meminfo", encoding="ascii") as stream:
        memory = memory_mb(stream.read())
    exists = os.path.exists(os.path.join(data_directory, "global", "pg_control"))
    checksums = None
    if exists:
        program = os.path.join(module.params["binaries"], "pg_controldata")
        _, out, _ = module.run_command([program, data_directory], check_rc=True, environ_update={"LC_ALL": "C"})
        checksums = has_checksums(out)
    packages = module.params["packages"]
    installed = ""
    if packages:
        # Unknown packages make it exit with 1; they are missing like others.
        line = "--showformat=${Package} ${Status}\\n"
        _, installed, _ = module.run_command(["dpkg-query", "--show", line, *packages])
    module.exit_json(
        changed=False,
        memory_mb=memory,
        missing_packages=missing(packages, installed),
        cluster_exists=exists,
        data_checksums=checksums,
    )


if __name__ == "__main__":
    main()
