"""A problem that preflight found, and the list of all of them as a person reads it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict


class Problem(TypedDict):
    """One refusal. Never holds a secret, only its shape."""

    code: str
    """Stable name, for example ``E-SECRET-WEAK``."""
    host: str
    """Inventory name, empty when the problem belongs to the inventory as a whole."""
    subject: str
    """Variable, group, port or flow."""
    place: str
    """``file:line`` that sets the variable, empty when no file does."""
    found: str
    wanted: str
    fix: str


# The order is that in which a person repairs them: without groups and addresses nothing else can be checked.
TITLES = {
    "GROUP": "Inventory",
    "ADDRESS": "Inventory",
    "FLOW": "Inventory",
    "VARIABLE": "Variables",
    "VALUE": "Variables",
    "URL": "Variables",
    "NETWORK": "Variables",
    "SECRET": "Secrets",
    "HOST": "Hosts",
    "CLOCK": "Hosts",
    "NAME": "Names",
    "PORT": "Ports",
    "CONNECTION": "Connections",
}


def problem(code: str, subject: str, *, found: str, wanted: str, fix: str, host: str = "", place: str = "") -> Problem:
    """Return a problem; the code must begin with ``E-`` and a class of ``TITLES``."""
    title_of(code)
    return {
        "code": code,
        "host": host,
        "subject": subject,
        "place": place,
        "found": found,
        "wanted": wanted,
        "fix": fix,
    }


def title_of(code: str) -> str:
    """Return the heading that a code is listed under."""
    return TITLES[code.split("-")[1]]


def join_hosts(problems: Iterable[Problem], all_hosts: Sequence[str]) -> list[tuple[str, Problem]]:
    """Return each different problem once, with its hosts: ``all``, names in inventory order, or nothing."""
    hosts: dict[tuple[str, ...], list[str]] = {}
    first: dict[tuple[str, ...], Problem] = {}
    for entry in problems:
        key: tuple[str, ...] = (entry["code"], entry["subject"], entry["found"], entry["wanted"], entry["fix"])
        first.setdefault(key, entry)
        if entry["host"] and entry["host"] not in hosts.setdefault(key, []):
            hosts[key].append(entry["host"])
    joined = []
    for same, entry in first.items():
        names = hosts.get(same, [])
        everywhere = len(names) > 1 and set(names) >= set(all_hosts)
        joined.append(("all" if everywhere else ", ".join(names), entry))
    return joined


def render_problems(problems: Sequence[Problem], all_hosts: Sequence[str]) -> str:
    """Return the numbered list, grouped by class, for a terminal of 100 columns or more."""
    joined = join_hosts(problems, all_hosts)
    order = list(dict.fromkeys(TITLES.values()))
    width = max(len(entry["code"]) for _, entry in joined)
    count = "1 problem" if len(joined) == 1 else f"{len(joined)} problems"
    lines = [f"Preflight found {count}. No host was changed."]
    number = 0
    for title in order:
        rows = [(hosts, entry) for hosts, entry in joined if title_of(entry["code"]) == title]
        if not rows:
            continue
        lines += ["", title]
        for hosts, entry in rows:
            number += 1
            where = f"{hosts}: {entry['subject']}" if hosts else entry["subject"]
            indent = " " * (6 + width)
            lines.append(f"{number:3} {entry['code']:<{width}}  {where}")
            rows_of_entry = [("set in", entry["place"]), ("found", entry["found"])]
            rows_of_entry += [("wanted", entry["wanted"]), ("fix", entry["fix"])]
            lines += [f"{indent}{name:<8}{text}" for name, text in rows_of_entry if text]
    return "\n".join(lines)


def render_success(rows: Sequence[tuple[str, str, float]]) -> str:
    """Return one line per class of checks: ``(class, what was checked, seconds)``."""
    titles = max(len(title) for title, _, _ in rows)
    texts = max(len(text) for _, text, _ in rows)
    lines = ["Preflight found no problem."]
    lines += [f"  {title:<{titles}}  {text:<{texts}}  {seconds:5.1f} s" for title, text, seconds in rows]
    return "\n".join(lines)
