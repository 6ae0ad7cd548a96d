"""What make refuses before it starts anything."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["", "common", "prodution"])
def test_a_name_of_no_inventory_is_refused_with_the_names_that_there_are(name):
    done = subprocess.run(
        ["make", "--dry-run", "site", f"ENV={name}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f'ENV="{name}" names no inventory. There are: local ' in done.stderr
    assert "ansible-playbook" not in done.stdout
