"""How a component of Airflow ends: with its own exit code, its exit functions run, and without Python's clean-up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[3] / "roles/airflow/files/run_component.py"
# Stands in for Airflow: its exit functions run, its memory is not taken apart.
AIRFLOW = """
import atexit
import sys


class Memory:
    def __del__(self):
        print("taken apart")


memory = Memory()


def main():
    atexit.register(print, "exit function")
    print("arguments", *sys.argv[1:])
    {end}
"""


@pytest.mark.parametrize(
    ("end", "code", "error"),
    [
        ("return", 0, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('cannot be')", 1, "cannot be\n"),
        ("raise ValueError('broken')", 1, "ValueError: broken\n"),
        ("raise KeyboardInterrupt", 1, "KeyboardInterrupt\n"),
    ],
)
def test_the_end_of_a_component(tmp_path: Path, end: str, code: int, error: str) -> None:
    (tmp_path / "airflow").mkdir()
    (tmp_path / "airflow/__init__.py").touch()
    (tmp_path / "airflow/__main__.py").write_text(AIRFLOW.replace("{end}", end))
    ended = subprocess.run(
        [sys.executable, "-P", PROGRAM, "scheduler", "--flag"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode == code
    assert ended.stdout.splitlines() == ["arguments scheduler --flag", "exit function"]
    assert ended.stderr.endswith(error)
    assert bool(ended.stderr) == bool(error)
