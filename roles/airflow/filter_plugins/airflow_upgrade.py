"""Ansible filters: what an upgrade would do, and what stands in its way. Nothing here touches a host."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Version table -> where its migrations are in the package, and the variable in them that names the release.
MIGRATIONS = {
    "alembic_version": ("migrations/versions", "airflow_version"),
    "alembic_version_fab": ("providers/fab/migrations/versions", "fab_version"),
}
SPARE_MEGABYTES = 500
MOST_LISTED = 10


def number(version: str) -> tuple[int, ...]:
    """Turn ``3.3.2`` into (3, 3, 2); what follows the numbers does not count."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def read_migrations(package: Path) -> dict[str, dict[str, dict[str, str]]]:
    """Read the migrations of Airflow's package by version table and revision, without importing it.

    Each is {"down": revision before or "", "title": first line of its docstring, "release": version that brought it}.
    """
    found: dict[str, dict[str, dict[str, str]]] = {}
    for table, (folder, release) in MIGRATIONS.items():
        found[table] = {}
        for path in sorted((package / folder).glob("[0-9]*.py")):
            tree = ast.parse(path.read_text())
            values = {
                target.id: node.value.value
                for node in tree.body
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            title = (ast.get_docstring(tree) or "").strip().splitlines()
            found[table][str(values["revision"])] = {
                "down": str(values.get("down_revision") or ""),
                "title": title[0].rstrip(".") if title else path.stem,
                "release": str(values.get(release) or ""),
            }
    return found


def path_between(migrations: Mapping[str, Mapping[str, str]], current: str) -> list[str] | None:
    """Return the revisions from after ``current`` to the newest, oldest first; None when ``current`` is unknown.

    An empty ``current`` means all of them.
    """
    lower = {entry["down"] for entry in migrations.values()}
    heads = [revision for revision in migrations if revision not in lower]
    steps: list[str] = []
    revision = heads[0] if heads else ""
    while revision and revision != current:
        steps.insert(0, revision)
        revision = migrations[revision]["down"]
    return steps if revision == current else None


def airflow_migrations(version: str) -> dict[str, dict[str, dict[str, str]]]:
    """Return the migrations of a version of Airflow as the controller's own packages have them; {} if it is another."""
    try:
        spec = importlib.util.find_spec("airflow")
        installed = importlib.metadata.version("apache-airflow-core")
    except importlib.metadata.PackageNotFoundError:
        return {}
    if installed != version or spec is None or not spec.submodule_search_locations:
        return {}
    return read_migrations(Path(next(iter(spec.submodule_search_locations))))


def airflow_upgrade_due(hosts: Mapping[str, Mapping[str, Any]], wanted: str, database: Mapping[str, Any]) -> bool:
    """Tell whether there is something to do: another venv on a host, or traces of an upgrade that was not finished.

    ``hosts``: what airflow_venv has found on each; ``wanted``: folder of the wanted venv.
    """
    unfinished = database["copy"] is not None or any(host["kept"] for host in hosts.values())
    return unfinished or any(host["venv"] != wanted for host in hosts.values())


def version_problems(runs: str, wanted: str) -> list[dict[str, str]]:
    """Refuse a way back, and one that leaves out a minor version."""
    before, after = number(runs), number(wanted)
    if after < before:
        return [
            {
                "problem": f"Airflow {runs} runs, and this repository has {wanted}: its database can't go back",
                "fix": f"check out a revision that has {runs} or newer",
            }
        ]
    if after[:1] != before[:1] or (len(after) > 1 and after[1] > before[1] + 1):
        between = f"{before[0]}.{before[1] + 1}"
        return [
            {
                "problem": f"Airflow {runs} runs, and {wanted} leaves out a minor version between them",
                "fix": f"check out a revision of this repository that has {between}, and upgrade to that first",
            }
        ]
    return []


def airflow_upgrade_problems(
    hosts: Mapping[str, Mapping[str, Any]],
    version: str,
    database: Mapping[str, Any],
    migrations: Mapping[str, Mapping[str, Mapping[str, str]]],
    changed_secrets: Mapping[str, Sequence[str]],
) -> list[dict[str, str]]:
    """Return every reason against an upgrade, [{"problem", "fix"}].

    ``changed_secrets``: names of the secrets that differ between inventory and host, by host.
    """
    problems = []
    blank = sorted(name for name, host in hosts.items() if not host["version"])
    if blank:
        problems.append(
            {"problem": f"{', '.join(blank)}: no Airflow yet", "fix": "deploy the platform first: make site"}
        )
    for runs in sorted({host["version"] for host in hosts.values() if host["version"]}, key=number):
        problems += version_problems(runs, version)
    for name, host in sorted(hosts.items()):
        needed = host["megabytes"] + SPARE_MEGABYTES
        if not host["ready"] and host["free_megabytes"] < needed:
            problems.append(
                {
                    "problem": f"{name}: {host['free_megabytes']:.0f} MB are free in /opt, a venv takes {needed:.0f}",
                    "fix": "make room: former venvs in /opt/airflow/venvs that nothing uses, journals, logs",
                }
            )
    needed = database["megabytes"] * 1.1 + SPARE_MEGABYTES
    if database["copy"] is None and database["free_megabytes"] < needed:
        problems.append(
            {
                "problem": f"PostgreSQL has {database['free_megabytes']:.0f} MB free, a copy takes {needed:.0f}",
                "fix": "make room there, or clean the history first (role housekeeping)",
            }
        )
    problems += [
        {"problem": f"backups: {problem}", "fix": "make backup, and look at make status"}
        for problem in database["backup_problems"]
    ]
    for table, revisions in migrations.items():
        for current in database["versions"].get(table, []):
            if path_between(revisions, current) is None:
                problems.append(
                    {
                        "problem": f"the database is at {table} {current}, which Airflow {version} does not know",
                        "fix": "it was migrated by a newer version: check out a revision with that",
                    }
                )
    for name, secrets in sorted(changed_secrets.items()):
        if secrets:
            problems.append(
                {
                    "problem": f"{name}: {', '.join(sorted(secrets))} differ from the inventory",
                    "fix": "one change at a time, so that there is a way back: make rotate-secrets first",
                }
            )
    return problems


def airflow_upgrade_plan(
    hosts: Mapping[str, Mapping[str, Any]],
    version: str,
    database: Mapping[str, Any],
    migrations: Mapping[str, Mapping[str, Mapping[str, str]]],
) -> list[str]:
    """Say what would be done, as lines to print."""
    lines = [
        f"{name}: Airflow {host['version'] or 'none'} to {version},"
        f" venv {'is built' if host['ready'] else 'has to be built'}"
        + (f", goes on from an upgrade of {host['kept']['at']}" if host["kept"] else "")
        for name, host in sorted(hosts.items())
    ]
    if not migrations:
        lines.append(f"migrations: unknown, as this controller's own packages are not those of Airflow {version}")
    for table, revisions in migrations.items():
        current = (database["versions"].get(table) or [""])[0]
        steps = path_between(revisions, current) or []
        if not steps:
            lines.append(f"{table}: stays at {current}")
            continue
        lines.append(f"{table}: {current or 'nothing'} to {steps[-1]}, {len(steps)} migrations")
        lines += [f"  {step}  {revisions[step]['release']:<7} {revisions[step]['title']}" for step in steps]
    lines.append(f"database: {database['megabytes']:.0f} MB are copied while Airflow stands still")
    return lines + airflow_in_the_way(database)


def airflow_in_the_way(database: Mapping[str, Any]) -> list[str]:
    """Say what runs and waits now: a drain waits for the first and leaves the rest in the database."""
    running = database["running"]
    lines = [f"now: {len(running)} tasks run, {database['queued']} queued, {database['deferred']} deferred"]
    for task in running[:MOST_LISTED]:
        lines.append(
            f"  {task['dag']}.{task['task']} runs for {task['seconds']:.0f} s on {task['host']} ({task['run']})"
        )
    if len(running) > MOST_LISTED:
        lines.append(f"  and {len(running) - MOST_LISTED} more")
    return lines


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        names = (airflow_migrations, airflow_upgrade_due, airflow_upgrade_problems, airflow_upgrade_plan)
        return {function.__name__: function for function in (*names, airflow_in_the_way)}
