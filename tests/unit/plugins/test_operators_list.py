"""The list of operators, and that the manual is the same as the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.sdk import BaseOperator

import plugins.operators
from plugins.operators.__main__ import markdown, operators, parameters

REPOSITORY = Path(__file__).parents[3]
MANUAL = (REPOSITORY / "docs/operators.md").read_text()
SECTIONS = dict(re.findall(r"^## (\w+Operator)\n(.*?)(?=^## |\Z)", MANUAL, re.MULTILINE | re.DOTALL))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "plugins.operators", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_the_list_is_what_a_dag_can_import():
    listed = {operator.__name__ for operator in operators()}
    assert {name for name in plugins.operators.__all__ if name != "TransformationServiceOperator"} == listed
    assert all(getattr(plugins.operators, name).__name__ == name for name in plugins.operators.__all__)


def test_the_manual_has_exactly_the_operators_that_exist():
    assert set(SECTIONS) == {operator.__name__ for operator in operators()}


@pytest.mark.parametrize("operator", operators(), ids=lambda one: one.__name__)
def test_the_manual_has_exactly_the_parameters_that_exist(operator: type[BaseOperator]):
    found = list(parameters(operator))
    tables = re.findall(r"^\| parameter .*?(?=\n\n|\Z)", SECTIONS[operator.__name__].rstrip(), re.MULTILINE | re.DOTALL)
    assert tables == [markdown(one for one in found if not one.common)]
    common = markdown(one for one in found if one.common)
    assert MANUAL.split("## What they have in common")[1].split("\n## ")[0].rstrip().endswith(common)


@pytest.mark.parametrize("operator", operators(), ids=lambda one: one.__name__)
def test_what_may_be_a_template_is_a_parameter(operator: type[BaseOperator]):
    assert {one.name for one in parameters(operator) if one.templated} == set(operator.template_fields)
    assert isinstance(operator.template_fields, tuple)


def test_the_examples_of_the_manual_are_operators_that_can_be_made():
    from airflow.sdk import DAG

    examples = re.findall(r"```python\n(.*?)```", MANUAL, re.DOTALL)
    assert len(examples) == len(operators())
    with DAG("examples", schedule=None) as dag:
        for example in examples:
            exec(example, vars(plugins.operators) | {"SLOT_OF_DAY": "2026-01-31"})
    assert {type(task) for task in dag.tasks} == set(operators())
    for task in dag.tasks:
        assert task.work("2026-01-31T00:00:00Z").key()


def test_the_command_prints_name_module_and_parameters():
    done = run("RuleEngineOperator")
    assert done.stdout.startswith("RuleEngineOperator  plugins.operators.rule_engine_operator\n")
    rows = [line.split(maxsplit=1) for line in done.stdout.splitlines()[3:] if line]
    assert dict(rows)["batch_size"].split() == ["int", "|", "str", "1000", "yes"]
    assert "retry_count" in dict(rows)
    assert "entity_type" not in run("StaticScriptOperator").stdout


def test_the_command_names_what_there_is():
    assert "DynamicScriptOperator, RuleEngineOperator, StaticScriptOperator" in run("Nope").stderr
    assert "--markdown" in run("--help").stdout
