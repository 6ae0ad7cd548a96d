"""site.yml on blank hosts, killed at random points: the next run goes on, and the one after it has nothing to do."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time

import pytest
from deployments import changed
from platform_under_test import ROOT, Figures

KILLS = 3


@pytest.mark.slow
def test_killed_at_random_points_site_converges(hosts, figures: Figures) -> None:
    seed = os.environ.get("INTERRUPTED_SEED", str(random.randrange(10**6)))
    chance = random.Random(seed)
    print(f"INTERRUPTED_SEED={seed}")
    hosts.lose(backups=True)
    for number in range(KILLS):
        process = subprocess.Popen(
            hosts.command("site"), cwd=ROOT, env=hosts.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip
        after = chance.uniform(10, 70)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after)
        assert process.poll() is None, f"ended with {process.returncode} before its kill:\n{process.communicate()[0]}"
        os.killpg(process.pid, signal.SIGKILL)
        output = process.communicate()[0]
        done = [line.strip() for line in output.splitlines() if line.strip()]
        figures(f"kill {number + 1} of site.yml after {after:.0f} s, after: {done[-1] if done else 'nothing'}")
    began = time.monotonic()
    hosts.play("site")
    figures(f"the next run: green after {time.monotonic() - began:.0f} s")
    began = time.monotonic()
    assert set(changed(hosts.play("site")).values()) == {0}
    figures(f"the run after it: 0 changed, {time.monotonic() - began:.0f} s (seed {seed})")
