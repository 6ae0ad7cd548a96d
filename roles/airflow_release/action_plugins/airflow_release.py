"""The controller's half of the module ``airflow_release``: build the release from the repository, send it where it is
missing."""

from __future__ import annotations

import getpass
import importlib.util
import io
import subprocess
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

PARTS = (".airflowignore", "dags", "plugins", "scripts")


def load_module() -> ModuleType:
    """The module's own functions: what a release is has one definition."""
    path = Path(__file__).parents[1] / "library" / "airflow_release.py"
    spec = importlib.util.spec_from_file_location("airflow_release_module", path)
    assert spec is not None  # noqa: S101 - the file is our own neighbour
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def revision(source: Path) -> dict[str, Any]:
    """Git commit that the source is at and whether the released files differ from it; nothing outside a git work
    tree."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=source, capture_output=True, text=True, check=True)
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--", *PARTS], cwd=source, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return {"revision": None, "dirty": None}
    return {"revision": head.stdout.strip(), "dirty": bool(changes.stdout.strip())}


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
        if args.get("state") != "staged":
            return self._module(args, task_vars)
        if not args.get("source"):
            raise AnsibleActionFail(
                "airflow_release: state=staged needs source, the directory with dags/ on the controller"
            )

        release = load_module()
        source = Path(args["source"]).resolve()
        if not (source / "dags").is_dir():
            raise AnsibleActionFail(f"airflow_release_source: {source} has no folder dags")
        try:
            files = release.read_tree(source, PARTS)
        except release.ReleaseError as error:
            raise AnsibleActionFail(f"airflow_release_source {source}: {error}") from error
        identifier = release.release_id(files)
        args |= {"release": identifier, "manifest": {"id": identifier, "files": files}}
        answer = self._module(args, task_vars)
        if not answer.pop("needs_archive", False):
            return answer

        args["manifest"] |= {"created_by": getpass.getuser(), **revision(source)}
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
