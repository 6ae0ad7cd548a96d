"""The two hosts of this scenario, and what is done to them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Read by platform_under_test as it loads the inventory, once.
os.environ.setdefault("PLATFORM_NAMESPACE", "rebuild")
os.environ.setdefault("PLATFORM_INVENTORY", "molecule/rebuild/inventory")

import platform_under_test
from platform_under_test import ROOT, Platform


class Hosts:
    """Makes and loses the hosts, and runs playbooks against them."""

    def __init__(self) -> None:
        self.inventory = os.environ["PLATFORM_INVENTORY"]
        self.environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}

    def command(self, playbook: str, *options: str) -> list[str]:
        """Arguments that start a playbook."""
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        return [program, "-i", self.inventory, f"playbooks/{playbook}.yml", *options]

    def play(self, playbook: str, *options: str) -> str:
        """Run a playbook to its good end; return its output."""
        done = subprocess.run(
            self.command(playbook, *options),
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        return done.stdout

    def rebuild(self, *options: str) -> tuple[int, str]:
        """What `make rebuild` runs; return its exit code and its output."""
        done = subprocess.run(
            [ROOT / ".ci/rebuild", self.inventory, "playbooks/rebuild.yml", *options],
            cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout

    def lose(self, *, backups: bool = False) -> None:
        """Remove the hosts with all that is on them; the repository of backups stays, unless that is lost as well."""
        keep = "false" if backups else "true"
        self.play("test_hosts", "-e", f'{{"test_host_state": "absent", "test_host_keep": {keep}}}')
        self.make()

    def make(self) -> None:
        """Have blank hosts."""
        self.play("test_hosts")


@pytest.fixture(scope="session")
def hosts() -> Hosts:
    return Hosts()


@pytest.fixture
def platform() -> Platform:
    """The platform as it is now: hosts that were made anew have other keys, and maybe other secrets."""
    platform_under_test.load.cache_clear()
    return platform_under_test.load()
