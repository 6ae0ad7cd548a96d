"""Records into an entity's table, from CSV, NDJSON or the sample generator."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from transformation_service.database import SESSION
from transformation_service.entities import Entity, Record


class LoadError(Exception):
    """A file can't be loaded; the message names the file's line. Nothing of it was loaded."""


def read(path: Path, entity: Entity) -> Iterator[Record]:
    """Yield a file's records: ``.csv`` with a header line, or ``.ndjson``/``.jsonl`` with one JSON object a line.

    A column that is absent, or empty in CSV, becomes ``None``.

    Raises:
        LoadError: The file's kind is unknown, a line is malformed or names a column that the entity hasn't.
    """
    readers = {".csv": _read_csv, ".ndjson": _read_ndjson, ".jsonl": _read_ndjson}
    if path.suffix.lower() not in readers:
        raise LoadError(f"{path}: the name must end in {', '.join(readers)}.")
    for line, fields in readers[path.suffix.lower()](path):
        unknown = sorted(str(name) for name in fields if name not in entity.inputs)
        if unknown:
            raise LoadError(
                f"{path}:{line}: {entity.name} has no column {', '.join(unknown)}; it has {', '.join(entity.inputs)}."
            )
        record = {column: fields.get(column) for column in entity.inputs}
        wrong = [name for name, kind in entity.inputs.items() if kind == "text" and not _is_text(record[name])]
        if wrong:
            raise LoadError(f"{path}:{line}: {', '.join(wrong)} must be text or null, without the character NUL.")
        yield record


def _is_text(value: object) -> bool:
    return value is None or (isinstance(value, str) and "\0" not in value)


def _read_csv(path: Path) -> Iterator[tuple[int, dict[Any, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            for row in reader:
                if None in row:
                    raise LoadError(f"{path}:{reader.line_num}: more values than the header has columns.")
                fields: dict[Any, Any] = {name: value or None for name, value in row.items()}
                if fields.get("document") is not None:
                    fields["document"] = _json(path, reader.line_num, fields["document"])
                yield reader.line_num, fields
        except csv.Error as error:
            raise LoadError(f"{path}:{reader.line_num}: {error}.") from error


def _read_ndjson(path: Path) -> Iterator[tuple[int, dict[Any, Any]]]:
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                fields = _json(path, number, line)
                if not isinstance(fields, dict):
                    raise LoadError(f"{path}:{number}: not a JSON object.")
                yield number, fields


def _json(path: Path, line: int, text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise LoadError(f"{path}:{line}: {error}.") from error


def load(url: str, entity: Entity, records: Iterable[Record], *, only_if_empty: bool = False) -> int:
    """Insert records in one transaction and return how many; 0 if ``only_if_empty`` and the table has a row.

    Raises:
        psycopg.OperationalError: The database can't be reached.
    """
    options: dict[str, Any] = dict(SESSION)
    table = sql.Identifier(entity.table)
    with psycopg.connect(url, **options) as connection, connection.transaction():
        if only_if_empty:
            # Two instances that start together must not both find it empty.
            connection.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(table))
            found = connection.execute(sql.SQL("SELECT EXISTS (SELECT FROM {})").format(table)).fetchone()
            if found and found[0]:
                return 0
        return copy(connection, entity, records)


def copy(connection: psycopg.Connection[Any], entity: Entity, records: Iterable[Record]) -> int:
    """Insert records in the caller's transaction and return how many."""
    columns = sql.SQL(", ").join(map(sql.Identifier, entity.inputs))
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(entity.table), columns)
    count = 0
    with connection.cursor().copy(statement) as stream:
        for record in records:
            stream.write_row([_value(record[name], kind) for name, kind in entity.inputs.items()])
            count += 1
    return count


def _value(value: object, kind: str) -> object:
    return json.dumps(value) if kind == "jsonb" and value is not None else value
