#!/usr/bin/python
"""Reconcile Airflow's connections, variables and pools with one wanted set, in one transaction."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import difflib
import importlib.metadata
import importlib.util
import json
import os
import re
import runpy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ansible.module_utils.airflow_runtime import enter_airflow
from ansible.module_utils.basic import AnsibleModule

if TYPE_CHECKING:
    import sqlalchemy

DOCUMENTATION = r"""
module: airflow_objects
short_description: Reconcile Airflow connections, variables and pools as one set
description:
  - Takes the whole wanted set, compares it with the decrypted values in the metadata database, writes what differs in
    one transaction and returns one exact, masked diff. Check mode computes the same diff and writes nothing.
  - Runs with the Python of the Airflow venv. Airflow itself is imported only when something has to be written, so a run
    without changes costs about half a second.
  - Every object that it writes carries C((managed by Ansible)) at the end of its description. Pruning removes objects
    with this mark only; the pool C(default_pool) is never removed.
  - In check mode on a host without Airflow, or with a database that is not migrated, it reports everything as created.
options:
  connections:
    description:
      - Wanted connections. Keys of an item are C(conn_id), C(conn_type) (both required), C(host), C(port), C(login),
        C(password), C(schema), C(extra) (a dictionary) and C(description). What is left out is empty in Airflow too.
      - The key C(probe) is for M(airflow_connection_probe) and is not stored.
    type: list
    elements: raw
    default: []
  variables:
    description:
      - Wanted variables, each with C(key), C(value) and an optional C(description).
      - A string is stored as it is. Any other value is stored as JSON and compared as JSON.
    type: list
    elements: raw
    default: []
  pools:
    description: Wanted pools, each with C(name), C(slots) (-1 = unlimited), C(include_deferred) and C(description).
    type: list
    elements: raw
    default: []
  prune:
    description: Remove objects that carry the mark and are no longer wanted.
    type: bool
    default: true
  credentials:
    description:
      - Folder with the files C(sql_alchemy_conn) and C(fernet_key). Without the first, Airflow is not configured yet.
    type: path
    default: /etc/airflow/credentials
"""

EXAMPLES = r"""
- name: Reconcile connections, variables and pools
  airflow_objects:
    connections:
      - {conn_id: transformation_service, conn_type: http, host: service-1, port: 5000, extra: {timeout: 300}}
    variables:
      - {key: default_batch_size, value: "1000"}
    pools:
      - {name: transformations, slots: 4}
  vars:
    ansible_python_interpreter: /opt/airflow/venv/bin/python
"""

RETURN = r"""
changes:
  description: One sentence per changed object, without values.
  type: list
  returned: always
  sample: ["connection transformation_db: update password"]
orphans:
  description: Objects that carry the mark, are no longer wanted, and stay because C(prune) is off.
  type: list
  returned: always
note:
  description: Why the answer is a forecast, in check mode on a host without a migrated Airflow.
  type: str
  returned: sometimes
"""

MARK: Final = "(managed by Ansible)"
HIDDEN: Final = "********"
HIDDEN_CHANGE: Final = "******** (changed)"
DEFAULT_POOL: Final = "default_pool"
KINDS: Final = ("connection", "variable", "pool")

# airflow.models.connection.RE_SANITIZE_CONN_ID and the two name columns; Airflow stores NULL for an id that fails this.
_CONN_ID: Final = re.compile(r"[\w#!()\-.:/\\]{1,250}")
# airflow._shared.secrets_masker.DEFAULT_SENSITIVE_FIELDS, and the names that our own providers use.
_SECRET_NAME: Final = re.compile(
    r"access_?key|api_?key|auth_?header|authorization|bearer|connection_string|credential|dsn|keyfile|pass_?phrase|passw|"
    r"private_?key|prox(y|ies)|secret|service_account|service_key|token|webhook",
    re.IGNORECASE,
)
_URL_CREDENTIALS: Final = re.compile(r"(?<=://)[^/@\s]+@")
_STRINGS: Final = ("host", "login", "password", "schema", "description")
_KEYS: Final = {
    "connection": {"conn_id", "conn_type", "port", "extra", "probe", *_STRINGS},
    "variable": {"key", "value", "description"},
    "pool": {"name", "slots", "include_deferred", "description"},
}


class Unreadable:
    """A stored value that the present Fernet key does not decrypt. Equal to nothing, so it is always rewritten."""

    def __str__(self) -> str:
        return "(not readable with the present Fernet key)"


Fields = dict[str, Any]
Objects = dict[str, dict[str, Fields]]  # kind -> name -> fields
Stored = str | Unreadable | None
Decrypt = Callable[[str | None, bool], Stored]  # column text, whether it is encrypted


@dataclasses.dataclass(frozen=True)
class Change:
    """One object that differs. `before` and `after` hold the differing fields only; None = the object is not there."""

    kind: str
    name: str
    before: Fields | None
    after: Fields | None

    @property
    def sentence(self) -> str:
        """What happens to the object, field names without values."""
        if self.before is None:
            return f"{self.kind} {self.name}: create"
        if self.after is None:
            return f"{self.kind} {self.name}: delete"
        return f"{self.kind} {self.name}: update {', '.join(self.after)}"


# --- the wanted set ---------------------------------------------------------------------------------------------------


def check_input(
    connections: Sequence[Any], variables: Sequence[Any], pools: Sequence[Any], types: Iterable[str] | None
) -> tuple[Objects, list[str]]:
    """Turn the three lists into normal form and collect everything that is wrong with them.

    `types`: the connection types that the installed providers know; None = unknown (no Airflow here yet), not checked.
    Returns the objects and the problems; the objects are usable only without problems. Problems never quote a value
    that could be a secret.
    """
    objects: Objects = {kind: {} for kind in KINDS}
    problems: list[str] = []
    known = None if types is None else set(types)
    for kind, id_key, items in (
        ("connection", "conn_id", connections),
        ("variable", "key", variables),
        ("pool", "name", pools),
    ):
        for index, item in enumerate(items):
            where = f"{kind}s[{index}]"
            if not isinstance(item, dict):
                problems.append(f"{where}: must be a dictionary with {id_key}, not {_kind_of(item)}")
                continue
            name = item.get(id_key)
            if not isinstance(name, str) or not name:
                problems.append(f"{where}: {id_key} must be a non-empty string")
                continue
            where = f"{kind} {name}"
            for key in sorted(set(map(str, item)) - _KEYS[kind]):
                guess = difflib.get_close_matches(key, _KEYS[kind], n=1)
                problems.append(f"{where}: unknown key {key}" + (f", did you mean {guess[0]}?" if guess else ""))
            if name in objects[kind]:
                problems.append(f"{where}: listed more than once")
                continue
            if kind == "connection":
                fields = _connection(where, item, known, problems)
            elif kind == "variable":
                fields = _variable(where, item, problems)
            else:
                fields = _pool(where, item, problems)
            objects[kind][name] = fields
    return objects, problems


def _connection(where: str, item: Mapping[str, Any], known: set[str] | None, problems: list[str]) -> Fields:
    if not _CONN_ID.fullmatch(item["conn_id"]):
        problems.append(f"{where}: conn_id may hold letters, digits and _#!()-.:/\\ only, 250 characters at most")
    conn_type = item.get("conn_type")
    if not isinstance(conn_type, str) or not conn_type:
        problems.append(f"{where}: conn_type is required and must be a string")
    elif known is not None and conn_type not in known:
        guess = difflib.get_close_matches(conn_type, known, n=1)
        problems.append(
            f"{where}: no installed provider knows conn_type {conn_type!r}"
            + (f", did you mean {guess[0]}?" if guess else f"; known: {', '.join(sorted(known))}")
        )
    fields: Fields = {"conn_type": conn_type}
    for key in ("host", "port", "login", "password", "schema", "extra"):
        fields[key] = item.get(key)
    for key in _STRINGS:
        if item.get(key) is not None and not isinstance(item[key], str):
            problems.append(f"{where}: {key} must be a string, not {_kind_of(item[key])}; quote it")
        elif key != "description":
            fields[key] = item.get(key) or None

    port = fields["port"]
    if isinstance(port, str) and port.isdecimal():
        port = int(port)  # a templated port arrives as text
    if port in (None, ""):
        fields["port"] = None
    elif isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
        problems.append(f"{where}: port must be a number from 1 to 65535")
    else:
        fields["port"] = port

    extra = fields["extra"] or None
    if extra is not None and not isinstance(extra, dict):
        problems.append(f"{where}: extra must be a dictionary, not {_kind_of(extra)}")
    elif extra is not None:
        try:
            json.dumps(extra)
        except (TypeError, ValueError):
            problems.append(f"{where}: extra holds a value that JSON cannot express")
        timeout = extra.get("timeout")
        needs_number = conn_type in ("http", "transformation_service") and "timeout" in extra
        if needs_number and (isinstance(timeout, bool) or not _is_number(timeout)):
            # requests refuses it only in use: "Timeout value connect was 300, but it must be an int, float or None"
            problems.append(f"{where}: extra.timeout must be a number of seconds, not {_kind_of(timeout)}")
    fields["extra"] = extra
    return fields | _described(item)


def _variable(where: str, item: Mapping[str, Any], problems: list[str]) -> Fields:
    value = item.get("value")
    if len(item["key"]) > 250:
        problems.append(f"{where}: key may have 250 characters at most")
    if value is None:
        problems.append(f"{where}: value is required; leave the variable out to have none")
    elif not isinstance(value, str):
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            problems.append(f"{where}: value must be a string or something that JSON can express")
    if item.get("description") is not None and not isinstance(item["description"], str):
        problems.append(f"{where}: description must be a string")
    return {"value": value} | _described(item)


def _pool(where: str, item: Mapping[str, Any], problems: list[str]) -> Fields:
    slots, include_deferred = item.get("slots"), item.get("include_deferred", False)
    if len(item["name"]) > 256:
        problems.append(f"{where}: name may have 256 characters at most")
    if isinstance(slots, str) and re.fullmatch(r"-?\d+", slots):
        slots = int(slots)
    if isinstance(slots, bool) or not isinstance(slots, int) or slots < -1:
        problems.append(f"{where}: slots must be a whole number, 0 or more, or -1 for unlimited")
    if not isinstance(include_deferred, bool):
        problems.append(f"{where}: include_deferred must be true or false")
    if item.get("description") is not None and not isinstance(item["description"], str):
        problems.append(f"{where}: description must be a string")
    return {"slots": slots, "include_deferred": include_deferred} | _described(item)


def _described(item: Mapping[str, Any]) -> Fields:
    return {"description": item.get("description") or None, "managed": True}


def _kind_of(value: object) -> str:
    if value is None:
        return "nothing"
    names: dict[type, str] = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "a list"}
    return next((text for kind, text in names.items() if isinstance(value, kind)), "a dictionary")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def known_connection_types() -> set[str]:
    """Read the connection types out of the installed providers' metadata.

    Each provider's `get_provider_info` module imports nothing, so it is run by itself: importing it by name would
    import Airflow first, two seconds instead of 0.05. The two types without a provider are in
    `airflow.providers_manager.ProvidersManager._init_airflow_core_hooks`.
    """
    types = {"generic", "email"}
    for entry in importlib.metadata.entry_points(group="apache_airflow_provider"):
        if entry.dist is None:
            continue
        path = entry.dist.locate_file(entry.module.replace(".", "/") + ".py")
        info = runpy.run_path(str(path))[entry.attr]()
        types.update(item["connection-type"] for item in info.get("connection-types", ()))
    return types


# --- compare ----------------------------------------------------------------------------------------------------------


def plan(actual: Objects, wanted: Objects, *, prune: bool) -> list[Change]:
    """List what has to happen to turn `actual` into `wanted`; pure.

    An object without the mark is changed when it is wanted and never deleted.
    """
    changes = []
    for kind in KINDS:
        for name, target in wanted[kind].items():
            present = actual[kind].get(name)
            if present is None:
                changes.append(Change(kind, name, None, {k: v for k, v in target.items() if v is not None}))
                continue
            differing = [field for field, value in target.items() if not _same(field, value, present.get(field))]
            if differing:
                changes.append(
                    Change(kind, name, {f: present.get(f) for f in differing}, {f: target[f] for f in differing})
                )
        if prune:
            changes += [
                Change(kind, name, {k: v for k, v in actual[kind][name].items() if v is not None}, None)
                for name in _orphans_of(kind, actual, wanted)
            ]
    return changes


def orphans(actual: Objects, wanted: Objects) -> list[str]:
    """Name the objects that carry the mark and are not wanted, as `kind name`."""
    return [f"{kind} {name}" for kind in KINDS for name in _orphans_of(kind, actual, wanted)]


def _orphans_of(kind: str, actual: Objects, wanted: Objects) -> list[str]:
    return [
        name
        for name, fields in sorted(actual[kind].items())
        if fields["managed"] and name not in wanted[kind] and (kind, name) != ("pool", DEFAULT_POOL)
    ]


def _same(field: str, wanted: object, present: object) -> bool:
    """Compare one field. A wanted variable that is not text equals any JSON spelling of it (the UI reformats JSON)."""
    if isinstance(present, Unreadable):
        return False
    if field == "value" and isinstance(present, str) and not isinstance(wanted, str):
        try:
            present = json.loads(present)
        except ValueError:
            return False
    # By JSON text, as Python holds 1, 1.0 and True for equal and Airflow's users do not.
    return _canonical(wanted) == _canonical(present)


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)


# --- show -------------------------------------------------------------------------------------------------------------


def render(changes: Sequence[Change]) -> dict[str, Any]:
    """Make Ansible's `diff` of the changes: differing fields only, secrets hidden but seen to change."""
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    for change in changes:
        old, new = _hide_pair(change)
        for side, fields in ((before, old), (after, new)):
            if fields is not None:
                side.setdefault(f"{change.kind}s", {})[change.name] = fields
    return {"before_header": "Airflow objects", "after_header": "Airflow objects", "before": before, "after": after}


def _hide_pair(change: Change) -> tuple[Fields | None, Fields | None]:
    old: Fields = {}
    new: Fields = {}
    for field in {**(change.before or {}), **(change.after or {})}:
        # A variable's own name says whether its value is a secret; a connection's fields speak for themselves.
        name = change.name if change.kind == "variable" and field == "value" else field
        pair = ((change.before or {}).get(field), (change.after or {}).get(field))
        if field in ("value", "extra"):
            pair = (_parsed(pair[0]), _parsed(pair[1]))
        old[field], new[field] = _hide(name, *pair)
    return (None if change.before is None else old), (None if change.after is None else new)


def _parsed(value: object) -> object:
    """Read JSON text as what it holds, so that the secrets in it are found by their keys."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value


def _hide(name: str, old: object, new: object) -> tuple[object, object]:
    """Hide the secrets of two versions of one value; of two dictionaries keep the differing keys only."""
    if _SECRET_NAME.search(name) and not isinstance(old, bool) and not isinstance(new, bool):
        if old is None or new is None:
            return (None if old is None else HIDDEN), (None if new is None else HIDDEN)
        return HIDDEN, HIDDEN_CHANGE
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [
            key
            for key in {**old, **new}
            if key not in old or key not in new or _canonical(new[key]) != _canonical(old[key])
        ]
        pairs = {str(key): _hide(str(key), old.get(key), new.get(key)) for key in keys}
        return (
            {str(key): pairs[str(key)][0] for key in keys if key in old},
            {str(key): pairs[str(key)][1] for key in keys if key in new},
        )
    shown_old, shown_new = _hide_one(old), _hide_one(new)
    if shown_old == shown_new and old != new:
        shown_new = f"{shown_new} (changed)"
    return shown_old, shown_new


def _hide_one(value: object) -> object:
    if isinstance(value, Unreadable):
        return str(value)
    if isinstance(value, str):
        return _URL_CREDENTIALS.sub(f"{HIDDEN}@", value)
    if isinstance(value, dict):
        return {
            str(key): HIDDEN if _SECRET_NAME.search(str(key)) and item not in (None, True, False) else _hide_one(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_hide_one(item) for item in value]
    return value


def secrets_of(objects: Objects) -> set[str]:
    """Collect the wanted values that must not appear in any output, such as a database driver's error text."""
    found: set[str] = set()

    def collect(name: str, value: object) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                collect(f"{name}.{key}", item)
        elif isinstance(value, list):
            for item in value:
                collect(name, item)
        elif isinstance(value, str) and value and _SECRET_NAME.search(name):
            found.add(value)

    for fields in objects["connection"].values():
        collect("password", fields["password"])
        collect("", fields["extra"])
    for name, fields in objects["variable"].items():
        collect(name, fields["value"])
    return found


# --- the database -----------------------------------------------------------------------------------------------------


def decrypter(fernet_keys: str) -> Decrypt:
    """Make the function that decrypts one column; `fernet_keys` is Airflow's `[core] fernet_key` ("new,old")."""
    from cryptography.fernet import Fernet, InvalidToken, MultiFernet

    keys = [key.strip() for key in fernet_keys.split(",") if key.strip()]
    fernet = MultiFernet([Fernet(key) for key in keys]) if keys else None

    def decrypt(text: str | None, encrypted: bool) -> Stored:
        if not text or not encrypted:
            return text
        try:
            return Unreadable() if fernet is None else fernet.decrypt(text.encode()).decode()
        except InvalidToken:
            return Unreadable()

    return decrypt


def read_objects(connection: sqlalchemy.Connection, decrypt: Decrypt) -> Objects | None:
    """Read every connection, variable and pool, decrypted; None when the database has no Airflow tables yet.

    Plain SQL rather than Airflow's models: loading a model decrypts on load and raises for the first value that the
    present key does not open, and importing the models costs more than all the rest of a run without changes.
    """
    import sqlalchemy

    tables = set(sqlalchemy.inspect(connection).get_table_names())
    if not {"connection", "variable", "slot_pool"} <= tables:
        return None
    actual: Objects = {kind: {} for kind in KINDS}
    query = (
        "SELECT conn_id, conn_type, host, port, login, password, schema, extra, description, is_encrypted,"
        " is_extra_encrypted FROM connection"
    )
    for row in connection.execute(sqlalchemy.text(query)).mappings():
        actual["connection"][row["conn_id"]] = {
            "conn_type": row["conn_type"],
            **{key: row[key] or None for key in ("host", "port", "login", "schema")},
            "password": decrypt(row["password"], row["is_encrypted"]) or None,
            "extra": _stored_extra(decrypt(row["extra"], row["is_extra_encrypted"])),
            **_unmark(row["description"]),
        }
    for row in connection.execute(
        sqlalchemy.text("SELECT key, val, description, is_encrypted FROM variable")
    ).mappings():
        actual["variable"][row["key"]] = {
            "value": decrypt(row["val"], row["is_encrypted"]),
            **_unmark(row["description"]),
        }
    query = "SELECT pool, slots, include_deferred, description FROM slot_pool"
    for row in connection.execute(sqlalchemy.text(query)).mappings():
        actual["pool"][row["pool"]] = {
            "slots": row["slots"],
            "include_deferred": bool(row["include_deferred"]),
            **_unmark(row["description"]),
        }
    return actual


def _stored_extra(value: Stored) -> object:
    if not value or isinstance(value, Unreadable):
        return value or None
    try:
        return json.loads(value) or None
    except ValueError:
        return value


def _unmark(description: str | None) -> Fields:
    text = (description or "").rstrip()
    return {"description": text.removesuffix(MARK).rstrip() or None, "managed": text.endswith(MARK)}


def write_changes(connection: sqlalchemy.Connection, changes: Sequence[Change], wanted: Objects) -> None:
    """Write the changes through Airflow's own models (their tables, their encryption) inside the open transaction."""
    import sqlalchemy
    from airflow.models.connection import Connection
    from airflow.models.pool import Pool
    from airflow.models.variable import Variable

    tables = {
        "connection": (Connection.__table__, "conn_id"),
        "variable": (Variable.__table__, "key"),
        "pool": (Pool.__table__, "pool"),
    }
    for change in changes:
        table, id_column = tables[change.kind]
        mine = table.c[id_column] == change.name
        if change.after is None:
            connection.execute(sqlalchemy.delete(table).where(mine))
            continue
        fields = wanted[change.kind][change.name]
        row: Fields = {"description": " ".join(filter(None, (fields["description"], MARK)))}
        if change.kind == "connection":
            extra = None if fields["extra"] is None else json.dumps(fields["extra"], sort_keys=True)
            model = Connection(password=fields["password"], extra=extra)
            row |= {key: fields[key] for key in ("conn_type", "host", "port", "login", "schema")}
            # Both columns always: the model's own setter ignores an empty password, so the old one would stay.
            row |= {"password": model._password, "is_encrypted": bool(model.is_encrypted)}
            row |= {"extra": model._extra, "is_extra_encrypted": bool(model.is_extra_encrypted)}
        elif change.kind == "variable":
            value = fields["value"] if isinstance(fields["value"], str) else json.dumps(fields["value"], indent=2)
            model = Variable(key=change.name, val=value)  # type: ignore[no-untyped-call]
            row |= {"val": model._val, "is_encrypted": bool(model.is_encrypted)}
        else:
            row |= {"slots": fields["slots"], "include_deferred": fields["include_deferred"]}
        if change.before is None:
            connection.execute(sqlalchemy.insert(table).values({id_column: change.name, **row}))
        else:
            connection.execute(sqlalchemy.update(table).where(mine).values(row))


def database_settings(credentials: str) -> tuple[str, str]:
    """Return the metadata database's URL and the Fernet keys out of the host's credential files."""
    texts = []
    for name in ("sql_alchemy_conn", "fernet_key"):
        with open(os.path.join(credentials, name), encoding="utf-8") as file:
            texts.append(file.read().strip())
    return texts[0], texts[1]


def reconcile(
    url: str, fernet_keys: str, wanted: Objects, *, prune: bool, check_mode: bool
) -> tuple[list[Change], list[str], bool]:
    """Compare and, outside check mode, write; one transaction.

    Only a run that writes becomes an Airflow process: that alone takes longer than everything else here.
    Returns the changes, the orphans that stay, and whether the database was migrated at all.
    """
    import sqlalchemy

    engine = sqlalchemy.create_engine(url, hide_parameters=True)
    try:
        with engine.begin() as connection:
            actual = read_objects(connection, decrypter(fernet_keys))
            migrated = actual is not None
            actual = actual or {kind: {} for kind in KINDS}
            changes = plan(actual, wanted, prune=prune)
            if changes and migrated and not check_mode:
                enter_airflow()
                write_changes(connection, changes, wanted)
    finally:
        engine.dispose()
    return changes, [] if prune else orphans(actual, wanted), migrated


# --- Ansible ----------------------------------------------------------------------------------------------------------


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "connections": {"type": "list", "elements": "raw", "default": []},
            "variables": {"type": "list", "elements": "raw", "default": []},
            "pools": {"type": "list", "elements": "raw", "default": []},
            "prune": {"type": "bool", "default": True},
            "credentials": {"type": "path", "default": "/etc/airflow/credentials"},
        },
        supports_check_mode=True,
        no_log=True,  # keeps the arguments, secrets included, out of the host's journal
    )
    params = module.params
    # Secrets have no place in the arguments' echo either, and Ansible's own masking would hide equal words everywhere.
    hidden: dict[str, Any] = {"invocation": {"module_args": {"prune": params["prune"]}}}

    credentials = os.path.join(params["credentials"], "sql_alchemy_conn")
    present = importlib.util.find_spec("airflow") is not None and os.path.exists(credentials)
    types = known_connection_types() if present else None
    wanted, problems = check_input(params["connections"], params["variables"], params["pools"], types)
    if problems:
        listing = "\n".join(f"- {problem}" for problem in problems)
        module.fail_json(msg=f"{len(problems)} problem(s) in the wanted objects, nothing changed:\n{listing}", **hidden)
    module.no_log_values.update(secrets_of(wanted))

    if present:
        try:
            url, keys = database_settings(params["credentials"])
            changes, left, migrated = reconcile(url, keys, wanted, prune=params["prune"], check_mode=module.check_mode)
        except Exception as error:  # any error here must pass the masking of fail_json, never a raw traceback
            module.fail_json(msg=f"Airflow's metadata database: {type(error).__name__}: {error}", **hidden)
    else:
        nothing: Objects = {kind: {} for kind in KINDS}
        changes, left, migrated = plan(nothing, wanted, prune=False), [], False
    result: dict[str, Any] = {"changed": bool(changes), "orphans": left}
    if not migrated:
        reason = "the metadata database is not migrated yet" if present else "Airflow is not installed here yet"
        if not module.check_mode:
            module.fail_json(msg=f"No objects written: {reason}. Run role airflow first.", **hidden)
        result["note"] = f"Forecast: {reason}, so everything would be created."
    result["changes"] = [change.sentence for change in changes]
    result["diff"] = {side: shown or None for side, shown in render(changes).items()}  # {} would show as a line
    module.exit_json(**copy.deepcopy(result), **hidden)


if __name__ == "__main__":
    main()
