from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row

from transformation_service import database
from transformation_service.rules import RULES, rule_set_version
from transformation_service.settings import Settings


async def test_two_services_share_the_jobs_without_doing_one_twice(
    settings: Settings, db: Any, start_service: Any, finished: Any
) -> None:
    db.load("User", 1000)
    async with start_service(settings) as one, start_service(settings) as other:
        jobs = [
            await client.accepted(f"{name}-{day}", slot=f"2026-01-{day:02d}", batch_size=50)
            for day in range(1, 4)
            for name, client in (("one", one), ("other", other))
        ]
        assert len({job["id"] for job in jobs}) == 3
        for job in jobs:
            assert (await finished(one, job["id"]))["state"] == "succeeded"
    db.assert_each_record_once("User", 1000, times=3)


async def test_a_job_left_behind_is_taken_over(settings: Settings, db: Any, start_service: Any, finished: Any) -> None:
    db.load("User", 300)
    async with start_service(replace(settings, simulated_ms_per_record=5)) as client:
        job = await client.accepted(batch_size=50)
        while (await client.show(job["id"]))["batches"]["done"] < 2:
            await asyncio.sleep(0.02)
    done = db.value("SELECT batches_done FROM transformation_job")
    assert 2 <= done < 6
    async with start_service(settings) as client:
        ended = await finished(client, job["id"])
    assert ended["state"] == "succeeded"
    assert [batch["batch"] for batch in ended["progress"]] == [1, 2, 3, 4, 5, 6]
    db.assert_each_record_once("User", 300)


async def test_cancel_stops_between_batches_and_the_same_request_goes_on(
    settings: Settings, db: Any, start_service: Any, finished: Any
) -> None:
    db.load("User", 500)
    async with start_service(replace(settings, simulated_ms_per_record=4)) as client:
        job = await client.accepted("k", batch_size=50)
        while (await client.show(job["id"]))["batches"]["done"] < 1:
            await asyncio.sleep(0.02)
        async with asyncio.timeout(0.15):  # a batch takes 0.2 s: the cancel does not wait for it
            response = await client.http.delete(f"/api/v1/transformations/{job['id']}")
        assert response.json()["state"] == "cancelled"
        assert response.json()["finished_at"]
        done = response.json()["batches"]["done"]
        assert done < 10
    async with start_service(settings) as client:
        await asyncio.sleep(settings.poll_seconds * 2)
        assert (await client.show(job["id"]))["batches"]["done"] == done
        again = await client.accepted("k", batch_size=50)
        assert (again["id"], again["state"], again["replayed"]) == (job["id"], "queued", True)
        assert (await finished(client, job["id"]))["state"] == "succeeded"
        # A finished job can't be cancelled any more.
        assert (await client.http.delete(f"/api/v1/transformations/{job['id']}")).json()["state"] == "succeeded"
    db.assert_each_record_once("User", 500)


async def test_a_job_that_fails_says_why_and_the_same_request_repairs_it(client: Any, db: Any, finished: Any) -> None:
    db.load("User", 100)
    db.rows("ALTER TABLE user_record ADD CONSTRAINT planted CHECK (id < 61 OR transform_count = 0)")
    job = await finished(client, (await client.accepted("k", batch_size=20))["id"])
    assert job["state"] == "failed"
    assert job["error"]["type"] == "CheckViolation"
    assert "planted" in job["error"]["message"]
    assert job["error"]["batch"] == 4
    assert job["batches"] == {"total": 5, "done": 3}
    db.rows("ALTER TABLE user_record DROP CONSTRAINT planted")
    await client.accepted("k", batch_size=20)
    again = await finished(client, job["id"])
    assert (again["state"], again["error"]) == ("succeeded", None)
    db.assert_each_record_once("User", 100)


async def test_a_broken_rule_marks_the_record_and_goes_on(
    client: Any, db: Any, finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.load("User", 30)
    real = RULES["normalize_phone"].apply

    def breaks_on_five(entity: Any, record: Any) -> Any:
        return 1 / 0 if record["id"] == 5 else real(entity, record)

    monkeypatch.setattr(RULES["normalize_phone"], "apply", breaks_on_five)
    job = await finished(client, (await client.accepted(rules=["normalize_phone"]))["id"])
    assert job["state"] == "succeeded"
    reason = db.value("SELECT reason FROM transformation_record WHERE record_id = 5")
    assert reason == "normalize_phone: the rule broke (ZeroDivisionError)"


async def test_marked_records_are_kept_with_every_reason_and_other_rules_still_apply(
    client: Any, db: Any, finished: Any
) -> None:
    db.rows(
        "INSERT INTO user_record (full_name, email, phone, country) VALUES"
        " ('Jane', 'JANE@example.com', 'none', 'DE'), (NULL, 'none', 'none', 'DE'),"
        " ('Bob', 'bob@example.com', NULL, NULL)"
    )
    job = await finished(client, (await client.accepted())["id"])
    assert job["counts"] == {"total": 3, "transformed": 1, "marked": 2}
    rows = db.rows("SELECT email, phone, mark_reason FROM user_record ORDER BY id")
    assert rows[0] == {
        "email": "jane@example.com",
        "phone": "none",
        "mark_reason": "normalize_phone: not a phone number",
    }
    assert rows[1]["email"] == "none"
    assert rows[1]["mark_reason"].split("; ") == [
        "deduplicate: nothing to compare: no name, address or number",
        "normalize_phone: not a phone number",
        "standardize_email: not an e-mail address (no @)",
    ]
    assert rows[2]["mark_reason"] is None
    # A mark goes when the record is repaired and the next slot processes it.
    db.rows("UPDATE user_record SET phone = '030 901820' WHERE id = 1")
    await finished(client, (await client.accepted("next", slot="2026-02-01"))["id"])
    assert db.rows("SELECT phone, mark_reason FROM user_record WHERE id = 1") == [
        {"phone": "+4930901820", "mark_reason": None}
    ]


async def test_a_job_covers_the_records_that_existed_when_it_was_accepted(
    settings: Settings, db: Any, start_service: Any, finished: Any
) -> None:
    db.load("User", 100)
    async with start_service(replace(settings, simulated_ms_per_record=2)) as client:
        job = await client.accepted(batch_size=30)
        db.load("User", 50, seed=8)
        ended = await finished(client, job["id"])
    assert ended["counts"]["total"] == 100
    assert db.value("SELECT count(*) FROM user_record WHERE transform_count = 0") == 50


async def test_deleted_records_shorten_the_job(settings: Settings, db: Any, start_service: Any, finished: Any) -> None:
    db.load("User", 100)
    async with start_service(replace(settings, simulated_ms_per_record=2)) as client:
        job = await client.accepted(batch_size=30)
        db.rows("DELETE FROM user_record WHERE id > 90")
        ended = await finished(client, job["id"])
    assert ended["state"] == "succeeded"
    assert ended["counts"]["total"] == 90


async def test_no_records_is_a_success(client: Any, finished: Any) -> None:
    job = await finished(client, (await client.accepted())["id"])
    assert (job["state"], job["batches"], job["counts"]["total"]) == ("succeeded", {"total": 0, "done": 0}, 0)


@pytest.mark.parametrize("batch_size", [7, 100, 1000])
async def test_duplicates_are_found_across_batches(client: Any, db: Any, finished: Any, batch_size: int) -> None:
    """The size of the batches does not change the result."""
    db.load("User", 700)
    await finished(client, (await client.accepted(batch_size=batch_size))["id"])
    found = db.rows("SELECT id, duplicate_of FROM user_record WHERE duplicate_of IS NOT NULL ORDER BY id")
    assert len(found) > 30
    assert all(row["duplicate_of"] < row["id"] for row in found)
    assert (
        db.value(
            "SELECT count(*) FROM user_record a JOIN user_record b ON b.id = a.duplicate_of"
            " WHERE b.duplicate_of IS NOT NULL"
        )
        == 0
    )
    digest = db.value("SELECT md5(string_agg(id || '>' || duplicate_of, ',' ORDER BY id)) FROM user_record")
    DUPLICATES.add(digest)
    assert len(DUPLICATES) == 1
    # The next slot comes to the same result.
    await finished(client, (await client.accepted("next", slot="2026-02-01", batch_size=batch_size))["id"])
    assert db.rows("SELECT id, duplicate_of FROM user_record WHERE duplicate_of IS NOT NULL ORDER BY id") == found


DUPLICATES: set[str] = set()


@pytest.mark.parametrize(
    ("entity", "rules"),
    [
        ("Application", ["normalize_name", "validate_category", "standardize_email", "deduplicate", "validate_schema"]),
        ("DiscoveryMetadata", ["validate_schema", "enrich_metadata"]),
    ],
)
async def test_every_entity_is_transformed(client: Any, db: Any, finished: Any, entity: str, rules: list[str]) -> None:
    db.load(entity, 300)
    job = await finished(client, (await client.accepted(entity_type=entity, rules=rules))["id"])
    assert job["state"] == "succeeded"
    assert job["counts"]["transformed"] > job["counts"]["marked"] > 0
    db.assert_each_record_once(entity, 300)


async def test_a_new_revision_of_a_rule_is_new_work(
    client: Any, db: Any, finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.load("User", 10)
    first = await finished(client, (await client.accepted("old", rules=["normalize_phone"]))["id"])
    monkeypatch.setattr(type(RULES["normalize_phone"]), "revision", 99)
    second = await finished(client, (await client.accepted("new", rules=["normalize_phone"]))["id"])
    assert second["id"] != first["id"]
    assert second["rule_set_version"] == rule_set_version(["normalize_phone"]) != first["rule_set_version"]


async def test_a_connection_that_breaks_at_any_statement_loses_and_doubles_nothing(
    settings: Settings, db: Any, start_service: Any, finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends the engine's session before its n-th statement, for every n of a whole job."""
    db.load("User", 12)
    fuse = {"left": -1}

    class Fused(AsyncConnection[DictRow]):
        async def execute(self, *arguments: Any, **options: Any) -> Any:
            if fuse["left"] == 0:
                with psycopg.connect(settings.database_url, autocommit=True) as killer:
                    killer.execute("SELECT pg_terminate_backend(%s, 5000)", (self.info.backend_pid,))
            fuse["left"] -= 1
            return await super().execute(*arguments, **options)

    async def connect(url: str) -> Any:
        return await Fused.connect(url, autocommit=True, row_factory=dict_row, options="-c timezone=UTC")

    monkeypatch.setattr(database, "connect", connect)
    slots = 0
    async with start_service(replace(settings, concurrency=1, poll_seconds=0.05)) as client:
        client.app.state.engine._pause = lambda _: asyncio.sleep(0)
        for n in range(200):
            slots += 1
            fuse["left"] = n
            job = await client.accepted(f"slot-{n}", slot=f"{2000 + n}-01-01", batch_size=6)
            assert (await finished(client, job["id"]))["state"] == "succeeded"
            if fuse["left"] >= 0:  # the whole job needed fewer than n statements
                break
    assert 20 < slots < 200
    db.assert_each_record_once("User", 12, times=slots)


async def test_rule_sets_side_by_side_keep_each_others_results_and_marks(
    settings: Settings, db: Any, start_service: Any, finished: Any
) -> None:
    """Both jobs draft the same batches at the same time; the later one must not write back what it read before."""

    def load() -> None:
        db.load("User", 400)
        db.rows("UPDATE user_record SET phone = 'none', email = 'none' WHERE id IN (3, 399)")

    load()
    async with start_service(settings) as client:
        one_set = await client.accepted("all", rules=["normalize_phone", "standardize_email"], slot="2026-01-01")
        await finished(client, one_set["id"])
    columns = "id, phone, phone_extension, email, mark_reason"
    expected = db.rows(f"SELECT {columns} FROM user_record ORDER BY id")
    assert expected[2]["mark_reason"].count(": ") == 2

    db.rows("TRUNCATE user_record RESTART IDENTITY")
    load()
    async with start_service(replace(settings, simulated_ms_per_record=1)) as client:
        jobs = [
            await client.accepted(rule, rules=[rule], slot="2026-01-02", batch_size=50)
            for rule in ("normalize_phone", "standardize_email")
        ]
        for job in jobs:
            assert (await finished(client, job["id"]))["state"] == "succeeded"
    assert db.rows(f"SELECT {columns} FROM user_record ORDER BY id") == expected
    assert db.rows("SELECT DISTINCT transform_count FROM user_record") == [{"transform_count": 2}]


async def test_a_record_that_changes_after_the_draft_is_drafted_again(
    settings: Settings, db: Any, start_service: Any, finished: Any
) -> None:
    db.load("User", 10)
    async with start_service(replace(settings, simulated_ms_per_record=50)) as client:
        job = await client.accepted(rules=["standardize_email"], batch_size=10)
        while (await client.show(job["id"]))["state"] != "running":
            await asyncio.sleep(0.02)
        db.rows("UPDATE user_record SET email = 'New.Address@EXAMPLE.COM ', full_name = 'Changed' WHERE id = 4")
        db.rows("DELETE FROM user_record WHERE id = 10")
        ended = await finished(client, job["id"])
    assert (ended["state"], ended["counts"]["total"]) == ("succeeded", 9)
    assert db.rows("SELECT email, full_name FROM user_record WHERE id = 4") == [
        {"email": "new.address@example.com", "full_name": "Changed"}
    ]


async def test_the_batches_of_one_job_wait_side_by_side(
    settings: Settings, db: Any, start_service: Any, finished: Any
) -> None:
    """Ratio of two arms in one run: eight batches in work one after the other would take as long as one of all."""
    db.load("User", 400)
    seconds = {}
    async with start_service(replace(settings, simulated_ms_per_record=4)) as client:
        for batch_size in (400, 50):
            job = await client.accepted(
                f"b{batch_size}", slot=f"2026-01-01T00:{batch_size % 60:02d}:00Z", batch_size=batch_size
            )
            started = asyncio.get_running_loop().time()
            assert (await finished(client, job["id"]))["state"] == "succeeded"
            seconds[batch_size] = asyncio.get_running_loop().time() - started
    assert seconds[50] < seconds[400] * 0.7, seconds
    confirmed = db.rows(
        "SELECT batch_number FROM transformation_batch WHERE job_id = %s ORDER BY finished_at", job["id"]
    )
    assert [row["batch_number"] for row in confirmed] == [*range(1, 9)]
    db.assert_each_record_once("User", 400, times=2)
