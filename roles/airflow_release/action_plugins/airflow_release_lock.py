"""The controller's half of the module ``airflow_release_lock``: a session that ends with this ansible-playbook."""

from __future__ import annotations

import getpass
import os
import select
import shlex
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

HOLD = Path(__file__).parents[1] / "files/hold_session.py"
# Reads the beats of hold_session.py; ends with its input, or when no beat has come for half a minute.
SESSION = (
    "import os, select; print(os.getpid(), flush=True)\n"
    "while select.select([0], [], [], 30)[0] and os.read(0, 64): pass"
)
CONNECT_SECONDS = 30


class ActionModule(ActionBase):  # type: ignore[misc]
    """Open the session and have the module hold the lock for it."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the action."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        main = os.getppid()  # ansible-playbook; we are one of its workers
        owner = {
            "by": getpass.getuser(),
            "from": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "process": main,
        }
        result |= {"owner": owner, "began": time.time(), "changed": False}
        if self._task.check_mode:
            return result
        holder, session = self._open(main)
        args = dict(self._task.args) | {"session": session, "owner": owner | {"holder": holder.pid}}
        answer: dict[str, Any] = self._execute_module("airflow_release_lock", module_args=args, task_vars=task_vars)
        if answer.get("holder") != holder.pid:
            holder.kill()
            holder.wait()
        return result | answer

    def _open(self, main: int) -> tuple[subprocess.Popen[str], int]:
        """Start the session; return the process that holds it here, and its process id there."""
        python = "/usr/bin/python3"
        match self._connection.transport:
            case "ssh":
                host = self._connection.get_option("host") or self._play_context.remote_addr
                remote = f"{python} -c {shlex.quote(SESSION)}"
                executable = self._connection.get_option("ssh_executable")
                built = [word.decode() for word in self._connection._build_command(executable, "ssh", host, remote)]
                # Over the tasks' connection, which is open: nobody is asked for a password again.
                command = built[built.index(executable) :]
            case "local":
                command = [python, "-c", SESSION]
            case other:
                raise AnsibleActionFail(f"the lock of releases needs the connection ssh or local, not {other}")
        holder = subprocess.Popen(
            [sys.executable, str(HOLD), str(main), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # no signal of the terminal reaches it: it goes when ansible-playbook has gone
        )
        assert holder.stdout  # noqa: S101 - a pipe was asked for
        assert holder.stderr  # noqa: S101
        line = holder.stdout.readline() if select.select([holder.stdout], [], [], CONNECT_SECONDS)[0] else ""
        if not line.strip().isdigit():
            holder.kill()
            raise AnsibleActionFail(
                f"no session for the lock of releases: {holder.stderr.read().strip() or 'no answer'}"
            )
        return holder, int(line)
