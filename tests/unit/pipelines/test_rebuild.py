"""How a pipeline hears of the end of a run, whatever the end is; its secrets in files of their own."""

import importlib.machinery
import importlib.util
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]


def load() -> ModuleType:
    """Import the program, whose name has no ending."""
    loader = importlib.machinery.SourceFileLoader("rebuild_program", str(ROOT / ".ci/rebuild"))
    spec = importlib.util.spec_from_loader("rebuild_program", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


program = load()
FINE: dict[str, Any] = {"ansible.builtin.command": "true"}
BAD: dict[str, Any] = {"ansible.builtin.fail": {"msg": "this is why"}}
SMOKE: dict[str, Any] = {"ansible.builtin.set_stats": {"data": {"smoke": [{"name": "health", "ok": True}]}}}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that takes the repository's place: the program, its callbacks, an inventory of this machine."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/rebuild", tmp_path / ".ci")
    for name in (".venv", "ansible.cfg", "roles"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "playbooks").mkdir()
    for name in ("callback_plugins", "journals.yml"):
        (tmp_path / "playbooks" / name).symlink_to(ROOT / "playbooks" / name)
    host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    gone = {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_ssh_common_args": "-o ConnectTimeout=2"}
    inventory = {"all": {"hosts": {"here": host}}, "lost": {"hosts": {"gone": gone}}}
    (tmp_path / "inventory.yml").write_text(yaml.safe_dump(inventory))
    return tmp_path


def play(name: str, stage: str | None, *tasks: dict[str, Any], hosts: str = "here") -> dict[str, Any]:
    """A play that says what its failure means."""
    named = [{"name": f"Task {number}", **task} for number, task in enumerate(tasks)]
    return {"name": name, "hosts": hosts, "vars": {"run_stage": stage} if stage else {}, "tasks": named}


def start(place: Path, plays: list[dict[str, Any]] | str, output: int | None = None) -> subprocess.Popen[bytes]:
    """Start the program on a playbook."""
    (place / "playbooks/try.yml").write_text(plays if isinstance(plays, str) else yaml.safe_dump(plays))
    argv = [sys.executable, place / ".ci/rebuild", "inventory.yml", "playbooks/try.yml"]
    return subprocess.Popen(argv, cwd=place, stdout=output, stderr=output)


def end(place: Path, process: subprocess.Popen[bytes]) -> tuple[int, dict[str, Any]]:
    """Exit code and result."""
    code = process.wait(60)
    return code, json.loads((place / ".artifacts/try/result.json").read_text())


@pytest.mark.parametrize(
    ("plays", "code", "outcome", "message"),
    [
        ([play("Look", "check", FINE), play("Do", None, FINE), play("Proof", "proof", SMOKE)], 0, "green", ""),
        ([play("Look", "check", FINE, BAD), play("Do", None, FINE)], 10, "refused", "this is why"),
        ([play("Look", "check", FINE), play("Do", None, FINE, BAD)], 20, "failed", "this is why"),
        ([play("Do", None, FINE), play("Look again", "check", BAD)], 20, "failed", "this is why"),
        ([play("Do", None, FINE), play("Proof", "proof", BAD)], 30, "proof failed", "this is why"),
        ([play("Look", "check", FINE, hosts="lost")], 10, "refused", "unreachable"),
        ([play("Do", None, FINE, hosts="lost")], 20, "failed", "unreachable"),
        ("- hosts: [", 10, "refused", "YAML"),
    ],
)
def test_the_code_and_the_file_say_how_it_ended(place, plays, code, outcome, message):
    found, result = end(place, start(place, plays))
    assert (found, result["exit_code"], result["outcome"]) == (code, code, outcome)
    said = "\n".join(failure["message"] for failure in result["failures"])
    assert message in said
    assert bool(said) == (code != 0)
    assert result["seconds"] > 0
    assert result["started"] <= result["ended"]
    if code == 0:
        assert [phase["name"] for phase in result["phases"]] == ["Look", "Do", "Proof"]
        assert all(phase["seconds"] >= 0 for phase in result["phases"])
        assert result["smoke"] == [{"name": "health", "ok": True}]
        log = (place / ".artifacts/try/ansible.log").read_text()
        assert log.count("changed: [here] Task 0") == 2
    if code == 20 and "unreachable" not in said:
        assert "=== airflow-worker" in (place / ".artifacts/try/journals/here.log").read_text()
    for path in (place / ".artifacts/try").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def test_a_failure_that_a_rescue_made_good_is_none(place):
    tasks = {"block": [{"name": "Try", **BAD}], "rescue": [{"name": "Mend", **FINE}]}
    assert end(place, start(place, [play("Do", None, tasks)]))[1]["outcome"] == "green"


def test_an_output_that_does_not_block_is_no_obstacle(place):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    process = start(place, [play("Do", None, FINE)], writing)
    os.close(writing)
    with open(reading) as output:
        said = output.read()
    assert end(place, process)[1]["outcome"] == "green", said


def test_secrets_of_a_failed_task_stay_out_of_the_file(place):
    task = {"ansible.builtin.fail": {"msg": "hush-hush"}, "no_log": True}
    code, result = end(place, start(place, [play("Do", None, task)]))
    assert code == 20
    assert "hush-hush" not in json.dumps(result)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_ends_soon_and_says_where_it_was(place, number):
    marker = place / "began"
    process = start(place, [play("Do", None, {"ansible.builtin.shell": f"touch {marker}; sleep 300"})])
    until = time.monotonic() + 30
    while not marker.exists() and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(number)
    code, result = end(place, process)
    assert (code, result["outcome"]) == (20, "interrupted")
    assert result["failures"][-1]["phase"] == "Do"


def test_a_killed_run_leaves_a_file_that_says_how_far_it_came(place):
    marker = place / "began"
    process = start(
        place, [play("Look", "check", FINE), play("Do", None, {"ansible.builtin.shell": f"touch {marker}; sleep 2"})]
    )
    until = time.monotonic() + 30
    while not marker.exists() and time.monotonic() < until:
        time.sleep(0.1)
    process.kill()
    process.wait()
    result = json.loads((place / ".artifacts/try/result.json").read_text())
    assert result["outcome"] == "running"
    assert [phase["name"] for phase in result["phases"]] == ["Look", "Do"]


def test_nobody_is_asked_for_anything(place):
    question = {"ansible.builtin.pause": {"prompt": "Go on?"}}
    prompt = {**play("Do", None, FINE), "vars_prompt": [{"name": "answer", "prompt": "Which?"}]}
    assert end(place, start(place, [play("Do", None, question)]))[0] in (0, 20)
    assert end(place, start(place, [prompt]))[0] in (0, 10, 20)


def test_every_stage_of_the_real_playbook_is_told():
    listed = {path.name: yaml.safe_load(path.read_text()) for path in (ROOT / "playbooks").glob("*.yml")}

    def stages(name: str) -> list[str]:
        found: list[str] = []
        for entry in listed[name]:
            imported = entry.get("ansible.builtin.import_playbook")
            found += stages(imported) if imported else [entry.get("vars", {}).get("run_stage", "change")]
        return found

    told = stages("rebuild.yml")
    assert told[:2] == ["check", "check"], "a refusal must be one"
    assert told[-2:] == ["proof", "proof"], "smoke and proof of the data"
    assert set(told[2:-2]) - {"check"} == {"change"}


def test_secrets_become_private_files_that_are_gone_afterwards(tmp_path):
    script = (
        'stat -c "%a %n" "$ANSIBLE_VAULT_PASSWORD_FILE" "$ANSIBLE_PRIVATE_KEY_FILE"; cat "$ANSIBLE_VAULT_PASSWORD_FILE"'
        '; env | grep -c -e hush -e key-text; cat "${ANSIBLE_SSH_EXTRA_ARGS##*=}"; exit 7'
    )
    secrets = {"VAULT_PASSWORD": "hush", "SSH_PRIVATE_KEY": "key-text", "SSH_KNOWN_HOSTS": "host-line"}
    done = subprocess.run(
        [ROOT / ".ci/with_secrets", "bash", "-c", script],
        env={**os.environ, **secrets, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 7, "the command's own exit code"
    assert [line.split()[0] for line in lines[:2]] == ["600", "600"]
    assert lines[2:] == ["hush", "0", "host-line"]
    assert list(tmp_path.iterdir()) == []
