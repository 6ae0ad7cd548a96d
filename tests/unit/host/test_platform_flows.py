"""Tests of the filters that turn the inventory into network flows."""

import pytest
from ansible.errors import AnsibleFilterError

from roles.host.filter_plugins.platform_flows import (
    platform_flows,
    platform_inbound,
    platform_reach,
    platform_reach_errors,
)

GROUPS = {"database": ["db"], "scheduler": ["s1"], "worker": ["w1", "w2"], "all": ["db", "s1", "w1", "w2"]}
HOSTVARS = {name: {"host_address": f"10.0.0.{number}"} for number, name in enumerate(("db", "s1", "w1", "w2"), start=1)}
FLOWS = [
    {"name": "postgresql", "to": "database", "port": 5432, "from": ["scheduler", "worker"]},
    {"name": "logs", "to": "worker", "port": "8793", "from": ["scheduler"]},
]


def test_every_source_of_every_destination_is_listed():
    assert [(row["name"], row["source"], row["destination"]) for row in platform_flows(FLOWS, GROUPS, HOSTVARS)] == [
        ("logs", "s1", "w1"),
        ("logs", "s1", "w2"),
        ("postgresql", "s1", "db"),
        ("postgresql", "w1", "db"),
        ("postgresql", "w2", "db"),
    ]


def test_a_row_has_addresses_and_a_numeric_port():
    assert platform_flows(FLOWS, GROUPS, HOSTVARS)[0] == {
        "name": "logs",
        "port": 8793,
        "source": "s1",
        "source_address": "10.0.0.2",
        "destination": "w1",
        "destination_address": "10.0.0.3",
    }


def test_a_host_in_two_groups_is_listed_once():
    groups = {**GROUPS, "worker": ["s1"], "scheduler": ["s1"]}
    rows = platform_flows(FLOWS[:1], groups, HOSTVARS)
    assert [row["source"] for row in rows] == ["s1"]


def test_an_absent_group_has_no_flows():
    assert platform_flows([{"name": "x", "to": "monitoring", "port": 1, "from": ["worker"]}], GROUPS, HOSTVARS) == []


def test_a_host_without_address_is_named():
    with pytest.raises(AnsibleFilterError, match="host 'w2' has no host_address"):
        platform_flows(FLOWS, GROUPS, {**HOSTVARS, "w2": {}})


def test_a_row_without_port_is_refused():
    with pytest.raises(AnsibleFilterError, match="lacks port"):
        platform_flows([{"name": "x", "to": "worker", "from": []}], GROUPS, HOSTVARS)


def test_inbound_joins_the_sources_of_one_port():
    assert platform_inbound(platform_flows(FLOWS, GROUPS, HOSTVARS), "db") == [
        {"name": "postgresql", "port": 5432, "addresses": ["10.0.0.2", "10.0.0.3", "10.0.0.4"]}
    ]


def test_inbound_leaves_the_host_itself_out():
    groups = {**GROUPS, "database": ["s1"]}
    rows = platform_flows(FLOWS[:1], groups, HOSTVARS)
    assert {row["source"] for row in rows} == {"s1", "w1", "w2"}
    assert platform_inbound(rows, "s1")[0]["addresses"] == ["10.0.0.3", "10.0.0.4"]


def test_reach_tells_open_from_closed():
    hostvars = {name: {**HOSTVARS[name], "host_admin_networks": ["10.0.0.2"]} for name in HOSTVARS}
    hostvars["db"] |= {"host_ui_networks": ["10.0.0.3/32"], "host_ui_port": 8793}
    flows = platform_flows(FLOWS, GROUPS, hostvars)
    reach = platform_reach(flows, "s1", ["db", "s1", "w1"], hostvars, [8974])
    assert [(row["destination"], row["port"]) for row in reach if row["open"]] == [
        ("db", 22),
        ("db", 5432),
        ("w1", 22),
        ("w1", 8793),
    ]
    assert {row["port"] for row in reach} == {22, 5432, 8793, 8974}
    assert {row["destination"] for row in reach} == {"db", "w1"}
    worker = platform_reach(flows, "w1", ["db"], hostvars)
    assert [row["port"] for row in worker if row["open"]] == [5432, 8793]


def test_a_difference_is_a_sentence():
    reach = [{"destination": "db", "port": 1, "open": True}, {"destination": "db", "port": 2, "open": False}]

    def errors(*results):
        return platform_reach_errors([{"result": result} for result in results], reach)

    assert errors("refused", "timeout") == []
    assert errors("timeout", "ok") == ["db port 1 is closed, must be open", "db port 2 is open, must be closed"]
    assert errors("No route to host", "timeout") == ["db port 1: No route to host"]
