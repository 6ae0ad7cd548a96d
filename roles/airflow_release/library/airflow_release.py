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
import subprocess
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible.module_utils.airflow_release_announce import Database, Served, announce
from ansible.module_utils.airflow_releases import (
    MANIFEST,
    SETTLED,
    VERIFIED,
    Files,
    ReleaseError,
    compare,
    environment,
    flip,
    is_intact,
    live_release,
    previous_release,
    read_json,
    read_log,
    release_id,
    staged_releases,
    superfluous,
    write_json,
    write_log,
)
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: airflow_release
short_description: Stage, flip, log and prune releases of DAGs and operators
description:
  - A release is C(<root>/releases/<id>/{dags,plugins,scripts,manifest.json}). The id is a hash of paths, modes and
    contents, so equal sources are the same release, on every host and at any time. The link C(<root>/current) names the
    live one.
  - "C(state=staged): the release is complete on this host, equals its manifest, compiles, and every DAG of it has been
    parsed by this host's Airflow. A directory that somebody has changed is replaced. Nothing goes live."
  - "C(state=chosen): the release is on this host, intact, and verified with O(python). Changes nothing."
  - "C(state=live): the link names the release, moved in one step. With O(announce) Airflow schedules from it and the
    API serves it, and the triggerer was restarted if what triggers import has changed."
  - "C(state=settled): recorded and logged that the release is proven; releases that are neither among the O(keep) nor
    in O(in_use) are removed."
  - "C(state=logged): O(record) is in the log."
  - "C(state=verified): the live release has been parsed with O(python), also before the venv's link names that. In
    check mode it is parsed, and refused if it does not load; then only the record is missing."
  - The action plugin of the same name builds the release from O(source) on the controller and sends it where it is
    missing; without changes that is one module call per host.
attributes:
  check_mode: {support: full, details: An unstaged release is unpacked and parsed in the module's temporary directory.}
  diff_mode: {support: full}
options:
  state:
    description: What to reach, see above.
    choices: [staged, chosen, live, settled, logged, verified]
    required: true
    type: str
  root:
    description: Directory of C(releases/) and C(current).
    type: path
    default: /opt/airflow
  source:
    description: Directory on the controller with C(dags/), C(plugins/), C(scripts/), C(.airflowignore). For C(staged).
    type: path
  ref:
    description: Git revision of O(source) to build from. Empty = the work tree as it is. For C(staged).
    type: str
  lock:
    description: Process on the controller that holds the lock (see M(airflow_release_lock)); C(live) fails without it.
    type: int
  release:
    description: Id of the release. For C(staged) the action plugin fills it in; for C(chosen) empty = the one before.
    type: str
  manifest:
    description: What the release consists of. Filled in by the action plugin.
    type: dict
  archive:
    description: Tar archive of the release on this host. Filled in by the action plugin.
    type: path
  parser:
    description: Text of the Python program that parses a release. For C(staged).
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
  control_plane:
    description: Whether a triggerer runs here, whose restart is to be foreseen.
    type: bool
    default: true
  allow_removal:
    description: Whether the release may lack DAGs of the live one. For C(staged).
    type: bool
    default: false
  announce:
    description: Have Airflow take the release over and wait for it. For C(live), with Airflow's interpreter.
    type: dict
    suboptions:
      host: {description: Name under which this host's triggerer reports., type: str, required: true}
      api:
        description: The public API. Unset = only the metadata database is asked.
        type: dict
        suboptions:
          url: {description: Its address., type: str, required: true}
          user: {description: Whom to log in as., type: str, required: true}
          password: {description: The user's password., type: str, required: true}
          ca_file: {description: CA certificate. Unset = the host's trust store., type: path}
      bundle: {description: Name of the DAG bundle., type: str, default: releases}
      credential:
        description: File with the SQLAlchemy URL of the metadata database.
        type: path
        default: /etc/airflow/credentials/sql_alchemy_conn
      timeout: {description: Seconds to wait., type: int, default: 120}
  keep:
    description: How many releases stay on the host besides those in use, the live one included. For C(settled).
    type: int
    default: 5
  in_use:
    description: Ids that unfinished DAG runs are pinned to. Unset = unknown, nothing is removed. For C(settled).
    type: list
    elements: str
  record:
    description: A line for the log, without its time. For C(settled) and C(logged).
    type: dict
  log:
    description: The log of deploys.
    type: path
    default: /var/lib/airflow_release/log.jsonl
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
  description: Whether this release is the last proven one.
  type: bool
  returned: always
former:
  description: The last proven release, if it is another and still on this host.
  type: str
  returned: always
table:
  description: What the release changes, as lines to print; empty if it is live and proven.
  type: list
  returned: with C(state=staged) and C(state=chosen)
facts:
  description: Git revision of the release, and whether the sources differed from it.
  type: dict
  returned: with C(state=staged) and C(state=chosen)
in_use:
  description: Releases that unfinished DAG runs are pinned to.
  type: list
  returned: with O(announce)
removed:
  description: Ids of the removed releases.
  type: list
  returned: with C(state=settled)
"""

PARSE_TIMEOUT = 300
TRIGGERER = "airflow-triggerer"


def read_archive(archive: Path) -> dict[str, bytes]:
    """Contents of the archive's files by name.

    :raises ReleaseError: it is no archive any more
    """
    contents = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if file := tar.extractfile(member):
                    contents[member.name] = file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ReleaseError(f"the archive arrived damaged ({error}); run the deployment again") from None
    return contents


def unpack(archive: Path, manifest: Mapping[str, Any], release: str, target: Path) -> None:
    """Write exactly the manifest's files, each checked, and nothing else that the archive may hold.

    :raises ReleaseError: the archive is not the release that the manifest and the id describe
    """
    files: Files = manifest["files"]
    if release_id(files) != release:
        raise ReleaseError(f"the manifest describes release {release_id(files)}, not {release}")
    contents = read_archive(archive)
    for name in sorted(files):
        path = target / name
        if not path.resolve().is_relative_to(target.resolve()):
            raise ReleaseError(f"{name}: outside of the release")
        data = contents.get(name, b"")
        if hashlib.sha256(data).hexdigest() != files[name]["sha256"]:
            raise ReleaseError(f"{name}: arrived damaged; run the deployment again")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(int(files[name]["mode"], 8))
    for directory, _, _ in os.walk(target):
        os.chmod(directory, 0o755)  # noqa: S103 - services read it, whatever the umask
    write_json(target / MANIFEST, manifest)


def first_manifest(directory: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest, with the facts (who, from where, when) of the first who staged this content here."""
    former = read_json(directory / MANIFEST)
    return dict(manifest) | (former if former.get("id") == directory.name else {}) | {"files": manifest["files"]}


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


def build(directory: Path, params: Mapping[str, Any]) -> None:
    """Unpack, compile and parse a release in ``directory``.

    :raises ReleaseError: with every error of every file
    """
    release, final = params["release"], Path(params["root"], "releases", params["release"])
    unpack(Path(params["archive"]), first_manifest(final, params["manifest"]), release, directory)
    errors = compile_sources(directory, final)
    result: dict[str, Any] = {"dags": {}, "stored": {}, "triggerer": [], "errors": []}
    if os.path.exists(params["python"]):  # missing in check mode only: reach_staged
        result = parse(
            directory,
            python=params["python"],
            parser=params["parser"],
            root=Path(params["root"]),
            configuration=params["configuration"],
            user=params["user"],
        )
        if not result["dags"] and not result["errors"]:
            errors.append(
                {"file": "dags/", "line": None, "message": "no DAG; such a release would take every DAG away"}
            )
    named = {(error["file"], error["line"]) for error in errors}
    errors += [error for error in result.pop("errors") if (error["file"], error["line"]) not in named]
    if errors:
        raise ReleaseError(refusal(errors))
    write_json(directory / VERIFIED, {"release": release, "environment": environment(params["python"]), **result})


def stage(params: Mapping[str, Any]) -> None:
    """Put a release into its place; what was there (damaged, or parsed by another Airflow) goes away afterwards."""
    releases = Path(params["root"], "releases")
    final = releases / params["release"]
    releases.mkdir(mode=0o755, exist_ok=True)
    with staging_directory(releases, params["release"]) as directory:
        build(directory, params)
        with staging_directory(releases, f"{params['release']}.old") as old:
            if final.exists():
                final.rename(old / "tree")
            directory.rename(final)


def listing(directory: Path) -> str:
    """A release as text for a diff: one line per file."""
    files = read_json(directory / MANIFEST).get("files", {})
    return listing_of(files)


def listing_of(files: Files) -> str:
    """Path, mode and the start of the checksum, one line per file."""
    return "".join(f"{path} {files[path]['mode']} {files[path]['sha256'][:12]}\n" for path in sorted(files))


# --- what a release would change --------------------------------------------------------------------------------------


def trigger_files(directory: Path) -> dict[str, str]:
    """Checksums of the release's modules that triggers import: what a running triggerer has loaded."""
    files = read_json(directory / MANIFEST).get("files", {})
    return {path: files[path]["sha256"] for path in read_json(directory / VERIFIED).get("triggerer", [])}


def restart_reason(root: Path, directory: Path) -> str:
    """Why the triggerer must be restarted for a release; an empty string if it need not."""
    settled = read_json(root / "releases" / SETTLED)
    loaded, wanted = settled.get("triggerer"), trigger_files(directory)
    if loaded is None:
        return f"{TRIGGERER} restarts: it has no release yet"
    changed = sorted(path for path in loaded.keys() | wanted.keys() if loaded.get(path) != wanted.get(path))
    return f"{TRIGGERER} restarts: its triggers import {', '.join(changed)}" if changed else ""


def changes(root: Path, directory: Path, release: str, *, allow_removal: bool, control_plane: bool) -> list[str]:
    """Lines that say what the release changes on this host; none if it is live and proven.

    :raises ReleaseError: it would take DAGs away
    """
    result = status(root, release)
    if result["live"] == release and result["settled"]:
        return []
    live = result["live"] if result["live"] != release else result["former"]
    former = root / "releases" / live if live else None
    found = compare(former, directory)
    files = read_json(directory / VERIFIED).get("dags", {}) | (
        {dag: read_json(former / VERIFIED).get("dags", {})[dag] for dag in found["removed"]} if former else {}
    )
    if found["removed"] and not allow_removal:
        gone = "\n".join(f"DAG {dag} of {files[dag]} would be removed" for dag in found["removed"])
        raise ReleaseError(f"{gone}\nIf that is wanted: -e airflow_release_allow_removal=true")
    lines = [f"{what:<8} {dag:<30} {files[dag]}" for what in ("added", "changed", "removed") for dag in found[what]]
    lines += [f"beside   {path}" for path in found["files"]]
    reason = restart_reason(root, directory) if control_plane else ""
    return [f"release {release}, live is {live or 'none'}", *lines, *([reason] if reason else [])]


# --- Ansible ----------------------------------------------------------------------------------------------------------


def status(root: Path, release: str) -> dict[str, Any]:
    """What every state returns."""
    settled = read_json(root / "releases" / SETTLED).get("release", "")
    former = settled if settled != release and (root / "releases" / settled / VERIFIED).is_file() else ""
    return {"release": release, "live": live_release(root), "settled": settled == release, "former": former}


def reach_staged(module: AnsibleModule) -> dict[str, Any]:
    """C(state=staged); without an archive only report whether one is needed."""
    params = module.params
    root, release, files = Path(params["root"]), params["release"], params["manifest"]["files"]
    directory = root / "releases" / release
    result = status(root, release)

    def table(place: Path) -> list[str]:
        allowed, control_plane = params["allow_removal"], params["control_plane"]
        return changes(root, place, release, allow_removal=allowed, control_plane=control_plane)

    verified_by = read_json(directory / VERIFIED).get("environment")
    if is_intact(directory, release) and verified_by == environment(params["python"]):
        return result | {"changed": False, "table": table(directory)}
    result |= {
        "changed": True,
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
            build(scratch, params)
            return result | {"table": table(scratch)}
    if not os.path.exists(params["python"]):
        raise ReleaseError(f"{params['python']} does not exist; install Airflow first")
    stage(params)
    return result | {"table": table(directory)}


def reach_chosen(module: AnsibleModule) -> dict[str, Any]:
    """C(state=chosen)."""
    params = module.params
    root, live = Path(params["root"]), live_release(Path(params["root"]))
    release = params["release"] or previous_release(read_log(Path(params["log"])), live)
    directory = root / "releases" / release
    manifest, verified = read_json(directory / MANIFEST), read_json(directory / VERIFIED)
    if not release or not verified:
        wanted = (
            f"release {release} is not on this host" if release else "the log knows of no release before the live one"
        )
        raise ReleaseError("\n".join([f"{wanted}. There are:", *known_releases(root, live)]))
    again = f"make deploy REF={manifest.get('revision') or '<its revision>'}"
    if manifest.get("dirty"):
        again += " (it was released with changes that were not committed)"
    if verified.get("environment") != environment(params["python"]):
        raise ReleaseError(
            f"release {release} was verified with {verified.get('environment')}, Airflow now runs from"
            f" {environment(params['python'])}. To have it verified with that and released: {again}"
        )
    if not is_intact(directory, release):
        raise ReleaseError(
            f"release {release} has been changed on this host. To have it replaced and released: {again}"
        )
    table = changes(root, directory, release, allow_removal=True, control_plane=params["control_plane"])
    facts = {name: manifest.get(name) for name in ("revision", "dirty")}
    return status(root, release) | {"changed": False, "table": table, "facts": facts}


def known_releases(root: Path, live: str) -> list[str]:
    """A line for each release of the host, the newest first."""
    lines = []
    for name, staged in sorted(staged_releases(root).items(), key=lambda item: -item[1]):
        manifest = read_json(root / "releases" / name / MANIFEST)
        revision = (manifest.get("revision") or "no revision")[:12] + (" with changes" if manifest.get("dirty") else "")
        date = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(staged))
        lines.append(f"{name}  {date} UTC  {revision}{'  live' if name == live else ''}")
    return lines


def reach_live(module: AnsibleModule) -> dict[str, Any]:
    """C(state=live)."""
    root, release = Path(module.params["root"]), module.params["release"]
    result = status(root, release)
    changed = result["live"] != release
    before, after = (f"current -> releases/{name}\n" if name else "" for name in (result["live"], release))
    result |= {"changed": changed, "diff": {"before": before, "after": after}}
    if module.check_mode:
        return result
    if not (root / "releases" / release / VERIFIED).is_file():
        raise ReleaseError(f"release {release} is not staged on this host")
    if module.params["announce"] is None:
        flip(root, release)
        return result
    return result | take_over(root, release, module.params["announce"])


def take_over(root: Path, release: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Move the link and have Airflow schedule and serve the release.

    :raises ReleaseError: it does not in time; what is missing
    """
    directory = root / "releases" / release
    dags = read_json(directory / VERIFIED)["dags"]
    database = Database(Path(settings["credential"]).read_text().strip(), settings["bundle"])
    served = Served(settings["api"], settings["bundle"]) if settings["api"] else None
    reason = restart_reason(root, directory)
    restarted_at = 0.0

    def restart() -> None:
        nonlocal restarted_at
        if reason and not restarted_at:
            restarted_at = time.time()
            # Not awaited here: there are other things to wait for meanwhile.
            subprocess.run(["systemctl", "restart", "--no-block", f"{TRIGGERER}.service"], check=True)

    def unready() -> str:
        restart()
        triggerers = database.jobs("TriggererJob") if reason else []
        if reason and not any(host == settings["host"] and start > restarted_at for host, start in triggerers):
            return f"the restarted triggerer has not reported: journalctl -u {TRIGGERER}"
        return served.pending(release, dags) if served else ""

    database.jobs("DagProcessorJob")  # connects, which takes longer than the flip, or fails before it
    flipped_at = time.time()
    flip(root, release)
    outcome = announce(
        database,
        release=release,
        dags=dags,
        releases=root / "releases",
        timeout=settings["timeout"],
        requested=restart,
        unready=unready,
    )
    if outcome.problem:
        raise ReleaseError(f"Airflow does not schedule all of it after {settings['timeout']} s:\n{outcome.problem}")
    seconds = round(time.time() - flipped_at, 1)
    return {"in_use": database.in_use(), "flipped_at": flipped_at, "seconds": seconds, "restart": reason}


def reach_settled(module: AnsibleModule) -> dict[str, Any]:
    """C(state=settled)."""
    params = module.params
    root, release, log = Path(params["root"]), params["release"], Path(params["log"])
    result = status(root, release)
    removed: list[str] = []
    if params["in_use"] is not None:
        removed = superfluous(
            staged_releases(root),
            keep=params["keep"],
            protected={release, result["live"], *params["in_use"]},
            lived=[record["release"] for record in read_log(log) if record.get("result") == "live"],
        )
    settled = {"release": release, "triggerer": trigger_files(root / "releases" / release)}
    changed = bool(removed) or settled != read_json(root / "releases" / SETTLED)
    if changed and not module.check_mode:
        for name in removed:
            shutil.rmtree(root / "releases" / name)
        write_json(root / "releases" / SETTLED, settled)
    last = [record["release"] for record in read_log(log) if record.get("result") == "live"][-1:]
    if params["record"] and not module.check_mode and (changed or last != [release]):
        write_log(log, params["record"])
    return result | {"changed": changed, "removed": removed}


def reach_logged(module: AnsibleModule) -> dict[str, Any]:
    """C(state=logged)."""
    if not module.check_mode:
        write_log(Path(module.params["log"]), module.params["record"])
    return {"changed": False}


def reach_verified(module: AnsibleModule) -> dict[str, Any]:
    """C(state=verified)."""
    params = module.params
    root, python = Path(params["root"]), params["python"]
    release = live_release(root)
    directory, result = root / "releases" / release, status(root, release)
    verified = read_json(directory / VERIFIED) if release else {}
    if not release or verified.get("environment") == environment(python):
        return result | {"changed": False}
    if not os.path.exists(python):
        if module.check_mode:  # not built yet
            return result | {"changed": True}
        raise ReleaseError(f"{python} does not exist; build its venv first")
    found = parse(
        directory,
        python=python,
        parser=params["parser"],
        root=root,
        configuration=params["configuration"],
        user=params["user"],
    )
    if errors := found.pop("errors"):
        raise ReleaseError(f"With {environment(python)} the live release does not load:\n{refusal(errors)}")
    if not module.check_mode:
        write_json(directory / VERIFIED, {"release": release, "environment": environment(python), **found})
    return result | {"changed": True}


API = {
    "url": {"type": "str", "required": True},
    "user": {"type": "str", "required": True},
    "password": {"type": "str", "required": True, "no_log": True},
    "ca_file": {"type": "path"},
}
ANNOUNCE = {
    "host": {"type": "str", "required": True},
    "api": {"type": "dict", "options": API},
    "bundle": {"type": "str", "default": "releases"},
    "credential": {"type": "path", "default": "/etc/airflow/credentials/sql_alchemy_conn"},
    "timeout": {"type": "int", "default": 120},
}
ARGUMENTS = {
    "state": {"choices": ["staged", "chosen", "live", "settled", "logged", "verified"], "required": True},
    "root": {"type": "path", "default": "/opt/airflow"},
    "source": {"type": "path"},
    "ref": {"type": "str"},
    "lock": {"type": "int"},
    "release": {"type": "str"},
    "manifest": {"type": "dict"},
    "archive": {"type": "path"},
    "parser": {"type": "str"},
    "python": {"type": "path", "default": "/opt/airflow/venv/bin/python"},
    "user": {"type": "str"},
    "configuration": {"type": "path", "default": "/etc/airflow/airflow.cfg"},
    "control_plane": {"type": "bool", "default": True},
    "allow_removal": {"type": "bool", "default": False},
    "announce": {"type": "dict", "options": ANNOUNCE},
    "keep": {"type": "int", "default": 5},
    "in_use": {"type": "list", "elements": "str"},
    "record": {"type": "dict"},
    "log": {"type": "path", "default": "/var/lib/airflow_release/log.jsonl"},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=ARGUMENTS,
        required_if=[
            ("state", "staged", ["release", "manifest", "parser"]),
            ("state", "live", ["release"]),
            ("state", "settled", ["release"]),
            ("state", "logged", ["record"]),
            ("state", "verified", ["parser"]),
        ],
        supports_check_mode=True,
    )
    reach = {
        "staged": reach_staged,
        "chosen": reach_chosen,
        "live": reach_live,
        "settled": reach_settled,
        "logged": reach_logged,
        "verified": reach_verified,
    }[module.params["state"]]
    try:
        module.exit_json(**reach(module))
    except ReleaseError as error:
        release = module.params["release"] or ""
        facts = status(Path(module.params["root"]), release)
        module.fail_json(msg=f"Release {release} is refused.\n{error}" if release else f"Refused: {error}", **facts)


if __name__ == "__main__":
    main()
