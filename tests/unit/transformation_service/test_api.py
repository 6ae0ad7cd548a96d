from __future__ import annotations

import asyncio
import re
import shutil
import time
import uuid
from typing import Any

import httpx
import pytest

from tests.unit.conftest import make_postgresql, start_postgresql, stop_postgresql
from transformation_service import database
from transformation_service.settings import Settings


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert document["status"] == status
    assert document["type"].endswith(f":{code}")
    assert document["detail"]
    return document


async def test_a_job_is_accepted_run_and_shown(client: Any, db: Any, finished: Any) -> None:
    db.load("User", 250)
    response = await client.post("slot-1")
    accepted = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/api/v1/transformations/{accepted['id']}"
    assert accepted["state"] == "queued"
    assert accepted["replayed"] is False
    assert accepted["counts"] == {"total": 250, "transformed": 0, "marked": 0}
    assert accepted["batches"] == {"total": 3, "done": 0}
    assert accepted["slot"] == "2026-01-31T02:00:00Z"

    job = await finished(client, accepted["id"])
    assert job["state"] == "succeeded"
    assert job["error"] is None
    assert job["batches"] == {"total": 3, "done": 3}
    assert job["counts"]["total"] == 250 == job["counts"]["transformed"] + job["counts"]["marked"]
    assert [batch["batch"] for batch in job["progress"]] == [1, 2, 3]
    assert [batch["transformed"] + batch["marked"] for batch in job["progress"]] == [100, 100, 50]
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]
    db.assert_each_record_once("User", 250)


async def test_the_same_key_and_body_is_the_same_job(client: Any, db: Any, finished: Any) -> None:
    db.load("User", 20)
    first = await client.accepted("k")
    job = await finished(client, first["id"])
    # Another spelling of the same body.
    again = await client.accepted("k", slot="2026-01-31T03:00:00+01:00", batch_size=100)
    assert again == {**job, "replayed": True}
    db.assert_each_record_once("User", 20)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_records": 10},
        {"slot": "2026-02-01T02:00:00Z"},
        {"rules": ["standardize_email", "normalize_phone", "deduplicate"]},
        {"entity_type": "Application", "rules": ["deduplicate"]},
    ],
)
async def test_the_same_key_with_another_body_is_refused(client: Any, db: Any, changes: dict[str, Any]) -> None:
    await client.accepted("k")
    problem(await client.post("k", **changes), 422, "idempotency-key-reused")
    assert db.value("SELECT count(*) FROM transformation_job") == 1


async def test_the_batch_size_is_no_part_of_the_work(client: Any, db: Any, finished: Any) -> None:
    db.load("User", 20)
    first = await client.accepted("k", batch_size=10)
    await finished(client, first["id"])
    again = await client.accepted("k", batch_size=3)
    assert (again["id"], again["batch_size"], again["replayed"]) == (first["id"], 10, True)
    db.assert_each_record_once("User", 20)


async def test_a_limit_takes_the_first_records_and_belongs_to_the_work(client: Any, db: Any, finished: Any) -> None:
    db.load("User", 20)
    job = await finished(client, (await client.accepted("k", max_records=12, batch_size=5))["id"])
    assert (job["max_records"], job["counts"]["total"], job["batches"]) == (12, 12, {"total": 3, "done": 3})
    assert [row["id"] for row in db.rows("SELECT id FROM user_record WHERE transform_count = 1 ORDER BY id")] == [
        *range(1, 13)
    ]
    said = problem(await client.post("other"), 409, "other-scope")
    assert "the first 12 records" in said["detail"]
    for wrong in (0, -1, 2**63, "12", 1.5):
        problem(await client.post("another", max_records=wrong), 400, "invalid-request")
    assert db.value("SELECT count(*) FROM transformation_job") == 1


async def test_another_key_for_the_same_work_is_the_same_job(client: Any, db: Any, finished: Any) -> None:
    db.load("User", 20)
    first = await client.accepted("from the old scheduler")
    second = await client.accepted("from the new one", batch_size=7)
    assert (second["id"], second["replayed"]) == (first["id"], True)
    await finished(client, first["id"])
    assert (await client.accepted("from the new one", batch_size=7))["id"] == first["id"]
    db.assert_each_record_once("User", 20)


async def test_twenty_requests_at_once_make_one_job(client: Any, db: Any, finished: Any) -> None:
    db.load("User", 50)
    answers = await asyncio.gather(*(client.accepted("k") for _ in range(20)))
    assert len({answer["id"] for answer in answers}) == 1
    assert sum(not answer["replayed"] for answer in answers) == 1
    await finished(client, answers[0]["id"])
    db.assert_each_record_once("User", 50)


async def test_one_key_with_two_bodies_at_once_accepts_one(client: Any, db: Any) -> None:
    slots = [f"2026-01-{day:02d}" for day in range(1, 11)]
    answers = await asyncio.gather(*(client.post("k", slot=slot) for slot in slots))
    assert sorted(answer.status_code for answer in answers) == [202] + [422] * 9
    assert db.value("SELECT count(*) FROM transformation_job") == 1


@pytest.mark.parametrize("key", [None, "", "   "])
async def test_a_missing_key_is_refused(client: Any, db: Any, key: str | None) -> None:
    problem(await client.post(key), 400, "missing-idempotency-key")
    assert db.value("SELECT count(*) FROM transformation_job") == 0


@pytest.mark.parametrize(
    ("changes", "code", "told"),
    [
        ({"entity_type": "Customer"}, "unknown-entity-type", "Known: User, Application, DiscoveryMetadata."),
        (
            {"rules": ["fix_it"]},
            "unknown-rule",
            "Unknown rules: fix_it. Known: normalize_phone, standardize_email, ded",
        ),
        (
            {"rules": ["validate_category"]},
            "rule-does-not-fit",
            "don't serve User: validate_category. Rules that do: nor",
        ),
        ({"rules": ["deduplicate", "deduplicate"]}, "repeated-rule", "once"),
        ({"rules": []}, "invalid-request", "body.rules"),
        ({"rules": "deduplicate"}, "invalid-request", "body.rules"),
        ({"batch_size": 0}, "invalid-request", "body.batch_size"),
        ({"batch_size": 10_001}, "invalid-request", "body.batch_size"),
        ({"batch_size": "100"}, "invalid-request", "body.batch_size"),
        ({"slot": ...}, "invalid-request", "body.slot"),
        ({"surprise": 1}, "invalid-request", "body.surprise"),
        ({"slot": "2026-01-31T02:00:00"}, "invalid-slot", "2026-01-31T02:00:00Z"),
        ({"slot": "tomorrow"}, "invalid-slot", "2026-01-31T02:00:00Z"),
        ({"slot": "0001-01-01T00:00:00+14:00"}, "invalid-slot", "2026-01-31T02:00:00Z"),
    ],
)
async def test_a_wrong_body_is_refused_with_the_reason(
    client: Any, db: Any, changes: dict[str, Any], code: str, told: str
) -> None:
    assert told in problem(await client.post(**changes), 400, code)["detail"]
    assert db.value("SELECT count(*) FROM transformation_job") == 0


async def test_a_body_that_is_no_json_is_refused(client: Any) -> None:
    response = await client.http.post("/api/v1/transformations", content=b"{", headers={"Idempotency-Key": "k"})
    problem(response, 400, "invalid-request")


async def test_a_date_is_its_midnight(client: Any) -> None:
    assert (await client.accepted(slot="2026-01-31"))["slot"] == "2026-01-31T00:00:00Z"


async def test_a_key_of_a_refused_request_stays_free(client: Any) -> None:
    assert (await client.post("k", rules=["fix_it"])).status_code == 400
    assert (await client.accepted("k"))["replayed"] is False


async def test_without_the_token_nothing_is_told(client: Any) -> None:
    del client.http.headers["Authorization"]
    job = f"/api/v1/transformations/{uuid.uuid4()}"
    calls = [
        *(("POST", "/api/v1/transformations"), ("GET", "/api/v1/transformations"), ("GET", job), ("DELETE", job)),
        *(
            ("GET", "/api/v1/rules"),
            ("GET", "/openapi.json"),
            ("GET", "/nowhere"),
            ("GET", "/health/"),
            ("GET", "//health"),
        ),
    ]
    for method, path in calls:
        for header in (None, "", "Bearer", "Bearer wrong", "Basic test-token-7c1f", "test-token-7c1f"):
            headers = {} if header is None else {"Authorization": header}
            response = await client.http.request(method, path, headers=headers)
            problem(response, 401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/health", "/metrics"])
async def test_probes_need_no_token(client: Any, path: str) -> None:
    del client.http.headers["Authorization"]
    assert (await client.http.get(path)).status_code == 200


async def test_an_unknown_id_is_404(client: Any) -> None:
    for job_id in (uuid.uuid4(), "42", "no-id"):
        for method in ("GET", "DELETE"):
            response = await client.http.request(method, f"/api/v1/transformations/{job_id}")
            problem(response, 404, "unknown-transformation")


async def test_an_unknown_path_and_method_are_problems_too(client: Any) -> None:
    problem(await client.http.get("/api/v1/nowhere"), 404, "http")
    problem(await client.http.put("/api/v1/rules"), 405, "http")


async def test_a_large_body_is_refused(client: Any) -> None:
    problem(await client.post(slot="x" * 70_000), 413, "body-too-large")


async def test_the_list_is_filtered_and_limited(client: Any) -> None:
    for day in (1, 2, 3):
        await client.accepted(f"u{day}", slot=f"2026-01-0{day}")
    await client.accepted("a", slot="2026-01-01", entity_type="Application", rules=["deduplicate"])

    async def ids(**query: Any) -> list[tuple[str, str]]:
        response = await client.http.get("/api/v1/transformations", params=query)
        assert response.status_code == 200, response.text
        return [(job["entity_type"], job["slot"][:10]) for job in response.json()["transformations"]]

    assert await ids(limit=2) == [("Application", "2026-01-01"), ("User", "2026-01-03")]
    assert await ids(slot="2026-01-01T00:00:00Z", entity_type="User") == [("User", "2026-01-01")]
    assert await ids(entity_type="None such") == []
    assert (await client.http.get("/api/v1/transformations", params={"limit": 0})).status_code == 400


async def test_rules_are_described(client: Any) -> None:
    document = (await client.http.get("/api/v1/rules")).json()
    assert document["entity_types"] == ["User", "Application", "DiscoveryMetadata"]
    phone = next(rule for rule in document["rules"] if rule["name"] == "normalize_phone")
    assert phone["entity_types"] == ["User"]
    assert "E.164" in phone["summary"]


async def test_only_the_rules_on_offer_are_known(settings: Settings, start_service: Any) -> None:
    from dataclasses import replace

    async with start_service(replace(settings, rules=("normalize_phone",))) as client:
        document = problem(await client.post(rules=["deduplicate"]), 400, "unknown-rule")
        assert document["known"] == ["normalize_phone"]


async def test_metrics_count_what_happened(client: Any, db: Any, finished: Any) -> None:
    db.load("User", 250)
    job = await finished(client, (await client.accepted())["id"])
    await client.post(None)
    text = (await client.http.get("/metrics")).text

    def value(name: str, **labels: str) -> float:
        wanted = ",".join(f'{label}="{text}"' for label, text in labels.items())
        found = re.search(rf"^transformation_service_{name}\{{{re.escape(wanted)}\}} (\S+)$", text, re.MULTILINE)
        assert found, f"{name} {wanted} is not in\n{text}"
        return float(found[1])

    assert value("jobs_total", entity_type="User", state="accepted") == 1
    assert value("jobs_total", entity_type="User", state="succeeded") == 1
    assert value("batches_total", entity_type="User") == 3
    assert value("records_total", entity_type="User", outcome="transformed") == job["counts"]["transformed"]
    assert value("records_total", entity_type="User", outcome="marked") == job["counts"]["marked"] > 0
    assert value("batch_seconds_count", entity_type="User") == 3
    assert value("rule_seconds_count", rule="deduplicate") == 3
    assert value("http_requests_total", method="POST", route="/api/v1/transformations", status="202") == 1
    assert value("http_requests_total", method="POST", route="/api/v1/transformations", status="400") == 1
    assert job["id"] not in text


async def test_health_names_the_running_release(settings: Settings, start_service: Any) -> None:
    from dataclasses import replace

    async with start_service(replace(settings, release="0a1b2c")) as client:
        health = (await client.http.get("/health")).json()
    assert (health["status"], health["release"]) == ("healthy", "0a1b2c")
    assert health["schema_version"] == len(database.migrations())


async def test_health_stays_quick_beside_a_job(client: Any, db: Any, finished: Any) -> None:
    db.load("User", 3000)
    job = await client.accepted(batch_size=1000)
    slowest = 0.0
    while (await client.show(job["id"]))["state"] in ("queued", "running"):
        started = time.perf_counter()
        assert (await client.http.get("/health")).status_code == 200
        slowest = max(slowest, time.perf_counter() - started)
    # A batch computes for several tenths of a second; on the event loop it would hold up the probe for all of it.
    assert slowest < 0.5


async def test_a_lost_database_is_503_and_its_return_is_noticed(start_service: Any, finished: Any) -> None:
    server = make_postgresql()
    process = start_postgresql(server)
    try:
        url = server.url("postgres")
        database.migrate(url)
        async with start_service(Settings(database_url=url, token="t", poll_seconds=0.1)) as client:
            await client.accepted("before")
            stop_postgresql(process)
            for response in (await client.http.get("/health"), await client.post("k")):
                problem(response, 503, "database-unavailable")
                assert int(response.headers["retry-after"]) > 0
            process = start_postgresql(server)
            async with asyncio.timeout(20):
                while (await client.http.get("/health")).status_code != 200:
                    await asyncio.sleep(0.1)
            job = await finished(client, (await client.accepted("k", slot="2026-02-01"))["id"])
            assert job["state"] == "succeeded"
    finally:
        stop_postgresql(process)
        shutil.rmtree(server.directory, ignore_errors=True)
