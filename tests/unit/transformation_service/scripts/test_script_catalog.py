"""Files of scripts: a broken one stops the start and says what is wrong where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from transformation_service import script_catalog
from transformation_service.problems import Problem
from transformation_service.script_catalog import Limits, ScriptError

GOOD = '-- /// script\n-- summary = "x"\n-- [parameters.n]\n-- type = "integer"\n-- ///\nSELECT :n\n'


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder


def test_our_own_scripts_load() -> None:
    scripts = script_catalog.load()
    assert {name: list(versions) for name, versions in scripts.items()} == {
        "count_users_by_country": [1],
        "mark_stale_applications": [1],
        "normalize_country": [1, 2],
    }


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("s/one.sql", GOOD, "<name>/<version>.sql"),
        ("s/0.sql", GOOD, "<name>/<version>.sql"),
        ("Big/1.sql", GOOD, "<name>/<version>.sql"),
        ("s/1.sql", "SELECT 1", "does not begin with the block"),
        ("s/1.sql", "-- /// script\n-- summary =\n-- ///\nSELECT 1", "no TOML"),
        ("s/1.sql", "-- /// script\n-- ///\nSELECT 1", "needs a summary"),
        ("s/1.sql", GOOD.replace("summary", "sumary"), "needs a summary"),
        ("s/1.sql", GOOD.replace('"integer"', '"int"'), "parameter n: its type"),
        ("s/1.sql", GOOD.replace("parameters.n]", "parameters.slot]"), "'slot'"),
        ("s/1.sql", GOOD.replace('"integer"', '"integer"\n-- default = "x"'), "'x' must be of type integer"),
        ("s/1.sql", GOOD.replace('"integer"', '"integer"\n-- default = 0\n-- minimum = 1'), "0 must be at least 1"),
        ("s/1.sql", GOOD.replace('"integer"', '"integer"\n-- max_length = 1'), "max_length does not go with"),
        ("s/1.sql", GOOD.replace('"integer"', '"integer"\n-- required = true\n-- default = 1'), "either required or"),
        ("s/1.sql", GOOD.replace(":n", ":m"), ":m, which is not among the parameters"),
        ("s/1.sql", GOOD.replace(":n", "1"), "declares n and does not use it"),
        ("s/1.sql", GOOD.replace("SELECT :n", "DELETE FROM user_record"), "DELETE"),
        ("s/1.sql", GOOD.replace("SELECT :n", "SELECT ("), "can't be read"),
        ("s/1.sql", GOOD.replace("-- [", "-- limits = {hours = 1}\n-- ["), "hours is no limit"),
    ],
)
def test_a_broken_file_is_named_with_its_fault(tmp_path: Path, name: str, text: str, fault: str) -> None:
    write(tmp_path, "good/1.sql", GOOD)
    with pytest.raises(ScriptError) as error:
        script_catalog.load(folder=write(tmp_path, name, text))
    assert f"scripts/{name}: " in str(error.value)
    assert fault in str(error.value)


@pytest.mark.parametrize(
    ("kind", "options", "good", "bad"),
    [
        ("string", "max_length = 3", ["", "abc"], ["abcd", 1, True]),
        ("string", 'choices = ["a", "b"]', ["a"], ["c"]),
        ("integer", "minimum = -1", [-1, 2**63 - 1], [-2, 2**63, 1.5, True, "1"]),
        ("number", "maximum = 1.5", [1, 1.5], [1.6, float("nan"), float("inf"), False]),
        ("boolean", "", [True, False], [0, "true"]),
        ("date", "", ["2026-01-31"], ["2026-02-30", "x", 1]),
        ("timestamp", "", ["2026-01-31T02:00:00Z"], ["2026-01-31T02:00:00", "0001-01-01T00:00:00+14:00", None]),
    ],
)
def test_values_of_each_type(kind: str, options: str, good: list[Any], bad: list[Any]) -> None:
    text = GOOD.replace('"integer"', f'"{kind}"' + (f"\n-- {options}" if options else ""))
    script = script_catalog.parse("s", 1, text, Limits())
    for value in good:
        assert script_catalog.bind(script, {"n": value}) == {"n": value}
    for value in bad:
        with pytest.raises(Problem) as refused:
            script_catalog.bind(script, {"n": value})
        assert refused.value.code == "invalid-parameters"
