"""site.yml on blank hosts, killed at random points: the next run goes on, and the one after it has nothing to do."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
from typing import Any

import pytest
from deployments import changed, kill
from platform_under_test import ROOT, Figures

KILLS = 3
PLAYS = range(2, 11)  # from Hosts to the release of DAGs; after it nothing changes a host any more
LONGEST_DELAY = 10.0  # seconds


def run_and_kill(hosts: Any, play: int, delay: float) -> list[str]:
    """Start site.yml, kill it with its workers some seconds after a play began; return what it had printed."""
    process = subprocess.Popen(
        hosts.command("site"), cwd=ROOT, env=hosts.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if line.startswith(f"({play}/"):
            break
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(delay)
    assert process.poll() is None, "ended before its kill:\n" + "\n".join(lines) + process.stdout.read()
    lines += [f"{delay:.0f} s later", *(line.strip() for line in kill(process).splitlines())]
    return [line for line in lines if line]


@pytest.mark.slow
def test_killed_at_random_points_site_converges(hosts, figures: Figures) -> None:
    """Each kill hits a later play than the one before, some seconds after its begin."""
    seed = os.environ.get("INTERRUPTED_SEED", str(random.randrange(10**6)))
    chance = random.Random(seed)
    hosts.lose(backups=True)
    for play in sorted(chance.sample(PLAYS, KILLS)):
        output = run_and_kill(hosts, play, chance.uniform(0.2, LONGEST_DELAY))
        figures(f"site.yml killed: {' / '.join(output[-2:])}")
    began = time.monotonic()
    hosts.play("site")
    figures(f"the next run: green after {time.monotonic() - began:.0f} s")
    began = time.monotonic()
    assert set(changed(hosts.play("site")).values()) == {0}
    figures(f"the run after it: 0 changed, {time.monotonic() - began:.0f} s (INTERRUPTED_SEED={seed})")
