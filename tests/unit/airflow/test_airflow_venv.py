"""What goes with a venv comes back as it was, also when the new version had added to it."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.unit.host.run_module import run_module

MODULE = "airflow/library/airflow_venv.py"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    old = tmp_path / "venvs/3.2.2-a"
    (old / "lib/python3.13/site-packages/apache_airflow_core-3.2.2.dist-info").mkdir(parents=True)
    (tmp_path / "config/__pycache__").mkdir(parents=True)
    (tmp_path / "config/bundle.py").write_text("old")
    (tmp_path / "config/__pycache__/bundle.pyc").write_text("code")
    (tmp_path / "airflow.cfg").write_text("old")
    (tmp_path / "venv").symlink_to(old)
    return tmp_path


def run(home: Path, state: str, *, check: bool = False, wanted: str = "") -> dict[str, Any]:
    files = [str(home / name) for name in ("airflow.cfg", "config", "new.service")]
    parameters = {
        "state": state, "link": str(home / "venv"), "wanted": wanted, "files": files,
        "archive": str(home / "kept/former.tar"),
    }  # fmt: skip
    return run_module(MODULE, parameters, check=check)


def upgrade(home: Path) -> None:
    (home / "venv").unlink()
    (home / "venv").symlink_to(home / "venvs/3.3.2-b")
    (home / "airflow.cfg").write_text("new")
    (home / "config/bundle.py").write_text("new")
    (home / "config/added.py").write_text("new")
    (home / "new.service").write_text("new")


def test_a_look_tells_version_and_readiness(home: Path) -> None:
    wanted = home / "venvs/3.3.2-b"
    assert run(home, "look", wanted=str(wanted))["found"] | {"free_megabytes": 0, "megabytes": 0} == {
        "venv": str(home / "venvs/3.2.2-a"), "version": "3.2.2", "ready": False, "kept": None, "free_megabytes": 0,
        "megabytes": 0,
    }  # fmt: skip
    wanted.mkdir()
    (wanted / "locked_venv.json").write_text(json.dumps({"state": "building"}))
    assert not run(home, "look", wanted=str(wanted))["found"]["ready"]
    (wanted / "locked_venv.json").write_text(json.dumps({"requirements": "0", "python": "p"}))
    assert run(home, "look", wanted=str(wanted))["found"]["ready"]


def test_files_and_link_come_back_and_what_was_added_goes(home: Path) -> None:
    assert run(home, "kept", check=True)["changed"]
    assert not (home / "kept").exists()
    assert run(home, "kept")["found"]["kept"]["version"] == "3.2.2"
    assert stat.S_IMODE((home / "kept/former.tar").stat().st_mode) == 0o600
    upgrade(home)

    assert run(home, "restored")["changed"]

    assert (home / "venv").readlink() == home / "venvs/3.2.2-a"
    assert (home / "airflow.cfg").read_text() == "old"
    assert [path.name for path in (home / "config").iterdir()] == ["bundle.py"]
    assert not (home / "new.service").exists()
    assert run(home, "forgotten")["changed"]
    assert not run(home, "forgotten")["changed"]
    assert not run(home, "restored")["changed"], "nothing is kept"


def test_who_goes_on_after_an_interruption_keeps_the_old(home: Path) -> None:
    run(home, "kept")
    upgrade(home)
    assert not run(home, "kept")["changed"]
    run(home, "restored")
    assert (home / "airflow.cfg").read_text() == "old"
