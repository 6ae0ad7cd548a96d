"""What can be wrong with an inventory, told from the inventory alone."""

from __future__ import annotations

import base64
import binascii
import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from roles.preflight.checks.problem import Problem, problem

Locate = Callable[[str], str]
"""Gives ``file:line`` where the inventory sets a variable, or says where else it may come from."""


class Unavailable(Exception):
    """A variable that cannot be read: not set, or its expression fails. The text says why and holds no value."""


Read = Callable[[str, str], Any]
"""Gives the value of a variable for a host; raises ``Unavailable``."""

# Whole words that stand where a secret should: what examples, templates and tutorials use. Compared after case,
# punctuation and spaces are gone. The long ones count anywhere, because chance does not make them.
PLACEHOLDER_PARTS = (
    *("changeme", "changethis", "replaceme", "replacethis", "placeholder", "example", "fillmein", "notasecret"),
    *("yourpassword", "yoursecret", "insertyour", "tobedefined"),
)
PLACEHOLDER_WORDS = ("todo", "tbd", "fixme", "dummy", "none", "null", "test", "secret", "password", "default", "foo")
GUESSABLE_PARTS = ("password", "passwort", "letmein", "welcome", "qwerty", "123456", "airflow", "postgres", "iloveyou")
DIFFERENT_CHARACTERS = 7
MISSPELT = 0.88  # difflib's ratio from which a name outside our prefixes is taken for one of ours


# --- groups and addresses ----------------------------------------------------------------------------------------


def check_groups(groups: Mapping[str, Sequence[str]], wanted: Mapping[str, Mapping[str, int]]) -> list[Problem]:
    """Check that each wanted group has between ``minimum`` and ``maximum`` hosts (no maximum: any number)."""
    problems = []
    for name, limits in wanted.items():
        count, minimum, maximum = len(groups.get(name, [])), limits["minimum"], limits.get("maximum")
        number = f"{minimum} or more hosts" if maximum is None else f"{minimum} to {maximum} hosts"
        number = "exactly 1 host" if minimum == maximum == 1 else number
        if count < minimum:
            others = [other for other in groups if other not in wanted and other not in ("all", "ungrouped")]
            near = difflib.get_close_matches(name, others, n=1, cutoff=0.8)
            problems.append(
                problem(
                    "E-GROUP-MISSING" if name not in groups else "E-GROUP-EMPTY",
                    f"group {name}",
                    found="no such group" if name not in groups else "no host",
                    wanted=number,
                    fix=f"rename group {near[0]}" if near else f"add a host to group {name} of the inventory",
                )
            )
        elif maximum is not None and count > maximum:
            problems.append(
                problem(
                    "E-GROUP-SIZE",
                    f"group {name}",
                    found=f"{count} hosts: {', '.join(groups[name])}",
                    wanted=number,
                    fix="leave the hosts of the others out of the group",
                )
            )
    return problems


def check_addresses(hosts: Sequence[str], read: Read) -> tuple[list[Problem], dict[str, str]]:
    """Check ``host_address`` of every host; return the problems and the good addresses by host."""
    problems, good = [], {}
    users: dict[str, list[str]] = {}
    for host in hosts:
        try:
            text = str(read(host, "host_address"))
            address = ipaddress.IPv4Address(text)
        except Unavailable as error:
            found = str(error)
        except ValueError:
            found = f"'{text}'"
        else:
            users.setdefault(text, []).append(host)
            usable = not address.is_unspecified and not address.is_multicast
            if usable and not (address.is_loopback and len(hosts) > 1):
                good[host] = text
                continue
            found = f"{text}, which other hosts cannot reach"
        problems.append(
            problem(
                "E-ADDRESS-INVALID",
                "host_address",
                host=host,
                found=found,
                wanted="the IPv4 address by which the other hosts reach this one",
                fix="set host_address of the host, or ansible_host to an IPv4 address",
            )
        )
    for address_text, names in users.items():
        if len(names) > 1:
            problems.append(
                problem(
                    "E-ADDRESS-DUPLICATE",
                    "host_address",
                    found=f"{address_text} at {', '.join(names)}",
                    wanted="an address of its own for every host",
                    fix="correct host_address; one VM in several groups is one host under one name",
                )
            )
            for name in names[1:]:
                good.pop(name, None)
    return problems, good


def check_flows(flows: object) -> list[Problem]:
    """Check the rows of ``host_flows``."""
    problems = []
    for number, flow in enumerate(flows if isinstance(flows, Sequence) else [], start=1):
        row = flow if isinstance(flow, Mapping) else {}
        missing = [key for key in ("name", "to", "port", "from") if key not in row]
        port = row.get("port")
        if missing:
            found = f"no {', '.join(missing)}"
        elif not str(port).isdigit() or not 0 < int(str(port)) < 65536:
            found = f"port {port}"
        else:
            continue
        problems.append(
            problem(
                "E-FLOW-INVALID",
                f"host_flows, row {number} ({row.get('name', 'without name')})",
                found=found,
                wanted="{name, to: group, port: 1 to 65535, from: [groups]}",
                fix="correct the row",
            )
        )
    return problems


# --- secrets -----------------------------------------------------------------------------------------------------


def secret_shape(value: str) -> str:
    """Return what may be said about a secret."""
    kinds = [name for name, of in (("letters", str.isalpha), ("digits", str.isdigit)) if any(map(of, value))]
    if any(not character.isalnum() for character in value):
        kinds.append("signs")
    return f"{len(value.encode())} bytes of {', '.join(kinds) or 'nothing'}, {len(set(value))} different"


def is_placeholder(value: str) -> bool:
    """Tell whether a text stands where a secret should."""
    plain = re.sub(r"[^a-z0-9]", "", value.lower())
    if any(part in plain for part in PLACEHOLDER_PARTS):
        return True
    return (
        not plain or plain in PLACEHOLDER_WORDS or set(plain) == {"x"} or bool(re.fullmatch(r"<.*>|\$?\{.*\}", value))
    )


def weakness(value: str, minimum_bytes: int) -> str:
    """Return why a secret is weak, or nothing."""
    length = len(value.encode())
    if length < minimum_bytes:
        return f"{length} bytes, too short"
    if len(set(value)) < DIFFERENT_CHARACTERS:
        return f"{length} bytes, but only {len(set(value))} different ones"
    # A text that is found in its own double before its end repeats a block.
    if (value + value).index(value, 1) < len(value):
        return f"{length} bytes, but a repeated block"
    plain = value.lower()
    if any(part in plain for part in GUESSABLE_PARTS):
        return f"{length} bytes with a guessable word in them"
    steps = {ord(after) - ord(before) for before, after in pairwise(value)}
    if len(steps) == 1:
        return f"{length} bytes, but a sequence"
    return ""


def is_fernet(value: str) -> bool:
    """Tell whether a text is one or more Fernet keys (comma between them: the first encrypts, the others decrypt).

    Source: cryptography.fernet, a key is 32 bytes in URL-safe base64.
    """
    for key in value.split(","):
        try:
            if not re.fullmatch(r"[A-Za-z0-9_-]{43}=", key) or len(base64.urlsafe_b64decode(key)) != 32:
                return False
        except binascii.Error:
            return False
    return True


GENERATE = "openssl rand -base64 {bytes} (keep it with ansible-vault)"
GENERATE_FERNET = "openssl rand -base64 32 | tr '+/' '-_' (keep it with ansible-vault)"


def check_secrets(
    table: Sequence[Mapping[str, Any]], groups: Mapping[str, Sequence[str]], read: Read, locate: Locate
) -> list[Problem]:
    """Check the secrets of the table: ``{name, groups, bytes: smallest length, fernet: bool}``."""
    problems: list[Problem] = []
    users: dict[str, list[str]] = {}
    for row in table:
        name, is_key = row["name"], bool(row.get("fernet"))
        minimum = int(row.get("bytes", 32))
        fix = GENERATE_FERNET if is_key else GENERATE.format(bytes=max(24, minimum))
        hosts = list(dict.fromkeys(host for group in row["groups"] for host in groups.get(group, [])))
        values: dict[str, list[str]] = {}
        for host in hosts:
            place = ""
            try:
                value = read(host, name)
                text = value if isinstance(value, str) else str(value if value is not None else "")
            except Unavailable as error:
                code, found, wanted = "E-SECRET-MISSING", str(error), "a value"
            else:
                values.setdefault(text, []).append(host)
                place = locate(name)
                wanted = "32 bytes in URL-safe base64" if is_key else f"{minimum} random bytes or more"
                weak = weakness(text, 44 if is_key else minimum)
                if not text:
                    code, found, wanted = "E-SECRET-MISSING", "an empty value", "a value"
                elif is_placeholder(text):
                    code, found = "E-SECRET-PLACEHOLDER", f"a placeholder of {len(text)} characters"
                elif is_key and not is_fernet(text):
                    code, found = "E-SECRET-FORMAT", secret_shape(text)
                elif weak:
                    code, found = "E-SECRET-WEAK", weak
                else:
                    continue
            problems.append(problem(code, name, place=place, host=host, found=found, wanted=wanted, fix=fix))
        if len(values) > 1:
            problems.append(
                problem(
                    "E-SECRET-DIFFERS",
                    name,
                    found=f"{len(values)} values: " + " / ".join(", ".join(names) for names in values.values()),
                    wanted="the same value on every host",
                    fix="set it once, in group_vars/all",
                )
            )
        for text in values:
            if text and not is_placeholder(text):
                users.setdefault(text, []).append(name)
    for names in users.values():
        if len(names) > 1:
            problems.append(
                problem(
                    "E-SECRET-REUSED",
                    " = ".join(names),
                    found=f"one value for {len(names)} secrets",
                    wanted="a value of its own for each, or the least protected one opens all",
                    fix="generate new values for all but one",
                )
            )
    return problems


# --- variables ---------------------------------------------------------------------------------------------------


def check_names(names: Iterable[str], known: set[str], prefixes: Iterable[str], locate: Locate) -> list[Problem]:
    """Check that every variable in our namespace is one that something reads.

    A name is ours when it begins with a role's name, or when it is so near to a known one that it must be meant.
    """
    starts = tuple(f"{prefix}_" for prefix in prefixes)
    problems = []
    for name in sorted(set(names) - known):
        if name.startswith(("_", "ansible_", "wiring_")):
            continue
        ours = name.startswith(starts)
        near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6 if ours else MISSPELT)
        if ours or near:
            problems.append(
                problem(
                    "E-VARIABLE-UNKNOWN",
                    name,
                    place=locate(name),
                    found="a name that no role reads",
                    wanted="a name of the roles' argument_specs.yml",
                    fix=f"did you mean {near[0]}?" if near else "remove it, or give it a prefix of your own",
                )
            )
    return problems


def url_problem(text: str, schemes: Sequence[str]) -> str:
    """Return what is wrong with a URL, or nothing."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        return str(error)
    if parts.scheme not in schemes:
        return f"scheme '{parts.scheme}'" if parts.scheme else "no scheme"
    if not parts.hostname or not re.fullmatch(r"[A-Za-z0-9._:-]+", parts.hostname):
        return f"host '{parts.hostname or ''}'"
    if parts.password:
        return "a password in it"
    return "" if port is None or port > 0 else "port 0"


def _is_set(name: str | None, host: str, read: Read) -> bool:
    try:
        return bool(name and read(host, name))
    except Unavailable:
        return False


def check_urls(
    table: Sequence[Mapping[str, Any]], hosts: Sequence[str], read: Read, locate: Locate
) -> tuple[list[Problem], dict[str, dict[str, str]]]:
    """Check the URLs of the table ``{name, schemes, tls}`` where they are set.

    ``tls`` names the variable with a certificate: where that is set, https is the one scheme that answers. Returns the
    problems, and by host the names that these URLs make it resolve, each with the variable.
    """
    problems: list[Problem] = []
    names: dict[str, dict[str, str]] = {host: {} for host in hosts}
    for row in table:
        for host in hosts:
            try:
                text = str(read(host, row["name"]) or "")
            except Unavailable:
                continue  # its role says whether it must be set
            schemes = ["https"] if _is_set(row.get("tls"), host, read) else row["schemes"]
            wrong = url_problem(text, schemes) if text else ""
            if wrong:
                problems.append(
                    problem(
                        "E-URL-INVALID",
                        row["name"],
                        place=locate(row["name"]),
                        host=host,
                        found=f"{wrong} in '{re.sub(r'//[^/@]*@', '//***@', text)}'",
                        wanted=f"{' or '.join(schemes)}://host[:port][/path]",
                        fix="write the whole URL",
                    )
                )
            elif text:
                names[host][urlsplit(text).hostname or ""] = row["name"]
    return problems, names


def check_ranges(table: Sequence[Mapping[str, Any]], hosts: Sequence[str], read: Read, locate: Locate) -> list[Problem]:
    """Check whole numbers of the table ``{name, minimum, maximum}`` where they are set."""
    problems = []
    for row in table:
        for host in hosts:
            try:
                value = read(host, row["name"])
            except Unavailable:
                continue
            number = int(value) if re.fullmatch(r"-?\d+", str(value)) else None
            if number is not None and row["minimum"] <= number <= row["maximum"]:
                continue
            problems.append(
                problem(
                    "E-VALUE-RANGE",
                    row["name"],
                    place=locate(row["name"]),
                    host=host,
                    found=str(value),
                    wanted=f"a whole number from {row['minimum']} to {row['maximum']}",
                    fix="correct the value",
                )
            )
    return problems


def check_networks(table: Sequence[str], hosts: Sequence[str], read: Read, locate: Locate) -> list[Problem]:
    """Check the variables that hold lists of networks, where they are set."""
    problems = []
    for name in table:
        for host in hosts:
            try:
                value = read(host, name)
            except Unavailable:
                continue
            wrong = []
            for text in value if isinstance(value, list) else [value]:
                try:
                    ipaddress.ip_network(str(text))
                except ValueError:
                    wrong.append(str(text))
            if wrong:
                problems.append(
                    problem(
                        "E-NETWORK-INVALID",
                        name,
                        place=locate(name),
                        host=host,
                        found=", ".join(wrong),
                        wanted="networks as 10.1.0.0/24 or fd00::/8 (no bits set behind the length), or addresses",
                        fix="correct the list",
                    )
                )
    return problems
