"""What a person sees of a run on the screen."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from playbooks.callback_plugins import phases

ROOT = Path(__file__).parents[3]


def run(place: Path, *arguments: str) -> str:
    """A play whose one task is polled several times."""
    task = {"name": "Take long", "ansible.builtin.command": "sleep 2", "async": 30, "poll": 1}
    play = {"name": "Phase", "hosts": "localhost", "connection": "local", "tasks": [task]}
    (place / "play.json").write_text(json.dumps([play]))
    command = [Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", place / "play.json", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60).stdout


def test_polls_of_long_work_are_no_lines_unless_asked_for(tmp_path: Path) -> None:
    quiet, verbose = run(tmp_path), run(tmp_path, "-v")
    assert "ASYNC" not in quiet
    assert [line.split()[0] for line in quiet.splitlines() if "Take long  [localhost]" in line] == ["changed"]
    assert "ASYNC POLL" in verbose
    assert "ASYNC OK" in verbose


def test_long_work_shows_each_minute_that_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(phases, "time", SimpleNamespace(monotonic=lambda: clock.now))
    callback = phases.CallbackModule()
    task = SimpleNamespace(get_name=lambda: "Drain")
    callback._start(task)
    for seconds in range(0, 150, 2):
        clock.now = float(seconds)
        callback.v2_runner_on_async_poll(SimpleNamespace(task=task, host=SimpleNamespace(get_name=lambda: "worker-1")))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["waiting", "60.0", "s", "Drain", "[worker-1]"],
        ["waiting", "120.0", "s", "Drain", "[worker-1]"],
    ]
