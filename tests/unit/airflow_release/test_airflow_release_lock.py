"""The lock as a play takes it on this machine, over the connection local."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from release_host import REPOSITORY

Play = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@pytest.fixture
def play(tmp_path: Path, lock: Path) -> Iterator[Play]:
    """Start a play that takes the lock ``times`` times and then waits for ever, or ends."""
    started: list[subprocess.Popen[str]] = []

    def run(*, waits: bool, times: int = 1) -> subprocess.Popen[str]:
        tasks: list[dict[str, object]] = [{"airflow_release_lock": {"path": str(lock)}} for _ in range(times)]
        tasks += [{"ansible.builtin.command": "sleep 600"}] if waits else []
        playbook = tmp_path / f"play-{len(started)}.yml"
        variables = {"ansible_python_interpreter": sys.executable}
        playbook.write_text(
            yaml.safe_dump([{"hosts": "localhost", "connection": "local", "vars": variables, "tasks": tasks}])
        )
        started.append(
            subprocess.Popen(
                [Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", playbook],
                cwd=REPOSITORY,
                env=os.environ | {"ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default", "ANSIBLE_NOCOLOR": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def is_free(lock: Path) -> bool:
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def wait(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_it_is_held_by_the_play_and_goes_with_it(play: Play, lock: Path, end: signal.Signals) -> None:
    first = play(waits=True)
    wait(lambda: lock.exists() and bool(lock.read_text()), 60)
    owner = json.loads(lock.read_text())
    assert owner["process"] == first.pid

    second = play(waits=False)
    told = " ".join(second.communicate(timeout=60)[0].split())
    assert second.returncode != 0
    assert f"{owner['by']} on {owner['from']} is deploying since {owner['since']}" in told
    assert f"process {first.pid} there). Nothing was changed." in told
    assert not is_free(lock)

    first.send_signal(end)
    wait(lambda: is_free(lock), 5)


def test_a_play_that_ends_frees_it_and_may_take_it_twice(play: Play, lock: Path) -> None:
    for _ in range(2):
        process = play(waits=False, times=2)
        output = process.communicate(timeout=60)[0]
        assert process.returncode == 0, output
        wait(lambda: is_free(lock), 5)
