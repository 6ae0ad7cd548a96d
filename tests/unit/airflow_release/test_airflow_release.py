from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from release_host import GOOD, ROLE, SOURCE, write  # noqa: F401

CHANGED = SOURCE | {"dags/one.py": "ONE = 2\n"}


def tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() or path.is_symlink()}


# --- what a release is ------------------------------------------------------------------------------------------------


def test_the_id_is_the_content(store, tmp_path):
    first = store.read_tree(write(tmp_path / "a", SOURCE))
    os.utime(write(tmp_path / "b", dict(reversed(SOURCE.items()))) / "dags/one.py", (1, 1))
    (tmp_path / "b/dags/one.py").chmod(0o600)
    assert store.release_id(store.read_tree(tmp_path / "b")) == store.release_id(first)
    ids = {store.release_id(first)}
    for name, text in (
        ("dags/one.py", "ONE = 2\n"),
        ("dags/two.py", "ONE = 1\n"),
        ("scripts/pause.sh", "#!/bin/sh\nx\n"),
    ):
        ids.add(store.release_id(store.read_tree(write(tmp_path / f"c{len(ids)}", SOURCE | {name: text}))))
    (tmp_path / "a/dags/one.py").chmod(0o755)
    ids.add(store.release_id(store.read_tree(tmp_path / "a")))
    assert len(ids) == 5


def test_a_moved_file_is_another_release(store):
    entry = {"mode": "0644", "sha256": "0" * 64}
    assert store.release_id({"a": entry, "b/c": entry}) != store.release_id({"a/b": entry, "c": entry})


def test_caches_backups_and_hidden_files_stay_behind(store, tmp_path):
    extra = {"dags/__pycache__/one.cpython-313.pyc": "", "dags/one.py~": "", "dags/.one.py.swp": "", ".git/HEAD": ""}
    assert set(store.read_tree(write(tmp_path, SOURCE | extra))) == set(SOURCE)


def test_only_the_named_parts_are_read(store, tmp_path):
    write(tmp_path, SOURCE | {"README.md": "x", "roles/x/tasks/main.yml": "x"})
    assert set(store.read_tree(tmp_path, ("dags", "scripts", "missing"))) == {"dags/one.py", "scripts/pause.sh"}


def test_a_link_is_refused_by_name(store, tmp_path):
    write(tmp_path, SOURCE)
    (tmp_path / "dags/two.py").symlink_to("/etc/passwd")
    with pytest.raises(store.ReleaseError, match=r"dags/two\.py: a release holds plain files"):
        store.read_tree(tmp_path)


# --- staged -----------------------------------------------------------------------------------------------------------


def test_staging_puts_exactly_the_release_there(host, store):
    result = host("staged", SOURCE)
    assert (result["changed"], result["live"]) == (True, "")
    assert json.loads((host.root / "releases" / result["release"] / "verified.json").read_text())["dags"] == {
        "one": "dags/one.py"
    }
    directory = host.root / "releases" / result["release"]
    sources = {name for name in tree(directory) if "__pycache__" not in name}
    assert sources == set(SOURCE) | {"manifest.json", "verified.json"}
    assert store.release_id(store.content_of(directory)) == result["release"]
    assert json.loads((directory / "manifest.json").read_text())["id"] == result["release"]
    assert (directory / "scripts/pause.sh").stat().st_mode & 0o777 == 0o755
    assert (directory / "dags").stat().st_mode & 0o777 == 0o755
    assert [path.name for path in (host.root / "releases").iterdir()] == [result["release"]]
    assert not (host.root / "current").is_symlink()


def test_modules_are_compiled_for_their_final_place(host):
    directory = host.root / "releases" / host("staged", SOURCE)["release"]
    (cache,) = (directory / "dags/__pycache__").iterdir()
    assert str(directory / "dags/one.py").encode() in cache.read_bytes()


def test_again_changes_nothing_and_needs_no_archive(host):
    host("staged", SOURCE)
    before = {path: path.stat().st_mtime_ns for path in host.root.rglob("*")}
    result = host("staged", SOURCE, send=False)
    assert result["changed"] is False
    assert {path: path.stat().st_mtime_ns for path in host.root.rglob("*")} == before


def test_a_missing_release_asks_for_its_archive(host):
    result = host("staged", SOURCE, send=False)
    assert (result["changed"], result["needs_archive"]) == (True, True)
    assert list(host.root.iterdir()) == []


@pytest.mark.parametrize("damage", ["edited", "added", "removed", "mode", "half"])
def test_a_directory_that_is_not_the_release_is_replaced(host, store, damage):
    directory = host.root / "releases" / host("staged", SOURCE)["release"]
    match damage:
        case "edited":
            (directory / "dags/one.py").write_text("ONE = 3\n")
        case "added":
            (directory / "dags/two.py").write_text("")
        case "removed":
            (directory / "plugins/__init__.py").unlink()
        case "mode":
            (directory / "scripts/pause.sh").chmod(0o644)
        case "half":
            (directory / "verified.json").unlink()
    assert host("staged", SOURCE)["changed"] is True
    assert store.release_id(store.content_of(directory)) == directory.name
    assert host("staged", SOURCE, send=False)["changed"] is False


def test_another_airflow_parses_again(host, tmp_path):
    host("staged", SOURCE)
    venv = tmp_path / "venv/bin"
    venv.mkdir(parents=True)
    (venv / "python").symlink_to(sys.executable)
    assert host("staged", SOURCE, python=str(venv / "python"))["changed"] is True
    assert host("staged", SOURCE, python=str(venv / "python"))["changed"] is False


def test_check_mode_parses_and_leaves_no_trace(host, tmp_path):
    mark = tmp_path / "parsed"
    result = host("staged", SOURCE, check=True, parser=f"open({str(mark)!r}, 'w')\n{GOOD}")
    assert result["changed"] is True
    assert "+dags" not in result["diff"]["before"]
    assert "dags/one.py 0644" in result["diff"]["after"]
    assert mark.exists()
    assert list(host.root.iterdir()) == []


def test_check_mode_on_a_blank_host_does_without_airflow(host):
    assert host("staged", SOURCE, check=True, python="/nowhere/bin/python")["changed"] is True
    result = host("staged", SOURCE, python="/nowhere/bin/python")
    assert "/nowhere/bin/python does not exist; install Airflow first" in result["msg"]


@pytest.mark.parametrize("check", [False, True])
def test_every_error_of_every_file_is_named_and_nothing_changes(host, check):
    live = host("staged", SOURCE)["release"]
    host("live", live)
    before = tree(host.root)
    found = {"dags": {}, "errors": [{"file": "dags/one.py", "line": 7, "message": "KeyError: 'x'"}]}
    broken = CHANGED | {"plugins/x.py": "def f(:\n", "scripts/y.py": "\n\nreturn(\n"}
    result = host("staged", broken, check=check, parser=f"print({json.dumps(json.dumps(found))})")
    assert result["failed"] is True
    lines = result["msg"].splitlines()
    assert lines[0].endswith("is refused.")
    assert [line.split(": ")[0] for line in lines[1:]] == ["plugins/x.py:1", "scripts/y.py:3", "dags/one.py:7"]
    assert tree(host.root) == before
    assert os.readlink(host.root / "current") == f"releases/{live}"


def test_a_parser_that_dies_is_a_refusal_with_its_last_words(host):
    result = host("staged", SOURCE, parser="import sys; sys.exit('airflow is broken')")
    assert "the parser ended with code 1 and no result:\nairflow is broken" in result["msg"]
    assert list((host.root / "releases").iterdir()) == []


def test_a_release_without_dags_is_refused(host):
    result = host("staged", SOURCE, parser='print(\'{"dags": {}, "errors": []}\')')
    assert "dags/: no DAG; such a release would take every DAG away" in result["msg"]


def test_damage_on_the_way_is_noticed(host, store, tmp_path):
    files = store.read_tree(write(tmp_path / "other", SOURCE))
    lie = files | {"dags/one.py": {"mode": "0644", "sha256": "0" * 64}}
    result = host("staged", SOURCE, release=store.release_id(lie), manifest={"files": lie})
    assert "dags/one.py: arrived damaged" in result["msg"]
    result = host("staged", SOURCE, release="000000000000", manifest={"files": files})
    assert "the manifest describes release" in result["msg"]


def test_a_torn_archive_is_noticed(host, tmp_path):
    archive = tmp_path / "torn.tar.gz"
    host("staged", SOURCE)
    data = bytearray((tmp_path / "release.tar.gz").read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    assert "arrived damaged" in host("staged", CHANGED, archive=str(archive), send=False)["msg"]


def test_the_facts_of_the_first_stay_whoever_stages_the_same_content_again(host, store):
    files = store.read_tree(write(host.root.parent / "facts", SOURCE))
    release = store.release_id(files)
    for who in ("first", "second"):
        assert host("staged", SOURCE, manifest={"id": release, "files": files, "by": who})["changed"] is True
        manifest = host.root / "releases" / release / "manifest.json"
        assert json.loads(manifest.read_text())["by"] == "first"
        (manifest.parent / "dags/one.py").write_text("damaged")


def test_a_manifest_cannot_write_outside(host, store):
    files = {"../../evil": {"mode": "0644", "sha256": "0" * 64}}
    result = host("staged", SOURCE, release=store.release_id(files), manifest={"files": files})
    assert "../../evil: outside of the release" in result["msg"]


def test_parsing_sees_no_secret_and_no_database(host, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "secret")
    code = (
        "import json, os\n"
        "errors = [{'file': name, 'line': None, 'message': value} for name, value in os.environ.items()]\n"
        "print(json.dumps({'dags': {}, 'errors': errors}))"
    )
    told = host("staged", SOURCE, parser=code)["msg"]
    assert "FERNET" not in told
    assert "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN: sqlite:////" in told


# --- live, settled ----------------------------------------------------------------------------------------------------


def test_the_link_moves_forth_and_back(host):
    one, two = host("staged", SOURCE)["release"], host("staged", CHANGED)["release"]
    assert host("live", one)["changed"] is True
    assert host("live", one)["changed"] is False
    forth = host("live", two)
    assert (forth["live"], forth["diff"]["after"]) == (one, f"current -> releases/{two}\n")
    assert host("live", one)["changed"] is True
    assert (host.root / "current/dags/one.py").read_text() == "ONE = 1\n"
    assert not (host.root / ".current.new").is_symlink()


def test_check_mode_foresees_the_move(host):
    assert host("live", "0123456789ab", check=True)["changed"] is True
    assert list(host.root.iterdir()) == []


def test_what_is_not_staged_cannot_go_live(host):
    one = host("staged", SOURCE)["release"]
    host("live", one)
    assert "release 0123456789ab is not staged" in host("live", "0123456789ab")["msg"]
    assert os.readlink(host.root / "current") == f"releases/{one}"


def test_settling_is_remembered_and_logged_once(host):
    one = host("staged", SOURCE)
    assert (one["settled"], one["former"]) == (False, "")
    record = {"action": "deploy", "release": one["release"], "result": "live"}
    assert host("settled", one["release"], record=record)["changed"] is True
    assert host("settled", one["release"], record=record)["changed"] is False
    (logged,) = [json.loads(line) for line in host.log.read_text().splitlines()]
    assert logged.items() >= record.items()
    two = host("staged", CHANGED)
    assert (two["settled"], two["former"]) == (False, one["release"])


def test_the_triggerer_restarts_for_what_triggers_import_alone(host):
    one = host("staged", SOURCE)
    assert one["table"][-1] == "airflow-triggerer restarts: it has no release yet"
    host("live", one["release"])
    host("settled", one["release"])
    assert not any("restart" in line for line in host("staged", CHANGED)["table"])
    two = host("staged", SOURCE | {"plugins/__init__.py": "X = 1\n"})
    assert two["table"][-1] == "airflow-triggerer restarts: its triggers import plugins/__init__.py"
    assert not any(
        "restart" in line
        for line in host("staged", SOURCE | {"plugins/__init__.py": "X = 1\n"}, control_plane=False)["table"]
    )


def parser(dags: dict[str, str], stored: dict[str, str]) -> str:
    found = {"dags": dags, "stored": stored, "triggerer": [], "errors": []}
    return f"print({json.dumps(json.dumps(found))})"


def test_the_table_says_which_dags_are_added_changed_and_removed(host):
    files = {"dags/two.py": "", "dags/three.py": "", "plugins/helper.py": "A = 1\n"}
    before = {"one": "dags/one.py", "two": "dags/two.py", "three": "dags/three.py", "same": "dags/three.py"}
    hashes = dict.fromkeys(before, "a")
    live = host("staged", SOURCE | files, parser=parser(before, hashes))["release"]
    host("live", live)
    host("settled", live)
    after = {name: file for name, file in before.items() if name != "two"} | {"four": "dags/two.py"}
    changed = SOURCE | files | {"dags/one.py": "ONE = 2\n", "plugins/helper.py": "A = 2\n"}
    wanted = parser(after, hashes | {"three": "b"})
    refused = host("staged", changed, parser=wanted)
    assert "DAG two of dags/two.py would be removed" in refused["msg"]
    assert "-e airflow_release_allow_removal=true" in refused["msg"]
    table = host("staged", changed, parser=wanted, allow_removal=True)["table"]
    assert [line.split() for line in table[1:]] == [
        ["added", "four", "dags/two.py"],
        ["changed", "one", "dags/one.py"],
        ["changed", "three", "dags/three.py"],
        ["removed", "two", "dags/two.py"],
        ["beside", "plugins/helper.py"],
    ]
    assert host("staged", SOURCE | files, parser=parser(before, hashes))["table"] == []


# --- going back -------------------------------------------------------------------------------------------------------


def deploy(host, files: dict[str, str]) -> str:
    release = host("staged", files)["release"]
    host("live", release)
    host("settled", release, record={"action": "deploy", "release": release, "result": "live"})
    return release


def test_going_back_without_a_name_and_with_one(host):
    one, two = deploy(host, SOURCE), deploy(host, CHANGED)
    assert host("chosen", "")["release"] == one
    assert host("chosen", two)["release"] == two
    assert host("chosen", two)["table"] == []


def test_a_release_that_is_gone_is_refused_with_those_that_are_there(host):
    release = deploy(host, SOURCE)
    lines = host("chosen", "0123456789ab")["msg"].splitlines()
    assert lines[1] == "release 0123456789ab is not on this host. There are:"
    assert re.fullmatch(rf"{release}  \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC  no revision  live", lines[2])
    assert "the log knows of no release before the live one" in host("chosen", "")["msg"]


def test_a_release_of_another_venv_is_refused_with_what_to_do(host, tmp_path):
    one, _ = deploy(host, SOURCE), deploy(host, CHANGED)
    told = host("chosen", one, python=str(tmp_path / "bin/python"))["msg"]
    assert f"release {one} was verified with" in told
    assert "make deploy REF=" in told


def test_the_live_release_is_read_with_packages_that_come_next(host, tmp_path):
    release = deploy(host, SOURCE)
    other = tmp_path / "next/bin/python"
    assert host("verified", "", python=str(other), check=True)["changed"], "foreseen before the venv is built"
    other.parent.mkdir(parents=True)
    other.symlink_to(sys.executable)
    broken = GOOD.replace(
        '"errors": []', '"errors": [{"file": "dags/one.py", "line": 3, "message": "ImportError: gone"}]'
    )
    told = host("verified", "", python=str(other), parser=broken)["msg"]
    assert "the live release does not load:\ndags/one.py:3: ImportError: gone" in told
    assert host("verified", "", python=str(other), check=True)["changed"]
    assert "was verified with" in host("chosen", release, python=str(other))["msg"], "check mode records nothing"

    assert host("verified", "", python=str(other))["changed"]

    assert host("chosen", release, python=str(other))["release"] == release
    assert not host("verified", "", python=str(other))["changed"]


def test_a_release_that_was_changed_on_the_host_is_refused(host):
    one, _ = deploy(host, SOURCE), deploy(host, CHANGED)
    (host.root / "releases" / one / "dags/one.py").write_text("ONE = 3\n")
    assert f"release {one} has been changed on this host" in host("chosen", one)["msg"]


D, R = "deploy", "rollback"


@pytest.mark.parametrize(
    ("log", "live", "previous"),
    [
        ([], "a", ""),
        ([(D, "a")], "a", ""),
        ([(D, "a"), (D, "b")], "b", "a"),
        ([(D, "a"), (D, "b"), (D, "c"), (R, "b")], "b", "a"),  # twice in a row goes back twice
        ([(D, "a"), (D, "b"), (R, "a"), (D, "c")], "c", "a"),  # never to what was left
        ([(D, "a"), (D, "b"), (D, "a")], "a", "b"),
        ([(D, "a"), (D, "b"), (D, "a"), (R, "b")], "b", "a"),
        ([(D, "a"), (D, "b")], "a", "a"),  # a rollback to a was cut off
        ([(D, "a"), (D, "b")], "c", "b"),  # a deploy of c was cut off
        ([(D, "a"), (D, "b", "refused"), (D, "c", "flipped back")], "a", ""),
    ],
)
def test_what_was_live_before(store, log, live, previous):
    keys = ("action", "release", "result")
    records = [dict(zip(keys, (*entry, "live")[:3], strict=True)) for entry in log]
    assert store.previous_release(records, live) == previous


def test_old_releases_go_and_those_in_use_stay(host):
    ids = []
    for number in range(5):
        ids.append(host("staged", SOURCE | {"dags/one.py": f"ONE = {number}\n"})["release"])
        os.utime(host.root / "releases" / ids[-1], (number, number))
    host("live", ids[4])
    assert host("settled", ids[4], keep=2)["removed"] == []  # nobody knows what is in use
    foreseen = host("settled", ids[4], keep=2, in_use=[ids[0]], check=True)
    assert len(list((host.root / "releases").glob("[!.]*"))) == 5
    result = host("settled", ids[4], keep=2, in_use=[ids[0]])
    assert result["removed"] == foreseen["removed"] == sorted(ids[1:4])
    assert {path.name for path in (host.root / "releases").glob("[!.]*")} == {ids[0], ids[4]}


@pytest.mark.parametrize(
    ("keep", "protected", "removed"),
    [
        (2, {"d"}, ["a", "b"]),
        (5, {"d"}, []),
        (1, {"d"}, ["a", "b", "c"]),
        (0, {"d"}, ["a", "b", "c"]),
        (2, {"a", "b", "d"}, ["c"]),
        (3, {"a", "gone"}, ["b"]),
    ],
)
def test_what_is_superfluous(store, keep, protected, removed):
    releases = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    assert store.superfluous(releases, keep=keep, protected=protected) == removed


def test_a_release_that_never_was_live_goes_before_one_that_was(store):
    releases = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    assert store.superfluous(releases, keep=3, protected={"d"}, lived=["a", "b", "d"]) == ["c"]
