"""The sampler over the processes of a PID namespace of its own: other processes of this machine would blur the sums."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from roles.load_test.library import host_sampler as subject

# Starts the sampler, does some work once it samples, ends it by removing its file, and prints what it says.
HOST = """
import subprocess, sys, time
from pathlib import Path
module, arguments, running, work = sys.argv[1:]
sampler = subprocess.Popen([sys.executable, module, arguments], stdout=subprocess.PIPE, text=True)
limit = time.monotonic() + 20
while not Path(running).exists():
    if sampler.poll() is not None or time.monotonic() > limit:
        sys.exit("the sampler did not start")
    time.sleep(0.05)
subprocess.run([sys.executable, "-c", work], check=True)
Path(running).unlink()
print(sampler.communicate(timeout=20)[0])
"""


def sample(folder: Path, work: str) -> list[dict[str, Any]]:
    """Return the samples of a host where a process did some work and ended."""
    running, arguments = folder / "running", folder / "arguments.json"
    arguments.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": {"running": str(running), "every": 0.2, "seconds": 60}}))
    command = [sys.executable, "-c", HOST, str(Path(subject.__file__)), str(arguments), str(running), work]
    said = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", *command],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    found: list[dict[str, Any]] = json.loads(said.stdout)["samples"]
    return found


def test_work_shows_even_if_its_process_has_ended(tmp_path: Path) -> None:
    burn = "import time\nwhile time.process_time() < 1.5: pass"
    samples = sample(tmp_path, burn)
    assert sum(entry["cpu"] for entry in samples) > 1.4
    assert all(entry["memory_mib"] > 10 for entry in samples)


def test_writing_shows(tmp_path: Path) -> None:
    write = f"import os\nf = open({str(tmp_path / 'data')!r}, 'wb'); f.write(os.urandom(32 << 20)); os.fsync(f)"
    samples = sample(tmp_path, write)
    assert sum(entry["written_mib"] for entry in samples) > 30
