"""List the operators of this folder with their parameters, from their code: ``python -m plugins.operators``."""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from airflow.sdk import BaseOperator

import plugins.operators
from plugins.operators import TransformationServiceOperator


class Parameter(NamedTuple):
    """An argument of an operator that Airflow's own base class does not have."""

    name: str
    type: str
    default: str
    """As written in Python, or ``required``."""
    templated: bool
    common: bool
    """Whether every operator of this folder has it."""
    text: str
    """From the docstring, on one line."""


def operators() -> list[type[BaseOperator]]:
    """Every operator that a module of this folder defines and a DAG can use, by name."""
    found = set()
    for module in pkgutil.iter_modules(plugins.operators.__path__, "plugins.operators."):
        if not module.name.endswith("__main__"):
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and issubclass(value, BaseOperator) and value.__module__ == module.name:
                    found.add(value)
    return sorted(
        (one for one in found if not inspect.isabstract(one) and not one.__name__.startswith("_")),
        key=lambda one: one.__name__,
    )


def parameters(operator: type[BaseOperator]) -> Iterator[Parameter]:
    """Its own parameters first, then those that all operators of this folder have."""
    for owner in operator.__mro__[: operator.__mro__.index(BaseOperator)]:
        if "__init__" not in vars(owner):
            continue
        texts = dict(re.findall(r":param (\w+): (.+?)(?=\n\s*:|\Z)", inspect.getdoc(owner) or "", re.DOTALL))
        for one in inspect.signature(vars(owner)["__init__"]).parameters.values():
            if one.name != "self" and one.kind is not inspect.Parameter.VAR_KEYWORD:
                yield Parameter(
                    one.name,
                    str(one.annotation),
                    "required" if one.default is inspect.Parameter.empty else repr(one.default),
                    one.name in operator.template_fields,
                    owner is TransformationServiceOperator,
                    " ".join(texts[one.name].replace("``", "`").split()),
                )


def markdown(rows: Iterable[Parameter]) -> str:
    """A table for ``docs/operators.md``."""
    lines = ["| parameter | type | default | templated | |", "|---|---|---|---|---|"]
    for row in rows:
        kind = row.type.replace("|", "\\|")
        default = row.default if row.default == "required" else f"`{row.default}`"
        lines.append(f"| `{row.name}` | `{kind}` | {default} | {'yes' if row.templated else ''} | {row.text} |")
    return "\n".join(lines)


def main() -> None:
    """Print the list."""
    parser = argparse.ArgumentParser(prog="python -m plugins.operators", description=__doc__)
    parser.add_argument("name", nargs="?", help="an operator; default: all of them")
    parser.add_argument("--markdown", action="store_true", help="the tables of docs/operators.md")
    wanted = parser.parse_args()
    known = {operator.__name__: operator for operator in operators()}
    if wanted.name and wanted.name not in known:
        parser.error(f"no operator {wanted.name!r}; there are {', '.join(known)}")
    for name in [wanted.name] if wanted.name else known:
        print(f"{name}  {known[name].__module__}")
        found = list(parameters(known[name]))
        if wanted.markdown:
            print(
                markdown(one for one in found if not one.common),
                markdown(one for one in found if one.common),
                sep="\n\n",
            )
            continue
        print(f"  {(inspect.getdoc(known[name]) or '').splitlines()[0]}")
        rows = [(one.name, one.type, one.default, "yes" if one.templated else "") for one in found]
        rows.insert(0, ("parameter", "type", "default", "templated"))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        for row in rows:
            print("    " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        print()


if __name__ == "__main__":
    main()
