"""The one VM loses its power in the middle of a run: all of it comes back by itself, and the run ends well."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from platform_under_test import Figures, Platform, wait_for

pytestmark = pytest.mark.kills


def test_everything_comes_back_after_a_power_cut(
    platform: Platform, new_slot: Callable[[], str], figures: Figures
) -> None:
    (vm,) = platform.groups["all"]
    slot = new_slot()
    before = platform.ledger(slot)
    run_id = platform.trigger(slot)
    wait_for(lambda: platform.tasks(run_id).values(), lambda tasks: any(t["start_date"] for t in tasks), "a task", 60)
    platform.power("kill", vm)
    platform.power("start", vm)
    began = time.monotonic()
    platform.await_up(vm, 120)
    platform.await_api(120)
    figures(f"power cut: the API answers after {time.monotonic() - began:.0f} s")
    next_slot = new_slot()
    assert platform.finish(platform.trigger(next_slot), 240)["state"] == "success"
    # A task that was running has to be given up first: 300 s without a heartbeat, then its retry.
    assert platform.finish(run_id, 900)["state"] == "success"
    figures(f"power cut: the run from before it over after {time.monotonic() - began:.0f} s")
    after = platform.ledger(slot)
    assert after["rows"] == after["records"] * after["jobs"] == before["total"] * 3, "not each record once per rule"
