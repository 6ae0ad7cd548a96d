from __future__ import annotations

import importlib.util
import io
import os
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="airflow-home-"))  # before anything imports airflow

import ansible.module_utils
import pytest

from tests.unit.host.run_module import run_module

REPOSITORY = Path(__file__).parents[3]
ROLE = REPOSITORY / "roles/airflow_release"
# Where Ansible puts a role's own module_utils, when it runs the role's modules.
ansible.module_utils.__path__.append(str(ROLE / "module_utils"))


def load(path: str) -> ModuleType:
    """Import a file of the role under a name of its own: action plugin and module share theirs."""
    name = path.removesuffix(".py").replace("/", "_")
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, ROLE / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def store() -> ModuleType:
    return load("module_utils/airflow_releases.py")


GOOD = 'print(\'{"dags": {"one": "dags/one.py"}, "stored": {}, "triggerer": ["plugins/__init__.py"], "errors": []}\')'
"""A parser that finds one DAG without asking Airflow."""

SOURCE = {
    ".airflowignore": "plugins/\nscripts/\n",
    "dags/one.py": "ONE = 1\n",
    "plugins/__init__.py": "",
    "plugins/operators/__init__.py": "VALUE = 1\n",
    "scripts/pause.sh": "#!/bin/sh\n",
}


def write(root: Path, files: dict[str, str]) -> Path:
    """Write a tree; what starts with #! is executable."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if text.startswith("#!") else 0o644)
    return root


@pytest.fixture
def host(tmp_path: Path, store: ModuleType) -> Callable[..., dict[str, Any]]:
    """A host in a folder: ``host("staged", files)``, ``host("live", id)``, ``host("settled", id)`` run the module."""
    root = tmp_path / "opt"
    root.mkdir(exist_ok=True)

    def run(state: str, what: Any, *, check: bool = False, send: bool = True, **parameters: Any) -> dict[str, Any]:
        arguments = {
            "state": state,
            "root": str(root),
            "python": sys.executable,
            "parser": GOOD,
            "log": str(tmp_path / "state/log.jsonl"),
        } | parameters
        if state == "staged":
            source = write(tmp_path / f"source-{len(list(tmp_path.iterdir()))}", what)
            files = store.read_tree(source)
            archive = tmp_path / "release.tar.gz"
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
                for name in files:
                    tar.add(source / name, arcname=name)
            archive.write_bytes(buffer.getvalue())
            identifier = store.release_id(files)
            arguments = {"release": identifier, "manifest": {"id": identifier, "files": files}} | arguments
            arguments |= {"archive": str(archive)} if send else {}
        else:
            arguments["release"] = what
        arguments = {name: value for name, value in arguments.items() if value is not None}
        return run_module("airflow_release/library/airflow_release.py", arguments, check=check)

    run.root, run.log = root, tmp_path / "state/log.jsonl"
    return run
