"""The program itself, on folders of its own; what refers to a version is a process or a link of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[3] / "roles/housekeeping/files/remove_old_versions.py"


@pytest.fixture
def versions(tmp_path: Path) -> Path:
    """Five versions, the first the oldest."""
    folder = tmp_path / "venvs"
    for number in range(1, 6):
        version = folder / f"3.3.{number}"
        (version / "bin").mkdir(parents=True)
        (version / "bin" / "program").write_text("#!/bin/sh\n")
        os.utime(version, (number * 1000, number * 1000))
    return folder


def run(*arguments: str | Path) -> str:
    return subprocess.run(
        [sys.executable, PROGRAM, *arguments], check=True, stdout=subprocess.PIPE, text=True, timeout=60
    ).stdout


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_former_versions_stay_besides_the_linked_one(versions: Path) -> None:
    (versions.parent / "venv").symlink_to(versions / "3.3.1")
    said = run("--keep", "2", versions, versions.parent / "missing")
    assert left(versions) == ["3.3.1", "3.3.4", "3.3.5"]
    assert said.splitlines() == [f"Removing {versions}/3.3.2", f"Removing {versions}/3.3.3"]
    assert run("--keep", "2", versions) == ""


def test_a_version_that_a_process_names_stays(versions: Path) -> None:
    wanted = subprocess.Popen([sys.executable, "-c", "input()", str(versions / "3.3.3")], stdin=subprocess.PIPE)
    try:
        run("--keep", "0", versions)
    finally:
        wanted.kill()
        wanted.wait()
    assert left(versions) == ["3.3.3"]


def test_a_dry_run_removes_nothing(versions: Path) -> None:
    assert len(run("--dry-run", "--keep", "0", versions).splitlines()) == 5
    assert len(left(versions)) == 5


def test_a_version_whose_name_another_one_starts_with_is_not_kept_for_it(versions: Path) -> None:
    (versions / "3.3.10").mkdir()
    (versions.parent / "venv").symlink_to(versions / "3.3.10")
    run("--keep", "0", versions)
    assert left(versions) == ["3.3.10"]
