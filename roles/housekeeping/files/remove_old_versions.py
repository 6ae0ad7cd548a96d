#!/usr/bin/python3
"""Remove former versions of a program: folders that no unit, link or process names, but for the newest few."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

REFERENCES = (Path("/etc/systemd/system"), Path("/usr/local/sbin"))


def texts(folders: tuple[Path, ...]) -> Iterator[str]:
    """Yield what units and commands say."""
    for folder in folders:
        for file in folder.rglob("*"):
            if file.is_file():
                yield file.read_text(errors="replace")


def processes() -> Iterator[str]:
    """Yield how each process was called and which files it has in memory: a venv's interpreter is a link out of it."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            for name in ("cmdline", "maps"):
                try:
                    yield (process / name).read_text(errors="replace")
                except OSError:
                    continue  # it has ended


def linked(parent: Path) -> set[Path]:
    """Return where the links beside a folder of versions lead to."""
    return {link.resolve() for link in parent.parent.iterdir() if link.is_symlink()}


def unused(parent: Path, keep: int, said: list[str]) -> list[Path]:
    """Return the versions to remove, oldest first.

    A hidden folder is somebody's work in progress.
    """
    links = linked(parent)
    former = [
        version
        for version in parent.iterdir()
        if version.is_dir()
        and not version.name.startswith(".")
        and version.resolve() not in links
        and not any(re.search(rf"{re.escape(str(version))}(?![\w.-])", text) for text in said)
    ]
    former.sort(key=lambda version: version.stat().st_mtime)
    return former[: max(0, len(former) - keep)]


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=int, default=2, help="former versions that stay (default: 2)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    parser.add_argument("folder", nargs="+", type=Path, help="folder with a folder for each version")
    options = parser.parse_args()
    said = [*texts(REFERENCES), *processes()]
    for parent in options.folder:
        if not parent.is_dir():
            continue
        for version in unused(parent, options.keep, said):
            print(f"{'Would remove' if options.dry_run else 'Removing'} {version}", flush=True)
            if not options.dry_run:
                # Renamed first: nobody finds half of a version under its name.
                doomed = version.with_name(f".removing-{version.name}")
                os.rename(version, doomed)
                shutil.rmtree(doomed)


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")
