"""Parse every DAG of a release with the Airflow of this interpreter, as its DAG processor would, without a database.

Reads from stdin (``python - <release directory>``) or as a file. Prints one JSON document to stdout:
``{"dags": {dag_id: file}, "errors": [{"file": ..., "line": ... or null, "message": ...}]}``, files relative to the
release.

Refused are: what does not import, cycles, a dag_id in two files (the DAG processor parses each file by itself, so
these would overwrite each other in silence), and DAGs that cannot be serialized.
"""

from __future__ import annotations

import json
import os
import re
import sys
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
    dags = {}
    for dag_id, dag in sorted(bag.dags.items()):
        dags[dag_id] = str(Path(dag.fileloc).relative_to(root))
        try:
            DagSerialization.to_dict(dag)
        except Exception as error:  # whatever an author's object raises
            errors.append({"file": dags[dag_id], "line": None, "message": f"{type(error).__name__}: {error}"})
    return {"dags": dags, "errors": errors}


def main() -> None:
    """Keep stdout for the answer: Airflow logs there."""
    answer = os.dup(1)
    os.dup2(2, 1)
    result = parse(Path(sys.argv[1]).resolve())
    with os.fdopen(answer, "w") as out:
        json.dump(result, out)


if __name__ == "__main__":
    main()
