"""Look for the values of secrets everywhere on this host where somebody may read them."""

import os
import subprocess
from pathlib import Path
from typing import Any

TREES = ["/etc", "/opt", "/root", "/home", "/run", "/srv", "/tmp", "/usr/local", "/var/lib", "/var/log", "/var/tmp"]
# Installed packages are locked by hash and as many files as all else together.
GREP = ["grep", "--recursive", "--files-with-matches", "--text", "--fixed-strings", "--devices=skip", "--no-messages"]


def main(data: dict[str, Any]) -> dict[str, Any]:
    """Take ``secrets``: names to lists of forms in which the value may stand.

    Returns ``files`` ({path, mode, owner, names}), ``processes`` ({where, command, names}) and ``journal`` (names).
    """
    forms = {name: [form.encode() for form in values] for name, values in data["secrets"].items()}

    def names_in(content: bytes) -> list[str]:
        return sorted(name for name, values in forms.items() if any(value in content for value in values))

    patterns = b"\n".join(value for values in forms.values() for value in values)
    trees = [tree for tree in TREES if os.path.isdir(tree)]
    search = [*GREP, "--exclude-dir=site-packages", "--file=-", *trees]
    found = subprocess.run(search, input=patterns, stdout=subprocess.PIPE, check=False).stdout
    files = []
    for line in sorted(set(found.decode().splitlines())):
        path = Path(line)
        try:
            status, names = path.stat(), names_in(path.read_bytes())
        except FileNotFoundError:
            continue  # went while we looked
        files.append({"path": line, "mode": status.st_mode & 0o7777, "owner": status.st_uid, "names": names})

    processes = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or process.name == str(os.getpid()):
            continue
        for kind in ("cmdline", "environ"):
            try:
                content = (process / kind).read_bytes()
                command = (process / "comm").read_text().strip()
            except OSError:
                continue  # ended, or a kernel thread
            if names := names_in(content):
                processes.append({"where": kind, "command": command, "names": names})

    journal = subprocess.run(["journalctl", "--no-pager", "--all"], stdout=subprocess.PIPE, check=False).stdout
    return {"files": files, "processes": processes, "journal": names_in(journal), "journal_bytes": len(journal)}
