"""Airflow itself reads the provider: its discovery, its form, its command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[3]
FORM = """
import json, sys, airflow.settings
airflow.settings.initialize()
from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService
forms = {form.connection_type: form.model_dump() for form in HookMetaService.hook_meta_data()}
print(json.dumps([forms["transformation_service"], "plugins" in sys.modules]))
"""
CONNECTION = {"conn_type": "transformation_service", "host": "127.0.0.1", "port": 1, "password": "s3cret-token"}


@pytest.fixture
def airflow(tmp_path: Path) -> Any:
    """Run something in an Airflow home as hosts have it: the folder ``config``, and a live release beside it."""
    shutil.copytree(REPOSITORY / "roles/airflow/files/config", tmp_path / "config")
    (tmp_path / "current").symlink_to(REPOSITORY)

    def run(*command: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, *command],
            env=os.environ | {"AIRFLOW_HOME": str(tmp_path)} | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.stdout

    return run


def test_the_form_has_named_fields_and_needs_no_release(airflow: Any, tmp_path: Path):
    (tmp_path / "current").unlink()
    form, imported = json.loads(airflow("-c", FORM, PYTHONPATH=str(tmp_path / "config")))
    assert not imported
    assert form["hook_name"] == "TransformationService"
    assert form["standard_fields"]["password"]["title"] == "Token"
    assert form["standard_fields"]["login"]["hidden"]
    assert {name: field["schema"]["title"] for name, field in form["extra_fields"].items()} == {
        "timeout": "Timeout",
        "verify": "CA file",
    }


def test_airflow_tries_the_connection_with_the_hook_of_the_release(airflow: Any):
    said = airflow(
        *("-m", "airflow", "connections", "test", "transformation_service"),
        AIRFLOW__CORE__TEST_CONNECTION="Enabled",
        AIRFLOW_CONN_TRANSFORMATION_SERVICE=json.dumps(CONNECTION),
    )
    assert "The TransformationService at http://127.0.0.1:1 refuses the connection" in said
    assert "s3cret-token" not in said
