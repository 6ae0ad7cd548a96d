"""The parser with the real Airflow, on a planted release with one mistake of each kind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from release_host import REPOSITORY, ROLE, load, write

DAG = "from airflow.sdk import DAG\nfrom airflow.providers.standard.operators.empty import EmptyOperator as Task\n"
MISTAKES = {
    "syntax.py": DAG + "def broken(:\n    pass\n",
    "missing_module.py": DAG + "import no_such_module\n",
    "deep.py": DAG + "import json\n\ndef load():\n    return json.loads('{')\n\nload()\n",
    "cycle.py": DAG
    + "with DAG('circle', schedule=None):\n    a = Task(task_id='a')\n    b = Task(task_id='b')\n    a >> b >> a\n",
    "twin_a.py": DAG + "\nwith DAG('twin', schedule=None):\n    Task(task_id='a')\n",
    "twin_b.py": DAG + "\n\nwith DAG('twin', schedule=None):\n    Task(task_id='b')\n",
    "variable.py": DAG + "from airflow.sdk import Variable\nVariable.get('x')\n",
    "unserializable.py": DAG
    + "with DAG('bad_params', schedule=None, params={'x': object()}):\n    Task(task_id='a')\n",
    "old.py": DAG + "DAG('old', schedule_interval='@daily')\n",
    "fine.py": DAG + "with DAG('fine', schedule=None):\n    Task(task_id='a')\n",
}


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> dict:
    root = tmp_path_factory.mktemp("release")
    for part in ("dags", "plugins"):
        shutil.copytree(REPOSITORY / part, root / part)
    shutil.copy(REPOSITORY / ".airflowignore", root)
    (root / "scripts").mkdir()
    (root / "scripts/tool.py").write_text("raise SystemExit('airflow: this is no DAG file')\n")
    for name, text in MISTAKES.items():
        (root / "dags" / name).write_text(text)
    home = tmp_path_factory.mktemp("home")
    environment = {
        "PATH": os.defpath,
        "HOME": str(home),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "CRITICAL",
        "AIRFLOW__CORE__DAGBAG_IMPORT_ERROR_TRACEBACK_DEPTH": "50",
    }
    done = subprocess.run(
        [sys.executable, "-", str(root)],
        input=(ROLE / "files/parse_release.py").read_text(),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_what_triggers_import_is_known_and_operators_are_not_part_of_it(result):
    assert result["triggerer"] == [
        "plugins/__init__.py",
        "plugins/hooks/__init__.py",
        "plugins/hooks/transformation_service.py",
        "plugins/triggers/__init__.py",
        "plugins/triggers/transformation_service.py",
    ]


TRIGGER = "from airflow.triggers.base import BaseTrigger\n\n\nclass Mine(BaseTrigger):\n    pass\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"operators/x.py": "from plugins import a\n", "a.py": ""}, []),
        ({"operators/x.py": TRIGGER}, ["__init__.py", "operators/__init__.py", "operators/x.py"]),
        (
            {"triggers/t.py": "def f():\n    from plugins import a\n", "a.py": "from .b import c\n", "b.py": ""},
            ["__init__.py", "a.py", "b.py", "triggers/__init__.py", "triggers/t.py"],
        ),
        (
            {"triggers/t.py": "import importlib\n", "a.py": ""},
            ["__init__.py", "a.py", "operators/__init__.py", "triggers/__init__.py", "triggers/t.py"],
        ),
    ],
    ids=["no trigger", "beside the folder", "in a function, relative", "by a computed name"],
)
def test_whatever_triggers_may_import_counts(tmp_path, files, expected):
    packages = {"__init__.py": "", "operators/__init__.py": ""} | (
        {"triggers/__init__.py": ""} if any(name.startswith("triggers") for name in files) else {}
    )
    write(tmp_path / "plugins", packages | files)
    found = load("files/parse_release.py").trigger_files(tmp_path)
    assert [name.removeprefix("plugins/") for name in found] == expected


def errors(result: dict) -> dict[str, tuple[int | None, str]]:
    return {Path(error["file"]).name: (error["line"], error["message"]) for error in result["errors"]}


def test_operators_are_imported_from_the_release(result):
    assert result["dags"]["user_transformation"] == "dags/01_user_transformation.py"


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("syntax.py", 3, "SyntaxError"),
        ("missing_module.py", 3, "No module named 'no_such_module'"),
        ("deep.py", 6, "JSONDecodeError"),
        ("cycle.py", 3, "Cycle detected in Dag: circle"),
        ("variable.py", 4, ""),
        ("old.py", 3, "schedule_interval"),
        ("unserializable.py", 3, ""),
    ],
)
def test_each_mistake_is_named_with_file_and_line(result, file, line, message):
    found_line, found = errors(result)[file]
    assert message in found
    assert found_line == line


def test_one_dag_id_in_two_files_is_a_mistake(result):
    (twin,) = [error for error in result["errors"] if "twin" in error["file"]]
    assert "dags/twin_a.py" in twin["message"]
    assert "dags/twin_b.py" in twin["message"]
    assert twin["line"] == {"dags/twin_a.py": 4, "dags/twin_b.py": 5}[twin["file"]]


def test_what_is_fine_is_no_error(result):
    assert "fine.py" not in errors(result)
    assert result["dags"]["fine"] == "dags/fine.py"
    assert not [error for error in result["errors"] if not error["file"].startswith("dags/")]
    assert len(result["errors"]) == len(MISTAKES) - 2
