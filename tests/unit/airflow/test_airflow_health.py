"""What counts as healthy on a host: its own processes, since their start."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PATH = Path(__file__).parents[3] / "roles/airflow/library/airflow_health.py"
NOW = 1_000_000.0
STARTS = {"scheduler": NOW - 20, "triggerer": NOW - 20}


@pytest.fixture(scope="module")
def subject() -> ModuleType:
    spec = importlib.util.spec_from_file_location("airflow_health", PATH)
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def judge(subject: ModuleType, *jobs: tuple[str, float, float]) -> list[str]:
    return list(subject.job_problems(["scheduler", "triggerer"], jobs, STARTS, NOW))


def test_processes_that_started_with_their_units_are_healthy(subject: ModuleType) -> None:
    assert judge(subject, ("SchedulerJob", NOW - 15, NOW - 2), ("TriggererJob", NOW - 12, NOW - 12)) == []


def test_the_process_from_before_the_restart_proves_nothing(subject: ModuleType) -> None:
    found = judge(subject, ("SchedulerJob", NOW - 900, NOW - 1), ("TriggererJob", NOW - 12, NOW - 1))
    assert found == ["scheduler has sent no heartbeat since its start"]


def test_a_process_that_stopped_beating_is_not_healthy(subject: ModuleType) -> None:
    assert len(judge(subject, ("SchedulerJob", NOW - 15, NOW - 31), ("SchedulerJob", NOW - 5, NOW - 60))) == 2


@pytest.mark.parametrize(
    ("replies", "says"),
    [
        ({}, "the worker does not answer over the broker"),
        ({"celery@other": [{"name": "default"}]}, "the worker does not answer over the broker"),
        ({"celery@worker-1": []}, "the worker answers and consumes no queue"),
        ({"celery@worker-1": {"error": "no such thing"}}, "the worker answers and consumes no queue"),
        ({"celery@worker-1": [{"name": "default"}]}, None),
    ],
)
def test_a_worker_must_consume(subject: ModuleType, replies: dict[str, Any], says: str | None) -> None:
    assert subject.worker_problems("worker-1", replies) == ([says] if says else [])
