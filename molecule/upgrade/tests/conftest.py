"""What both files of this scenario use."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from platform_under_test import Platform
from upgrades import Operator


@pytest.fixture(scope="module")
def operator(platform: Platform) -> Operator:
    return Operator(replace(platform, _cache={}))  # another version of Airflow takes no token of the former one


@pytest.fixture
def gate() -> str:
    """A file on the workers that is not there yet."""
    return f"/run/upgrade_probe_{time.time_ns()}"
