"""What both files of this scenario use."""

from __future__ import annotations

import time

import pytest
from platform_under_test import Platform
from upgrades import Operator


@pytest.fixture(scope="session")
def operator(platform: Platform) -> Operator:
    return Operator(platform)


@pytest.fixture
def gate() -> str:
    """A file on the workers that is not there yet."""
    return f"/run/upgrade_probe_{time.time_ns()}"
