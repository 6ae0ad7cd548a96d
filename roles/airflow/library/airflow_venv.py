#!/usr/bin/python
"""Which venv Airflow runs from on this host, and the files that go with it: kept aside, put back, forgotten."""

from __future__ import annotations

DOCUMENTATION = r"""
module: airflow_venv
short_description: Look at the venv in use, keep what belongs to it, put that back
description:
  - "C(state=look): the venv that the link names, its version and size, whether the wanted one is built, free space,
    and what is kept. Changes nothing."
  - "C(state=kept): an archive of O(files) with the link's target, readable by root. One that is there stays as it is:
    whoever goes on after an interruption must not keep half of the new."
  - "C(state=restored): the files and the link are as they were kept; what was not there then is removed. Without an
    archive nothing happens."
  - "C(state=forgotten): nothing is kept."
  - No secret belongs into O(files).
options:
  state: {description: What to reach., type: str, choices: [look, kept, restored, forgotten], required: true}
  link: {description: Link that names the venv in use., type: path, default: /opt/airflow/venv}
  wanted: {description: Folder of the wanted venv., type: path, default: ""}
  files: {description: "Files and folders that belong to the venv in use.", type: list, elements: path, default: []}
  archive: {description: Where they are kept., type: path, default: /var/lib/airflow_upgrade/former.tar}
attributes:
  check_mode: {support: full}
"""
EXAMPLES = r"""
- name: Keep what goes with the venv
  airflow_venv:
    state: kept
    files: [/etc/airflow/airflow.cfg, /etc/systemd/system/airflow-worker.service]
"""
RETURN = r"""
found:
  description: What there is after the module has run.
  type: dict
  returned: always
  contains:
    venv: {description: The venv that the link names; empty without one., type: str}
    version: {description: Airflow's version in it., type: str}
    ready: {description: Whether the wanted venv is complete., type: bool}
    megabytes: {description: Size of the venv in use., type: float}
    free_megabytes: {description: Free space beside it., type: float}
    kept: {description: "C(venv), C(version) and time (C(at)) of what is kept; null without it.", type: dict}
"""

import io
import json
import os
import shutil
import tarfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

NOTE = "note.json"
MARKER = "locked_venv.json"


def version_in(venv: Path) -> str:
    """Return Airflow's version in a venv, by the name of its metadata's folder; empty without Airflow."""
    for folder in venv.glob("lib/python*/site-packages/apache_airflow_core-*.dist-info"):
        return folder.name.removeprefix("apache_airflow_core-").removesuffix(".dist-info")
    return ""


def is_ready(venv: Path) -> bool:
    """Whether module locked_venv has finished this venv."""
    try:
        return "requirements" in json.loads((venv / MARKER).read_text())
    except (OSError, ValueError):
        return False


def megabytes_of(folder: Path) -> float:
    """Return what a folder takes on disk."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            total += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return round(total / 1e6, 1)


def note_in(archive: Path) -> dict[str, Any] | None:
    """Return the note of an archive; None without a whole one."""
    try:
        with tarfile.open(archive) as tar:
            file = tar.extractfile(NOTE)
            found: dict[str, Any] = json.load(file) if file else {}
            return found
    except (OSError, tarfile.TarError, KeyError, ValueError):
        return None


def look(params: dict[str, Any], sizes: bool = True) -> dict[str, Any]:
    """Describe what is there."""
    link = Path(params["link"])
    venv = Path(os.path.realpath(link)) if link.is_symlink() else None
    there = next(path for path in (link.parent, *link.parent.parents) if path.exists())
    return {
        "venv": str(venv or ""),
        "version": version_in(venv) if venv else "",
        "ready": bool(params["wanted"]) and is_ready(Path(params["wanted"])),
        "megabytes": megabytes_of(venv) if venv and sizes else 0.0,
        "free_megabytes": round(shutil.disk_usage(there).free / 1e6, 1),
        "kept": note_in(Path(params["archive"])),
    }


def keep(params: dict[str, Any], found: dict[str, Any]) -> None:
    """Write the archive; a reader sees none or the whole."""
    archive = Path(params["archive"])
    archive.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = [path for path in params["files"] if os.path.lexists(path)]
    note = {
        "venv": found["venv"],
        "version": found["version"],
        "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "files": params["files"],
    }
    text = json.dumps(note, sort_keys=True).encode()
    staged = archive.with_suffix(".new")
    with open(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
        with tarfile.open(fileobj=stream, mode="w") as tar:
            entry = tarfile.TarInfo(NOTE)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text))
            for path in files:
                tar.add(path, arcname=path.lstrip("/"), filter=without_caches)
        stream.flush()
        os.fsync(stream.fileno())
    staged.replace(archive)


def without_caches(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave byte code out: each Python makes its own."""
    return None if "__pycache__" in entry.name.split("/") else entry


def restore(params: dict[str, Any], note: dict[str, Any]) -> None:
    """Put files and link back as they were kept."""
    for path in map(Path, note["files"]):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    with tarfile.open(params["archive"]) as tar:
        for member in tar:
            if member.name != NOTE:
                tar.extract(member, "/", filter="tar")
                if not member.isdir():
                    # Their times decide whether a unit runs from older files.
                    os.utime("/" + member.name)
    link = Path(params["link"])
    staged = link.with_name(f".{link.name}.new")
    staged.unlink(missing_ok=True)
    staged.symlink_to(note["venv"])
    staged.replace(link)


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"choices": ["look", "kept", "restored", "forgotten"], "required": True},
            "link": {"type": "path", "default": "/opt/airflow/venv"},
            "wanted": {"type": "path", "default": ""},
            "files": {"type": "list", "elements": "path", "default": []},
            "archive": {"type": "path", "default": "/var/lib/airflow_upgrade/former.tar"},
        },
        supports_check_mode=True,
    )
    params = module.params
    state, found = params["state"], look(params, sizes=params["state"] == "look")
    changed = {"look": False, "kept": found["kept"] is None}.get(state, found["kept"] is not None)
    if changed and not module.check_mode:
        if state == "kept":
            keep(params, found)
        elif state == "restored":
            restore(params, found["kept"])
        else:
            Path(params["archive"]).unlink()
        found = look(params, sizes=False)
    module.exit_json(changed=changed, found=found)


if __name__ == "__main__":
    main()
