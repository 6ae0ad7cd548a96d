"""The program of role backup against a real server: what a proof holds, what it notices, and what it refuses."""

import base64
import gzip
import importlib.util
import json
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg2
import pytest
from ansible.parsing.vault import VaultLib, VaultSecret
from cryptography.fernet import Fernet

from roles.backup.filter_plugins.backup_keys import backup_key_problems, backup_undecryptable
from roles.backup.filter_plugins.backup_rebuild import backup_data, backup_rebuild_problems
from tests.unit.conftest import PostgresqlServer, make_postgresql, start_postgresql, stop_postgresql

PROGRAM = Path(__file__).parents[3] / "roles/backup/files/platform_backup.py"
SQL = Callable[..., Any]


def load() -> ModuleType:
    """Import the program, which has no package: hosts get it as one file."""
    spec = importlib.util.spec_from_file_location("platform_backup", PROGRAM)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


program = load()


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresqlServer]:
    throwaway = make_postgresql()
    (throwaway.directory / "data" / "pg_hba.conf").write_text("local all all trust\n")
    process = start_postgresql(throwaway)
    connection = psycopg2.connect(host=str(throwaway.directory), user="postgres", dbname="postgres")
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("CREATE ROLE root SUPERUSER LOGIN")
        cursor.execute("CREATE DATABASE one")
        cursor.execute("CREATE DATABASE two")
    connection.close()
    yield throwaway
    stop_postgresql(process)
    shutil.rmtree(throwaway.directory, ignore_errors=True)


@pytest.fixture
def sql(server: PostgresqlServer) -> SQL:
    def run(statements: str, database: str = "one") -> None:
        connection = psycopg2.connect(host=str(server.directory), user="postgres", dbname=database)
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statements)
        connection.close()

    return run


@pytest.fixture
def backup(server: PostgresqlServer, sql: SQL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PGUSER", "postgres")
    for database in ("one", "two"):
        sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public; CREATE TABLE t (id int, word text)", database)
    sql("INSERT INTO t VALUES (1, 'a'), (2, NULL)")
    return program.Backup(
        {
            "stanza": "platform",
            "repositories": [1],
            "repository": str(tmp_path / "repository"),
            "state": str(tmp_path),
            "databases": ["one", "two"],
            "socket": str(server.directory),
            "port": 5432,
            "data_directory": str(tmp_path / "data"),
            "quiet_seconds": 1,
            "binaries": str(server.binaries),
            "exports": str(tmp_path / "exports"),
            "exports_keep": 2,
        }
    )


# --- proofs -----------------------------------------------------------------------------------------------------------


def test_a_proof_holds_every_table_of_every_database(backup):
    proof = backup.prove("label")
    assert proof["databases"]["one"]["public.t"][0] == 2
    assert proof["databases"]["two"] == {"public.t": [0, "0"]}
    assert backup.fingerprints() == proof["databases"]
    assert json.loads((backup.proofs / f"{proof['name']}.json").read_text()) == proof


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("UPDATE t SET word = 'b' WHERE id = 1", "one: public.t has 2 rows with another checksum"),
        ("UPDATE t SET word = '' WHERE id = 2", "one: public.t has 2 rows with another checksum"),
        ("DELETE FROM t WHERE id = 1", "one: public.t has 1 rows, 2 were backed up"),
        ("DROP TABLE t", "one: table public.t is missing"),
        ('CREATE TABLE "T" (id int)', "one: table public.T is not in the proof"),
    ],
)
def test_each_kind_of_change_is_noticed(backup, sql, change, says):
    before = backup.prove("label")["databases"]
    sql(change)
    assert program.differences(before, backup.fingerprints()) == [says]


def test_the_order_of_rows_is_no_difference(backup, sql):
    before = backup.fingerprints()
    sql("UPDATE t SET id = id WHERE id = 1")  # writes the row anew, behind the other one
    assert program.differences(before, backup.fingerprints()) == []


def test_an_open_transaction_that_wrote_keeps_a_proof_away(backup, server):
    connection = psycopg2.connect(host=str(server.directory), user="postgres", dbname="two")
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO t VALUES (1, 'x')")
        try:
            with pytest.raises(program.Failed, match="pg_stat_activity"):
                backup.prove("label")
        finally:
            connection.close()
    assert not backup.proofs.exists() or not list(backup.proofs.iterdir())


def test_a_proof_under_writes_is_exact(backup, sql, server):
    """Writers insert into both databases; what the proof counted is what is committed before its point of the WAL."""
    backup.config["quiet_seconds"] = 30
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            # The position is read once the transaction has its number: one without a number is not under way.
            sql(
                "WITH own AS MATERIALIZED (SELECT pg_current_xact_id() AS id)"
                f" INSERT INTO t SELECT {number}, pg_current_wal_insert_lsn()::text FROM own WHERE id IS NOT NULL",
                "two",
            )
            time.sleep(0.002)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        proofs = [backup.prove("label") for _ in range(5)]
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    for proof in proofs:
        connection = psycopg2.connect(host=str(server.directory), user="postgres", dbname="two")
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM t WHERE word::pg_lsn < %s::pg_lsn", (proof["lsn"],))
            (inserted,) = cursor.fetchone()
        connection.close()
        # A row's text is the WAL position of its insert, so the point lies between it and the next one.
        assert proof["databases"]["two"]["public.t"][0] == inserted
    assert len({proof["databases"]["two"]["public.t"][0] for proof in proofs}) > 1, "nothing was written meanwhile"


def test_a_restore_takes_the_newest_proof_that_a_backup_leads_to(backup):
    for day in (1, 2, 3):
        program.write_json(backup.proofs / f"proof_{day}.json", {"at": f"2026-01-0{day}T00:00:00Z", "day": day})

    def backups(*days: int) -> list[dict[str, Any]]:
        # Each ends an hour before the proof of its day.
        ends = {day: program.parse_instant(f"2026-01-0{day}T00:00:00Z").timestamp() - 3600 for day in days}
        return [{"label": f"of {day}", "timestamp": {"stop": end}} for day, end in ends.items()]

    def chosen(*days: int, before: str = "2026-01-09") -> tuple[int, str] | None:
        found = backup.proof_for(program.parse_instant(before), backups(*days))
        return (found[0]["day"], found[1]) if found else None

    assert chosen(1, 2, 3) == (3, "of 3")
    assert chosen(1, 2, 3, before="2026-01-02T12:00:00Z") == (2, "of 2")
    assert chosen(1, 2) == (3, "of 2")
    assert chosen(3, before="2026-01-02T12:00:00Z") is None
    (backup.proofs / "proof_9.json").write_text("{")
    with pytest.raises(program.Failed, match=r"proof_9.json is damaged"):
        chosen(1)


# --- WAL, exports, status ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        (["0000000100000000000000FE-ab.zst", "0000000100000000000000FF-ab.zst", "000000010000000100000000-ab.zst"], []),
        (["0000000100000000000000FE-ab.zst", "000000010000000100000000-ab.zst"], ["0000000100000000000000FF"]),
        # Each timeline begins where it left the one before.
        (["000000010000000000000004-ab.zst", "000000020000000000000009-ab.zst", "00000002.history"], []),
        (["000000010000000000000001-ab.zst", "000000010000000000000003-ab.zst"], []),
    ],
)
def test_gaps_in_the_wal(files, missing):
    assert program.wal_gaps(files, "000000010000000000000003") == missing


def test_exports_are_private_readable_by_psql_and_few(backup, monkeypatch):
    for hour in range(3):
        monkeypatch.setattr(program, "datetime", type("Clock", (), {"now": lambda zone, hour=hour: program_time(hour)}))
        backup.run_export()
    names = sorted(path.name for path in Path(backup.config["exports"]).iterdir())
    assert names == [f"{name}-2026010{day}T000000Z.sql.gz" for name in ("one", "two") for day in (2, 3)]
    assert {path.stat().st_mode & 0o077 for path in Path(backup.config["exports"]).iterdir()} <= {0, 0o044}
    assert "COPY public.t" in gzip.decompress((Path(backup.config["exports"]) / names[0]).read_bytes()).decode()


def program_time(day: int) -> Any:
    return datetime(2026, 1, day + 1, tzinfo=UTC)


def test_a_failed_job_is_in_the_status_and_raises(backup, monkeypatch):
    monkeypatch.setattr(backup, "pgbackrest", lambda *_: (_ for _ in ()).throw(program.Failed("no space")))
    with pytest.raises(program.Failed):
        backup.job("full")
    assert backup.status_file()["backup"]["ok"] is False
    assert backup.status_file()["backup"]["error"] == "no space"


@pytest.mark.parametrize(
    ("state", "over", "refused"), [("full", "", True), ("full", "other", True), ("full", "pg", False)]
)
def test_data_is_replaced_only_for_its_hosts_name(backup, monkeypatch, capsys, state, over, refused):
    listing = {
        "name": "platform",
        "backup": [{"label": "a", "info": {"size": 1}, "timestamp": {"stop": 1}, "archive": {"start": "0" * 24}}],
        "archive": [],
    }
    monkeypatch.setattr(backup, "pgbackrest", lambda command, *_: json.dumps([listing]) if command == "info" else "")
    monkeypatch.setattr(backup, "data_state", lambda: (state, "a server with 3 tables runs"))
    backup.data.mkdir()
    backup.inspect("", over, "pg", 1)
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert bool(problems) == refused
    if refused:
        assert "restore_over=pg" in problems[0]["fix"]


# --- keys -------------------------------------------------------------------------------------------------------------


def kept(passphrase: str, **keys: str) -> str:
    vault = VaultLib([("default", VaultSecret(passphrase.encode()))])
    return base64.b64encode(vault.encrypt(json.dumps(keys))).decode()


@pytest.mark.parametrize(
    ("passphrase", "key", "says"),
    [
        ("right", "old", ""),
        ("right", "new,old", ""),
        ("right", "new", "airflow_fernet_key is not the one of the backup"),
        ("wrong", "old", "backup_passphrase does not open"),
    ],
)
def test_keys_are_compared_before_a_restore(passphrase, key, says):
    problems = backup_key_problems(kept("right", airflow_fernet_key="old"), passphrase, {"airflow_fernet_key": key})
    assert [says in problem["problem"] for problem in problems] == ([True] if says else [])


def test_what_no_key_decrypts_is_named():
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    entries = [[name, Fernet(key).encrypt(b"x").decode()] for name, key in (("first", old), ("second", new))]
    assert backup_undecryptable(entries, f"{new},{old}") == []
    assert backup_undecryptable(entries, new) == ["first"]


# --- rebuild ----------------------------------------------------------------------------------------------------------


def state(name: str, words: str) -> str:
    return json.dumps({"state": name, "words": words})


@pytest.mark.parametrize(
    ("traces", "words"),
    [
        ("", ""),
        ("/var/lib/postgresql/17/main/PG_VERSION\n" + state("blank", "the databases have no tables"), ""),
        ("/var/lib/postgresql/17/main/PG_VERSION\n", "a PostgreSQL cluster is in /var/lib/postgresql/17/main"),
        (state("full", "a server with 86 tables runs"), "a server with 86 tables runs"),
        (state("broken", "no server answers"), "no server answers"),
        ("/opt/airflow/current\n" + state("blank", "empty"), "a release is live (/opt/airflow/current)"),
    ],
)
def test_what_a_host_holds_is_told_and_an_empty_cluster_is_blank(traces, words):
    assert backup_data(traces) == words


@pytest.mark.parametrize(
    ("data", "repository", "over", "from_scratch", "says"),
    [
        ({"pg": "", "worker": ""}, "/repo", "", False, []),
        ({"pg": "data", "worker": "a release"}, "/repo", "", False, ["pg is not blank", "worker is not blank"]),
        ({"pg": "data", "worker": "a release"}, "/repo", "pg", False, []),
        ({"pg": "data", "worker": ""}, "/repo", "worker", False, ["pg is not blank", "OVER names worker"]),
        ({"pg": "", "worker": ""}, "", "", False, ["pg has no backup"]),
        ({"pg": "", "worker": ""}, None, "", False, ["the release of the backup is not in backup_copy"]),
        ({"pg": "", "worker": ""}, "", "", True, []),
        ({"pg": "", "worker": ""}, "/repo", "", True, ["pg has a backup in /repo"]),
        ({"pg": "data", "worker": ""}, "", "pg", True, ["nothing begins from scratch over data"]),
    ],
)
def test_a_rebuild_is_refused_with_all_reasons(data, repository, over, from_scratch, says):
    problems = backup_rebuild_problems(data, "pg", repository, over, from_scratch, [])
    assert len(problems) == len(says)
    for problem, text in zip(problems, says, strict=True):
        assert text in problem["problem"]
        assert problem["fix"]


def test_a_copy_is_enough_for_a_rebuild_with_the_sources_at_hand():
    assert backup_rebuild_problems({"pg": ""}, "pg", None, "", False, [], True) == []


def test_problems_of_the_keys_are_reasons_too():
    keys = [{"problem": "another key", "fix": "that one"}]
    assert backup_rebuild_problems({"pg": ""}, "pg", "/repo", "", False, keys) == keys


def test_a_kept_release_is_given_back_whole_or_not_at_all(backup, tmp_path):
    folder = tmp_path / "source/abc"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    with tarfile.open(tmp_path / "release", "w:gz") as archive:
        archive.add(folder, arcname="abc")
    text = base64.b64encode((tmp_path / "release").read_bytes()).decode()
    backup.keep_release("abc", text)
    assert backup.read_release("abc") == text
    with pytest.raises(program.Failed, match="is not beside the backups"):
        backup.read_release("def")
    (backup.records / "releases/abc.tar.gz").write_bytes(b"x")
    with pytest.raises(program.Failed, match="is damaged"):
        backup.read_release("abc")


def test_the_release_of_most_live_dags_counts(backup, sql, server):
    with backup.session("one") as connection:
        assert backup.release(connection) == "", "before Airflow has made its tables"
        sql(
            "CREATE TABLE dag (dag_id text, bundle_version text, is_stale bool); INSERT INTO dag VALUES"
            " ('a', 'new', false), ('b', 'new', false), ('c', 'old', false), ('d', 'gone', true), ('e', 'gone', true),"
            " ('f', 'gone', true), ('g', NULL, false)"
        )
        assert backup.release(connection) == "new"
