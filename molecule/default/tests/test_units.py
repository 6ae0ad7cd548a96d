"""Every unit runs as it should, comes back by itself, and is really locked in."""

from __future__ import annotations

import re

import platform_under_test
import pytest
from platform_under_test import Platform

UNITS = [
    ("airflow_scheduler", "airflow-api-server"),
    ("airflow_scheduler", "airflow-scheduler"),
    ("airflow_scheduler", "airflow-dag-processor"),
    ("airflow_scheduler", "airflow-triggerer"),
    ("airflow_scheduler", "airflow-proxy"),
    ("airflow_worker", "airflow-worker"),
    ("airflow_worker", "airflow-proxy"),
    ("transformation_service", "transformation-service"),
    ("redis", "redis-server"),
    ("postgresql", "postgresql@*-main.service"),
]
# systemd-analyze's exposure, 0 (best) to 10; Airflow's own sample units have 9.2, Debian's PostgreSQL 9.6.
# Airflow's are higher than the others' because task code is arbitrary: it may start programs and compile at run time.
MOST_EXPOSED = {"airflow": 3.1, "transformation-service": 1.5, "redis-server": 1.2, "postgresql": 2.7}
GROUPS = platform_under_test.load().groups
ON_HOSTS = [
    pytest.param(host, unit, id=f"{host}-{unit.split('@')[0]}")
    for group, unit in UNITS
    for host in GROUPS.get(group, [])
]
SERVERS = [parameter for parameter in ON_HOSTS if "postgresql" not in str(parameter.values[1])]


def properties(platform: Platform, host: str, unit: str, *names: str) -> dict[str, str]:
    """Ask systemd; a pattern must name exactly one unit."""
    shown = platform.host(host).check_output("systemctl show --all --property=%s %s", ",".join(("Id", *names)), unit)
    found = [dict(line.split("=", 1) for line in block.splitlines()) for block in shown.strip().split("\n\n")]
    assert len(found) == 1, f"{unit} on {host}: {found}"
    return found[0]


@pytest.mark.parametrize("host", GROUPS["all"])
def test_systemd_has_nothing_to_complain_about(platform: Platform, host: str) -> None:
    failed = platform.host(host).check_output("systemctl list-units --failed --plain --no-legend --no-pager")
    assert failed == ""
    assert platform.host(host).check_output("systemctl is-system-running") == "running"


@pytest.mark.parametrize(("host", "unit"), ON_HOSTS)
def test_runs_now_after_a_boot_and_after_any_outage(platform: Platform, host: str, unit: str) -> None:
    wanted = "ActiveState", "SubState", "Restart", "StartLimitIntervalUSec", "UnitFileState"
    known = properties(platform, host, unit, *wanted)
    assert (known["ActiveState"], known["SubState"]) == ("active", "running")
    assert known["UnitFileState"] in ("enabled", "enabled-runtime")
    assert known["Restart"] == "always"
    assert known["StartLimitIntervalUSec"] == "0", "gives up after a few failed starts"


@pytest.mark.parametrize("host", GROUPS["airflow_worker"])
def test_a_stopping_worker_lets_its_tasks_end(platform: Platform, host: str) -> None:
    known = properties(platform, host, "airflow-worker", "KillMode", "TimeoutStopUSec")
    assert known["KillMode"] == "mixed", "tasks would get the signal too"
    hours = re.search(r"(\d+)h", known["TimeoutStopUSec"])
    assert hours, f"{known['TimeoutStopUSec']} is shorter than the longest task"
    assert int(hours[1]) >= 1


@pytest.mark.parametrize(("host", "unit"), ON_HOSTS)
def test_exposure_stays_under_its_limit(platform: Platform, host: str, unit: str) -> None:
    name = properties(platform, host, unit)["Id"]
    last = platform.host(host).check_output("systemd-analyze security --no-pager %s", name).splitlines()[-1]
    exposure = float(last.split(":", 1)[1].split()[0])
    assert exposure <= next(limit for prefix, limit in MOST_EXPOSED.items() if unit.startswith(prefix))


@pytest.mark.parametrize(("host", "unit"), SERVERS)
def test_the_sandbox_is_real(platform: Platform, host: str, unit: str) -> None:
    state_of = {"airflow-worker": "airflow-worker", "redis-server": "redis", "transformation-service": unit}
    own = f"/var/lib/{state_of.get(unit, 'airflow')}"
    paths = ["/etc", "/usr", "/opt", *([own] if unit.startswith("airflow") and unit != "airflow-proxy" else [])]
    seen = platform.probe(host, "sandbox", {"unit": unit, "paths": paths})
    assert seen["uid"] != 0
    assert seen["capabilities"] == 0
    assert seen["no_new_privileges"]
    assert seen["seccomp"]
    assert seen["private_tmp"]
    # Asked as root, so that only the sandbox can be what refuses.
    assert seen["writable"] == {path: path == own for path in paths}
