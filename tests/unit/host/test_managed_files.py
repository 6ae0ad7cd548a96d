"""The module writes what differs and nothing else, all or nothing, and keeps secrets out of its diff."""

import grp
import os
import pwd
from pathlib import Path
from typing import Any

from tests.unit.host.run_module import run_module

MODULE = "host/library/managed_files.py"
OWNER = {"owner": pwd.getpwuid(os.geteuid()).pw_name, "group": grp.getgrgid(os.getegid()).gr_name}


def run(*files: dict[str, Any], check: bool = False) -> dict[str, Any]:
    return run_module(MODULE, {"files": [{**OWNER, **file} for file in files]}, check=check)


def test_makes_what_is_missing_and_nothing_the_second_time(tmp_path: Path) -> None:
    files: list[dict[str, Any]] = [
        {"path": str(tmp_path / "conf.d"), "state": "directory"},
        {"path": str(tmp_path / "conf.d" / "a.conf"), "content": "a = 1", "mode": "0640"},
    ]

    foreseen, first, second = run(*files, check=True), run(*files), run(*files)

    assert foreseen["changed_paths"] == first["changed_paths"] == [file["path"] for file in files]
    assert foreseen["diff"] == first["diff"]
    assert not second["changed"]
    assert (tmp_path / "conf.d" / "a.conf").read_text() == "a = 1\n"
    assert (tmp_path / "conf.d" / "a.conf").stat().st_mode & 0o777 == 0o640


def test_check_mode_foresees_owners_that_a_package_brings(tmp_path: Path) -> None:
    file = {"path": str(tmp_path / "missing" / "a.conf"), "content": "a", "owner": "not-yet-there"}

    foreseen = run(file, check=True)

    assert foreseen["changed"]
    assert not (tmp_path / "missing").exists()


def test_one_failing_check_leaves_every_file(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.conf", tmp_path / "bad.conf"
    bad.write_text("before\n")

    result = run(
        {"path": str(good), "content": "good"},
        {"path": str(bad), "content": "bad", "validate": "grep --quiet good %s"},
    )

    assert result["failed"]
    assert str(bad) in result["msg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.conf"]
    assert bad.read_text() == "before\n"


def test_a_wrong_mode_is_corrected_and_an_absent_path_removed(tmp_path: Path) -> None:
    loose, old = tmp_path / "loose", tmp_path / "old"
    loose.write_text("text\n")
    loose.chmod(0o666)
    old.mkdir()
    (old / "file").touch()

    result = run(
        {"path": str(loose), "content": "text", "mode": "0600"},
        {"path": str(old), "state": "absent"},
    )

    assert result["diff"][0]["before"].startswith("# mode: 0666\n")
    assert result["diff"][0]["after"].startswith("# mode: 0600\n")
    assert loose.stat().st_mode & 0o777 == 0o600
    assert not old.exists()


def test_a_hidden_part_that_changes_shows_that_it_changed_and_not_to_what(tmp_path: Path) -> None:
    path = tmp_path / "users.acl"
    file = {"path": str(path), "content": "user a #aaaa on", "hide": "#[a-f]+"}
    run(file)

    (shown,) = run({**file, "content": "user a #bbbb on"})["diff"]

    assert shown["before"] == "user a <hidden> on\n"
    assert shown["after"] == "user a <hidden, new value> on\n"
    assert path.read_text() == "user a #bbbb on\n"


def test_a_secret_file_appears_nowhere_in_the_result(tmp_path: Path) -> None:
    path = tmp_path / "password"
    run({"path": str(path), "secret": "correct horse"})

    result = run({"path": str(path), "secret": "battery staple"})

    assert result["changed"]
    assert path.read_text() == "battery staple\n"
    assert "battery" not in str(result)
    assert "correct" not in str(result)
