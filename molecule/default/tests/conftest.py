"""What every test file gets: the platform, and the journal of what failed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import platform_under_test
import pytest
from platform_under_test import Platform

MOST_JOURNALS = 8
_journals = itertools.count()


def pytest_configure(config: pytest.Config) -> None:
    for marker in (
        "unit(group, name): the systemd unit that the test is about; its journal is shown when the test fails",
        "kills: ends processes of the platform the hard way; runs last, and never on hosts in use",
        "slow: takes minutes; run it with -m slow",
    ):
        config.addinivalue_line("markers", marker)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Only those that nobody else works on may be hurt unasked.
    namespace = platform_under_test.load().namespace
    for item in items:
        if config.option.markexpr:
            continue
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: run it with -m slow"))
        elif item.get_closest_marker("kills") and namespace == "local":
            item.add_marker(pytest.mark.skip(reason="kills processes of hosts in use: ask for it with -m kills"))
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
        failed = platform.host(name).run("systemctl list-units --failed --plain --no-legend --no-pager")
        found += [(name, line.split()[0]) for line in failed.stdout.splitlines() if line.strip()]
    return list(dict.fromkeys(found))


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
def artifacts() -> Path:
    """Folder that CI keeps; git ignores it."""
    platform_under_test.ARTIFACTS.mkdir(exist_ok=True)
    return platform_under_test.ARTIFACTS
