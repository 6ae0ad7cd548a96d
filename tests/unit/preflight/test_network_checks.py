"""What to try between hosts, and what each result means."""

import pytest

from roles.preflight.checks import network

FLOWS = [
    {
        "name": name,
        "port": port,
        "source": source,
        "source_address": address,
        "destination": "db",
        "destination_address": "10.0.0.1",
    }
    for name, port, source, address in (
        ("PostgreSQL", 5432, "s1", "10.0.0.2"),
        ("PostgreSQL", 5432, "w1", "10.0.0.3"),
        ("PostgreSQL", 5432, "db", "10.0.0.1"),
        ("Exporter", 9187, "s1", "10.0.0.2"),
    )
]
OPEN = {"foreign": [], "own": None}


def facts(ports=(), busy=(), firewalls=OPEN):
    return {"db": {"listener": {"ports": list(ports), "busy": list(busy)}, "firewalls": firewalls}}


def judge(result, said, greet=False):
    target = {"address": "10.0.0.1", "port": 5432, "greet": greet, "destination": "db", "names": ["PostgreSQL"]}
    return network.check_connections("w1", "10.0.0.3", [target], [{"result": result}], said)


def test_listeners_wait_for_the_hosts_of_the_play_alone():
    assert network.wanted_listeners(FLOWS, "db", ["s1", "db"]) == [
        {"port": 5432, "sources": ["s1"]},
        {"port": 9187, "sources": ["s1"]},
    ]


def test_a_source_tries_every_port_once_and_greets_listeners():
    connections = network.wanted_connections([*FLOWS, {**FLOWS[0], "name": "Again"}], "s1", facts(ports=[9187]))
    assert [(row["port"], row["greet"], row["names"]) for row in connections] == [
        (5432, False, ["PostgreSQL", "Again"]),
        (9187, True, ["Exporter"]),
    ]
    assert network.wanted_connections(FLOWS, "db", facts()) == []


def test_an_open_way():
    assert judge("ok", facts(ports=[5432]), greet=True) == []


def test_no_answer_is_a_closed_firewall():
    (problem,) = judge("timeout", facts(ports=[5432]), greet=True)
    assert (problem["code"], problem["host"]) == ("E-CONNECTION-BLOCKED", "w1")
    assert problem["subject"] == "db port 5432 (PostgreSQL)"
    assert problem["found"] == "no answer"
    assert "firewall or security group" in problem["fix"]


def test_an_unfamiliar_firewall_is_named():
    (problem,) = judge("timeout", facts(firewalls={"foreign": ["nftables chain 'inet filter input'"], "own": None}))
    assert problem["found"] == "no answer; db has a firewall of its own: nftables chain 'inet filter input'"


@pytest.mark.parametrize(("own", "count"), [({"5432": ["10.0.0.2"]}, 0), ({"5432": ["10.0.0.2-10.0.0.3"]}, 1), ({}, 0)])
def test_our_own_firewall_of_an_earlier_run_opens_in_this_one(own, count):
    assert len(judge("timeout", facts(firewalls={"foreign": [], "own": own}))) == count


def test_refused_is_open_where_the_service_starts_later():
    assert judge("refused", facts()) == []
    assert judge("refused", {}) == []


def test_refused_is_wrong_where_the_service_runs_elsewhere_or_a_listener_waits():
    (problem,) = judge("refused", facts(busy=[5432]))
    assert problem["fix"] == "let the service on db listen at 10.0.0.1"
    assert len(judge("refused", facts(ports=[5432]), greet=True)) == 1


def test_another_error_is_told_as_it_is():
    (problem,) = judge("No route to host", {})
    assert problem["found"] == "No route to host"


def test_every_form_of_an_address_set_is_read():
    own = {"1": ["10.0.0.1"], "2": ["10.0.0.0/24"], "3": ["10.0.0.4-10.0.0.9"]}
    assert [network.lets_in(own, port, "10.0.0.5") for port in (1, 2, 3, 4)] == [False, True, True, False]
