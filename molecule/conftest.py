"""What every test file gets: the platform, and the journal of what failed."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import platform_under_test
import pytest
from platform_under_test import Figures, Platform, Run, wait_for

MOST_JOURNALS = 8
_journals = itertools.count()
_figures: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    for marker in (
        "unit(group, name): the systemd unit that the test is about; its journal is shown when the test fails",
        "kills: ends processes of the platform the hard way; runs last, and never on hosts in use",
        "slow: takes minutes; run it with -m slow",
    ):
        config.addinivalue_line("markers", marker)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Unasked, only hosts that nobody works on are hurt.
    asked = config.option.markexpr
    disposable = platform_under_test.load().namespace == "molecule" or os.environ.keys() & {
        "MOLECULE_SCENARIO_NAME",
        "PLATFORM_DISPOSABLE",
    }
    for item in items:
        if item.get_closest_marker("slow") and "slow" not in asked:
            item.add_marker(pytest.mark.skip(reason="takes minutes: run it with -m slow"))
        elif item.get_closest_marker("kills") and not (disposable or "kills" in asked or "slow" in asked):
            item.add_marker(pytest.mark.skip(reason="kills processes on hosts in use: ask for it with -m kills"))
    items.sort(key=lambda item: item.get_closest_marker("kills") is not None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.failed and next(_journals) < MOST_JOURNALS:  # type: ignore[attr-defined]
        for name, unit in _suspects(item):
            text = platform_under_test.load().journal(name, unit)
            report.sections.append((f"journal of {unit} on {name}", text))  # type: ignore[attr-defined]
    return report


def _suspects(item: pytest.Item) -> list[tuple[str, str]]:
    """Units that a failed test is about, and every failed unit of the platform."""
    platform = platform_under_test.load()
    found = [
        (name, str(marker.args[1]))
        for marker in item.iter_markers("unit")
        for name in platform.groups.get(marker.args[0], [])
    ]
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    if {"host", "unit"} <= set(parameters):
        found.append((parameters["host"], parameters["unit"]))
    for name in platform.groups["all"]:
        try:
            failed = platform.host(name).run("systemctl list-units --failed --plain --no-legend --no-pager")
        except RuntimeError:  # the host is down: a test has killed it
            continue
        found += [(name, line.split()[0]) for line in failed.stdout.splitlines() if line.strip()]
    return list(dict.fromkeys(found))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _figures:
        terminalreporter.section("figures")
        for line in _figures:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def figures() -> Figures:
    """Keeps a sentence with measured figures for the end of the output."""
    return _figures.append


@pytest.fixture(scope="session")
def platform() -> Platform:
    return platform_under_test.load()


@pytest.fixture(scope="session")
def new_slot() -> Callable[[], str]:
    """Slots that no schedule and no other test shares: whole seconds, each given once."""
    # Long ago, so that the smoke test's slots (now) are never met.
    seconds = itertools.count(int(datetime.now(UTC).timestamp()) - 10**9)
    return lambda: datetime.fromtimestamp(next(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture(scope="session")
def run(platform: Platform, new_slot: Callable[[], str]) -> Run:
    """One run of user_transformation, started through the API and over."""
    slot = new_slot()
    before = platform.ledger(slot)
    run_id = platform.trigger(slot)
    answer = platform.finish(run_id)
    return Run(slot, answer, platform.tasks(run_id), before, platform.ledger(slot))


@pytest.fixture(scope="session")
def artifacts() -> Path:
    """Folder that CI keeps; git ignores it."""
    platform_under_test.ARTIFACTS.mkdir(exist_ok=True)
    return platform_under_test.ARTIFACTS


@pytest.fixture
def held_record(platform: Platform) -> Iterator[Callable[[], None]]:
    """A lock on the first record, so that every job stands still; call it to let go."""
    database, name = "transformation_service", "holds_a_record"
    statement = "BEGIN; SELECT FROM user_record ORDER BY id LIMIT 1 FOR UPDATE; SELECT pg_sleep(120)"
    session = f"runuser -u postgres -- env PGAPPNAME={name} psql -X -q -d {database} -c '{statement}'"
    platform.host(platform.first("postgresql")).check_output(f"systemd-run --collect {session}")
    held = f"SELECT 1 AS one FROM pg_stat_activity WHERE application_name = '{name}' AND query LIKE '%pg_sleep%'"
    wait_for(lambda: platform.psql(held), bool, "the lock", 10)

    def let_go() -> None:
        platform.psql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{name}'")

    yield let_go
    let_go()
