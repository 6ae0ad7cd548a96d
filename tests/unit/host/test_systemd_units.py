"""What the module plans for a unit, from what systemd says about it and from the times of its files."""

import importlib.util
import os
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.unit.host.run_module import run_module

PATH = Path(__file__).parents[3] / "roles" / "host" / "library" / "systemd_units.py"
BOOT = 1_000_000.0
STARTED = 50.0  # seconds after boot


@pytest.fixture(scope="module")
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("systemd_units", PATH)
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def unit(**given: Any) -> dict[str, Any]:
    return {"name": "a.service", "enabled": None, "state": "started", "restart_after": [], **given}


def shown(**given: str) -> dict[str, str]:
    running = {"ActiveState": "active", "UnitFileState": "enabled"}
    return {**running, "ExecMainStartTimestampMonotonic": str(int(STARTED * 1e6)), **given}


def test_a_running_enabled_unit_stays(module: ModuleType) -> None:
    assert module.plan(unit(enabled=True), shown(), BOOT, set()) == ([], [])


def test_a_unit_of_a_package_that_is_not_there_yet_is_enabled_and_started(module: ModuleType) -> None:
    found = {"ActiveState": "inactive", "UnitFileState": "", "LoadState": "not-found"}
    assert module.plan(unit(enabled=True), found, BOOT, set()) == (["enable", "start"], [])


def test_a_unit_between_two_automatic_restarts_is_started_or_stopped(module: ModuleType) -> None:
    waiting = shown(ActiveState="activating")
    assert module.plan(unit(), waiting, BOOT, set())[0] == ["start"]
    assert module.plan(unit(state="stopped"), waiting, BOOT, set())[0] == ["stop"]


@pytest.mark.parametrize(("age", "verbs"), [(STARTED - 1, []), (STARTED + 1, ["restart"])])
def test_a_file_newer_than_the_start_restarts(module: ModuleType, tmp_path: Path, age: float, verbs: list[str]) -> None:
    path = tmp_path / "a.conf"
    path.touch()
    os.utime(path, (time.time(), BOOT + age))

    assert module.plan(unit(restart_after=[str(path)]), shown(), BOOT, set())[0] == verbs


def test_check_mode_foresees_the_restart_for_a_file_that_would_change(module: ModuleType) -> None:
    path = "/etc/not-written-yet.conf"
    assert module.plan(unit(restart_after=[path]), shown(), BOOT, {path}) == (["restart"], [path])


def test_show_is_split_into_units(module: ModuleType) -> None:
    text = "Id=a.service\nActiveState=active\n\nId=b.service\nActiveState=inactive\n"
    assert [entry["Id"] for entry in module.parse_show(text)] == ["a.service", "b.service"]


def test_a_drop_in_that_systemd_has_not_read_needs_a_reload(module: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "a.service.d" / "platform.conf"
    wanted = unit(restart_after=[str(path), str(tmp_path / "a.conf")])
    said_no = shown(NeedDaemonReload="no", LoadState="loaded", DropInPaths="")
    assert not module.needs_reload(wanted, said_no), "the file is not there yet"
    path.parent.mkdir()
    path.touch()
    assert module.needs_reload(wanted, said_no)
    assert not module.needs_reload(wanted, {**said_no, "DropInPaths": f"/lib/x.conf {path}"})


FAKE = """#!/bin/sh
echo "$@" >> {log}
test "$1" != show || printf 'Id=a.service\\nLoadState=loaded\\nActiveState=active\\nUnitFileState=enabled\\n'
"""


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("restart", [False, True])
def test_without_restart_what_runs_goes_on_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restart: bool, check: bool
) -> None:
    fake, log, changed = tmp_path / "systemctl", tmp_path / "log", tmp_path / "a.conf"
    fake.write_text(FAKE.format(log=log))
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    units = [unit(name="a.service", restart_after=[str(changed)])]
    parameters = {"units": units, "changed_paths": [str(changed)], "restart": restart}
    result = run_module("host/library/systemd_units.py", parameters, check=check)
    assert result["pending"] == ([] if restart else ["a.service"])
    assert result["actions"] == (["restart a.service"] if restart else [])
    assert result["changed"] == restart
    assert ("restart a.service" in log.read_text()) == (restart and not check)


TIMER = """#!/bin/sh
echo "$@" >> {log}
test "$1" = show || exit 0
case "$*" in
*a.timer*) printf 'Id=a.timer\\nLoadState=loaded\\nActiveState=active\\nUnitFileState=enabled\\nUnit=a.service\\n' ;;
*) printf 'Id=a.service\\nLoadState=loaded\\nActiveState=inactive\\nNeedDaemonReload={stale}\\n' ;;
esac
"""


@pytest.mark.parametrize("stale", ["yes", "no"])
def test_a_timer_starts_its_service_from_the_text_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stale: str
) -> None:
    fake, log = tmp_path / "systemctl", tmp_path / "log"
    fake.write_text(TIMER.format(log=log, stale=stale))
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    result = run_module("host/library/systemd_units.py", {"units": [unit(name="a.timer")]})
    assert not result["changed"]
    assert ("daemon-reload" in log.read_text().split()) == (stale == "yes")
