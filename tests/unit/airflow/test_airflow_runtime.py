"""Modules and services must find the same secret under the same option."""

from __future__ import annotations

import runpy
from pathlib import Path

import yaml

ROLE = Path(__file__).parents[3] / "roles/airflow"
RUNTIME = runpy.run_path(str(ROLE / "module_utils/airflow_runtime.py"))
VARIABLES = yaml.safe_load((ROLE / "vars/main.yml").read_text())


def test_modules_and_units_name_the_same_options():
    assert RUNTIME["OPTIONS"] == VARIABLES["__airflow_credential_options"]


def test_every_secret_that_a_component_gets_has_an_option_and_a_value():
    given = {name for row in VARIABLES["__airflow_component_table"].values() for name in row["credentials"]}
    assert given == set(VARIABLES["__airflow_secrets"])
    assert given - {"proxy_certificate"} == set(VARIABLES["__airflow_credential_options"]), "the proxy is not Airflow"


def test_a_worker_gets_no_secret_of_the_control_plane():
    worker = set(VARIABLES["__airflow_component_table"]["worker"]["credentials"])
    assert not worker & {"sql_alchemy_conn", "sql_alchemy_conn_async", "fernet_key", "jwt_secret"}
