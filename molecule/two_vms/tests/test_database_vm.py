"""The PostgreSQL VM restarts in the middle of a run: nothing fails, and no record is done twice."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from platform_under_test import Figures, Platform, wait_for

pytestmark = pytest.mark.kills


def test_a_restart_of_the_postgresql_vm_costs_no_run(
    platform: Platform, new_slot: Callable[[], str], figures: Figures
) -> None:
    slot = new_slot()
    before = platform.ledger(slot)
    run_id = platform.trigger(slot)
    wait_for(lambda: platform.tasks(run_id).values(), lambda tasks: any(t["start_date"] for t in tasks), "a task", 60)
    began = time.monotonic()
    platform.power("restart", platform.first("postgresql"))
    platform.await_up(platform.first("postgresql"), 120)
    platform.await_api(120)
    assert platform.finish(run_id, 900)["state"] == "success"
    figures(f"PostgreSQL VM restarted: the run over after {time.monotonic() - began:.0f} s")
    after = platform.ledger(slot)
    assert after["rows"] == after["records"] * after["jobs"] == before["total"] * 3, "not each record once per rule"


def test_the_postgresql_vm_holds_postgresql_alone(platform: Platform) -> None:
    units = platform.host(platform.first("postgresql")).check_output(
        "systemctl list-units --all --plain --no-legend 'airflow*.service' 'redis*.service' 'transformation*.service'"
    )
    assert units == ""
