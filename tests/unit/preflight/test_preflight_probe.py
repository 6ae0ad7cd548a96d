"""The probe: what it reads from the kernel, and real listeners and connections on this machine."""

import json
import os
import socket
import sys
import time
from pathlib import Path

import pytest

from roles.preflight.library import preflight_probe as probe
from tests.unit.host.run_module import run_module

MODULE = "preflight/library/preflight_probe.py"


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


def listeners() -> list[str]:
    """Return the processes of the probe's listener."""
    return [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/comm")
        if probe.read(str(path)).strip() == probe.LISTENER
    ]


def wait_until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_describes_this_machine():
    result = run_module(MODULE, {"address": "127.0.0.1", "folders": ["/opt/not/there", "/var"]})
    facts = result["facts"]
    assert result["changed"] is False
    assert facts["cpus"] == os.cpu_count()
    assert facts["memory_mb"] > 100
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["disks"]["/var"]["free_mb"] >= 0
    assert facts["address_is_local"] is True
    assert result["begun"] <= result["ended"] <= time.time()


def test_names_that_do_not_resolve():
    result = run_module(MODULE, {"address": "192.0.2.1", "names": ["localhost", "no-such-host.invalid"]})
    assert list(result["facts"]["unresolved"]) == ["no-such-host.invalid"]
    assert result["facts"]["address_is_local"] is False


def test_who_holds_a_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        holders = run_module(MODULE, {"address": "127.0.0.1", "ports": [port]})["facts"]["holders"]
    assert [(row["address"], row["pid"]) for row in holders[str(port)]] == [("127.0.0.1", os.getpid())]


def test_listener_answers_its_hosts_and_ends_with_the_last():
    port = free_port()
    said = run_module(MODULE, {"address": "127.0.0.1", "listen": [{"port": port, "sources": ["a", "b"]}]})
    assert said["facts"]["listener"] == {"ports": [port], "busy": [], "errors": {}}
    target = {"connect": [{"address": "127.0.0.1", "port": port, "greet": True}]}
    assert run_module(MODULE, {**target, "source": "a"})["connections"][0]["result"] == "ok"
    assert listeners(), "it still waits for b"
    assert run_module(MODULE, {**target, "source": "b"}, check=True)["connections"][0]["result"] == "ok"
    assert wait_until(lambda: not listeners())
    with socket.socket() as service:  # the port is free at once for the service that is to come
        service.bind(("127.0.0.1", port))


def test_listener_gives_up():
    run_module(
        MODULE,
        {"address": "127.0.0.1", "listen": [{"port": free_port(), "sources": ["never"]}], "listener_seconds": 1},
    )
    assert listeners()
    assert wait_until(lambda: not listeners())


def test_a_listener_that_was_left_over_is_replaced():
    port = free_port()
    wanted = {"address": "127.0.0.1", "listen": [{"port": port, "sources": ["never"]}], "listener_seconds": 3}
    run_module(MODULE, wanted)
    again = run_module(MODULE, wanted)["facts"]
    assert again["listener"]["ports"] == [port]
    assert again["holders"] == {}
    assert wait_until(lambda: not listeners())


def test_a_port_in_use_is_left_to_its_owner():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        wanted = [{"port": held.getsockname()[1], "sources": ["a"]}]
        facts = run_module(MODULE, {"address": "127.0.0.1", "listen": wanted})["facts"]
    assert facts["listener"] == {"ports": [], "busy": [wanted[0]["port"]], "errors": {}}


def test_results_of_connections():
    closed = free_port()
    connect = [
        {"address": "127.0.0.1", "port": closed, "greet": False},
        {"address": "127.0.0.1", "port": closed, "greet": True},
    ]
    said = run_module(MODULE, {"connect": connect, "connect_seconds": 0.5})
    assert [row["result"] for row in said["connections"]] == ["refused", "refused"]


def test_an_address_that_does_not_answer_times_out():
    with socket.socket() as full:  # a backlog of one that nobody accepts: further connections get no answer
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        said = run_module(
            MODULE, {"connect": [{"address": "127.0.0.1", "port": port, "greet": False}], "connect_seconds": 0.5}
        )
        for client in waiting:
            client.close()
    assert said["connections"][0]["result"] == "timeout"
    assert said["connections"][0]["seconds"] == pytest.approx(0.5, abs=0.3)


def test_sockets_of_the_kernels_table():
    text = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000   104        0 4711 1\n"
        "   1: 0100007F:1538 0100007F:9C40 01 00000000:00000000 00:00000000 00000000   104        0 4712 1\n"
        "   2: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000"
        " 0A 00000000:00000000 00:00000000 00000000 0 0 4713 1\n"
    )
    assert probe.parse_listening(text) == [(5432, "127.0.0.1", "4711"), (8080, "::1", "4713")]


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/system-postgresql.slice/postgresql@17-main.service\n", "postgresql@17-main.service"),
        ("1:name=systemd:/docker/1a2b/system.slice/redis-server.service\n", "redis-server.service"),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", "session-3.scope"),
        ("0::/\n", ""),
    ],
)
def test_the_unit_of_a_process(cgroup, unit):
    assert probe.unit_of(cgroup) == unit


def test_input_chains_that_close_and_our_own_sets():
    def chain(family, table, name, policy):
        return {"chain": {"family": family, "table": table, "name": name, "hook": "input", "policy": policy}}

    ruleset = [
        {"metainfo": {}},
        {"table": {"family": "inet", "name": "platform"}},
        chain("inet", "platform", "input", "drop"),
        {"set": {"family": "inet", "table": "platform", "name": "admin_4", "elem": ["10.0.0.1"]}},
        {
            "set": {
                "family": "inet",
                "table": "platform",
                "name": "port_5432",
                "elem": ["10.0.0.2", {"prefix": {"addr": "10.1.0.0", "len": 24}}, {"range": ["10.2.0.1", "10.2.0.9"]}],
            }
        },
        chain("ip", "filter", "INPUT", "drop"),
        chain("inet", "other", "in", "accept"),
        chain("inet", "open", "in", "accept"),
        {"rule": {"family": "inet", "table": "other", "chain": "in", "expr": [{"match": {}}, {"reject": None}]}},
    ]
    found = probe.parse_ruleset(json.dumps({"nftables": ruleset}))
    assert found["own"] == {"5432": ["10.0.0.2", "10.1.0.0/24", "10.2.0.1-10.2.0.9"]}
    assert found["foreign"] == [
        "nftables chain 'ip filter INPUT' (policy drop)",
        "nftables chain 'inet other in' (policy accept)",
    ]
    assert probe.parse_ruleset("") == {"foreign": [], "own": None}
