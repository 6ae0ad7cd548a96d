"""The vetted scripts that come with the service: ``scripts/<name>/<version>.sql``, and what their parameters may be.

A file begins with a block of TOML in comments, as Python scripts have it (PEP 723)::

    -- /// script
    -- summary = "What it does, for people"
    -- limits = {rows = 100000}
    -- [parameters.days]
    -- type = "integer"
    -- required = true
    -- ///
"""

from __future__ import annotations

import hashlib
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from transformation_service import script_sql
from transformation_service.problems import Problem

HEADER = re.compile(r"\A-- /// script\n((?:--(?: .*)?\n)*?)-- ///\n")
NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
SLOT = "slot"
"""Parameter that every script has: the instant its work belongs to."""

MAX_LENGTH = 1000  # of a string whose declaration names no other
LARGEST = 2**63 - 1
TYPES = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "date": (str,),
    "timestamp": (str,),
}
OPTIONS = {
    "string": {"choices", "max_length"},
    "integer": {"choices", "minimum", "maximum"},
    "number": {"choices", "minimum", "maximum"},
    "boolean": set(),
    "date": set(),
    "timestamp": set(),
}


class ScriptError(Exception):
    """A script of this release can't be offered; the message names file and fault."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a run may take: seconds, rows read and written, statements."""

    seconds: float = 30
    rows: int = 10_000
    statements: int = 5

    @classmethod
    def read(cls, given: Mapping[str, Any], most: Limits) -> Limits:
        """Fill in the defaults, within what the service allows.

        Raises:
            Problem: 400 with every fault.
        """
        faults = []
        values = {name: min(getattr(cls, name), largest) for name, largest in vars(most).items()}
        for name, value in given.items():
            if name not in values:
                faults.append(f"{name} is no limit; known are {', '.join(values)}")
                continue
            whole = isinstance(value, int) or (name == "seconds" and isinstance(value, float))
            if isinstance(value, bool) or not whole or not 0 < value <= getattr(most, name):
                faults.append(f"{name} must be a number from 1 to {getattr(most, name):g}")
                continue
            values[name] = value
        if faults:
            raise Problem(400, "invalid-limits", "Limits: " + "; ".join(faults) + ".", errors=faults)
        return cls(**values)


ANY_LIMITS = Limits(seconds=math.inf, rows=LARGEST, statements=20)


@dataclass(frozen=True, kw_only=True)
class Script:
    """One version of a vetted script; ``parameters`` are the declarations as ``GET /api/v1/scripts`` shows them."""

    name: str
    version: int
    source: str
    summary: str
    parameters: dict[str, dict[str, Any]]
    limits: Limits

    @property
    def checksum(self) -> str:
        """SHA-256 of the whole file in hexadecimal."""
        return checksum(self.source)

    @property
    def types(self) -> dict[str, str | None]:
        """The type of every parameter, the slot's included."""
        return {SLOT: "timestamp", **{name: str(spec["type"]) for name, spec in self.parameters.items()}}


def checksum(source: str) -> str:
    """Return the SHA-256 of a script's text in hexadecimal."""
    return hashlib.sha256(source.encode()).hexdigest()


def load(most: Limits = ANY_LIMITS, folder: Traversable | None = None) -> dict[str, dict[int, Script]]:
    """Read and check every script, by name and version.

    Raises:
        ScriptError: A file is broken.
    """
    found: dict[str, dict[int, Script]] = {}
    root = folder or resources.files(__package__).joinpath("scripts")
    for directory in sorted(root.iterdir(), key=lambda item: item.name):
        if not directory.is_dir():
            raise ScriptError(f"scripts/{directory.name}: scripts are files <name>/<version>.sql.")
        for file in sorted(directory.iterdir(), key=lambda item: item.name):
            where = f"scripts/{directory.name}/{file.name}"
            version = re.fullmatch(r"([1-9]\d{0,3})\.sql", file.name)
            if version is None or NAME.fullmatch(directory.name) is None:
                raise ScriptError(f"{where}: not of the form <name>/<version>.sql.")
            try:
                script = parse(directory.name, int(version[1]), file.read_text(encoding="utf-8"), most)
            except Problem as problem:
                raise ScriptError(f"{where}: {problem.detail}") from problem
            except ValueError as error:
                raise ScriptError(f"{where}: {error}") from error
            found.setdefault(script.name, {})[script.version] = script
    return found


def parse(name: str, version: int, source: str, most: Limits) -> Script:
    """Return a script from its file's text, checked like one that comes by HTTP.

    Raises:
        ValueError: Its header is broken.
        Problem: Its SQL is not allowed.
    """
    header = HEADER.match(source)
    if header is None:
        raise ValueError("it does not begin with the block '-- /// script' ... '-- ///'.")
    try:
        meta = tomllib.loads(re.sub(r"^-- ?", "", header[1], flags=re.MULTILINE))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"its header is no TOML: {error}") from error
    unknown = meta.keys() - {"summary", "limits", "parameters"}
    if unknown or not isinstance(meta.get("summary"), str) or not meta["summary"].strip():
        raise ValueError(f"its header needs a summary, and may have limits and parameters; found {', '.join(meta)}.")
    parameters = {key: _declaration(key, value) for key, value in meta.get("parameters", {}).items()}
    script = Script(
        name=name,
        version=version,
        source=source,
        summary=meta["summary"].strip(),
        parameters=parameters,
        limits=Limits.read(meta.get("limits", {}), most),
    )
    used = {
        used
        for statement in script_sql.read(source, parameters=script.types, most=script.limits.statements)
        for used in statement.names
    }
    if unused := parameters.keys() - used:
        raise ValueError(f"it declares {', '.join(sorted(unused))} and does not use it.")
    return script


def _declaration(name: str, given: Any) -> dict[str, Any]:
    if NAME.fullmatch(name) is None or name == SLOT:
        raise ValueError(f"parameter {name!r}: names are lower case letters, digits and _; {SLOT} is given always.")
    kind = given.get("type") if isinstance(given, dict) else None
    if kind not in TYPES:
        raise ValueError(f"parameter {name}: its type must be one of {', '.join(TYPES)}.")
    unknown = given.keys() - {"type", "required", "default"} - OPTIONS[kind]
    if unknown:
        raise ValueError(f"parameter {name}: {', '.join(sorted(unknown))} does not go with type {kind}.")
    required = given.get("required", "default" not in given)
    if not isinstance(required, bool) or (required and "default" in given):
        raise ValueError(f"parameter {name}: it is either required or has a default.")
    for option in ("minimum", "maximum", "max_length"):
        if option in given and (isinstance(given[option], bool) or not isinstance(given[option], int | float)):
            raise ValueError(f"parameter {name}: {option} must be a number.")
    spec = {**given, "required": required}
    choices = given.get("choices", [])
    if not isinstance(choices, list):
        raise ValueError(f"parameter {name}: choices must be a list.")
    for value in [*choices, *([given["default"]] if "default" in given else [])]:
        if fault := _fault(value, spec):
            raise ValueError(f"parameter {name}: {value!r} {fault}.")
    return spec


def bind(script: Script, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value of every parameter, defaults filled in; ``None`` for one that is neither given nor required.

    Raises:
        Problem: 400 with every fault.
    """
    faults = [
        f"{name[:80]} is not a parameter; known are {', '.join(script.parameters) or 'none'}"
        for name in given
        if name not in script.parameters
    ]
    values = {}
    for name, spec in script.parameters.items():
        value = values[name] = given.get(name, spec.get("default"))
        if value is None:
            faults += [f"{name} is required"] if spec["required"] else []
        elif fault := _fault(value, spec):
            faults.append(f"{name} {fault}")
    _refuse(faults)
    return values


def bind_undeclared(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a dynamic script: text, numbers, booleans and null, by usable names.

    Raises:
        Problem: 400 with every fault.
    """
    faults = []
    for name, value in given.items():
        if NAME.fullmatch(name) is None or name == SLOT:
            faults.append(f"{name[:80]!r} is no name: lower case letters, digits and _; {SLOT} is given always")
        elif value is not None and (fault := _fault(value, {"type": script_sql.infer_type(value) or "string"})):
            faults.append(f"{name} {fault}")
    _refuse(faults)
    return dict(given)


def _refuse(faults: list[str]) -> None:
    if faults:
        raise Problem(400, "invalid-parameters", "Parameters: " + "; ".join(faults) + ".", errors=faults)


def _fault(value: Any, spec: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a value, as the end of a sentence that begins with the parameter's name."""
    kind = spec["type"]
    if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return f"must be of type {kind}"
    if isinstance(value, int | float) and not (math.isfinite(value) and -LARGEST <= value <= LARGEST):
        return "is too large"
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            return "holds a character that text in PostgreSQL can't have"
        if len(value) > spec.get("max_length", MAX_LENGTH):
            return f"is longer than {spec.get('max_length', MAX_LENGTH)} characters"
    try:
        if kind in ("date", "timestamp"):
            typed(value, kind)
    except ValueError:
        example = "2026-01-31" if kind == "date" else "2026-01-31T02:00:00Z"
        return f"must be a {kind} such as {example}"
    if "choices" in spec and value not in spec["choices"]:
        return f"must be one of {', '.join(map(str, spec['choices']))}"
    if "minimum" in spec and value < spec["minimum"]:
        return f"must be at least {spec['minimum']}"
    if "maximum" in spec and value > spec["maximum"]:
        return f"must be at most {spec['maximum']}"
    return None


def typed(value: Any, kind: str | None) -> Any:
    """Return a parameter as the database driver takes it.

    Raises:
        ValueError: It is no date, or no instant with an offset.
    """
    if value is None or kind not in ("date", "timestamp"):
        return value
    if kind == "date":
        return date.fromisoformat(value)
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        raise ValueError("an instant needs an offset")
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("out of range") from error
