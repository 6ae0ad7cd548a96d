"""Every refusal that the inventory alone can cause: code, text, and silence when the inventory is right."""

import base64

import pytest

from roles.preflight.checks import inventory as checks

GROUPS = {"all": ["db", "w1", "w2"], "postgresql": ["db"], "airflow_worker": ["w1", "w2"], "ungrouped": []}
GOOD = {  # long enough, nothing to guess
    "one": "Zk3vQ9xT1mB7wR5yL2pD8sHc",
    "two": "nV6jX4gF0uA9eK7iO1tW5zGb",
}
FERNET = base64.urlsafe_b64encode(bytes(range(40, 72))).decode()


def reader(values):
    """Read from ``{name: value}`` for all hosts, or ``{name: {host: value}}``."""

    def read(host, name):
        value = values.get(name)
        value = value.get(host) if isinstance(value, dict) else value
        if value is None:
            raise checks.Unavailable("not set")
        return value

    return read


def locate(name):
    return f"group_vars/all.yml:{len(name)}"


def codes(problems):
    return [entry["code"] for entry in problems]


def secrets(values, **row):
    table = [{"name": "a_secret", "groups": ["postgresql"], "bytes": 16, **row}]
    return checks.check_secrets(table, GROUPS, reader(values), locate)


# --- groups, addresses, flows ---


def test_a_missing_group_is_named_with_the_misspelt_one():
    (problem,) = checks.check_groups({"reddis": ["r"], "all": ["r"]}, {"redis": {"minimum": 1, "maximum": 1}})
    assert (problem["code"], problem["subject"]) == ("E-GROUP-MISSING", "group redis")
    assert problem["fix"] == "rename group reddis"
    assert problem["wanted"] == "exactly 1 host"


def test_an_empty_group():
    (problem,) = checks.check_groups({"airflow_worker": []}, {"airflow_worker": {"minimum": 1}})
    assert (problem["code"], problem["found"], problem["wanted"]) == ("E-GROUP-EMPTY", "no host", "1 or more hosts")


def test_a_group_with_too_many_hosts():
    (problem,) = checks.check_groups({"redis": ["a", "b"]}, {"redis": {"minimum": 1, "maximum": 1}})
    assert (problem["code"], problem["found"]) == ("E-GROUP-SIZE", "2 hosts: a, b")


def test_an_optional_group_may_be_absent():
    assert checks.check_groups(GROUPS, {"monitoring": {"minimum": 0}, "postgresql": {"minimum": 1}}) == []


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("db.example.com", "'db.example.com'"),
        ("10.0.0.256", "'10.0.0.256'"),
        ("fd00::1", "'fd00::1'"),
        ("127.0.0.1", "127.0.0.1, which other hosts cannot reach"),
        (None, "not set"),
    ],
)
def test_a_wrong_address(address, found):
    values = {"host_address": {"db": address, "w1": "10.0.0.2"}}
    problems, good = checks.check_addresses(["db", "w1"], reader(values))
    assert [(entry["code"], entry["host"], entry["found"]) for entry in problems] == [
        ("E-ADDRESS-INVALID", "db", found)
    ]
    assert good == {"w1": "10.0.0.2"}


def test_a_single_vm_may_use_the_loopback_address():
    assert checks.check_addresses(["vm"], reader({"host_address": "127.0.0.1"})) == ([], {"vm": "127.0.0.1"})


def test_two_hosts_with_one_address():
    problems, good = checks.check_addresses(["db", "w1"], reader({"host_address": "10.0.0.2"}))
    assert codes(problems) == ["E-ADDRESS-DUPLICATE"]
    assert problems[0]["found"] == "10.0.0.2 at db, w1"
    assert good == {"db": "10.0.0.2"}


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"name": "x", "to": "a", "from": []}, "no port"),
        ({"name": "x", "to": "a", "from": [], "port": 70000}, "port 70000"),
    ],
)
def test_a_wrong_flow(row, found):
    (problem,) = checks.check_flows([{"name": "ok", "to": "a", "from": [], "port": 1}, row])
    assert (problem["code"], problem["subject"], problem["found"]) == ("E-FLOW-INVALID", "host_flows, row 2 (x)", found)


# --- secrets ---


@pytest.mark.parametrize(
    "value",
    ["CHANGE-ME", "changeme_please_now", "<generate me, 32 bytes>", "your-password-goes-here", "xxxxxxxx", "todo"],
)
def test_a_placeholder_is_no_secret(value):
    (problem,) = secrets({"a_secret": value})
    assert problem["code"] == "E-SECRET-PLACEHOLDER"
    assert problem["found"] == f"a placeholder of {len(value)} characters"
    assert problem["place"] == "group_vars/all.yml:8"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("k7Q!x", "5 bytes, too short"),
        ("abababababababababab", "20 bytes, but only 2 different ones"),
        ("Zk3vQ9xTZk3vQ9xTZk3vQ9xT", "24 bytes, but a repeated block"),
        ("airflow-at-work-2026", "20 bytes with a guessable word in them"),
        ("ABCDEFGHIJKLMNOPQRST", "20 bytes, but a sequence"),
    ],
)
def test_a_weak_secret(value, found):
    (problem,) = secrets({"a_secret": value})
    assert (problem["code"], problem["found"]) == ("E-SECRET-WEAK", found)


def test_a_long_key_has_its_own_limit():
    (problem,) = secrets({"a_secret": GOOD["one"] + GOOD["two"]}, bytes=64)
    assert (problem["found"], problem["wanted"]) == ("48 bytes, too short", "64 random bytes or more")


def test_a_random_secret_is_taken():
    assert secrets({"a_secret": GOOD["one"]}) == []


def test_a_secret_that_is_not_there():
    (problem,) = secrets({})
    assert (problem["code"], problem["found"], problem["host"]) == ("E-SECRET-MISSING", "not set", "db")
    assert codes(secrets({"a_secret": ""})) == ["E-SECRET-MISSING"]


@pytest.mark.parametrize(
    "value", [FERNET[:-1], FERNET.replace("=", "A"), GOOD["one"] * 2, base64.b64encode(b"s" * 31).decode()]
)
def test_a_malformed_fernet_key(value):
    assert codes(secrets({"a_secret": value}, fernet=True)) == ["E-SECRET-FORMAT"]


def test_fernet_keys_may_rotate():
    other = base64.urlsafe_b64encode(bytes(range(90, 122))).decode()
    assert secrets({"a_secret": FERNET}, fernet=True) == []
    assert secrets({"a_secret": f"{FERNET},{other}"}, fernet=True) == []


def test_one_value_for_two_secrets():
    table = [{"name": name, "groups": ["postgresql"], "bytes": 16} for name in ("first", "second", "third")]
    values = {"first": GOOD["one"], "second": GOOD["one"], "third": GOOD["two"]}
    (problem,) = checks.check_secrets(table, GROUPS, reader(values), locate)
    assert (problem["code"], problem["subject"]) == ("E-SECRET-REUSED", "first = second")


def test_a_secret_that_differs_between_hosts():
    table = [{"name": "a_secret", "groups": ["airflow_worker"], "bytes": 16}]
    values = {"a_secret": {"w1": GOOD["one"], "w2": GOOD["two"]}}
    (problem,) = checks.check_secrets(table, GROUPS, reader(values), locate)
    assert (problem["code"], problem["found"]) == ("E-SECRET-DIFFERS", "2 values: w1 / w2")


def test_no_problem_shows_a_secret():
    values = ["CHANGE-ME-9", "k7Q!x", "abababababababababab", "airflow-at-work-2026"]
    shown = "".join(str(secrets({"a_secret": value}) + secrets({"a_secret": value}, fernet=True)) for value in values)
    assert not [value for value in values if value in shown]


# --- variables ---

KNOWN = {"airflow_worker_concurrency", "postgresql_port", "host_address"}
PREFIXES = ["airflow", "postgresql", "host"]


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("airflow_worker_concurency", "did you mean airflow_worker_concurrency?"),
        ("postgresq_port", "did you mean postgresql_port?"),  # outside our prefixes, but too near to be meant otherwise
        ("airflow_zzz", "remove it, or give it a prefix of your own"),
    ],
)
def test_a_misspelt_variable(name, fix):
    (problem,) = checks.check_names([name, "host_address"], KNOWN, PREFIXES, locate)
    assert (problem["code"], problem["subject"], problem["fix"]) == ("E-VARIABLE-UNKNOWN", name, fix)


@pytest.mark.parametrize("name", ["company_proxy", "ansible_port", "wiring_redis_address", "hostvars", "__airflow_x"])
def test_variables_of_others_are_left_alone(name):
    assert checks.check_names([name], KNOWN, PREFIXES, locate) == []


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("scheduler:8080", "scheme 'scheduler' in"),
        ("ftp://scheduler", "scheme 'ftp' in"),
        ("http://", "host '' in"),
        ("http://bad host/", "host 'bad host' in"),
        ("http://scheduler:99999", "Port out of range"),
    ],
)
def test_a_malformed_url(url, found):
    problems, names = checks.check_urls(
        [{"name": "a_url", "schemes": ["http"]}], ["db"], reader({"a_url": url}), locate
    )
    assert codes(problems) == ["E-URL-INVALID"]
    assert problems[0]["found"].startswith(found)
    assert names == {"db": {}}


@pytest.mark.parametrize(
    ("certificate", "url", "found"),
    [
        ("PEM", "http://scheduler:8080", ["scheme 'http' in 'http://scheduler:8080'"]),
        ("PEM", "https://scheduler:8080", []),
        ("", "http://scheduler:8080", []),
        ("", "https://balancer", []),
        (None, "http://scheduler:8080", []),
    ],
)
def test_with_a_certificate_a_url_is_https(certificate, url, found):
    table = [{"name": "a_url", "schemes": ["http", "https"], "tls": "certificate"}]
    values = {"a_url": url} | ({} if certificate is None else {"certificate": certificate})
    problems, _ = checks.check_urls(table, ["db"], reader(values), locate)
    assert [problem["found"] for problem in problems] == found
    assert all(problem["wanted"] == "https://host[:port][/path]" for problem in problems)


def test_a_password_in_a_url_is_refused_and_hidden():
    table = [{"name": "a_url", "schemes": ["http"]}]
    (problem,), _ = checks.check_urls(table, ["db"], reader({"a_url": "http://u:hunter2@db/"}), locate)
    assert problem["found"] == "a password in it in 'http://***@db/'"


def test_names_of_urls_are_to_resolve():
    table = [{"name": "a_url", "schemes": ["http"]}]
    assert checks.check_urls(table, ["db"], reader({"a_url": "http://api.test:5000/x"}), locate) == (
        [],
        {"db": {"api.test": "a_url"}},
    )


@pytest.mark.parametrize("value", [0, 257, "many", "1.5", True])
def test_a_number_out_of_range(value):
    table = [{"name": "count", "minimum": 1, "maximum": 256}]
    (problem,) = checks.check_ranges(table, ["db"], reader({"count": value}), locate)
    assert (problem["code"], problem["wanted"]) == ("E-VALUE-RANGE", "a whole number from 1 to 256")


@pytest.mark.parametrize("value", [1, "256"])
def test_a_number_in_range(value):
    assert (
        checks.check_ranges([{"name": "n", "minimum": 1, "maximum": 256}], ["db"], reader({"n": value}), locate) == []
    )


@pytest.mark.parametrize(
    ("value", "found"),
    [(["10.0.0.1/24"], "10.0.0.1/24"), (["office", "10.0.0.0/8"], "office"), ("everyone", "everyone")],
)
def test_a_wrong_network(value, found):
    (problem,) = checks.check_networks(["nets"], ["db"], reader({"nets": value}), locate)
    assert (problem["code"], problem["found"]) == ("E-NETWORK-INVALID", found)
