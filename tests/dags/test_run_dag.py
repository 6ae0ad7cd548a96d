"""``make dag-test`` where it is no run: what it needs, and what it makes of the inventory's objects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import run_dag


def test_without_a_local_platform_it_says_what_to_do():
    done = subprocess.run(
        [sys.executable, str(Path(run_dag.__file__)), "user_transformation"],
        capture_output=True,
        text=True,
        env=os.environ | {"PLATFORM_NAMESPACE": "no-such-platform"},
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "make dag-test: there is no local platform: make up\n")


def test_connections_and_variables_lead_through_the_tunnel():
    objects = {
        "connections": [
            {"conn_id": "inside", "conn_type": "http", "host": "service-1", "port": 5000, "password": "p", "probe": {}},
            {"conn_id": "outside", "conn_type": "http", "host": "example.com", "port": 443},
        ],
        "variables": [
            {"key": "url", "value": "http://service-1:5000/api"},
            {"key": "size", "value": 1000},
        ],
    }
    found = run_dag.objects_environment(objects, {("service-1", 5000): 40001})
    assert json.loads(found["AIRFLOW_CONN_INSIDE"]) == {
        "conn_type": "http",
        "host": "127.0.0.1",
        "port": 40001,
        "password": "p",
    }
    assert json.loads(found["AIRFLOW_CONN_OUTSIDE"])["host"] == "example.com"
    assert (found["AIRFLOW_VAR_URL"], found["AIRFLOW_VAR_SIZE"]) == ("http://127.0.0.1:40001/api", "1000")


def test_the_last_error_is_shown_to_its_end():
    frames = "\n".join(f"  frame {number}" for number in range(100))
    log = (
        "2026-11-23T19:00:41.1Z [error    ] first\nnot this\n"
        f"2026-11-23T19:00:44.1Z [error    ] Task failed\n{frames}\nAirflowFailException: 3 too many\n"
        "2026-11-23T19:00:45.1Z [info     ] afterwards\n"
    )
    assert run_dag.last_error(log).splitlines()[-1] == "AirflowFailException: 3 too many"
    assert len(run_dag.last_error(log).splitlines()) == run_dag.ERROR_LINES
