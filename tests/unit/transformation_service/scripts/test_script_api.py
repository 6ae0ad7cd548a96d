"""Scripts by HTTP: what is offered, refused, done once, limited, cancelled and survived."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.transformation_service.scripts.conftest import SLOT, Platform, Service, new_service

pytestmark = pytest.mark.database
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'transformation_scripts'"


def problem(answer: Any) -> str:
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return str(answer.json()["type"]).rsplit(":", 1)[1]


def test_every_version_is_listed_with_its_parameters(service: Service) -> None:
    scripts = service.http.get("/api/v1/scripts").json()["scripts"]
    versions = [(script["name"], script["version"]) for script in scripts]
    assert versions == [
        ("count_users_by_country", 1),
        ("mark_stale_applications", 1),
        ("normalize_country", 1),
        ("normalize_country", 2),
    ]
    assert scripts[1]["parameters"] == {"days": {"type": "integer", "required": True, "minimum": 1, "maximum": 3650}}
    assert scripts[3]["parameters"]["unknown"]["default"] == "keep"


def test_normalize_country_changes_what_differs_and_counts_it(service: Service, platform: Platform) -> None:
    platform.rows("INSERT INTO user_record (country) VALUES (' germany'), ('de'), ('DE'), ('Narnia '), (NULL)")
    run = service.done(script="normalize_country", version=2)
    assert run["error"] is None
    assert run["state"] == "succeeded"
    assert run["counts"] == {"statements": 1, "rows": 3}
    assert run["statements"] == [{"command": "UPDATE", "rows": 3}]
    countries = [row["country"] for row in platform.rows("SELECT country FROM user_record ORDER BY id")]
    assert countries == ["DE", "DE", "DE", "Narnia", None]
    cleared = service.done(script="normalize_country", version=2, parameters={"unknown": "clear"})
    assert cleared["counts"]["rows"] == 1
    assert platform.value("SELECT count(*) FROM user_record WHERE country IS NULL") == 2


def test_stale_applications_are_measured_from_the_slot_and_keep_other_marks(
    service: Service, platform: Platform
) -> None:
    platform.rows(
        "INSERT INTO application_record (category, created_at, marks, mark_reason) VALUES"
        " ('crm', '2025-01-01', '{}', NULL), ('crm', '2025-12-31', '{}', NULL),"
        " ('erp', '2025-01-01', '{\"other\": \"x\"}', 'other: x')"
    )
    run = service.done(script="mark_stale_applications", version=1, parameters={"days": 90})
    assert run["statements"] == [{"command": "UPDATE", "rows": 2}, {"command": "SELECT", "rows": 2}]
    assert run["rows"] == [{"category": "crm", "stale": 1}, {"category": "erp", "stale": 1}]
    reasons = [row["mark_reason"] for row in platform.rows("SELECT mark_reason FROM application_record ORDER BY id")]
    assert reasons == ["stale: not transformed for 90 days", None, "other: x; stale: not transformed for 90 days"]
    again = service.done(script="mark_stale_applications", version=1, parameters={"days": 91})
    assert again["statements"][0]["rows"] == 0


def test_users_are_counted_by_country(service: Service, platform: Platform) -> None:
    platform.rows("INSERT INTO user_record (country) SELECT 'DE' FROM generate_series(1, 3)")
    platform.rows("INSERT INTO user_record (country, mark_reason) VALUES ('FR', 'x')")
    run = service.done(script="count_users_by_country", version=1, parameters={"at_least": 1})
    assert run["rows"] == [{"country": "DE", "users": 3, "marked": 0}, {"country": "FR", "users": 1, "marked": 1}]


def test_a_value_is_a_value_and_never_sql(service: Service, platform: Platform) -> None:
    platform.load("User", 5)
    evil = "x'; UPDATE user_record SET country = 'evil'; --"
    sql = "UPDATE user_record SET phone = :value || :n || :f WHERE id = 2"
    run = service.done(sql=sql, parameters={"value": evil, "n": 7, "f": 0.5})
    assert run["state"] == "succeeded", run
    assert platform.value("SELECT phone FROM user_record WHERE id = 2") == f"{evil}70.5"
    assert platform.value("SELECT count(*) FROM user_record WHERE country = 'evil'") == 0


def test_the_first_hundred_rows_of_the_last_select_come_along(service: Service, platform: Platform) -> None:
    platform.load("User", 250)
    run = service.done(sql="SELECT 1 AS one; SELECT id, created_at FROM user_record ORDER BY id")
    assert run["counts"] == {"statements": 2, "rows": 251}
    assert [row["id"] for row in run["rows"]] == list(range(1, 101))
    assert run["rows"][0]["created_at"].startswith("20")


def test_names_are_names_and_no_keywords(service: Service, platform: Platform) -> None:
    """PostgreSQL takes USER for a function, and TABLE for a command, where the parser sees a column."""
    for sql in ("SELECT user", "SELECT (TABLE script_run)", "SELECT session_user"):
        answer = service.run(sql=sql)
        if answer.status_code == 202:
            assert service.ended(answer.json())["error"]["type"] in ("UndefinedColumn", "SyntaxError")
    run = service.done(sql='SELECT Count(*) AS "N" FROM User_Record AS U WHERE U.Phone IS NULL')
    assert run["rows"] == [{"N": 0}]


# --- one piece of work ------------------------------------------------------------------------------------------------


def test_a_key_a_work_a_run(service: Service, platform: Platform) -> None:
    platform.load("User", 1)
    body = {"sql": "UPDATE user_record SET phone = phone || 'x'"}
    first = service.accepted("a", **body)
    assert first["replayed"] is False
    service.ended(first)
    phone = platform.value("SELECT phone FROM user_record")
    for key in ("a", "b"):
        again = service.accepted(key, **body, limits={"seconds": 9})
        assert (again["id"], again["replayed"], again["state"]) == (first["id"], True, "succeeded")
    assert platform.value("SELECT phone FROM user_record") == phone
    other = service.run("a", **body, parameters={"p": 1})
    assert (other.status_code, other.json()["type"].rsplit(":", 1)[1]) == (422, "idempotency-key-reused")
    assert service.accepted("c", **{**body, "slot": "2026-02-01"})["id"] != first["id"]


def test_versions_are_different_work(service: Service) -> None:
    ids = {service.accepted(script="normalize_country", version=version)["id"] for version in (1, 2, 2)}
    assert len(ids) == 2


def test_a_failed_run_is_tried_again_by_the_same_request_with_other_limits(
    service: Service, platform: Platform
) -> None:
    platform.load("User", 20)
    body = {"sql": "SELECT id FROM user_record"}
    failed = service.done("k", **body, limits={"rows": 10})
    assert (failed["state"], failed["error"]["type"]) == ("failed", "RowLimit")
    again = service.done("k", **body, limits={"rows": 20})
    assert (again["id"], again["state"], again["error"]) == (failed["id"], "succeeded", None)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"script": "nothing", "version": 1}, "unknown-script"),
        ({"script": "normalize_country", "version": 3}, "unknown-script-version"),
        ({"script": "mark_stale_applications", "version": 1}, "invalid-parameters"),
        ({"script": "normalize_country", "version": 1, "limits": {}}, "invalid-request"),
        ({"script": "normalize_country"}, "invalid-request"),
        ({"script": "normalize_country", "version": True}, "invalid-request"),
        ({"sql": "SELECT 1", "script": "normalize_country", "version": 1}, "invalid-request"),
        ({}, "invalid-request"),
        ({"sql": "SELECT 1", "slot": "yesterday"}, "invalid-slot"),
        ({"sql": "SELECT 1", "limits": {"rows": 0}}, "invalid-limits"),
        ({"sql": "SELECT 1", "limits": {"seconds": 301}}, "invalid-limits"),
        ({"sql": "SELECT 1", "limits": {"minutes": 1}}, "invalid-limits"),
        ({"sql": "SELECT 1; SELECT 2; SELECT 3", "limits": {"statements": 2}}, "too-many-statements"),
        ({"sql": ""}, "invalid-sql"),
        ({"sql": "-- only a comment"}, "invalid-sql"),
        ({"sql": "SELECT FROM WHERE ("}, "invalid-sql"),
        ({"sql": "SELECT :p"}, "invalid-parameters"),
        ({"sql": "SELECT :p", "parameters": {"p": [1]}}, "invalid-parameters"),
        ({"sql": "SELECT :p", "parameters": {"p": "a\0b"}}, "invalid-parameters"),
        ({"sql": "SELECT :p", "parameters": {"p": 2**63}}, "invalid-parameters"),
        ({"sql": "SELECT 1", "parameters": {"slot": "x"}}, "invalid-parameters"),
    ],
)
def test_refusals(service: Service, platform: Platform, body: dict[str, Any], code: str) -> None:
    assert problem(service.run(**body)) == code
    assert platform.value("SELECT count(*) FROM script_run") == 0


def test_all_faults_of_parameters_come_in_one_list(service: Service) -> None:
    answer = service.run(script="mark_stale_applications", version=1, parameters={"days": 0, "dayz": 1})
    assert problem(answer) == "invalid-parameters"
    assert answer.json()["errors"] == ["dayz is not a parameter; known are days", "days must be at least 1"]


def test_a_key_is_needed_and_unknown_ids_are_404(service: Service) -> None:
    answer = service.http.post("/api/v1/script-runs", json={"slot": SLOT, "sql": "SELECT 1"})
    assert problem(answer) == "missing-idempotency-key"
    for run_id in ("x", "00000000-0000-0000-0000-000000000000"):
        assert service.http.get(f"/api/v1/script-runs/{run_id}").status_code == 404


# --- limits -----------------------------------------------------------------------------------------------------------

ENDLESS = "SELECT count(*) FROM user_record a, user_record b, user_record c, user_record d"


def test_time_limit_ends_the_statement_and_rolls_all_back(service: Service, platform: Platform) -> None:
    platform.load("User", 1000)
    before = platform.everything()
    run = service.done(sql=f"UPDATE user_record SET phone = 'x'; {ENDLESS}", limits={"seconds": 1})
    assert (run["state"], run["error"]["type"]) == ("failed", "TimeLimit")
    assert platform.everything() == before
    service.until(lambda: platform.value(SESSIONS) == 0)


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE user_record SET phone = 'x'",
        "SELECT a.id FROM user_record a, user_record b, user_record c, user_record d",
        "SELECT id FROM user_record WHERE id <= 9; UPDATE user_record SET phone = 'x' WHERE id <= 9",
    ],
)
def test_row_limit_counts_what_is_read_and_written_and_rolls_all_back(
    service: Service, platform: Platform, sql: str
) -> None:
    platform.load("User", 300)
    before = platform.everything()
    run = service.done(sql=sql, limits={"rows": 17})
    assert (run["state"], run["error"]["type"], run["counts"]["rows"]) == ("failed", "RowLimit", 0)
    assert platform.everything() == before


def test_a_huge_row_is_not_brought_into_the_service(service: Service, platform: Platform) -> None:
    platform.rows("INSERT INTO user_record (full_name) SELECT repeat('x', 100000) FROM generate_series(1, 2)")
    run = service.done(sql="SELECT string_agg(a.full_name, '') AS text FROM user_record a, user_record b")
    assert (run["state"], run["counts"]["rows"], run["rows"]) == ("succeeded", 1, [])


def test_an_error_of_the_server_is_told(service: Service, platform: Platform) -> None:
    platform.load("User", 1)
    run = service.done(sql="SELECT id / 0 AS x FROM user_record")
    assert run["error"] == {"type": "DivisionByZero", "message": "division by zero"}


# --- cancel, crash ----------------------------------------------------------------------------------------------------


def test_cancel_ends_a_running_script_and_final_runs_stay(service: Service, platform: Platform) -> None:
    platform.load("User", 1000)
    run = service.accepted(sql=f"UPDATE user_record SET phone = 'x'; {ENDLESS}")
    path = f"/api/v1/script-runs/{run['id']}"
    service.until(lambda: service.get(path)["state"] == "running" and platform.value(SESSIONS) == 1)
    assert service.http.delete(path).json()["state"] == "cancelled"
    service.until(lambda: platform.value(SESSIONS) == 0)
    assert platform.value("SELECT count(*) FROM user_record WHERE phone = 'x'") == 0
    assert service.get(path)["state"] == "cancelled"
    done = service.done(sql="SELECT 1")
    assert service.http.delete(f"/api/v1/script-runs/{done['id']}").json()["state"] == "succeeded"


def test_without_its_role_the_service_runs_no_scripts_and_says_so(platform: Platform, tmp_path: Path) -> None:
    service = new_service(tmp_path, platform.url, None)
    service.start()
    try:
        answer = service.run(sql="SELECT 1")
        assert answer.status_code == 403
        assert "SCRIPTS_DATABASE_URL_FILE" in answer.json()["detail"]
        assert len(service.http.get("/api/v1/scripts").json()["scripts"]) == 4
    finally:
        service.close()


def test_a_role_that_may_too_much_executes_nothing(service: Service, platform: Platform) -> None:
    platform.rows("GRANT SELECT ON transformation_job TO transformation_scripts")
    try:
        run = service.done(sql="SELECT 1")
        assert run["error"]["type"] == "OpenWall"
        assert "transformation_job" in run["error"]["message"]
    finally:
        platform.rows("REVOKE ALL ON transformation_job FROM transformation_scripts")


def migrate(folder: Path, platform: Platform, scripts_url: str) -> subprocess.CompletedProcess[str]:
    service = new_service(folder, platform.url, scripts_url)
    return subprocess.run(
        [sys.executable, "-m", "transformation_service", "migrate"],
        env=service._environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_published_version_with_another_content_stops_the_start(platform: Platform, tmp_path: Path) -> None:
    assert migrate(tmp_path, platform, platform.scripts_url).returncode == 0
    old = platform.value("SELECT checksum FROM script_version WHERE script = 'normalize_country' AND version = 1")
    change = "UPDATE script_version SET checksum = %s WHERE script = 'normalize_country' AND version = 1"
    platform.rows(change, "other")
    try:
        refused = migrate(tmp_path, platform, platform.scripts_url)
    finally:
        platform.rows(change, old)
    assert refused.returncode == 1
    assert "scripts/normalize_country/1.sql was published with another content" in refused.stderr


@pytest.mark.parametrize(("role", "message"), [("transformation_service", "of its own"), ("nobody", "does not exist")])
def test_a_wrong_role_for_scripts_stops_the_start(platform: Platform, tmp_path: Path, role: str, message: str) -> None:
    refused = migrate(tmp_path, platform, platform.scripts_url.replace("transformation_scripts", role))
    assert refused.returncode == 1
    assert message in refused.stderr
