"""Run a command and hold its standard input open while another process lives: ``hold_session.py <pid> <command>``.

The command's standard input ends with that process, however it ends, and with this one. A byte every few seconds tells
the command that the line is up. The command's first line is passed on to standard output.
"""

import os
import select
import subprocess
import sys

BEAT_SECONDS = 5


def main() -> None:
    """Hold the session."""
    watched = os.pidfd_open(int(sys.argv[1]))
    command = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert command.stdin  # noqa: S101 - a pipe was asked for
    assert command.stdout  # noqa: S101
    sys.stdout.write(command.stdout.readline().decode())
    sys.stdout.flush()
    ended = os.pidfd_open(command.pid)
    while not select.select([watched, ended], [], [], BEAT_SECONDS)[0]:
        try:
            os.write(command.stdin.fileno(), b".")
        except BrokenPipeError:
            break
    command.stdin.close()


if __name__ == "__main__":
    main()
