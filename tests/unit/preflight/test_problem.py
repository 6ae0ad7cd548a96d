"""The list as a person reads it."""

import pytest

from roles.preflight.checks.problem import join_hosts, problem, render_problems, render_success


def entry(code="E-SECRET-WEAK", host="", subject="redis_celery_password", **rest):
    return problem(code, subject, host=host, found="4 bytes", wanted="16 bytes", fix="openssl rand", **rest)


def test_a_code_without_a_heading_is_a_mistake_of_ours():
    with pytest.raises(KeyError):
        entry(code="E-UNHEARD-OF")


def test_equal_problems_of_several_hosts_are_one():
    joined = join_hosts([entry(host="a"), entry(host="b"), entry(host="c", subject="other")], ["a", "b", "c"])
    assert [(hosts, row["subject"]) for hosts, row in joined] == [("a, b", "redis_celery_password"), ("c", "other")]


def test_every_host_is_all():
    assert join_hosts([entry(host="a"), entry(host="b")], ["a", "b"])[0][0] == "all"


def test_the_list_is_numbered_grouped_and_aligned():
    problems = [
        entry(code="E-PORT-TAKEN", host="a", subject="port 5432"),
        entry(host="a", place="group_vars/all.yml:3"),
        entry(host="b", place="group_vars/all.yml:3"),
    ]
    assert render_problems(problems, ["a", "b"]).splitlines() == [
        "Preflight found 2 problems. No host was changed.",
        "",
        "Secrets",
        "  1 E-SECRET-WEAK  all: redis_celery_password",
        "                   set in  group_vars/all.yml:3",
        "                   found   4 bytes",
        "                   wanted  16 bytes",
        "                   fix     openssl rand",
        "",
        "Ports",
        "  2 E-PORT-TAKEN   a: port 5432",
        "                   found   4 bytes",
        "                   wanted  16 bytes",
        "                   fix     openssl rand",
    ]


def test_success_is_one_line_for_each_class():
    assert render_success([("Hosts", "6 fit", 1.234), ("Connections", "14 open", 0.5)]).splitlines() == [
        "Preflight found no problem.",
        "  Hosts        6 fit      1.2 s",
        "  Connections  14 open    0.5 s",
    ]
