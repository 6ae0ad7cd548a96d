from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest

from plugins.daily import daily_settings, slot_of_day, summarize


def run(logical_date: datetime | None, run_after: datetime | None = None) -> SimpleNamespace:
    return SimpleNamespace(logical_date=logical_date, run_after=run_after or logical_date)


def test_the_master_and_an_own_schedule_name_one_slot():
    own = slot_of_day({"slot": None}, run(datetime(2026, 1, 31, 2, tzinfo=UTC)))
    master = slot_of_day({"slot": None}, run(datetime(2026, 1, 31, 1, tzinfo=UTC)))
    handed_on = slot_of_day({"slot": master}, run(None, datetime(2026, 2, 1, 0, 0, 1, tzinfo=UTC)))
    assert own == master == handed_on == "2026-01-31T00:00:00Z"


@pytest.mark.parametrize(
    ("moment", "day"),
    [
        (datetime(2026, 1, 31, tzinfo=UTC), "2026-01-31"),
        (datetime(2026, 1, 31, 23, 59, 59, 999999, tzinfo=UTC), "2026-01-31"),
        (datetime(2026, 2, 1, tzinfo=UTC), "2026-02-01"),
        (datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC), "2026-12-31"),
        (datetime(2028, 2, 29, 12, tzinfo=UTC), "2028-02-29"),
        # Other zones write an instant differently, it stays on its UTC day.
        (datetime(2026, 2, 1, 0, 30, tzinfo=timezone(timedelta(hours=1))), "2026-01-31"),
        (datetime(2026, 1, 31, 20, tzinfo=ZoneInfo("America/New_York")), "2026-02-01"),
        # The night in which clocks go back has 02:30 twice in Zurich; both are one UTC day.
        (datetime(2026, 10, 25, 2, 30, fold=0, tzinfo=ZoneInfo("Europe/Zurich")), "2026-10-25"),
        (datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Zurich")), "2026-10-25"),
    ],
)
def test_the_day_is_a_utc_day(moment: datetime, day: str):
    assert slot_of_day({}, run(moment)) == f"{day}T00:00:00Z"
    assert slot_of_day({}, run(None, moment)) == f"{day}T00:00:00Z"


def test_every_tick_of_a_day_is_one_slot_and_no_two_days_share_one():
    ticks = [datetime(2026, 3, 28, tzinfo=UTC) + timedelta(minutes=30 * step) for step in range(48 * 3)]
    slots = [slot_of_day({}, run(tick)) for tick in ticks]
    assert [slots.count(slot) for slot in dict.fromkeys(slots)] == [48, 48, 48]


def test_the_logical_date_wins_over_the_time_of_a_late_start():
    late = run(datetime(2026, 1, 31, 2, tzinfo=UTC), datetime(2026, 2, 3, 9, tzinfo=UTC))
    assert slot_of_day({}, late) == "2026-01-31T00:00:00Z"


@pytest.mark.parametrize("given", ["2026-01-31T02:00:17Z", "2026-01-31"])
def test_a_given_slot_is_taken_as_it_is(given: str):
    assert slot_of_day({"slot": given}, run(datetime(2020, 1, 1, tzinfo=UTC))) == given


@pytest.mark.parametrize("empty", [None, ""])
def test_an_empty_slot_is_none_given(empty: str | None):
    assert slot_of_day({"slot": empty}, run(datetime(2026, 1, 31, 2, tzinfo=UTC))) == "2026-01-31T00:00:00Z"


def test_settings_are_made_anew_for_each_dag():
    first, second = daily_settings(owner="one"), daily_settings(owner="two")
    first["default_args"]["retries"] = 0
    assert (second["default_args"]["owner"], second["default_args"]["retries"]) == ("two", 4)
    assert first["params"]["slot"] is not second["params"]["slot"]


def job(rule: str, *, finished: int, replayed: bool = False) -> dict[str, object]:
    return {
        "job_id": f"job-{rule}",
        "entity_type": "User",
        "slot": "2026-01-31T00:00:00Z",
        "counts": {"total": 100, "transformed": 97, "marked": 3},
        "started_at": "2026-01-31T02:00:00Z",
        "finished_at": f"2026-01-31T02:00:{finished:02}.500000Z",
        "replayed": replayed,
    }


def test_a_summary_adds_up_its_rule_sets():
    begin = datetime(2026, 1, 31, 1, 59, tzinfo=UTC)
    told = summarize({"one": job("one", finished=1), "two": job("two", finished=2)}, begin)
    figures = {"total": 100, "transformed": 97, "marked": 3, "already_done": False}
    assert told == {
        "entity_type": "User",
        "slot": "2026-01-31T00:00:00Z",
        "already_done": False,
        "rule_sets": {"one": figures | {"seconds": 1.5}, "two": figures | {"seconds": 2.5}},
        "all": {"total": 200, "transformed": 194, "marked": 6, "seconds": 4.0, "already_done": False},
    }


def test_a_slot_is_already_done_when_an_earlier_run_did_all_of_it():
    jobs = {rule: job(rule, finished=1, replayed=True) for rule in ("one", "two")}
    later = datetime(2026, 1, 31, 3, tzinfo=UTC)
    assert summarize(jobs, later)["already_done"] is True
    own_retry = datetime(2026, 1, 31, 1, 59, tzinfo=UTC)
    assert summarize(jobs, own_retry)["already_done"] is False
    half = summarize(jobs | {"two": job("two", finished=1)}, later)
    assert (half["already_done"], half["rule_sets"]["one"]["already_done"]) == (False, True)
