"""Tests of the module locked_venv: real environments, real installs of one tiny locked package."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.unit.host.run_module import run_module

SIX = (
    "six==1.17.0 "
    "--hash=sha256:4721f391ed90541fddacab5acf947aa0d3dc7d27b2e1e8eda2be8970586c3274 "
    "--hash=sha256:ff70335d468e7eb6ec65b95b99d3a2836546063f63acc5171de367e834932a81\n"
)
UV = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))


def run(check: bool = False, **parameters: Any) -> dict[str, Any]:
    return run_module("host/library/locked_venv.py", {"python": sys.executable, **parameters}, check=check)


def imports_six(path: Path) -> bool:
    return subprocess.run([path / "bin/python", "-c", "import six"], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An environment that uv built, and the result of the build."""
    path = tmp_path_factory.mktemp("built") / "venv"
    return path, run(path=str(path), requirements=SIX, uv=UV)


def test_builds_and_compiles_what_the_lock_names(built):
    path, result = built
    assert result["changed"] is True, result
    assert imports_six(path)
    assert list(path.glob("lib/python*/site-packages/__pycache__/six.*.pyc"))


def test_same_lock_changes_nothing(built):
    path, _ = built
    result = run(path=str(path), requirements=SIX, uv=UV)
    assert (result["changed"], result["seconds"]) == (False, 0.0)


def test_output_does_not_carry_the_whole_lock(built):
    assert built[1]["invocation"]["module_args"]["requirements"].startswith("sha256:")


def test_check_mode_tells_a_change_and_makes_none(built, tmp_path):
    path, _ = built
    other = run(check=True, path=str(path), requirements=SIX + "# another lock\n", uv=UV)
    absent = run(check=True, path=str(tmp_path / "new"), requirements=SIX, uv=UV)
    assert (other["changed"], absent["changed"]) == (True, True)
    assert run(path=str(path), requirements=SIX, uv=UV)["changed"] is False
    assert not (tmp_path / "new").exists()


def test_an_install_that_died_is_built_anew(tmp_path):
    path = tmp_path / "venv"
    path.mkdir()
    (path / "locked_venv.json").write_text('{"state": "building"}')
    (path / "rubbish").touch()
    assert run(path=str(path), requirements=SIX, uv=UV)["changed"] is True
    assert imports_six(path)
    assert not (path / "rubbish").exists()


def test_a_build_that_a_lost_run_left_behind_ends_first(tmp_path):
    """It holds the lock as long as the installer itself lives, module or not; what it finished is taken as it is."""
    path = tmp_path / "venv"
    installer = tmp_path / "slow-uv"
    installer.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\nsleep 1\nexec {UV} "$@"\n')
    installer.chmod(0o755)
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(run, path=str(path), requirements=SIX, uv=str(installer)) for _ in range(2)]
        results = [each.result() for each in both]
    assert [result.get("failed") for result in results] == [None, None], results
    assert len((tmp_path / "called").read_text().splitlines()) == 2, "one build: venv and sync"
    assert imports_six(path)


def test_pip_installs_where_there_is_no_uv(tmp_path):
    path = tmp_path / "venv"
    result = run(path=str(path), requirements=SIX)
    assert result.get("failed") is None, result
    assert imports_six(path)


@pytest.mark.parametrize("uv", [UV, None])
def test_a_wrong_hash_fails_and_leaves_nothing(tmp_path, uv):
    path = tmp_path / "venv"
    result = run(path=str(path), requirements=f"six==1.17.0 --hash=sha256:{'0' * 64}\n", **({"uv": uv} if uv else {}))
    assert result["failed"] is True
    assert "hash" in result["msg"].lower()
    assert not path.exists()


def test_an_unlocked_line_is_refused(tmp_path):
    result = run(path=str(tmp_path / "venv"), requirements="six==1.17.0\n", uv=UV)
    assert result["failed"] is True
    assert "hash" in result["msg"].lower()


def test_a_foreign_folder_is_never_deleted(tmp_path):
    (tmp_path / "keep").touch()
    result = run(path=str(tmp_path), requirements=SIX, uv=UV)
    assert result["failed"] is True
    assert "not a virtual environment" in result["msg"]
    assert (tmp_path / "keep").exists()


def test_environment_reaches_the_installer(tmp_path):
    cache = tmp_path / "cache"
    run(path=str(tmp_path / "venv"), requirements=SIX, uv=UV, environment={"UV_CACHE_DIR": str(cache)})
    assert cache.is_dir()
