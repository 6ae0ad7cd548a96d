"""Callback: what a run did, as a JSON file for programs, kept up to date while it runs."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.playbook.play import Play
from ansible.plugins.callback import CallbackBase
from ansible.release import __version__

DOCUMENTATION = """
  name: result_file
  type: aggregate
  short_description: Writes outcome, phases, failures and figures of a run into a JSON file
  description:
    - Does nothing without the environment variable RESULT_FILE. The file is replaced whole at the begin and the end of
      each play and at each failure, so it tells how far a run came that was killed.
    - A play says by its variable C(run_stage) what its failure means - C(check), nothing was changed; C(proof), all is
      deployed and does not work; C(change), the default. A task set_stats adds to the file's first level.
  options:
    result_file:
      description: The file.
      type: str
      env: [{name: RESULT_FILE}]
"""

OUTCOMES = {"check": "refused", "change": "failed", "proof": "proof failed"}
LONGEST_MESSAGE = 2000


def now() -> str:
    """Return the present instant, ISO 8601 in UTC with whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Keeps the record and writes it."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "result_file"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        """Start the clock."""
        super().__init__()
        self._path: Path | None = None
        self._began = self._play_began = time.monotonic()
        self._phase: dict[str, Any] | None = None
        self._record: dict[str, Any] = {
            "outcome": "running", "started": now(), "ended": None, "seconds": 0.0, "phases": [], "failures": [],
            "versions": {"ansible_core": __version__},
        }  # fmt: skip

    def set_options(self, *arguments: Any, **options: Any) -> None:
        """Read where the file is."""
        super().set_options(*arguments, **options)
        path = self.get_option("result_file")
        self._path = Path(path) if path else None
        self.disabled = self._path is None

    def _write(self) -> None:
        if self._path is None:
            return
        self._record["seconds"] = round(time.monotonic() - self._began, 1)
        new = self._path.with_name(f".{self._path.name}.new")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
            json.dump(self._record, stream, indent=1)
            stream.write("\n")
        new.replace(self._path)

    def _finish_phase(self) -> None:
        if self._phase is not None:
            self._phase["seconds"] = round(time.monotonic() - self._play_began, 1)
            self._phase = None

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Name the playbook."""
        self._record["playbook"] = Path(playbook._file_name).name
        self._write()

    def v2_playbook_on_play_start(self, play: Play) -> None:
        """Begin a phase."""
        self._finish_phase()
        self._play_began = time.monotonic()
        stage = play.get_vars().get("run_stage", "change")
        self._phase = {"name": play.get_name().strip(), "stage": stage, "seconds": None, "changed": 0}
        self._record["phases"].append(self._phase)
        self._record["check_mode"] = bool(play.check_mode)
        self._write()

    def v2_runner_on_ok(self, result: Any) -> None:
        """Count a change; take what set_stats gives."""
        data = result.result
        if self._phase is not None and data.get("changed"):
            self._phase["changed"] += 1
        for name, value in (data.get("ansible_stats") or {}).get("data", {}).items():
            known = self._record.get(name)
            self._record[name] = known | value if isinstance(known, dict) and isinstance(value, dict) else value

    def _fail(self, result: Any, message: str) -> None:
        phase = self._phase or {"name": "", "stage": "change"}
        self._record["failures"].append(
            {
                "phase": phase["name"], "stage": phase["stage"], "task": result.task.get_name().strip(),
                "host": result.host.get_name(), "at": now(), "message": message[:LONGEST_MESSAGE],
            }
        )  # fmt: skip
        self._write()

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Keep the message; the output of a task with secrets has been censored before."""
        if ignore_errors:
            return
        data = result.result
        said = [data.get(key) for key in ("msg", "stderr", "censored", "module_stderr")]
        items = [item for item in data.get("results", []) if isinstance(item, dict)]
        said += [item.get("msg") for item in items if item.get("failed")]
        self._fail(result, "\n".join(str(part) for part in said if part))

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Keep the message."""
        self._fail(result, f"unreachable: {result.result.get('msg', '')}")

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Say how it ended. A failure that a rescue made good is none."""
        self._finish_phase()
        if stats.failures or stats.dark:
            stage = self._record["failures"][-1]["stage"] if self._record["failures"] else "change"
            # Checks come again in playbooks that a playbook imports, after it has changed something.
            if stage == "check" and {phase["stage"] for phase in self._record["phases"]} != {"check"}:
                stage = "change"
            self._record["outcome"] = OUTCOMES.get(stage, "failed")
        else:
            self._record |= {"outcome": "green", "failures": []}
        self._record["ended"] = now()
        self._write()
