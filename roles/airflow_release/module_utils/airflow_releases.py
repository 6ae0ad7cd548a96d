"""Releases as directories: what a release is, which one is live, and the log of what went live when.

Standard library only: the action plugins load this file on the controller, the modules import it on the hosts.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Files = Mapping[str, Mapping[str, str]]
"""The content of a release: path -> {"mode": "0644" or "0755", "sha256": 64 hexadecimal digits}."""

ID_LENGTH = 12
MANIFEST, VERIFIED, SETTLED = "manifest.json", "verified.json", ".settled.json"


class ReleaseError(Exception):
    """The release cannot be what was asked for; the message says why and, for code, where."""


# --- what a release is (the action plugin uses these too) -------------------------------------------------------------


def release_id(files: Files) -> str:
    """Hash a release's content: what the files are called, hold and may be executed as, and nothing else."""
    listing = "".join(f"{path}\0{files[path]['mode']}\0{files[path]['sha256']}\n" for path in sorted(files))
    return hashlib.sha256(listing.encode()).hexdigest()[:ID_LENGTH]


def part_id(files: Files, part: str) -> str:
    """Hash one top-level directory of a release."""
    return release_id({path: entry for path, entry in files.items() if path.startswith(f"{part}/")})


def is_content(name: str) -> bool:
    """Whether a file or directory of this name belongs to a release: no caches, editor backups or hidden files."""
    return name == ".airflowignore" or not (
        name.startswith(".") or name.endswith(("~", ".pyc")) or name == "__pycache__"
    )


def describe(path: Path) -> dict[str, str]:
    """Mode (only whether it may be executed counts) and checksum of a file."""
    executable = path.stat().st_mode & stat.S_IXUSR
    return {"mode": "0755" if executable else "0644", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def read_tree(root: Path, parts: Iterable[str] | None = None) -> dict[str, dict[str, str]]:
    """Describe every file of a tree.

    :param parts: the top-level names to take; default: all
    :raises ReleaseError: there is a symbolic link or a device, which a release cannot promise to keep
    """
    files: dict[str, dict[str, str]] = {}
    pending = [root / part for part in parts] if parts is not None else list(root.iterdir())
    while pending:
        path = pending.pop()
        if not is_content(path.name) or not os.path.lexists(path):
            continue
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise ReleaseError(f"{path.relative_to(root)}: a release holds plain files and directories only")
        if path.is_dir():
            pending.extend(path.iterdir())
        else:
            files[str(path.relative_to(root))] = describe(path)
    return files


# --- the host's side --------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one if the file is missing or torn."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old or the new file, never half of one."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    new.chmod(0o644)
    new.replace(path)


def live_release(root: Path) -> str:
    """Id that the link names, or an empty string."""
    link = root / "current"
    return link.readlink().name if link.is_symlink() else ""


def content_of(directory: Path) -> dict[str, dict[str, str]]:
    """Describe the release in a directory, without what staging adds to it."""
    return {path: entry for path, entry in read_tree(directory).items() if path not in {MANIFEST, VERIFIED}}


def environment(python: str) -> str:
    """Where an interpreter's packages are: its folder without links; the interpreter is itself one, to the system's."""
    return os.path.realpath(os.path.dirname(python))


def is_intact(directory: Path, release: str) -> bool:
    """Whether the directory holds exactly this release, which has been parsed there."""
    verified = read_json(directory / VERIFIED)
    if verified.get("release") != release or "triggerer" not in verified:
        return False
    try:
        return release_id(content_of(directory)) == release
    except (OSError, ReleaseError):
        return False


def flip(root: Path, release: str) -> None:
    """Point ``current`` to the release in one step."""
    new = root / ".current.new"
    new.unlink(missing_ok=True)
    new.symlink_to(Path("releases", release))
    new.replace(root / "current")


def superfluous(
    releases: Mapping[str, float], *, keep: int, protected: Iterable[str], lived: Iterable[str] = ()
) -> list[str]:
    """Which releases to remove.

    :param releases: id -> time of staging
    :param keep: how many stay, the protected ones counted among them: first those that were live once, then the newest
    """
    safe, proven = set(protected), set(lived)
    ranked = sorted(releases, key=lambda name: (name in safe, name in proven, releases[name]), reverse=True)
    return sorted(name for name in ranked[max(keep, 0) :] if name not in safe)


def staged_releases(root: Path) -> dict[str, float]:
    """Every release on this host with the time at which it was staged."""
    return {
        path.name: path.stat().st_mtime
        for path in (root / "releases").glob("*")
        if path.is_dir() and not path.name.startswith(".")
    }


def compare(old: Path | None, new: Path) -> dict[str, list[str]]:
    """Compare two releases, DAG by DAG: ``added``, ``changed`` and ``removed`` DAGs, and changed ``files`` beside them.

    A DAG has changed if its file has, or if what Airflow stores of it has, as with a helper that builds it.
    """
    before, after = (_parsed(directory) for directory in (old, new))
    both = before["dags"].keys() & after["dags"].keys()
    files = {
        path
        for path in before["files"].keys() | after["files"].keys()
        if before["files"].get(path) != after["files"].get(path)
    }
    of_dags = {*before["dags"].values(), *after["dags"].values()}
    return {
        "added": sorted(after["dags"].keys() - both),
        "changed": sorted(
            dag
            for dag in both
            if after["dags"][dag] in files
            or after["dags"][dag] != before["dags"][dag]
            or after["stored"].get(dag) != before["stored"].get(dag)
        ),
        "removed": sorted(before["dags"].keys() - both),
        "files": sorted(files - of_dags),
    }


def _parsed(directory: Path | None) -> dict[str, Any]:
    verified = read_json(directory / VERIFIED) if directory else {}
    files = read_json(directory / MANIFEST).get("files", {}) if directory else {}
    return {"dags": verified.get("dags", {}), "stored": verified.get("stored", {}), "files": files}


# --- the log ----------------------------------------------------------------------------------------------------------


def now() -> str:
    """The time as the log and manifests have it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def write_log(path: Path, record: Mapping[str, Any]) -> None:
    """Append one line; one write, so that lines of two processes do not mix."""
    path.parent.mkdir(mode=0o755, exist_ok=True)
    line = json.dumps({"at": now(), **record}) + "\n"
    with path.open("a") as log:
        log.write(line)
    path.chmod(0o644)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Every line of the log; a torn one is left out."""
    records = []
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def previous_release(records: Sequence[Mapping[str, Any]], live: str) -> str:
    """Where a rollback without a name goes: to the release that was live before, as an editor's undo does.

    Two rollbacks in a row go back two releases, never to the one that the first has left. One that was cut off before
    it was logged is taken up again.

    :return: the id, or an empty string
    """
    history: list[str] = []
    for record in records:
        if record.get("result") != "live":
            continue
        release = str(record["release"])
        if record.get("action") == "rollback" and release in history:
            del history[len(history) - history[::-1].index(release) :]
        elif history[-1:] != [release]:
            history.append(release)
    if history[-1:] == [live]:
        return history[-2] if len(history) > 1 else ""
    if live in history:
        return live
    return history[-1] if history else ""
