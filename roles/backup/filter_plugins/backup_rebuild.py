"""Ansible filter: what speaks against a rebuild?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

CLUSTER = "/var/lib/postgresql/"


def backup_data(traces: str) -> str:
    """Tell in words what a host holds; "" when it is blank.

    ``traces`` has a path per line, and perhaps what ``platform-backup state`` says of the cluster, which knows whether
    there is anything in it.
    """
    lines = traces.splitlines()
    state = next((json.loads(line) for line in lines if line.startswith("{")), None)
    paths = [line for line in lines if line.startswith("/") and not (state and line.startswith(CLUSTER))]
    words = [state["words"]] if state and state["state"] != "blank" else []
    words += [f"a PostgreSQL cluster is in {path.rpartition('/')[0]}" for path in paths if path.startswith(CLUSTER)]
    words += [f"a release is live ({path})" for path in paths if not path.startswith(CLUSTER)]
    return ", ".join(words)


def backup_rebuild_problems(
    data: Mapping[str, str],
    host: str,
    repository: str | None,
    over: str,
    from_scratch: bool,
    keys: Sequence[Mapping[str, str]],
    tree: bool = False,
) -> list[dict[str, Any]]:
    """Return [{"problem", "fix"}].

    :param data: what each host holds, in words, see :func:`backup_data`
    :param host: the PostgreSQL host
    :param repository: where it has a backup; "" without one; None when that can't be seen before pgBackRest is there
    :param keys: problems of the inventory's keys
    :param tree: whether the sources at hand go live, and not the release of the backup
    """
    used = {name: words for name, words in data.items() if words}
    if from_scratch:
        problems = [
            {"problem": f"{name} is not blank, and nothing begins from scratch over data: {words}", "fix": "make site"}
            for name, words in used.items()
        ]
        if repository:
            fix = f"without FROM_SCRATCH that one comes back; else move it away: mv {repository} {repository}.old"
            problems.append({"problem": f"{host} has a backup in {repository}", "fix": fix})
        return problems
    problems = [] if over == host else [
        {
            "problem": f"{name} is not blank: {words}",
            "fix": f"if this platform may be replaced by its backup: make rebuild OVER={host}",
        }
        for name, words in used.items()
    ]  # fmt: skip
    if over not in ("", host):
        problems.append({"problem": f"OVER names {over}, and the PostgreSQL host is {host}", "fix": f"OVER={host}"})
    if repository == "":
        fix = "mount or copy the repository there; -e restore_repository=2 takes backup_copy; or FROM_SCRATCH=true"
        problems.append({"problem": f"{host} has no backup in backup_repository", "fix": fix})
    if repository is None and not tree:
        fix = "-e rebuild_release=tree takes the sources at hand"
        problems.append(
            {"problem": "the release of the backup is not in backup_copy, which holds data alone", "fix": fix}
        )
    return [*problems, *map(dict, keys)]


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"backup_data": backup_data, "backup_rebuild_problems": backup_rebuild_problems}
