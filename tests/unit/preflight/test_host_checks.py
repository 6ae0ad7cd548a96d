"""Every refusal that a host can cause, from what the probe says about it."""

import copy

import pytest

from roles.preflight.checks import host as checks

SUPPORTED = {"distributions": ["debian-12", "debian-13"], "architectures": ["x86_64"], "python": ["3.11", "3.14"]}
FACTS = {
    "distribution": "debian-13",
    "architecture": "x86_64",
    "python": "3.13.5",
    "systemd": "running",
    "root": True,
    "cpus": 4,
    "memory_mb": 15900,
    "disks": {"/opt": {"free_mb": 20000, "device": 1}, "/var": {"free_mb": 20000, "device": 1}},
    "clock": {"synchronised": True, "by": "kernel"},
    "address_is_local": True,
    "unresolved": {},
    "ssh": {"client": "10.0.0.9", "port": 22},
    "holders": {},
    "airflow_version": "3.3.2",
}
FLOOR = {"cpus": (4, "postgresql"), "memory_mb": (16384, "postgresql"), "disk_mb": (10000, "postgresql")}
LOGIN = {"firewall": True, "networks": ["10.0.0.0/24"], "port": 22}


def facts(**changes):
    return {**copy.deepcopy(FACTS), **changes}


@pytest.mark.parametrize(
    ("change", "code", "found"),
    [
        ({"distribution": "ubuntu-24.04"}, "E-HOST-OS", "ubuntu-24.04"),
        ({"architecture": "riscv64"}, "E-HOST-ARCHITECTURE", "riscv64"),
        ({"python": "3.9.2"}, "E-HOST-PYTHON", "3.9.2"),
        ({"python": "3.15.0"}, "E-HOST-PYTHON", "3.15.0"),
        ({"systemd": ""}, "E-HOST-SYSTEMD", "not the first process"),
        ({"root": False}, "E-HOST-ROOT", "an unprivileged user"),
    ],
)
def test_a_machine_that_does_not_fit(change, code, found):
    (problem,) = checks.check_machine("h", facts(**change), SUPPORTED)
    assert (problem["code"], problem["host"], problem["found"]) == (code, "h", found)


def test_a_machine_that_fits():
    assert checks.check_machine("h", FACTS, SUPPORTED) == []


@pytest.mark.parametrize(
    ("change", "code", "found", "wanted"),
    [
        ({"cpus": 3}, "E-HOST-CPUS", "3", "4 or more (preflight_minimum.postgresql.cpus)"),
        (
            {"memory_mb": 15000},
            "E-HOST-MEMORY",
            "15000 MB",
            "16384 MB or more (preflight_minimum.postgresql.memory_mb)",
        ),
        (
            {"disks": {"/opt": {"free_mb": 20000, "device": 1}, "/var": {"free_mb": 9000, "device": 2}}},
            "E-HOST-DISK",
            "9000 MB",
            "10000 MB or more (preflight_minimum.postgresql.disk_mb)",
        ),
    ],
)
def test_a_machine_that_is_too_small(change, code, found, wanted):
    (problem,) = checks.check_size("h", facts(**change), FLOOR)
    assert (problem["code"], problem["found"], problem["wanted"]) == (code, found, wanted)


def test_a_nominal_size_is_let_through():
    assert checks.check_size("h", facts(memory_mb=15600), FLOOR) == []


def test_folders_of_one_file_system_are_one_problem():
    small = {"/opt": {"free_mb": 10, "device": 1}, "/var": {"free_mb": 10, "device": 1}}
    (problem,) = checks.check_size("h", facts(disks=small), FLOOR)
    assert problem["subject"] == "free space of /opt, /var"


def test_a_host_in_two_groups_needs_the_larger_of_each_size():
    minimum = {"a": {"cpus": 2, "memory_mb": 8192}, "b": {"cpus": 4, "memory_mb": 1024}}
    assert checks.floor_of(["a", "b", "c"], minimum) == {"cpus": (4, "b"), "memory_mb": (8192, "a")}


@pytest.mark.parametrize(
    ("client", "port", "subject"),
    [
        ("192.0.2.7", 22, "host_admin_networks"),
        ("fd00::1", 22, "host_admin_networks"),
        ("10.0.0.9", 2222, "host_ssh_port"),
    ],
)
def test_a_firewall_that_would_cut_the_connection_off(client, port, subject):
    (problem,) = checks.check_login("h", facts(ssh={"client": client, "port": port}), LOGIN)
    assert (problem["code"], problem["subject"]) == ("E-HOST-LOCKOUT", subject)


@pytest.mark.parametrize(
    ("ssh", "login"),
    [
        ({"client": "10.0.0.9", "port": 22}, LOGIN),
        ({"client": "::ffff:10.0.0.9", "port": 22}, LOGIN),
        ({"client": "fe80::1%eth0", "port": 22}, {**LOGIN, "networks": ["fe80::/10"]}),
        (None, LOGIN),
        ({"client": "192.0.2.7", "port": 22}, {**LOGIN, "firewall": False}),
    ],
)
def test_a_connection_that_comes_back(ssh, login):
    assert checks.check_login("h", facts(ssh=ssh), login) == []


def test_a_name_that_does_not_resolve():
    said = facts(unresolved={"api.invalid": "Name or service not known"})
    (problem,) = checks.check_names("h", said, {"api.invalid": "transformation_service_url"})
    assert problem["code"] == "E-NAME-UNRESOLVED"
    assert problem["subject"] == "api.invalid (in transformation_service_url)"


def test_an_address_of_another_machine():
    (problem,) = checks.check_address("h", facts(address_is_local=False), "203.0.113.4")
    assert problem["code"] == "E-ADDRESS-FOREIGN"
    assert checks.check_address("h", FACTS, "10.0.0.2") == []


def holder(unit, address="0.0.0.0", command="python3"):
    return {"address": address, "pid": 7, "command": command, "unit": unit}


ROW = {"port": 5432, "units": ["postgresql@*.service"]}


def test_a_port_that_something_else_holds():
    (problem,) = checks.check_ports("h", facts(holders={"5432": [holder("squatter.service")]}), [ROW])
    assert problem["code"] == "E-PORT-TAKEN"
    assert problem["found"] == "held by python3 (pid 7, squatter.service) at 0.0.0.0"
    assert problem["fix"] == "systemctl disable --now squatter.service"


def test_a_port_that_its_own_service_holds():
    assert checks.check_ports("h", facts(holders={"5432": [holder("postgresql@17-main.service")]}), [ROW]) == []


def test_the_loopback_address_is_in_the_way_of_local_ports_only():
    said = facts(holders={"5432": [holder("x.service", "127.0.0.1")]})
    assert checks.check_ports("h", said, [ROW]) == []
    assert len(checks.check_ports("h", said, [{**ROW, "local": True}])) == 1


def test_the_clock_is_known_within_the_length_of_the_call():
    # The call took 3 s, the module 1 s of them, and the host is 10 s ahead.
    assert checks.clock_offset(100.0, 111.5, 112.5, 103.0) == (9.5, 11.5)


def test_a_clock_that_is_certainly_wrong():
    (problem,) = checks.check_clocks({"h": (9.5, 11.5), "g": (-0.5, 1.0)}, 2)
    assert (problem["code"], problem["host"], problem["found"]) == ("E-CLOCK-DIFFERENCE", "h", "9.5 s or more")


def test_a_slow_call_alone_is_no_difference():
    assert checks.check_clocks({"h": (-1.0, 6.0), "g": (-5.0, 1.9)}, 2) == []


def test_two_hosts_that_drift_apart():
    (problem,) = checks.check_clocks({"h": (1.5, 1.8), "g": (-1.8, -1.6)}, 2)
    assert (problem["host"], problem["subject"], problem["found"]) == ("h", "clock against that of g", "3.1 s or more")


def test_a_clock_that_nobody_keeps():
    said = facts(clock={"synchronised": False, "by": ""})
    assert [row["code"] for row in checks.check_synchroniser("h", said, True)] == ["E-CLOCK-UNSYNCHRONISED"]
    assert checks.check_synchroniser("h", said, False) == []
    assert checks.check_synchroniser("h", FACTS, True) == []


def test_another_version_of_airflow_is_refused_with_what_to_type():
    (problem,) = checks.check_airflow("h", facts(airflow_version="3.3.1"), "3.3.2")
    assert (problem["code"], problem["host"]) == ("E-HOST-AIRFLOW", "h")
    assert "3.3.1" in problem["found"]
    assert "make upgrade" in problem["fix"]


@pytest.mark.parametrize(("installed", "wanted"), [("3.3.2", "3.3.2"), ("", "3.3.2"), ("3.3.1", "")])
def test_the_same_version_a_blank_host_and_an_upgrade_pass(installed, wanted):
    assert checks.check_airflow("h", facts(airflow_version=installed), wanted) == []
