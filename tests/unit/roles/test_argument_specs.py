"""Every input of a role is described, has the default that its description names, and exists."""

from pathlib import Path
from typing import Any

import pytest
import yaml

ROLES = sorted(path for path in (Path(__file__).parents[3] / "roles").iterdir() if (path / "tasks").is_dir())


def load(path: Path) -> dict[str, Any]:
    return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


def entry_points(role: Path) -> dict[str, Any]:
    specs: dict[str, Any] = load(role / "meta" / "argument_specs.yml").get("argument_specs", {})
    return specs


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_inputs_and_defaults_are_the_same_set(role: Path) -> None:
    options = entry_points(role)["main"].get("options", {})
    required = {name for name, option in options.items() if option.get("required")}
    defaults = set(load(role / "defaults" / "main.yml"))

    assert defaults - set(options) == set(), "in defaults/main.yml, but not in meta/argument_specs.yml"
    assert set(options) - required - defaults == set(), "optional in meta/argument_specs.yml, but without a default"
    assert required & defaults == set(), "required, and yet it has a default"


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_entry_point_names_a_task_file_and_inputs_of_the_role(role: Path) -> None:
    specs = entry_points(role)
    known = specs["main"].get("options", {})
    for name, spec in specs.items():
        assert (role / "tasks" / f"{name}.yml").exists(), f"entry point {name} has no task file"
        for option, described in spec.get("options", {}).items():
            assert described.get("description"), f"{name}: {option} has no description"
            # An entry point may ask for more than main does, but what both take must be the same thing.
            shared = known.get(option, described)
            assert described.get("type", "str") == shared.get("type", "str"), f"{name}: {option} differs from main"


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_documented_defaults_are_the_real_ones(role: Path) -> None:
    defaults = load(role / "defaults" / "main.yml")
    for name, spec in entry_points(role).items():
        for option, described in spec.get("options", {}).items():
            if "default" in described and option in defaults:
                assert described["default"] == defaults[option], f"{name}: {option}"
