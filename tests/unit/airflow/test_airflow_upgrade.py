"""What stands in an upgrade's way is all in one list, and the preview names the migrations between two versions."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from roles.airflow.filter_plugins import airflow_upgrade as upgrade

OLD, NEW = "/opt/airflow/venvs/3.2.2-aaaaaaaa", "/opt/airflow/venvs/3.3.2-bbbbbbbb"
MIGRATIONS = {
    "alembic_version": {
        "a": {"down": "", "title": "First", "release": "3.2.0"},
        "b": {"down": "a", "title": "Second", "release": "3.3.0"},
        "c": {"down": "b", "title": "Third", "release": "3.3.0"},
    },
    "alembic_version_fab": {"f": {"down": "", "title": "Users", "release": "3.5.0"}},
}


def host(**values: Any) -> dict[str, Any]:
    return {
        "venv": OLD, "version": "3.2.2", "ready": False, "megabytes": 400.0, "free_megabytes": 5000.0, "kept": None,
        **values,
    }  # fmt: skip


def database(**values: Any) -> dict[str, Any]:
    return {
        "versions": {"alembic_version": ["a"], "alembic_version_fab": ["f"]}, "running": [], "queued": 0, "deferred": 0,
        "megabytes": 12.0, "free_megabytes": 5000.0, "copy": None, "backup_problems": [], **values,
    }  # fmt: skip


def problems(hosts: dict[str, Any], version: str = "3.3.2", **values: Any) -> list[str]:
    secrets = values.pop("secrets", {})
    found = upgrade.airflow_upgrade_problems(hosts, version, database(**values), MIGRATIONS, secrets)
    assert all(problem["fix"] for problem in found)
    return [problem["problem"] for problem in found]


def test_a_platform_in_order_has_no_problem() -> None:
    assert problems({"control-1": host(), "worker-1": host()}) == []


def test_all_problems_come_at_once() -> None:
    found = problems(
        {"control-1": host(free_megabytes=800.0), "worker-1": host(version="3.4.0")},
        free_megabytes=100.0,
        backup_problems=["WAL is not archived"],
        versions={"alembic_version": ["z"]},
        secrets={"worker-1": ["broker_url"], "control-1": []},
    )
    assert [problem.split(",")[0] for problem in found] == [
        "Airflow 3.4.0 runs",
        "control-1: 800 MB are free in /opt",
        "PostgreSQL has 100 MB free",
        "backups: WAL is not archived",
        "the database is at alembic_version z",
        "worker-1: broker_url differ from the inventory",
    ]


@pytest.mark.parametrize(
    ("runs", "wanted", "refused"),
    [
        ("3.3.2", "3.3.2", False),
        ("3.3.1", "3.3.2", False),
        ("3.2.2", "3.3.0", False),
        ("3.3.10", "3.3.9", True),
        ("3.1.8", "3.3.2", True),
        ("2.11.0", "3.3.2", True),
        ("3.3.2", "3.2.2", True),
    ],
)
def test_versions_may_go_one_minor_version_up(runs: str, wanted: str, refused: bool) -> None:
    assert bool(upgrade.version_problems(runs, wanted)) is refused


def test_a_venv_that_is_built_and_a_copy_that_is_made_need_no_room() -> None:
    assert (
        problems({"control-1": host(free_megabytes=1.0, ready=True)}, free_megabytes=1.0, copy={"from": "3.2.2"}) == []
    )


@pytest.mark.parametrize(
    ("hosts", "copy", "due"),
    [
        ({"control-1": host(venv=NEW)}, None, False),
        ({"control-1": host(venv=NEW), "worker-1": host()}, None, True),
        ({"control-1": host(venv=NEW, kept={"venv": OLD})}, None, True),
        ({"control-1": host(venv=NEW)}, {}, True),
    ],
)
def test_what_is_unfinished_is_still_due(hosts: dict[str, Any], copy: dict[str, Any] | None, due: bool) -> None:
    assert upgrade.airflow_upgrade_due(hosts, NEW, database(copy=copy)) is due


def test_the_plan_names_migrations_and_what_is_waited_for() -> None:
    running = [{"dag": "d", "task": "t", "run": "r", "host": "worker-1", "seconds": 61.4}]
    lines = upgrade.airflow_upgrade_plan(
        {"control-1": host()}, "3.3.2", database(running=running, queued=2, deferred=1), MIGRATIONS
    )
    assert lines == [
        "control-1: Airflow 3.2.2 to 3.3.2, venv has to be built",
        "alembic_version: a to c, 2 migrations",
        "  b  3.3.0   Second",
        "  c  3.3.0   Third",
        "alembic_version_fab: stays at f",
        "database: 12 MB are copied while Airflow stands still",
        "now: 1 tasks run, 2 queued, 1 deferred",
        "  d.t runs for 61 s on worker-1 (r)",
    ]


def test_the_migrations_are_those_that_airflow_has() -> None:
    installed = importlib.metadata.version("apache-airflow-core")
    found = upgrade.airflow_migrations(installed)
    spec = importlib.util.find_spec("airflow")
    assert spec is not None
    assert spec.submodule_search_locations
    text = Path(next(iter(spec.submodule_search_locations)), "utils/db.py").read_text()
    steps = upgrade.path_between(found["alembic_version"], "1d6611b6ab7c")  # the head of 3.2.0
    assert f'"{steps[-1]}"' in text, "airflow.utils.db names each release's head"
    assert len(found["alembic_version_fab"]) >= 2
    assert upgrade.airflow_migrations("3.0.0") == {}
