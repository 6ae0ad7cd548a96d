"""Each host reaches exactly what `host_flows` says, tried from every host to every port of every other one."""

from __future__ import annotations

import runpy

import platform_under_test
import pytest
from platform_under_test import Platform

LOADED = platform_under_test.load()
SSH, UI = 22, 8080
# What listens for its own host alone, and what nobody listens on: a drop, and no refusal, is what tells a firewall.
CLOSED = [8974, 9999]
PORTS = sorted({SSH, *(int(flow["port"]) for flow in LOADED.flows), *CLOSED})


def wanted(source: str | None, destination: str) -> set[int]:
    """Ports of a host that must be open to another one, or (None) to the administrator's machine."""
    groups_of = {name: {g for g, hosts in LOADED.groups.items() if name in hosts} for name in LOADED.groups["all"]}
    ports = {SSH}
    if "airflow_scheduler" in groups_of[destination]:
        ports.add(UI)  # the local inventory lets the whole test network see the web UI, as an office network would
    for flow in LOADED.flows:
        to = {flow["to"]} if isinstance(flow["to"], str) else set(flow["to"])
        if source and to & groups_of[destination] and set(flow["from"]) & groups_of[source]:
            ports.add(int(flow["port"]))
    return ports


def compare(source: str | None, pairs: list[tuple[str, int]], results: list[str]) -> None:
    wrong = []
    for (destination, port), result in zip(pairs, results, strict=True):
        should = "open" if port in wanted(source, destination) else "dropped"
        if result != should:
            wrong.append(f"{source or 'controller'} -> {destination}:{port} is {result}, must be {should}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("source", LOADED.groups["all"])
def test_host_reaches_what_it_needs_and_nothing_else(platform: Platform, source: str) -> None:
    pairs = [(name, port) for name in platform.groups["all"] if name != source for port in PORTS]
    targets = [[platform.addresses[name], port] for name, port in pairs]
    compare(source, pairs, platform.probe(source, "connections", {"targets": targets, "seconds": 1.0}))


def test_an_administrators_machine_reaches_ssh_and_the_web_ui_alone(platform: Platform) -> None:
    main = runpy.run_path(str(platform_under_test.PROBES / "connections.py"))["main"]
    pairs = [(name, port) for name in platform.groups["all"] for port in PORTS]
    compare(None, pairs, main({"targets": [[platform.addresses[name], port] for name, port in pairs], "seconds": 1.0}))


def test_names_resolve_to_the_hosts_addresses_everywhere(platform: Platform) -> None:
    for source in platform.groups["all"]:
        names = [name for name in platform.groups["all"] if name != source]
        lines = platform.host(source).check_output(f"for name in {' '.join(names)}; do getent hosts $name; done")
        found = {line.split()[1]: line.split()[0] for line in lines.splitlines()}
        assert {name: found.get(name) for name in names} == {name: platform.addresses[name] for name in names}


@pytest.mark.parametrize("host", LOADED.groups["all"])
def test_the_rules_come_back_after_a_boot(platform: Platform, host: str) -> None:
    assert platform.host(host).service("platform-firewall").is_enabled
    assert "policy drop" in platform.host(host).check_output("nft list chain inet platform input")
