"""The playbook itself, on this machine: one list, no change, the same in check mode."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
GROUPS = ("postgresql", "redis", "airflow_scheduler", "airflow_worker", "transformation_service")
MISTAKES = """
all:
  children:
    postgresql: {hosts: {vm: }}
    airflow_scheduler: {hosts: {vm: }}
    airflow_worker: {hosts: {vm: , gone: }}
    transformation_service: {hosts: {vm: }}
    reddis: {hosts: {vm: }}
  hosts:
    vm: {ansible_connection: local, ansible_python_interpreter: "%(python)s", host_address: 127.0.0.1}
    gone: {ansible_host: 127.0.0.1, ansible_port: 1, host_address: 10.0.0.300}
  vars:
    airflow_admin_password: CHANGE-ME
    airflow_fernet_key: "{{ vault_key }}"
    redis_celery_password: short
    redis_celery_pasword: hunter2-hunter2
    airflow_worker_concurrency: none
    transformation_service_url: http://api.invalid:5000
    host_admin_networks: [10.0.0.1/8]
    preflight_minimum: {postgresql: {cpus: 4096, memory_mb: 1, disk_mb: 1}}
"""
CODES = {
    "E-GROUP-MISSING",
    "E-ADDRESS-INVALID",
    "E-SECRET-PLACEHOLDER",
    "E-SECRET-MISSING",
    "E-SECRET-WEAK",
    "E-VARIABLE-UNKNOWN",
    "E-VALUE-RANGE",
    "E-NETWORK-INVALID",
    "E-NAME-UNRESOLVED",
    "E-HOST-CPUS",
    "E-HOST-UNREACHABLE",
}


def preflight(inventory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", inventory, "playbooks/preflight.yml", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("options", [(), ("--check", "--diff")])
def test_all_mistakes_are_in_one_list(tmp_path, options):
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(MISTAKES % {"python": sys.executable})
    done = preflight(inventory, *options)
    assert done.returncode == 2, done.stdout + done.stderr
    listed = re.findall(r"^ *\d+ (E-[A-Z-]+) ", done.stdout, re.MULTILINE)
    assert set(listed) >= CODES, done.stdout
    assert "rename group reddis" in done.stdout
    assert "did you mean redis_celery_password?" in done.stdout
    assert f"set in  {inventory}:" in done.stdout
    assert f"Preflight found {len(listed)} problems. No host was changed." in done.stdout
    assert not re.search(r"changed=[1-9]", done.stdout)
    assert "hunter2" not in done.stdout + done.stderr


def test_an_inventory_without_hosts_is_refused(tmp_path):
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("all:\n")
    done = preflight(inventory)
    assert done.returncode == 2
    assert re.findall(r"(E-[A-Z-]+)  group (\w+)", done.stdout) == [("E-GROUP-MISSING", name) for name in GROUPS[:4]]
