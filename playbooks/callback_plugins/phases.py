"""Stdout callback: plays as phases, one line for each task that changed something, with its time."""

from __future__ import annotations

import time
from typing import Any

from ansible import constants as C
from ansible.playbook.play import Play
from ansible.playbook.task import Task
from ansible.plugins.callback.default import CallbackModule as Default

DOCUMENTATION = """
  name: phases
  type: stdout
  short_description: Plays as phases, changes as lines, failures in full
  description:
    - Six hosts and sixty tasks print some five hundred lines with the default callback. This one prints a line for a
      task that changed something or took long, with its seconds and hosts, and all that the default prints for failures
      and diffs.
    - With C(-v) it prints what the default prints. A log file (ANSIBLE_LOG_PATH) gets a line for every task and host.
  extends_documentation_fragment:
    - default_callback
    - result_format_callback
"""

LONG_SECONDS = 3.0
WAITING_SECONDS = 60.0
SLOWEST = 5


class CallbackModule(Default):  # type: ignore[misc]
    """Ansible's default callback, quieter where nothing happens."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "phases"

    def __init__(self) -> None:
        """Start the clock."""
        super().__init__()
        self._began = self._play_began = time.monotonic()
        self._task: Task | None = None
        self._task_began = self._waiting_shown = 0.0
        self._changed: list[str] = []
        self._play_name = self._play_id = ""
        self._play_number = self._plays = 0
        self._times: list[tuple[float, str]] = []

    @property
    def _verbose(self) -> bool:
        return bool(self._display.verbosity)

    def _log(self, what: str, result: Any) -> None:
        """Write a line that the screen does without."""
        text = f"{what}: [{result.host.get_name()}] {result.task.get_name().strip()}"
        self._display.display(text, log_only=True)

    def _finish_task(self) -> None:
        if self._task is None:
            return
        seconds, name = time.monotonic() - self._task_began, self._task.get_name()
        self._times.append((seconds, name))
        if not self._verbose and (self._changed or seconds >= LONG_SECONDS):
            what, color = ("changed", C.COLOR_CHANGED) if self._changed else ("ok", C.COLOR_OK)
            hosts = f"  [{', '.join(sorted(set(self._changed)))}]" if self._changed else ""
            self._display.display(f"  {what:<8}{seconds:6.1f} s  {name}{hosts}", color=color)
        self._task, self._changed = None, []

    def _finish_play(self) -> None:
        self._finish_task()
        if self._play_name and not self._verbose:
            self._display.display(
                f"  {'':<8}{time.monotonic() - self._play_began:6.1f} s  in all", color=C.COLOR_VERBOSE
            )
        self._play_name = ""

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Count the plays, those of imported playbooks included."""
        self._play_number, self._plays = 0, len(playbook.get_plays())
        super().v2_playbook_on_start(playbook)

    def v2_playbook_on_play_start(self, play: Play) -> None:
        """Print the phase. A play with ``serial`` starts once for each batch and stays one phase."""
        if play._uuid == self._play_id and not self._verbose:
            return
        self._play_id = play._uuid
        self._finish_play()
        self._play_number += 1
        self._play_name, self._play_began = play.get_name().strip(), time.monotonic()
        if self._verbose:
            super().v2_playbook_on_play_start(play)
        else:
            self._play = play
            number = f"({self._play_number}/{self._plays}) " if self._plays > 1 else ""
            self._display.display(
                f"\n{number}{self._play_name}{' (check)' if play.check_mode else ''}", color=C.COLOR_HIGHLIGHT
            )

    def _start(self, task: Task) -> None:
        self._finish_task()
        self._task, self._task_began = task, time.monotonic()
        self._waiting_shown = self._task_began

    def v2_playbook_on_task_start(self, task: Task, is_conditional: bool) -> None:
        """Start the task's clock; the default prints its banner before a failure."""
        self._start(task)
        super().v2_playbook_on_task_start(task, is_conditional)

    def v2_playbook_on_handler_task_start(self, task: Task) -> None:
        """Handlers count like tasks."""
        self._start(task)
        super().v2_playbook_on_handler_task_start(task)

    def _print_task_banner(self, task: Task) -> None:
        # Called by the default at once, or late, before the first result that it shows.
        if self._verbose or self._showing:
            super()._print_task_banner(task)

    _showing = False

    def _shown(self, call: Any, *arguments: Any, **options: Any) -> None:
        self._showing = True
        try:
            call(*arguments, **options)
        finally:
            self._showing = False

    def v2_runner_on_ok(self, result: Any) -> None:
        """Note a change; print messages that a playbook means for its reader."""
        data = result.result
        if data.get("changed"):
            self._changed.append(result.host.get_name())
        if self._verbose:
            super().v2_runner_on_ok(result)
            return
        self._log("changed" if data.get("changed") else "ok", result)
        self._handle_warnings_and_exception(result)
        if result.task.action in C._ACTION_DEBUG and "msg" in data:
            message = data["msg"]
            lines = message if isinstance(message, list) else str(message).splitlines()
            self._display.display("\n".join(f"  {line}" for line in lines))

    def v2_runner_item_on_ok(self, result: Any) -> None:
        """Say nothing of items; the task's line tells."""
        if self._verbose:
            super().v2_runner_item_on_ok(result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        """Say nothing of skipped tasks."""
        if self._verbose:
            super().v2_runner_on_skipped(result)
        else:
            self._log("skipped", result)

    def v2_runner_item_on_skipped(self, result: Any) -> None:
        """Say nothing of skipped items."""
        if self._verbose:
            super().v2_runner_item_on_skipped(result)

    def v2_playbook_on_include(self, included_file: Any) -> None:
        """Say nothing of included files."""
        if self._verbose:
            super().v2_playbook_on_include(included_file)

    def v2_runner_retry(self, result: Any) -> None:
        """Say nothing of a try that is followed by another."""
        if self._verbose:
            super().v2_runner_retry(result)
        else:
            self._log("retried", result)

    def v2_runner_on_async_poll(self, result: Any) -> None:
        """Show each minute that long work goes on; the default prints a line for each poll."""
        if self._verbose:
            super().v2_runner_on_async_poll(result)
            return
        now = time.monotonic()
        if now - self._waiting_shown >= WAITING_SECONDS:
            self._waiting_shown = now
            passed, name = now - self._task_began, result.task.get_name()
            text = f"  {'waiting':<8}{passed:6.1f} s  {name}  [{result.host.get_name()}]"
            self._display.display(text, color=C.COLOR_OK)

    def v2_runner_on_async_ok(self, result: Any) -> None:
        """Say nothing; the task's line tells."""
        if self._verbose:
            super().v2_runner_on_async_ok(result)

    def v2_on_file_diff(self, result: Any) -> None:
        """Print a diff below its task's name and host."""
        if self._verbose:
            super().v2_on_file_diff(result)
        elif result.result.get("diff") and (text := self._get_diff(result.result["diff"])):
            self._display.display(f"  {result.task.get_name()}  [{result.host.get_name()}]", color=C.COLOR_DIFF_LINES)
            self._display.display(text)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Print the failure in full."""
        self._shown(super().v2_runner_on_failed, result, ignore_errors=ignore_errors)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Print the failure in full."""
        self._shown(super().v2_runner_on_unreachable, result)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Print the recap, the time in all and the slowest tasks."""
        self._finish_play()
        super().v2_playbook_on_stats(stats)
        slowest = ", ".join(
            f"{name} {seconds:.0f} s" for seconds, name in sorted(self._times, reverse=True)[:SLOWEST] if seconds >= 1
        )
        self._display.display(
            f"{time.monotonic() - self._began:.0f} s in all{'; slowest: ' + slowest if slowest else ''}\n"
        )
