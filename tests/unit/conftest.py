"""What several areas of unit tests share: a real PostgreSQL server of the test run's own."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ansible.module_utils
import pytest

# Where Ansible puts a role's own module_utils, when it runs the role's modules.
for role in ("airflow", "airflow_smoke"):
    ansible.module_utils.__path__.append(str(Path(__file__).parents[2] / f"roles/{role}/module_utils"))


@dataclass(frozen=True)
class PostgresqlServer:
    """A throw-away server that listens on a Unix socket only.

    Attributes:
        directory: Holds the socket, the data and the log.
        binaries: Where ``initdb``, ``postgres`` and ``psql`` are.
        user: Operating system user that runs it.
    """

    directory: Path
    binaries: Path
    user: str

    def url(self, database: str) -> str:
        """Return the libpq URL of a database, as superuser."""
        return f"postgresql:///{database}?host={self.directory}&user=postgres"


def _binaries() -> Path:
    # Debian keeps initdb and postgres off the PATH.
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        pytest.fail("These tests start a PostgreSQL server of their own: install Debian's package 'postgresql'.", False)
    return found[-1].parent


def _unprivileged_user() -> str:
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _as_user(user: str) -> dict[str, object]:
    """Return subprocess arguments: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def start_postgresql(server: PostgresqlServer) -> subprocess.Popen[bytes]:
    """Start the server on its directory and wait until it answers."""
    data, log = server.directory / "data", server.directory / "log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [
                server.binaries / "postgres",
                *("-D", data),
                *("-k", server.directory),
                # The content need not outlive the machine, only the processes.
                *("-c", "listen_addresses="),
                *("-c", "fsync=off"),
                *("-c", "max_connections=60"),
                *("-c", "shared_buffers=64MB"),
            ],
            cwd=server.directory,
            stdout=output,
            stderr=output,
            **_as_user(server.user),
        )
    ready = [server.binaries / "pg_isready", "-q", "-h", server.directory, "-d", "postgres", "-U", "postgres"]
    deadline = time.monotonic() + 30
    while subprocess.run(ready, check=False).returncode != 0:
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"PostgreSQL did not start:\n{log.read_text(errors='replace')}", False)
        time.sleep(0.05)
    return process


def stop_postgresql(process: subprocess.Popen[bytes]) -> None:
    """Stop a server at once, as a crash would."""
    process.kill() if process.poll() is not None else process.send_signal(3)  # SIGQUIT: immediate shutdown
    process.wait(30)


def make_postgresql() -> PostgresqlServer:
    """Create an empty cluster; the caller starts it and removes its directory."""
    user, binaries = _unprivileged_user(), _binaries()
    # Not pytest's directory: that one is closed to other users, and its path too long for a socket.
    directory = Path(tempfile.mkdtemp(prefix="pg-"))
    if os.geteuid() == 0:
        os.chown(directory, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions"]
    subprocess.run(
        [binaries / "initdb", "-D", directory / "data", *options],
        check=True,
        capture_output=True,
        cwd=directory,
        **_as_user(user),
    )
    return PostgresqlServer(directory=directory, binaries=binaries, user=user)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresqlServer]:
    """A running server, one for the whole test run; each test takes a database of its own in it."""
    server = make_postgresql()
    process = start_postgresql(server)
    try:
        yield server
    finally:
        stop_postgresql(process)
        shutil.rmtree(server.directory, ignore_errors=True)
