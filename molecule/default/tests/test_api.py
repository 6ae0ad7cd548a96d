"""What a client of Airflow's API meets, and what it is refused."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import platform_under_test
import pytest
from platform_under_test import Platform

pytestmark = pytest.mark.unit("airflow_scheduler", "airflow-api-server")
REQUIREMENTS = platform_under_test.ROOT / "roles/airflow/files/requirements.txt"
LOCKED = re.search(r"^apache-airflow==([^ \\;]+)", REQUIREMENTS.read_text(), re.MULTILINE)


def test_the_locked_version_is_the_one_that_runs(platform: Platform) -> None:
    assert LOCKED
    assert platform.api.send("GET", "/api/v2/version").body["version"] == LOCKED[1]


@pytest.mark.parametrize("component", ["metadatabase", "scheduler", "triggerer", "dag_processor"])
def test_component_is_healthy(platform: Platform, component: str) -> None:
    health = platform.api.send("GET", "/api/v2/monitor/health").body[component]
    assert health["status"] == "healthy"
    if component != "metadatabase":
        beat = datetime.fromisoformat(health[f"latest_{component}_heartbeat"])
        assert (datetime.now(UTC) - beat).total_seconds() < 60


def test_the_administrator_logs_in(platform: Platform) -> None:
    assert platform.api.token.count(".") == 2


@pytest.mark.parametrize(("password", "status"), [("admin", 401), ("wrong-password", 401), ("", 400)])
def test_a_wrong_password_is_refused(platform: Platform, password: str, status: int) -> None:
    assert platform.api.login(password).status == status


@pytest.mark.parametrize("path", ["/api/v2/dags", "/api/v2/connections", "/api/v2/variables", "/api/v2/eventLogs"])
def test_nothing_is_told_without_a_token(platform: Platform, path: str) -> None:
    assert platform.api.send("GET", path).status == 401
    header, payload, signature = platform.api.token.split(".")
    assert platform.api.send("GET", path, token=f"{header}.{payload}.{signature[::-1]}").status in (401, 403)


def test_the_execution_api_wants_a_tasks_own_token(platform: Platform) -> None:
    """A user's token is no task's: it must not open the way by which tasks read connections."""
    path = "/execution/connections/transformation_db"
    assert platform.api.send("GET", path).status in (401, 403)
    assert platform.api.send("GET", path, token=platform.api.token).status in (401, 403)


def test_configuration_is_not_exposed(platform: Platform) -> None:
    assert platform.api.send("GET", "/api/v2/config", token=platform.api.token).status == 403


def test_connections_cannot_be_tried_through_the_api(platform: Platform) -> None:
    body = {"connection_id": "transformation_db", "conn_type": "postgres"}
    answer = platform.api.send("POST", "/api/v2/connections/test", body, token=platform.api.token)
    assert answer.status == 403


def test_the_release_is_loaded_without_errors(platform: Platform) -> None:
    assert platform.api.get("/importErrors")["import_errors"] == []
    dag = platform.api.get("/dags/user_transformation")
    assert not dag["is_stale"]
    assert dag["bundle_name"] == "releases"


def test_every_host_has_the_same_live_release(platform: Platform) -> None:
    hosts = {*platform.groups["airflow_scheduler"], *platform.groups["airflow_worker"]}
    live = {platform.host(name).check_output("readlink /opt/airflow/current") for name in hosts}
    assert len(live) == 1
    versions = platform.api.get("/dags/user_transformation/dagVersions?order_by=-version_number")["dag_versions"]
    assert versions[0]["bundle_version"] == live.pop().removeprefix("releases/")


@pytest.mark.parametrize(
    ("conn_id", "conn_type", "group", "port"),
    [
        ("transformation_db", "postgres", "postgresql", 5432),
        ("transformation_service", "transformation_service", "transformation_service", 5000),
    ],
)
def test_connection_is_there_and_its_password_is_not(
    platform: Platform, conn_id: str, conn_type: str, group: str, port: int
) -> None:
    connection = platform.api.get(f"/connections/{conn_id}")
    assert connection["conn_type"] == conn_type
    assert connection["host"] in (platform.first(group), platform.address(group))
    assert connection["port"] == port
    assert not any(value in str(connection) for value in platform.secrets.values())


def test_variables_are_there(platform: Platform) -> None:
    listed = platform.api.get("/variables")["variables"]
    values = {variable["key"]: variable["value"] for variable in listed}
    assert set(values) >= {"transformation_service_url", "default_batch_size", "notification_email"}
    assert values["transformation_service_url"] == f"http://{platform.first('transformation_service')}:5000"
    assert int(values["default_batch_size"]) > 0


def test_airflow_keeps_no_example(platform: Platform) -> None:
    dags = {dag["dag_id"] for dag in platform.api.get("/dags?limit=100")["dags"]}
    assert not {dag for dag in dags if dag.startswith(("example_", "tutorial"))}
    connections = {c["connection_id"] for c in platform.api.get("/connections?limit=100")["connections"]}
    assert "postgres_default" not in connections
