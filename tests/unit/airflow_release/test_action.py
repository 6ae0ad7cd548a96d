"""The whole of stage and activate as a play runs them, against this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from release_host import REPOSITORY, ROLE, SOURCE, load, write


@pytest.fixture
def action():
    return load("action_plugins/airflow_release.py")


def git(directory: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    subprocess.run(["git", *identity, *arguments], cwd=directory, check=True, capture_output=True)


def test_the_manifest_knows_the_revision(action, tmp_path):
    assert action.revision(tmp_path) == {"revision": None, "dirty": None}
    write(tmp_path, SOURCE)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "x")
    clean = action.revision(tmp_path)
    assert re.fullmatch("[0-9a-f]{40}", clean["revision"])
    assert clean["dirty"] is False
    (tmp_path / "README.md").write_text("not part of a release")
    assert action.revision(tmp_path)["dirty"] is False
    (tmp_path / "dags/two.py").write_text("")
    assert action.revision(tmp_path) == {"revision": clean["revision"], "dirty": True}


def test_a_release_as_the_source_knows_its_own_revision(action, tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)  # that it lies in another work tree says nothing
    manifest = {"id": "3f2a9c01d7be", "files": {}, "revision": "a" * 40, "dirty": False, "by": "somebody"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert action.revision(tmp_path) == {"revision": "a" * 40, "dirty": False}


def test_a_git_revision_is_released_as_it_was(action, tmp_path):
    write(tmp_path, SOURCE)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "x")
    git(tmp_path, "tag", "v1")
    (tmp_path / "dags/one.py").write_text("ONE = 2\n")
    (tmp_path / "dags/two.py").write_text("")
    with action.sources(tmp_path, "v1") as (folder, facts):
        files = action.load_store().read_tree(folder, action.PARTS)
        assert set(files) == set(SOURCE)
        assert (folder / "dags/one.py").read_text() == "ONE = 1\n"
        assert files["scripts/pause.sh"]["mode"] == "0755"
        assert re.fullmatch("[0-9a-f]{40}", facts["revision"])
        assert facts["dirty"] is False
    assert not folder.exists()
    for unknown in ("v2", "--output=x"):
        with (
            pytest.raises(action.AnsibleActionFail, match=f"git knows no revision {unknown}"),
            action.sources(tmp_path, unknown),
        ):
            pass


@pytest.fixture
def play(tmp_path: Path):
    root = tmp_path / "opt"
    root.mkdir()
    source = write(tmp_path / "source", {})
    source.mkdir()
    for part in ("dags", "plugins"):
        shutil.copytree(REPOSITORY / part, source / part)
    shutil.copy(REPOSITORY / ".airflowignore", source)
    variables = {
        "airflow_release_root": str(root),
        "airflow_release_source": str(source),
        "airflow_release_python": sys.executable,
        "airflow_release_control_plane": False,
        "airflow_release_parse_user": "root",
        "ansible_python_interpreter": sys.executable,
    }
    tasks = [{"import_role": {"name": "airflow_release", "tasks_from": file}} for file in ("stage", "activate")]
    playbook = tmp_path / "play.yml"
    playbook.write_text(
        yaml.safe_dump([{"hosts": "localhost", "connection": "local", "vars": variables, "tasks": tasks}])
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", playbook, *arguments],
            cwd=REPOSITORY,
            env=os.environ | {"ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default", "ANSIBLE_NOCOLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    run.root, run.source = root, source
    return run


def changed(done: subprocess.CompletedProcess[str]) -> int:
    assert done.returncode == 0, done.stdout + done.stderr
    return int(re.search(r"changed=(\d+)", done.stdout).group(1))


def test_a_release_from_the_repository_to_the_link(play):
    foreseen = play("--check", "--diff")
    assert changed(foreseen) == 2
    assert re.search(r"^\+dags/01_user_transformation\.py 0644 [0-9a-f]{12}$", foreseen.stdout, re.MULTILINE)
    assert list(play.root.iterdir()) == []

    assert changed(play()) == 2
    live = os.readlink(play.root / "current")
    assert (play.root / live / "plugins/operators/__init__.py").is_file()
    assert changed(play()) == 0

    (play.source / "dags/02_broken.py").write_text("from airflow.sdk import DAG\n\nDAG('x', schedule=)\n")
    refused = play()
    assert refused.returncode != 0
    assert "dags/02_broken.py:3: SyntaxError: " in refused.stdout + refused.stderr
    assert os.readlink(play.root / "current") == live
    assert len(list((play.root / "releases").iterdir())) == 1


def test_the_inputs_are_all_specified():
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    options = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    assert {name: option["default"] for name, option in options.items()} == defaults
