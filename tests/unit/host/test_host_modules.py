"""Tests of what the modules of role host decide."""

import json
import subprocess
import sys
import time

import pytest

from roles.host.library.debian_packages import is_interrupted, missing_packages, wait_for_locks
from roles.host.library.nftables_table import normal_form
from roles.host.library.service_users import plan
from roles.host.library.trusted_certificates import split_bundle
from tests.unit.host.run_module import run_module

CERTIFICATE = "-----BEGIN CERTIFICATE-----\nTWFu\n-----END CERTIFICATE-----\n"


def test_only_installed_packages_count():
    records = "ii \tca-certificates\nrc \tnftables\nhi \tpython3-venv\nun \tuv\n"
    wanted = ["ca-certificates", "nftables", "python3-venv", "uv", "absent", "absent"]
    assert missing_packages(wanted, records) == ["nftables", "uv", "absent"]


def test_check_mode_names_a_package_that_no_list_knows():
    result = run_module("host/library/debian_packages.py", {"packages": ["no-such-package"]}, check=True)
    assert (result["changed"], result["installed"]) == (True, ["no-such-package"])


def test_a_package_manager_at_work_is_awaited(tmp_path):
    lock = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX);"
         " print(flush=True); time.sleep(1)", lock], stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout
    holder.stdout.readline()
    began = time.monotonic()
    wait_for_locks([str(lock), str(tmp_path / "none")], 0.2)
    assert holder.poll() is None, "the limit holds"
    wait_for_locks([str(lock)], 30)
    assert time.monotonic() - began > 0.8
    holder.wait()


def test_a_dpkg_that_died_is_known_by_its_journal(tmp_path):
    assert not is_interrupted(str(tmp_path / "none"))
    (tmp_path / "tmp.i").touch()
    assert not is_interrupted(str(tmp_path))
    (tmp_path / "0001").touch()
    assert is_interrupted(str(tmp_path))


def test_a_new_user_gets_its_group_first():
    users = [{"name": "airflow", "home": "/var/lib/airflow", "groups": ["logs"]}]
    assert [" ".join(command) for command in plan(users, {}, {"root"})] == [
        "groupadd --system airflow",
        "groupadd --system logs",
        "useradd --system --no-create-home --gid airflow --home-dir /var/lib/airflow --shell /usr/sbin/nologin"
        " --groups logs airflow",
    ]


def test_a_user_as_wanted_is_left_alone():
    found = {"airflow": {"group": "airflow", "home": "/h", "shell": "/usr/sbin/nologin", "groups": []}}
    assert plan([{"name": "airflow", "home": "/h", "groups": []}], found, {"airflow"}) == []


def test_an_additional_group_is_taken_away():
    found = {"airflow": {"group": "airflow", "home": "/h", "shell": "/usr/sbin/nologin", "groups": ["sudo"]}}
    (command,) = plan([{"name": "airflow", "home": "/h", "groups": []}], found, {"airflow"})
    assert command[0] == "usermod"
    assert command[command.index("--groups") + 1] == ""


def test_users_module_is_exact_in_check_mode():
    users = [{"name": "no-such-user", "home": "/x"}]
    result = run_module("host/library/service_users.py", {"users": users}, check=True)
    assert result["changed"] is True
    assert "no-such-user: group=no-such-user" in result["diff"]["after"]


def test_a_bundle_becomes_one_file_per_certificate():
    other = CERTIFICATE.replace("TWFu", "TWFv")
    files = split_bundle(f"# Company\n{CERTIFICATE}{other}{CERTIFICATE}", "platform")
    assert sorted(files.values()) == [CERTIFICATE, other]
    assert all(name.startswith("platform-") and name.endswith(".crt") for name in files)


@pytest.mark.parametrize(
    ("bundle", "message"),
    [("no certificate", "no 'BEGIN CERTIFICATE'"), (CERTIFICATE.replace("TWFu", "!!!!"), "number 1 is not base64")],
)
def test_a_broken_bundle_is_refused(bundle, message):
    with pytest.raises(ValueError, match=message):
        split_bundle(bundle, "platform")


def listing(*entries):
    return json.dumps({"nftables": [{"metainfo": {"version": "1"}}, *entries]})


def test_handles_and_the_order_of_elements_do_not_matter():
    one = listing({"set": {"name": "a", "handle": 1, "elem": ["10.0.0.1", "10.0.0.2"]}})
    two = listing({"set": {"name": "a", "handle": 7, "elem": ["10.0.0.2", "10.0.0.1"]}})
    assert normal_form(one) == normal_form(two)


def test_an_added_rule_and_another_order_of_rules_do_matter():
    accept, drop = {"rule": {"expr": [{"accept": None}]}}, {"rule": {"expr": [{"drop": None}]}}
    assert normal_form(listing(accept)) != normal_form(listing(accept, drop))
    assert normal_form(listing(accept, drop)) != normal_form(listing(drop, accept))
