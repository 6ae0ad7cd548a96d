#!/usr/bin/python
"""Ansible module: releases of DAGs and operators as immutable, content-addressed directories."""

from __future__ import annotations

import grp
import hashlib
import json
import os
import pwd
import py_compile
import shutil
import stat
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: airflow_release
short_description: Stage, flip and prune releases of DAGs and operators
description:
  - A release is C(<root>/releases/<id>/{dags,plugins,scripts,manifest.json}). The id is a hash of paths, modes and
    contents, so equal sources are the same release, on every host and at any time. The link C(<root>/current) names the
    live one.
  - "C(state=staged): the release is complete on this host, equals its manifest, compiles, and with O(parser) every DAG
    of it has been parsed by this host's Airflow. A directory that somebody has changed is replaced. Nothing goes live."
  - "C(state=live): the link names the release, moved in one step."
  - "C(state=settled): recorded that the control plane has taken the release over; releases that are neither among the
    newest O(keep) nor in O(in_use) are removed."
  - The action plugin of the same name builds the release from O(source) on the controller and sends it where it is
    missing; without changes that is one module call per host.
attributes:
  check_mode: {support: full, details: An unstaged release is unpacked and parsed in the module's temporary directory.}
  diff_mode: {support: full}
options:
  state:
    description: What to reach, see above.
    choices: [staged, live, settled]
    required: true
    type: str
  root:
    description: Directory of C(releases/) and C(current).
    type: path
    default: /opt/airflow
  source:
    description: Directory on the controller with C(dags/), C(plugins/), C(scripts/) and C(.airflowignore). For
    C(staged). type: path
  release:
    description: Id of the release. For C(staged) the action plugin fills it in.
    type: str
  manifest:
    description: What the release consists of. Filled in by the action plugin.
    type: dict
  archive:
    description: Tar archive of the release on this host. Filled in by the action plugin.
    type: path
  parser:
    description: Text of the Python program that parses a release. For C(staged); unset = compile only.
    type: str
  python:
    description: Airflow's interpreter. Where it does not exist yet, check mode skips parsing.
    type: path
    default: /opt/airflow/venv/bin/python
  user:
    description: Whom to parse as; DAG files are other people's code.
    type: str
  configuration:
    description: Airflow's configuration file, used for parsing if it exists.
    type: path
    default: /etc/airflow/airflow.cfg
  keep:
    description: How many releases stay on the host besides those in use, the live one included. For C(settled).
    type: int
    default: 5
  in_use:
    description: Ids that unfinished DAG runs are pinned to. Unset = unknown, nothing is removed. For C(settled).
    type: list
    elements: str
"""

EXAMPLES = r"""
- name: Stage the release
  airflow_release:
    state: staged
    source: "{{ playbook_dir }}/.."
    parser: "{{ lookup('ansible.builtin.file', 'parse_release.py') }}"
    user: airflow
  register: staged

- name: Make the release live
  airflow_release:
    state: live
    release: "{{ staged.release }}"
"""

RETURN = r"""
release:
  description: Id of the release.
  type: str
  returned: always
live:
  description: Id of the release that C(current) named before; empty if there was none.
  type: str
  returned: always
settled:
  description: Whether the control plane has taken this release over.
  type: bool
  returned: always
plugins_changed:
  description: Whether C(plugins/) differs from the settled release's.
  type: bool
  returned: always
dags:
  description: File of each DAG, by dag_id; empty if the DAGs could not be parsed.
  type: dict
  returned: with C(state=staged)
now:
  description: This host's clock, seconds since the epoch.
  type: float
  returned: always
removed:
  description: Ids of the removed releases.
  type: list
  returned: with C(state=settled)
"""

Files = Mapping[str, Mapping[str, str]]
"""The content of a release: path -> {"mode": "0644" or "0755", "sha256": 64 hexadecimal digits}."""

ID_LENGTH = 12
MANIFEST, VERIFIED, SETTLED = "manifest.json", "verified.json", ".settled.json"
PARSE_TIMEOUT = 300


class ReleaseError(Exception):
    """The release cannot be what was asked for; the message says why and, for code, where."""


# --- what a release is (the action plugin uses these too) -------------------------------------------------------------


def release_id(files: Files) -> str:
    """Hash a release's content: what the files are called, hold and may be executed as, and nothing else."""
    listing = "".join(f"{path}\0{files[path]['mode']}\0{files[path]['sha256']}\n" for path in sorted(files))
    return hashlib.sha256(listing.encode()).hexdigest()[:ID_LENGTH]


def part_id(files: Files, part: str) -> str:
    """Hash one top-level directory of a release."""
    return release_id({path: entry for path, entry in files.items() if path.startswith(f"{part}/")})


def is_content(name: str) -> bool:
    """Whether a file or directory of this name belongs to a release: no caches, editor backups or hidden files."""
    return name == ".airflowignore" or not (
        name.startswith(".") or name.endswith(("~", ".pyc")) or name == "__pycache__"
    )


def describe(path: Path) -> dict[str, str]:
    """Mode (only whether it may be executed counts) and checksum of a file."""
    executable = path.stat().st_mode & stat.S_IXUSR
    return {"mode": "0755" if executable else "0644", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def read_tree(root: Path, parts: Iterable[str] | None = None) -> dict[str, dict[str, str]]:
    """Describe every file of a tree.

    :param parts: the top-level names to take; default: all
    :raises ReleaseError: there is a symbolic link or a device, which a release cannot promise to keep
    """
    files: dict[str, dict[str, str]] = {}
    pending = [root / part for part in parts] if parts is not None else list(root.iterdir())
    while pending:
        path = pending.pop()
        if not is_content(path.name) or not os.path.lexists(path):
            continue
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise ReleaseError(f"{path.relative_to(root)}: a release holds plain files and directories only")
        if path.is_dir():
            pending.extend(path.iterdir())
        else:
            files[str(path.relative_to(root))] = describe(path)
    return files


# --- the host's side --------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one if the file is missing or torn."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old or the new file, never half of one."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    new.chmod(0o644)
    new.replace(path)


def live_release(root: Path) -> str:
    """Id that the link names, or an empty string."""
    link = root / "current"
    return link.readlink().name if link.is_symlink() else ""


def content_of(directory: Path) -> dict[str, dict[str, str]]:
    """Describe the release in a directory, without what staging adds to it."""
    return {path: entry for path, entry in read_tree(directory).items() if path not in {MANIFEST, VERIFIED}}


def environment(python: str) -> str:
    """Where an interpreter's packages are: its folder without links; the interpreter is itself one, to the system's."""
    return os.path.realpath(os.path.dirname(python))


def is_complete(directory: Path, release: str, python: str | None) -> bool:
    """Whether the directory holds exactly this release, parsed by this interpreter's Airflow (None: by any or none)."""
    verified = read_json(directory / VERIFIED)
    if verified.get("release") != release:
        return False
    if python and verified.get("environment") != environment(python):
        return False
    try:
        return release_id(content_of(directory)) == release
    except (OSError, ReleaseError):
        return False


def unpack(archive: Path, manifest: Mapping[str, Any], release: str, target: Path) -> None:
    """Write exactly the manifest's files, each checked, and nothing else that the archive may hold.

    :raises ReleaseError: the archive is not the release that the manifest and the id describe
    """
    files: Files = manifest["files"]
    if release_id(files) != release:
        raise ReleaseError(f"the manifest describes release {release_id(files)}, not {release}")
    with tarfile.open(archive) as tar:
        for name in sorted(files):
            path = target / name
            if not path.resolve().is_relative_to(target.resolve()):
                raise ReleaseError(f"{name}: outside of the release")
            try:
                member = tar.extractfile(name)
            except KeyError:
                member = None
            data = member.read() if member else b""
            if hashlib.sha256(data).hexdigest() != files[name]["sha256"]:
                raise ReleaseError(f"{name}: arrived damaged; run the deployment again")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            path.chmod(int(files[name]["mode"], 8))
    for directory, _, _ in os.walk(target):
        os.chmod(directory, 0o755)  # noqa: S103 - services read it, whatever the umask
    write_json(target / MANIFEST, manifest)


def compile_sources(directory: Path, final: Path) -> list[dict[str, Any]]:
    """Byte-compile in place, as loaded from ``final``; return what does not compile, in the form of the parser's
    errors.

    Services cannot write into a release, so without this every task would compile its operators again.
    """
    errors: list[dict[str, Any]] = []
    for path in sorted(directory.rglob("*.py")):
        name = path.relative_to(directory)
        try:
            py_compile.compile(
                str(path),
                dfile=str(final / name),
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,  # a release never changes
            )
        except py_compile.PyCompileError as error:
            cause = error.exc_value
            line = getattr(cause, "lineno", None)
            errors.append(
                {"file": str(name), "line": line, "message": f"{type(cause).__name__}: {getattr(cause, 'msg', cause)}"}
            )
    return errors


def identity(user: str | None) -> dict[str, Any]:
    """Arguments for subprocess that drop to ``user``; none unless we are root."""
    if not user or os.geteuid() != 0:
        return {}
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ReleaseError(f"there is no user {user} to parse the DAGs as; install Airflow first") from None
    groups = [group.gr_gid for group in grp.getgrall() if user in group.gr_mem]
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}


def parse(
    directory: Path, *, python: str, parser: str, root: Path, configuration: str, user: str | None
) -> dict[str, Any]:
    """Run the parser over a release with Airflow's interpreter, unprivileged and without a database.

    :return: ``{"dags": {dag_id: file}, "errors": [...]}``
    :raises ReleaseError: the parser itself died
    """
    with tempfile.TemporaryDirectory(prefix="airflow_release_") as scratch:
        who = identity(user)
        if who:
            os.chown(scratch, who["user"], who["group"])
        variables = {
            "PATH": os.defpath,
            "HOME": scratch,
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "AIRFLOW_HOME": str(root),
            "AIRFLOW_CONFIG": configuration if os.path.exists(configuration) else f"{scratch}/airflow.cfg",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{scratch}/none.db",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": f"sqlite+aiosqlite:///{scratch}/none.db",
            "AIRFLOW__CORE__DAGBAG_IMPORT_ERROR_TRACEBACK_DEPTH": "50",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": scratch,
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "CRITICAL",
            "AIRFLOW__METRICS__STATSD_ON": "False",
        }
        try:
            run = subprocess.run(
                [python, "-", str(directory)],
                input=parser,
                capture_output=True,
                text=True,
                env=variables,
                cwd=scratch,
                timeout=PARSE_TIMEOUT,
                check=False,
                **who,
            )
        except subprocess.TimeoutExpired:
            raise ReleaseError(f"parsing the DAGs took more than {PARSE_TIMEOUT} s") from None
    try:
        result = json.loads(run.stdout)
    except ValueError:
        said = "\n".join(run.stderr.strip().splitlines()[-15:])
        raise ReleaseError(f"the parser ended with code {run.returncode} and no result:\n{said}") from None
    return dict(result)


def refusal(errors: Iterable[Mapping[str, Any]]) -> str:
    """One line per error: ``dags/x.py:12: SyntaxError: ...``."""
    lines = []
    for error in errors:
        place = f"{error['file']}:{error['line']}" if error["line"] else str(error["file"])
        lines.append(f"{place}: {error['message']}")
    return "\n".join(lines)


@contextmanager
def staging_directory(parent: Path, release: str) -> Iterator[Path]:
    """A directory beside its final place (a rename must not cross file systems); removed unless renamed away."""
    path = Path(tempfile.mkdtemp(prefix=f".{release}.", dir=parent))
    try:
        path.chmod(0o755)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def build(directory: Path, params: Mapping[str, Any]) -> dict[str, str]:
    """Unpack, compile and parse a release in ``directory``; return its DAGs' files by dag_id.

    :raises ReleaseError: with every error of every file
    """
    release, final = params["release"], Path(params["root"], "releases", params["release"])
    unpack(Path(params["archive"]), params["manifest"], release, directory)
    errors = compile_sources(directory, final)
    result: dict[str, Any] = {"dags": {}, "errors": []}
    parsing = bool(params["parser"]) and os.path.exists(params["python"])  # missing in check mode only: reach_staged
    if parsing:
        result = parse(
            directory,
            python=params["python"],
            parser=params["parser"],
            root=Path(params["root"]),
            configuration=params["configuration"],
            user=params["user"],
        )
    named = {(error["file"], error["line"]) for error in errors}
    errors += [error for error in result["errors"] if (error["file"], error["line"]) not in named]
    if errors:
        raise ReleaseError(refusal(errors))
    if parsing and not result["dags"]:
        raise ReleaseError("dags/ defines no DAG; a release without any would take every DAG away")
    parsed_by = environment(params["python"]) if parsing else None
    write_json(directory / VERIFIED, {"release": release, "environment": parsed_by, "dags": result["dags"]})
    return dict(result["dags"])


def stage(params: Mapping[str, Any]) -> dict[str, str]:
    """Put a release into its place; what was there (damaged, or parsed by another Airflow) goes away afterwards."""
    releases = Path(params["root"], "releases")
    final = releases / params["release"]
    releases.mkdir(mode=0o755, exist_ok=True)
    with staging_directory(releases, params["release"]) as directory:
        dags = build(directory, params)
        with staging_directory(releases, f"{params['release']}.old") as old:
            if final.exists():
                final.rename(old / "tree")
            directory.rename(final)
    return dags


def flip(root: Path, release: str) -> None:
    """Point ``current`` to the release in one step.

    :raises ReleaseError: it is not staged
    """
    if not (root / "releases" / release / VERIFIED).is_file():
        raise ReleaseError(f"release {release} is not staged on this host")
    new = root / ".current.new"
    new.unlink(missing_ok=True)
    new.symlink_to(Path("releases", release))
    new.replace(root / "current")


def superfluous(releases: Mapping[str, float], *, keep: int, protected: Iterable[str]) -> list[str]:
    """Which releases to remove.

    :param releases: id -> time of staging
    :param keep: how many of the newest stay, the protected ones counted among them
    """
    safe = set(protected)
    newest = sorted(releases, key=lambda release: (release in safe, releases[release]), reverse=True)
    return sorted(release for release in newest[max(keep, 0) :] if release not in safe)


def staged_releases(root: Path) -> dict[str, float]:
    """Every release on this host with the time at which it was staged."""
    return {
        path.name: path.stat().st_mtime
        for path in (root / "releases").glob("*")
        if path.is_dir() and not path.name.startswith(".")
    }


def listing(directory: Path) -> str:
    """A release as text for a diff: one line per file."""
    files = read_json(directory / MANIFEST).get("files", {})
    return listing_of(files)


def listing_of(files: Files) -> str:
    """Path, mode and the start of the checksum, one line per file."""
    return "".join(f"{path} {files[path]['mode']} {files[path]['sha256'][:12]}\n" for path in sorted(files))


# --- Ansible ----------------------------------------------------------------------------------------------------------


def status(root: Path, release: str, files: Files) -> dict[str, Any]:
    """What every state returns."""
    settled = read_json(root / "releases" / SETTLED)
    return {
        "release": release,
        "live": live_release(root),
        "settled": settled.get("release") == release,
        "plugins_changed": settled.get("plugins") != part_id(files, "plugins"),
        "now": time.time(),
    }


def reach_staged(module: AnsibleModule) -> dict[str, Any]:
    """C(state=staged); without an archive only report whether one is needed."""
    params = module.params
    root, release, files = Path(params["root"]), params["release"], params["manifest"]["files"]
    directory = root / "releases" / release
    result = status(root, release, files)
    if is_complete(directory, release, params["python"] if params["parser"] else None):
        return result | {"changed": False, "dags": read_json(directory / VERIFIED)["dags"]}
    result |= {
        "changed": True,
        "dags": {},
        "diff": {
            "before_header": f"release {result['live'] or '(none)'}",
            "after_header": f"release {release}",
            "before": listing(root / "releases" / result["live"]) if result["live"] else "",
            "after": listing_of(files),
        },
    }
    if not params["archive"]:
        return result | {"needs_archive": True}
    if module.check_mode:
        with staging_directory(Path(tempfile.gettempdir()), release) as scratch:
            result["dags"] = build(scratch, params)
    elif params["parser"] and not os.path.exists(params["python"]):
        raise ReleaseError(f"{params['python']} does not exist; install Airflow first")
    else:
        result["dags"] = stage(params)
    return result


def reach_live(module: AnsibleModule) -> dict[str, Any]:
    """C(state=live)."""
    root, release = Path(module.params["root"]), module.params["release"]
    files = read_json(root / "releases" / release / MANIFEST).get("files", {})
    result = status(root, release, files)
    changed = result["live"] != release
    if changed and not module.check_mode:
        flip(root, release)
    before, after = (f"current -> releases/{name}\n" if name else "" for name in (result["live"], release))
    return result | {"changed": changed, "diff": {"before": before, "after": after}}


def reach_settled(module: AnsibleModule) -> dict[str, Any]:
    """C(state=settled)."""
    params = module.params
    root, release = Path(params["root"]), params["release"]
    files = read_json(root / "releases" / release / MANIFEST).get("files", {})
    result = status(root, release, files)
    removed: list[str] = []
    if params["in_use"] is not None:
        removed = superfluous(
            staged_releases(root), keep=params["keep"], protected={release, result["live"], *params["in_use"]}
        )
    changed = bool(removed) or not result["settled"] or result["plugins_changed"]
    if changed and not module.check_mode:
        for name in removed:
            shutil.rmtree(root / "releases" / name)
        write_json(root / "releases" / SETTLED, {"release": release, "plugins": part_id(files, "plugins")})
    return result | {"changed": changed, "removed": removed}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"choices": ["staged", "live", "settled"], "required": True},
            "root": {"type": "path", "default": "/opt/airflow"},
            "source": {"type": "path"},
            "release": {"type": "str"},
            "manifest": {"type": "dict"},
            "archive": {"type": "path"},
            "parser": {"type": "str"},
            "python": {"type": "path", "default": "/opt/airflow/venv/bin/python"},
            "user": {"type": "str"},
            "configuration": {"type": "path", "default": "/etc/airflow/airflow.cfg"},
            "keep": {"type": "int", "default": 5},
            "in_use": {"type": "list", "elements": "str"},
        },
        required_if=[
            ("state", "staged", ["release", "manifest"]),
            ("state", "live", ["release"]),
            ("state", "settled", ["release"]),
        ],
        supports_check_mode=True,
    )
    reach = {"staged": reach_staged, "live": reach_live, "settled": reach_settled}[module.params["state"]]
    try:
        module.exit_json(**reach(module))
    except ReleaseError as error:
        module.fail_json(msg=f"Release {module.params['release']} is refused, nothing has changed.\n{error}")


if __name__ == "__main__":
    main()
