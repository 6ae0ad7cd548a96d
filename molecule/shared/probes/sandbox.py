"""See from within a unit's own mount namespace what its sandbox really does; a container may ignore it in silence."""

import re
import subprocess
from pathlib import Path
from typing import Any


def main(data: dict[str, Any]) -> dict[str, Any]:
    """Take ``unit`` and ``paths``; return its kernel-side state and for each path whether root may write there."""
    shown = subprocess.run(
        ["systemctl", "show", "--value", "--property=MainPID", data["unit"]], capture_output=True, text=True, check=True
    )
    pid = shown.stdout.strip()
    status = dict(re.findall(r"^(\w+):\s*(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))
    writable = {}
    for path in data["paths"]:
        probe = f"{path}/.sandbox-probe"
        done = subprocess.run(
            ["nsenter", "--target", pid, "--mount", "sh", "-c", f"touch {probe} && rm {probe}"],
            capture_output=True, check=False,
        )  # fmt: skip
        writable[path] = done.returncode == 0
    return {
        "uid": int(status["Uid"].split()[0]),
        "capabilities": int(status["CapEff"], 16),
        "no_new_privileges": status["NoNewPrivs"] == "1",
        "seccomp": status["Seccomp"] == "2",
        "private_tmp": Path(f"/proc/{pid}/root/tmp").stat().st_ino != Path("/tmp").stat().st_ino,
        "writable": writable,
    }
