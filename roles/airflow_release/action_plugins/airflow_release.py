"""The controller's half of the module ``airflow_release``: build the release from the repository, send it where it is
missing."""

from __future__ import annotations

import getpass
import importlib.util
import io
import socket
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

PARTS = (".airflowignore", "dags", "plugins", "scripts")


def load_store() -> ModuleType:
    """What a release is has one definition."""
    path = Path(__file__).parents[1] / "module_utils/airflow_releases.py"
    spec = importlib.util.spec_from_file_location("airflow_releases", path)
    assert spec is not None  # noqa: S101 - the file is our own neighbour
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def git(directory: Path, *arguments: str) -> str:
    """Output of a git command.

    :raises subprocess.CalledProcessError: it failed
    :raises OSError: there is no git
    """
    done = subprocess.run(["git", *arguments], cwd=directory, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def revision(source: Path) -> dict[str, Any]:
    """Git commit that the source is at and whether the released files differ from it; nothing outside a git work
    tree. A release that is the source itself knows what it was built from."""
    known = load_store().read_json(source / "manifest.json")
    if {"files", "revision", "dirty"} <= known.keys():
        return {name: known[name] for name in ("revision", "dirty")}
    try:
        head = git(source, "rev-parse", "HEAD")
        return {"revision": head, "dirty": bool(git(source, "status", "--porcelain", "--", *PARTS))}
    except (OSError, subprocess.CalledProcessError):
        return {"revision": None, "dirty": None}


@contextmanager
def sources(directory: Path, ref: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the folder to build from and its revision: the work tree itself, or a git revision of it.

    :raises AnsibleActionFail: there is no such revision, or no folder dags
    """
    if not ref:
        if not (directory / "dags").is_dir():
            raise AnsibleActionFail(f"airflow_release_source: {directory} has no folder dags")
        yield directory, revision(directory)
        return
    try:
        commit = git(directory, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    except (OSError, subprocess.CalledProcessError):
        raise AnsibleActionFail(
            f"airflow_release_ref: git knows no revision {ref} in {directory}. Is it spelled right, and fetched?"
            " `git log --oneline -10` lists the newest, `git tag` the tags."
        ) from None
    parts = [part for part in PARTS if git(directory, "ls-tree", "--name-only", commit, "--", f"./{part}")]
    if "dags" not in parts:
        raise AnsibleActionFail(f"airflow_release_ref: revision {ref} has no folder dags")
    with tempfile.TemporaryDirectory(prefix="release-") as folder:
        archive = Path(folder, "sources.tar")
        git(directory, "archive", "--format=tar", f"--output={archive}", commit, "--", *parts)
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        archive.unlink()
        yield Path(folder), {"revision": commit, "dirty": False}


def pack(source: Path, files: dict[str, dict[str, str]]) -> bytes:
    """Tar archive of the files, plain and small: names and contents; modes come from the manifest."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as tar:
        for name in sorted(files):
            tar.add(source / name, arcname=name, recursive=False)
    return buffer.getvalue()


class ActionModule(ActionBase):  # type: ignore[misc]
    """Run the module once; if it misses the release, send the archive and run it again."""

    TRANSFERS_FILES = True
    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the action."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        result |= self._act(dict(self._task.args), task_vars)
        return result

    def _module(self, args: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        answer: dict[str, Any] = self._execute_module("airflow_release", module_args=args, task_vars=task_vars)
        return answer

    def _act(self, args: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        lock = args.pop("lock", None)
        if args.get("state") == "live" and lock and not Path(f"/proc/{lock}").exists():
            raise AnsibleActionFail("the lock of releases was lost, as the line to its host broke; run this again")
        if args.get("state") != "staged":
            return self._module(args, task_vars)
        if not args.get("source"):
            raise AnsibleActionFail(
                "airflow_release: state=staged needs source, the directory with dags/ on the controller"
            )
        with sources(Path(args["source"]).resolve(), args.pop("ref", "")) as (source, facts):
            return self._stage(source, facts, args, task_vars) | {"facts": facts}

    def _stage(
        self, source: Path, facts: dict[str, Any], args: dict[str, Any], task_vars: dict[str, Any] | None
    ) -> dict[str, Any]:
        store = load_store()
        try:
            files = store.read_tree(source, PARTS)
        except store.ReleaseError as error:
            raise AnsibleActionFail(f"airflow_release_source {source}: {error}") from error
        identifier = store.release_id(files)
        args |= {"release": identifier, "manifest": {"id": identifier, "files": files}}
        answer = self._module(args, task_vars)
        if not answer.pop("needs_archive", False):
            return answer

        who = {"by": getpass.getuser(), "from": socket.gethostname(), "at": store.now()}
        args["manifest"] |= facts | who
        with tempfile.NamedTemporaryFile(prefix=f"release-{identifier}-") as archive:
            archive.write(pack(source, files))
            archive.flush()
            remote = self._connection._shell.join_path(self._make_tmp_path(), "release.tar.gz")
            self._transfer_file(archive.name, remote)
        self._fixup_perms2((self._connection._shell.tmpdir, remote))
        args["archive"] = remote
        try:
            return self._module(args, task_vars)
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
