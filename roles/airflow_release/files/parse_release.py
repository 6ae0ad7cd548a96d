"""Parse every DAG of a release with the Airflow of this interpreter, as its DAG processor would, without a database.

Reads from stdin (``python - <release directory>``) or as a file. Prints one JSON document to stdout:
``{"dags": {dag_id: file}, "stored": {dag_id: hash of what Airflow stores}, "triggerer": [files that triggers import],
"errors": [{"file": ..., "line": ... or null, "message": ...}]}``, files relative to the release.

Refused are: what does not import, cycles, a dag_id in two files (the DAG processor parses each file by itself, so
these would overwrite each other in silence), and DAGs that cannot be serialized.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def locate(stacktrace: str, root: Path) -> tuple[str | None, int | None]:
    """Find the last place within the release that a stack trace passes: ``(relative file, line)``."""
    places = re.findall(rf'File "{re.escape(str(root))}/([^"]+)", line (\d+)', stacktrace)
    return (places[-1][0], int(places[-1][1])) if places else (None, None)


def mention(file: Path, message: str) -> int | None:
    """Find the first line of ``file`` with a quoted word that ``message`` names too: for errors that carry no line."""
    named = set(re.findall(r"[\w-]+(?:\.[\w-]+)*", message))
    for number, text in enumerate(file.read_text(errors="replace").splitlines(), start=1):
        if named.intersection(re.findall(r"""["']([\w.-]+)["']""", text)):
            return number
    return None


def problem(file: str, stacktrace: str, root: Path) -> dict[str, Any]:
    """One entry of ``errors``: the message is the last line of the stack trace."""
    where, line = locate(stacktrace, root)
    lines = [text.strip() for text in stacktrace.strip().splitlines() if text.strip()]
    message = lines[-1].replace(f"{root}/", "") if lines else "does not load"
    return {"file": where or file, "line": line or mention(root / file, message), "message": message}


def parse(root: Path) -> dict[str, Any]:
    """Parse and serialize every DAG under ``root``."""
    from airflow.dag_processing.dagbag import BundleDagBag
    from airflow.serialization.serialized_objects import DagSerialization

    bag = BundleDagBag(root, bundle_path=root, bundle_name="releases")
    errors = [problem(file, trace, root) for file, trace in sorted(bag.import_errors.items())]
    dags, stored = {}, {}
    for dag_id, dag in sorted(bag.dags.items()):
        dags[dag_id] = str(Path(dag.fileloc).relative_to(root))
        try:
            text = json.dumps(DagSerialization.to_dict(dag), sort_keys=True, default=str).replace(str(root), "")
            stored[dag_id] = hashlib.sha256(text.encode()).hexdigest()[:12]
        except Exception as error:  # whatever an author's object raises
            errors.append({"file": dags[dag_id], "line": None, "message": f"{type(error).__name__}: {error}"})
    return {"dags": dags, "stored": stored, "triggerer": trigger_files(root), "errors": errors}


def trigger_files(root: Path) -> list[str]:
    """Every file that the triggerer may load: modules with triggers, and what they import, wherever an import stands.

    Modules with triggers are those in ``plugins/triggers``, those that parsing the DAGs has loaded, and classes whose
    base is called a trigger. Imports are read from the source, so that one within a function counts; where a module
    imports by a computed name, everything in ``plugins/`` does.
    """
    from airflow.triggers.base import BaseTrigger

    sources = {path.relative_to(root): path for part in ("dags", "plugins") for path in (root / part).rglob("*.py")}
    trees = {}
    for name, path in sources.items():
        try:
            trees[name] = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue  # an error of its own
    loaded = {
        Path(file).relative_to(root)
        for module in {trigger.__module__ for trigger in subclasses(BaseTrigger)}
        if (file := getattr(sys.modules.get(module), "__file__", None)) and Path(file).is_relative_to(root)
    }
    pending = [name for name, tree in trees.items() if name in loaded or has_triggers(name, tree)]
    found: set[Path] = set()
    while pending:
        name = pending.pop()
        if name in found or name not in trees:
            continue
        found.add(name)
        pending += [parent / "__init__.py" for parent in name.parents]  # a package is loaded before its modules
        for module in imports(name, trees[name]):
            if module == "*":
                return sorted(str(source) for source in sources if source.parts[0] == "plugins" or source in found)
            parts = module.split(".")
            for length in range(1, len(parts) + 1):
                stem = Path(*parts[:length])
                pending += [stem / "__init__.py", stem.with_suffix(".py")]
    return sorted(map(str, found))


def subclasses(base: type) -> Iterator[type]:
    """All classes below one."""
    for each in base.__subclasses__():
        yield each
        yield from subclasses(each)


def has_triggers(name: Path, tree: ast.AST) -> bool:
    """Whether a module defines triggers, as far as its text tells."""
    if name.parts[:2] == ("plugins", "triggers"):
        return True
    bases = (base for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for base in node.bases)
    return any(ast.unparse(base).endswith("Trigger") for base in bases)


def imports(name: Path, tree: ast.AST) -> Iterator[str]:
    """Every module that a module may import, with what it takes from it; ``*`` for a computed name."""
    package = name.parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            if any(alias.name.split(".")[0] in ("importlib", "runpy", "pkgutil") for alias in node.names):
                yield "*"
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
            module = base if node.level else str(node.module)
            yield from (f"{module}.{alias.name}" for alias in node.names)
            if module.split(".")[0] in ("importlib", "runpy", "pkgutil"):
                yield "*"
        elif isinstance(node, ast.Name) and node.id == "__import__":
            yield "*"


def main() -> None:
    """Keep stdout for the answer: Airflow logs there."""
    answer = os.dup(1)
    os.dup2(2, 1)
    result = parse(Path(sys.argv[1]).resolve())
    with os.fdopen(answer, "w") as out:
        json.dump(result, out)


if __name__ == "__main__":
    main()
