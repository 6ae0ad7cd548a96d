from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transformation_service import __main__ as command_line
from transformation_service import samples
from transformation_service.entities import ENTITIES
from transformation_service.settings import ConfigurationError, Settings

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(secret_files: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    for name, value in secret_files.items():
        monkeypatch.setenv(name, value)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["transformation_service", *arguments])
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        out, err = capfd.readouterr()
        code = ended.value.code
        return (code, out, err) if isinstance(code, int) else (1, out, str(code))

    return call


def test_migrate_says_whether_it_changed_anything_and_fills_empty_tables_once(run: Run, db: Any) -> None:
    code, out, _ = run("migrate")
    assert (code, json.loads(out)) == (0, {"changed": False, "applied": [], "loaded": {}})
    samples_of = ("--sample", "User=30", "--sample", "Application=20")
    assert json.loads(run("migrate", *samples_of)[1])["loaded"] == {"User": 30, "Application": 20}
    assert json.loads(run("migrate", *samples_of)[1]) == {
        "changed": False,
        "applied": [],
        "loaded": {"User": 0, "Application": 0},
    }
    assert db.value("SELECT count(*) FROM user_record") == 30


def test_generate_prints_what_load_reads(run: Run, db: Any, tmp_path: Path) -> None:
    for entity, count in (("User", 40), ("DiscoveryMetadata", 40)):
        _, out, _ = run("generate", "--entity", entity, "--count", str(count), "--seed", "3")
        file = tmp_path / f"{entity}.ndjson"
        file.write_text(out)
        assert json.loads(run("load", "--entity", entity, str(file))[1]) == {"changed": True, "loaded": {entity: count}}
    wanted = list(samples.generate("User", 40, 3))
    assert db.rows("SELECT full_name, email, phone, country FROM user_record ORDER BY id") == wanted
    documents = [record["document"] for record in samples.generate("DiscoveryMetadata", 40, 3)]
    found = db.rows("SELECT document FROM discovery_metadata_record ORDER BY id")
    assert [row["document"] for row in found] == documents


def test_generate_straight_into_the_database(run: Run, db: Any) -> None:
    assert run("generate", "--entity", "User", "--count", "25", "--load")[0] == 0
    out = run("generate", "--entity", "User", "--count", "25", "--load", "--if-empty")[1]
    assert json.loads(out) == {"changed": False, "loaded": {"User": 0}}
    assert db.value("SELECT count(*) FROM user_record") == 25


def test_csv_is_loaded_with_quotes_and_blanks(run: Run, db: Any, tmp_path: Path) -> None:
    file = tmp_path / "users.csv"
    file.write_text('\ufefffull_name,country,phone\n"Doe, ""J"" Jane",DE,\nBob,,030 1\n', encoding="utf-8")
    assert run("load", "--entity", "User", str(file))[0] == 0
    assert db.rows("SELECT full_name, email, phone, country FROM user_record ORDER BY id") == [
        {"full_name": 'Doe, "J" Jane', "email": None, "phone": None, "country": "DE"},
        {"full_name": "Bob", "email": None, "phone": "030 1", "country": None},
    ]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "full_name,colour\nJane,red\n", "a.csv:2: User has no column colour; it has full_name, email,"),
        ("a.csv", "full_name\nJane\nBob,1\n", "a.csv:3: more values than the header"),
        ("a.ndjson", '{"full_name": "Jane"}\n{"full_name": \n', "a.ndjson:2: "),
        ("a.ndjson", '{"full_name": "Jane"}\n[1]\n', "a.ndjson:2: not a JSON object"),
        ("a.ndjson", '{"full_name": 7}\n', "a.ndjson:1: full_name must be text"),
        ("a.ndjson", '{"full_name": "a\\u0000"}\n', "a.ndjson:1: full_name must be text"),
        ("a.ndjson", '{"transform_count": 7}\n', "a.ndjson:1: User has no column transform_count"),
        ("a.xlsx", "", "must end in .csv, .ndjson, .jsonl"),
    ],
)
def test_a_bad_file_is_refused_by_line_and_nothing_loaded(
    run: Run, db: Any, tmp_path: Path, name: str, content: str, told: str
) -> None:
    (tmp_path / name).write_text(content)
    code, _, err = run("load", "--entity", "User", str(tmp_path / name))
    assert code == 1
    assert told in err
    assert db.value("SELECT count(*) FROM user_record") == 0


def test_an_unknown_entity_names_the_known_ones(run: Run) -> None:
    code, _, err = run("generate", "--entity", "Customer", "--count", "1")
    assert code == 2
    assert "DiscoveryMetadata" in err


def test_an_unreachable_database_is_one_sentence(run: Run, secret_files: dict[str, str]) -> None:
    Path(secret_files["TRANSFORMATION_SERVICE_DATABASE_URL_FILE"]).write_text("postgresql:///x?host=/nonexistent")
    code, _, err = run("migrate")
    assert code == 1
    assert err.startswith("transformation_service: the database can't be reached: ")


@pytest.mark.parametrize("entity", ENTITIES)
def test_samples_depend_on_the_seed_alone(entity: str) -> None:
    first = list(samples.generate(entity, 200, 1))
    assert first == list(samples.generate(entity, 200, 1))
    assert first != list(samples.generate(entity, 200, 2))
    assert first[:50] == list(samples.generate(entity, 50, 1))
    assert all(set(record) == set(ENTITIES[entity].inputs) for record in first)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"TRANSFORMATION_SERVICE_TOKEN_FILE": ""}, "TRANSFORMATION_SERVICE_TOKEN_FILE is not set"),
        ({"TRANSFORMATION_SERVICE_TOKEN_FILE": "/nonexistent"}, "names /nonexistent, which can't be read"),
        ({"TRANSFORMATION_SERVICE_TOKEN_FILE": "/dev/null"}, "names /dev/null, which is empty"),
        (
            {"TRANSFORMATION_SERVICE_PORT": "http"},
            "TRANSFORMATION_SERVICE_PORT is 'http', not a number from 0 to 65535",
        ),
        ({"TRANSFORMATION_SERVICE_CONCURRENCY": "0"}, "TRANSFORMATION_SERVICE_CONCURRENCY is '0'"),
    ],
)
def test_wrong_settings_are_named(secret_files: dict[str, str], changes: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        Settings.from_environment({**secret_files, **changes})
    assert told in str(error.value)


def test_settings_never_show_their_secrets(secret_files: dict[str, str]) -> None:
    settings = Settings.from_environment(
        {**secret_files, "TRANSFORMATION_SERVICE_RULES": "deduplicate, normalize_name"}
    )
    assert settings.rules == ("deduplicate", "normalize_name")
    assert settings.token not in repr(settings)
    assert settings.database_url not in repr(settings)


async def test_load_tests_leave_what_was_there(run: Run, db: Any, client: Any, finished: Any) -> None:
    db.load("User", 30)
    real = await finished(client, (await client.accepted("real"))["id"])
    before = db.rows("SELECT id, full_name, created_at FROM user_record ORDER BY id")
    said = json.loads(run("load-test", "100")[1])
    assert said == {"changed": True, "removed_jobs": 0, "removed_records": 0, "added_records": 70}
    test = await client.accepted("test", slot="2000-01-01T00:00:01Z", max_records=100)
    await finished(client, test["id"])
    db.load("User", 5, seed=8)  # somebody's, meanwhile
    assert json.loads(run("load-test", "50")[1]) == {
        "changed": True,
        "removed_jobs": 1,
        "removed_records": 70,
        "added_records": 15,
    }
    assert json.loads(run("load-test", "0")[1])["removed_records"] == 15
    assert json.loads(run("load-test", "0")[1])["changed"] is False

    assert db.rows("SELECT id, full_name, created_at FROM user_record ORDER BY id")[:30] == before
    assert db.value("SELECT count(*) FROM user_record") == 35
    assert [str(row["id"]) for row in db.rows("SELECT id FROM transformation_job")] == [real["id"]]
    assert db.value("SELECT count(*) FROM transformation_record") == 30
    assert db.value("SELECT count(*) FROM record_match_key WHERE record_id > 30") == 0
