#!/usr/bin/python
"""Sample the load of a host until told to stop."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_sampler
short_description: Sample CPU, memory and disk of a host until a file is removed
description:
  - Creates O(running) and takes one sample each O(every) seconds until somebody removes the file. Run it with C(async).
  - Adds up the processes that it can see, so that a container counts as a host of its own.
options:
  running: {description: The file., type: path, required: true}
  every: {description: Seconds from sample to sample., type: float, default: 1.0}
  seconds: {description: Stops after this many seconds in any case., type: int, default: 7200}
attributes:
  check_mode: {support: none}
"""
EXAMPLES = r"""
- name: Start sampling
  host_sampler: {running: /run/load_test}
  async: 7200
  poll: 0
"""
RETURN = r"""
cores: {description: Processors of the host., type: int, returned: success}
memory_mib: {description: Memory of the host., type: int, returned: success}
processor: {description: What the processor calls itself., type: str, returned: success}
system: {description: Name and version of the distribution., type: str, returned: success}
samples:
  description: >-
    C(at) in seconds since 1970, C(cpu) in seconds used since the sample before, C(memory_mib) of all processes,
    each shared page divided among those that share it; C(read_mib), C(written_mib) since the sample before, from and
    to disks.
  type: list
  returned: success
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

MIB = 2**20
TICKS = os.sysconf("SC_CLK_TCK")


def processes() -> Iterator[Path]:
    """Yield the folder of each process."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            yield Path(entry.path)


def cpu_seconds(folder: Path) -> float:
    """CPU time of a process and of its children that have ended: so nothing is lost when a process ends."""
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS


def memory_bytes(folder: Path) -> int:
    """Memory of a process, each shared page divided among those that share it."""
    for line in (folder / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def disk_bytes(folder: Path) -> tuple[int, int]:
    """Bytes that a process and its ended children have read from and written to disks."""
    fields = dict(line.split(": ") for line in (folder / "io").read_text().splitlines())
    return int(fields["read_bytes"]), int(fields["write_bytes"])


def totals() -> dict[str, float]:
    """Add up all processes; one that ends meanwhile, or that is a thread of the kernel, counts with what it shows."""
    cpu = memory = read = written = 0.0
    for folder in processes():
        try:
            cpu += cpu_seconds(folder)
            memory += memory_bytes(folder)
            its_read, its_written = disk_bytes(folder)
        except OSError:
            continue
        read, written = read + its_read, written + its_written
    return {"cpu": cpu, "memory_mib": memory / MIB, "read_mib": read / MIB, "written_mib": written / MIB}


def difference(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """What happened between two totals; never negative, as a process may end between its parent's and its own line."""
    grown = {name: max(0.0, now[name] - before[name]) for name in ("cpu", "read_mib", "written_mib")}
    return {name: round(value, 3) for name, value in {**grown, "memory_mib": now["memory_mib"]}.items()}


def named(file: str, name: str, separator: str) -> str:
    """Return the value that a file of lines NAME SEPARATOR VALUE first gives to a name, or nothing."""
    for line in Path(file).read_text().splitlines():
        key, _, value = line.partition(separator)
        if key.strip() == name:
            return value.strip().strip('"')
    return ""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "running": {"type": "path", "required": True},
            "every": {"type": "float", "default": 1.0},
            "seconds": {"type": "int", "default": 7200},
        }
    )
    running = Path(module.params["running"])
    running.touch()
    samples = []
    end = time.time() + module.params["seconds"]
    before = totals()
    while running.exists() and time.time() < end:
        time.sleep(module.params["every"])
        now = totals()
        samples.append({"at": round(time.time(), 2), **difference(before, now)})
        before = now
    running.unlink(missing_ok=True)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    module.exit_json(
        changed=False,
        cores=os.cpu_count(),
        memory_mib=memory // MIB,
        processor=named("/proc/cpuinfo", "model name", ":"),
        system=named("/etc/os-release", "PRETTY_NAME", "="),
        samples=samples,
    )


if __name__ == "__main__":
    main()
