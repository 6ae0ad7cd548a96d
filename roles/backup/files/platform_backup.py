#!/usr/bin/python3
"""Backups of the platform's PostgreSQL with pgBackRest, and the proof that they can be restored.

Each backup ends with a proof: the row counts and checksums of every table at a named point of the log of changes
(WAL). A restore stops at that point, compares every table, and goes on from there; the weekly drill does the same in
a scratch cluster. Runs as the cluster's owner (as root it becomes that user) and reads /etc/platform-backup.json.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import hashlib
import io
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

CONFIGURATION = "/etc/platform-backup.json"
LONGEST_START = 6 * 3600  # seconds: replaying a day of changes takes its time
QUIET_SECONDS = 60
JOBS = ("full", "diff", "export", "drill", "status")
# What a standby must have as large as the server that wrote the WAL, as pg_controldata names it.
CONTROL_SETTINGS = (
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_xacts",
    "max_locks_per_xact",
)
SETTING_NAMES = {"max_prepared_xacts": "max_prepared_transactions", "max_locks_per_xact": "max_locks_per_transaction"}
# The text of a value depends on these; a checksum must not.
PLAIN_TEXT = (
    "SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; SET extra_float_digits = 1;"
    " SET bytea_output = 'hex'; SET search_path = pg_catalog; SET statement_timeout = 0; SET lock_timeout = '30s';"
    " SET idle_in_transaction_session_timeout = 0"
)
TABLES = """
    SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
    AND n.nspname NOT LIKE 'pg\\_%' ORDER BY 1, 2
"""
# What Airflow keeps under its Fernet key, as [name, text].
ENCRYPTED = """
    SELECT coalesce(json_agg(json_build_array(name, text)), '[]') FROM (
        SELECT 'connection ' || conn_id AS name, password AS text FROM public.connection WHERE is_encrypted
        UNION ALL SELECT 'connection ' || conn_id, extra FROM public.connection WHERE is_extra_encrypted
        UNION ALL SELECT 'variable ' || key, val FROM public.variable WHERE is_encrypted
    ) entries WHERE text <> ''
"""


class Failed(Exception):
    """What went wrong, as a sentence for the operator."""


def now() -> str:
    """Return the present instant, ISO 8601 in UTC with whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def instant(seconds: float) -> str:
    """Turn seconds since the epoch into the form of `now`."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_instant(text: str) -> datetime:
    """Read an ISO 8601 instant; without an offset it is UTC. Raises Failed."""
    try:
        value = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError as error:
        raise Failed(f"'{text}' is not an instant; write it as 2026-01-31T13:45:00Z") from error
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def write_json(path: Path, value: Any, mode: int = 0o600) -> None:
    """Write a file atomically, so that a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as stream:
        os.fchmod(stream.fileno(), mode)
        json.dump(value, stream, indent=1, sort_keys=True)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    staged.replace(path)


def fingerprint(connection: Any) -> dict[str, list[Any]]:
    """Return {"schema.table": [rows, checksum]} of every table of the connection's database, in its transaction.

    The checksum is the sum of each row's 64-bit hash, so it does not depend on the order of the rows.
    """
    found: dict[str, list[Any]] = {}
    with connection.cursor() as cursor:
        cursor.execute(TABLES)
        for schema, table in cursor.fetchall():
            name = ".".join('"' + part.replace('"', '""') + '"' for part in (schema, table))
            query = f"SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text FROM {name} t"  # noqa: S608 - quoted
            cursor.execute(query)
            found[f"{schema}.{table}"] = list(cursor.fetchone())
    return found


def differences(wanted: dict[str, dict[str, list[Any]]], found: dict[str, dict[str, list[Any]]]) -> list[str]:
    """Compare two sets of fingerprints, {database: {table: [rows, checksum]}}; one sentence per table that differs."""
    problems = []
    for database in sorted(wanted.keys() | found.keys()):
        before, after = wanted.get(database, {}), found.get(database, {})
        for table in sorted(before.keys() | after.keys()):
            was, is_ = before.get(table), after.get(table)
            if was == is_:
                continue
            if was is None or is_ is None:
                problems.append(f"{database}: table {table} is {'missing' if is_ is None else 'not in the proof'}")
            elif was[0] != is_[0]:
                problems.append(f"{database}: {table} has {is_[0]} rows, {was[0]} were backed up")
            else:
                problems.append(f"{database}: {table} has {is_[0]} rows with another checksum")
    return problems


def wal_gaps(files: list[str], first: str) -> list[str]:
    """Return the names of WAL files that are missing between others of their timeline, from the file `first` on.

    A name is timeline, then 2^32-byte log, then 16 MiB segment of it, 8 hexadecimal digits each.
    """
    timelines: dict[str, set[int]] = {}
    for name in files:
        if (found := re.match(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})-", name)) and name[8:24] >= first[8:24]:
            timelines.setdefault(found[1], set()).add(int(found[2], 16) * 256 + int(found[3], 16))
    return [
        f"{timeline}{number // 256:08X}{number % 256:08X}"
        for timeline, numbers in sorted(timelines.items())
        for number in sorted(set(range(min(numbers), max(numbers))) - numbers)
    ]


class Backup:
    """The commands, over one configuration (see the role's vars: __backup_configuration)."""

    def __init__(self, config: dict[str, Any]) -> None:
        """Take the configuration; nothing is read or changed."""
        self.config = config
        self.stanza: str = config["stanza"]
        self.databases: list[str] = config["databases"]
        self.state = Path(config["state"])
        self.records = Path(config["repository"]) / "platform"
        self.proofs = self.records / "proofs"
        self.data = Path(config["data_directory"])

    # --- tools -----------------------------------------------------------------------------------------------------

    def pgbackrest(self, command: str, *options: str) -> str:
        """Run pgBackRest and return its standard output; raises Failed with what it said."""
        argv = ["pgbackrest", command, f"--stanza={self.stanza}", *options]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd="/")
        if done.returncode:
            said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise Failed(f"pgbackrest {command}: " + " / ".join(line.strip() for line in said[-12:]))
        return done.stdout

    def info(self, repository: int = 1) -> dict[str, Any]:
        """Return what pgBackRest knows of the stanza in a repository: {"backup": [...], "db": [...], ...}."""
        found: list[dict[str, Any]] = json.loads(self.pgbackrest("info", "--output=json", f"--repo={repository}"))
        return next((stanza for stanza in found if stanza["name"] == self.stanza), {"backup": [], "db": []})

    @contextlib.contextmanager
    def session(self, database: str = "postgres", socket: str | None = None, snapshot: bool = False) -> Iterator[Any]:
        """Yield a psycopg2 connection over a Unix socket; with `snapshot` one transaction that sees one instant."""
        import psycopg2

        connection = psycopg2.connect(
            host=socket or self.config["socket"], port=self.config["port"], dbname=database,
            connect_timeout=10, application_name="platform-backup",
        )  # fmt: skip
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(PLAIN_TEXT)
            if snapshot:
                connection.autocommit = False
                connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
            yield connection
        finally:
            connection.close()

    @staticmethod
    def ask(connection: Any, query: str, *values: Any) -> Any:
        """Return the first column of the first row."""
        with connection.cursor() as cursor:
            cursor.execute(query, values or None)
            return cursor.fetchone()[0]

    def fingerprints(self, socket: str | None = None) -> dict[str, dict[str, list[Any]]]:
        """Return the fingerprint of every database of a server at rest."""
        found = {}
        for database in self.databases:
            with self.session(database, socket, snapshot=True) as connection:
                found[database] = fingerprint(connection)
        return found

    def record(self, section: str, value: dict[str, Any]) -> None:
        """Put a section into status.json, which anybody may read."""
        path = self.state / "status.json"
        with open(self.state / ".lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            write_json(path, {**self.status_file(), section: value, "at": now()}, 0o644)

    def status_file(self) -> dict[str, Any]:
        """Return status.json as it is; {} when it is missing or broken."""
        try:
            found: dict[str, Any] = json.loads((self.state / "status.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    # --- backups ---------------------------------------------------------------------------------------------------

    def prove(self, label: str) -> dict[str, Any]:
        """Record every table's fingerprint at a point of the WAL that a restore can stop at.

        The point is exact: the snapshots of all databases are the same, see every transaction up to a number as over,
        and that number is still the next one to be given when the point is in the WAL. (A snapshot alone would not do:
        a transaction can be in the WAL as committed and in snapshots as running.) A busy server takes some tries.
        """
        deadline = time.monotonic() + self.config.get("quiet_seconds", QUIET_SECONDS)
        while True:
            with contextlib.ExitStack() as stack:
                connections = {
                    database: stack.enter_context(self.session(database, snapshot=True)) for database in self.databases
                }
                control = stack.enter_context(self.session())
                snapshots = {self.ask(c, "SELECT pg_current_snapshot()::text") for c in connections.values()}
                first = next(iter(snapshots))
                oldest, following = first.split(":")[:2]
                name = f"proof_{datetime.now(UTC).strftime('%Y%m%dT%H%M%S%f')}"
                if len(snapshots) == 1 and oldest == following:
                    lsn = self.ask(control, "SELECT pg_create_restore_point(%s)::text", name)
                    if self.ask(control, "SELECT pg_current_xact_id()::text") == following:
                        at = now()
                        tables = {database: fingerprint(c) for database, c in connections.items()}
                        dags = self.dags(connections.get("airflow"))
                        proof = {"name": name, "at": at, "lsn": lsn, "backup": label, "databases": tables, "dags": dags}
                        write_json(self.proofs / f"{name}.json", proof)
                        return proof
            if time.monotonic() > deadline:
                raise Failed(
                    "found no instant without a transaction under way to take the tables' checksums at; a long one"
                    " is open: SELECT pid, usename, xact_start FROM pg_stat_activity WHERE backend_xid IS NOT NULL"
                )
            time.sleep(0.05)

    def dags(self, connection: Any) -> list[str]:
        """Return the ids of the DAGs that are live in Airflow's metadata; [] before Airflow has made its tables."""
        if connection is None or not self.ask(connection, "SELECT to_regclass('public.dag') IS NOT NULL"):
            return []
        query = "SELECT coalesce(json_agg(dag_id ORDER BY dag_id), '[]') FROM public.dag WHERE NOT is_stale"
        found: list[str] = self.ask(connection, query)
        return found

    def release(self, connection: Any) -> str:
        """Return the release that the live DAGs are from, "" without one; between two, that of most of them."""
        if not self.dags(connection):
            return ""
        query = (
            "SELECT coalesce((SELECT bundle_version FROM public.dag WHERE NOT is_stale AND bundle_version IS NOT NULL"
            " GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1), '')"
        )
        return str(self.ask(connection, query))

    def wait_for_others(self) -> None:
        """Let what is under way end first, until this process ends; pgBackRest would give up at once."""
        fcntl.flock(os.open(self.state / ".backup", os.O_WRONLY | os.O_CREAT, 0o600), fcntl.LOCK_EX)

    def repositories(self) -> list[dict[str, Any]]:
        """Return :meth:`info` of each repository."""
        return [self.info(repository) for repository in self.config["repositories"]]

    @staticmethod
    def lacks_stanza(repositories: list[dict[str, Any]]) -> bool:
        """Tell whether one of these repositories knows no cluster yet."""
        return not all(repository.get("db") for repository in repositories)

    def run_backup(self, kind: str) -> None:
        """Make a backup, prove it, have the WAL up to the proof archived, and remove proofs whose backup is gone."""
        began = time.monotonic()
        self.wait_for_others()
        if self.lacks_stanza(self.repositories()):  # after a restore one of them may be new
            self.pgbackrest("stanza-create")
        self.pgbackrest("backup", f"--type={kind}", "--repo=1")
        newest = self.info()["backup"][-1]
        proof = self.prove(newest["label"])
        self.pgbackrest("check")  # switches to a new WAL file and waits until the repository has the old one
        oldest = min(backup["timestamp"]["stop"] for backup in self.info()["backup"])
        for path in self.proofs.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                if parse_instant(json.loads(path.read_text())["at"]).timestamp() < oldest:
                    path.unlink()
        for repository in self.config["repositories"][1:]:
            self.pgbackrest("backup", f"--type={kind}", f"--repo={repository}")
        tables = sum(len(found) for found in proof["databases"].values())
        rows = sum(count for found in proof["databases"].values() for count, _ in found.values())
        done = {
            "ok": True, "at": now(), "label": newest["label"], "type": newest["type"],
            "seconds": round(time.monotonic() - began, 1), "database_bytes": newest["info"]["size"],
            "repository_bytes": newest["info"]["repository"].get("size", newest["info"]["repository"]["delta"]),
            "proof": proof["name"], "tables": tables, "rows": rows,
        }  # fmt: skip
        self.record("backup", done)
        print(
            f"backup {done['label']}: {done['database_bytes']} bytes in {done['seconds']} s;"
            f" {rows} rows of {tables} tables"
        )

    def run_export(self) -> None:
        """Write a pg_dump of every database, compressed, and remove the oldest ones."""
        began, folder = time.monotonic(), Path(self.config["exports"])
        folder.mkdir(exist_ok=True, mode=0o700)
        total = 0
        for database in self.databases:
            target = folder / f"{database}-{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}.sql.gz"
            staged = target.with_suffix(".part")
            argv = [
                f"{self.config['binaries']}/pg_dump",
                "--host",
                self.config["socket"],
                "--port",
                str(self.config["port"]),
            ]
            argv += ["--compress=6", "--file", str(staged), database]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode:
                staged.unlink(missing_ok=True)
                raise Failed(f"pg_dump {database}: {done.stderr.strip()}")
            staged.replace(target)
            total += target.stat().st_size
            for old in sorted(folder.glob(f"{database}-*.sql.gz"))[: -self.config["exports_keep"]]:
                old.unlink()
        self.record("export", {"ok": True, "at": now(), "seconds": round(time.monotonic() - began, 1), "bytes": total})
        print(f"export: {total} bytes in {folder}")

    def verify(self, *options: str) -> float:
        """Read every file of a repository, compare its checksum, look for WAL that is missing; raises Failed.

        Returns when the newest WAL came, in seconds since the epoch.
        """
        said = self.pgbackrest("verify", "--output=text", *options)
        if "status: error" in said:  # the exit code is 0 all the same
            raise Failed("the repository is damaged: " + " / ".join(line.strip() for line in said.splitlines()[2:]))
        info = json.loads(self.pgbackrest("info", "--output=json", *options))[0]
        first = min((backup["archive"]["start"] for backup in info["backup"]), default="")
        newest = 0.0
        for archive in info["archive"]:
            # Not by the file system: the repository may be an object store.
            path = f"archive/{self.stanza}/{archive['id']}"
            listed = json.loads(self.pgbackrest("repo-ls", "--output=json", "--recurse", path, *options))
            if missing := wal_gaps([name.rsplit("/", 1)[-1] for name in listed], first):
                raise Failed(f"the repository is damaged: WAL is missing, {missing[0]} is the first of {len(missing)}")
            newest = max([newest, *(entry.get("time", 0.0) for entry in listed.values())])
        return newest

    # --- look ------------------------------------------------------------------------------------------------------

    def run_status(self) -> None:
        """Record how far archiving is behind and how old the newest backup is; fails when that is a problem."""
        problems = []
        wal: dict[str, Any] = {"at": now()}
        try:
            self.wait_for_server(30)  # it may be in a restart
            with self.session() as connection:
                archived, failed, failing = self.ask(
                    connection,
                    "SELECT json_build_array(extract(epoch FROM last_archived_time),"
                    " extract(epoch FROM last_failed_time),"
                    " coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false))"
                    " FROM pg_stat_archiver",
                )
                behind = self.ask(
                    connection,
                    "SELECT coalesce(max(extract(epoch FROM now() - modification)), 0)::float8"
                    " FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'",
                )
            wal |= {
                "last_archived": instant(archived) if archived else None,
                "last_failed": instant(failed) if failed else None,
                "waiting_seconds": round(behind, 1),
            }
            if behind > self.config["wal_lag_seconds"] or failing:
                problems.append(
                    f"WAL is not archived: the oldest file waits for {behind:.0f} s (journal of postgresql)"
                )
        except Exception as error:
            problems.append(f"PostgreSQL does not answer: {error}".strip())
        try:
            backups = self.info()["backup"]
            newest = backups[-1]["timestamp"]["stop"] if backups else 0
            wal["backup_age_seconds"] = round(time.time() - newest) if newest else None
            if not newest:
                problems.append("there is no backup")
            elif time.time() - newest > self.config["backup_age_seconds"]:
                problems.append(f"the newest backup is of {instant(newest)}")
        except Failed as error:
            problems.append(str(error))
        before = self.status_file()
        for job in ("backup", "export", "drill"):
            if before.get(job, {}).get("ok") is False:
                problems.append(f"the last {job} failed at {before[job]['at']}: {before[job]['error']}")
        self.record("wal", wal)
        self.record("problems", problems)  # type: ignore[arg-type]
        if problems:
            raise Failed("; ".join(problems))

    def wait_for_server(self, seconds: float) -> None:
        """Return as soon as the server answers, or when the time is over."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(Exception), self.session():
                return
            time.sleep(1)

    def show(self) -> None:
        """Print the last figures for people."""
        found = self.status_file()
        if not found:
            print("no backup yet: nothing has been recorded")
        for job in ("backup", "export", "drill"):
            if entry := found.get(job):
                age = (datetime.now(UTC) - parse_instant(entry["at"])).total_seconds() / 3600
                said = {key: value for key, value in entry.items() if key not in ("ok", "at", "databases")}
                text = ", ".join(f"{key} {value}" for key, value in said.items())
                print(f"{job}: {'ok' if entry['ok'] else 'FAILED'}, {age:.1f} h ago, {text}")
        if wal := found.get("wal"):
            print(
                f"WAL: last archived {wal.get('last_archived')}, oldest file waits for {wal.get('waiting_seconds')} s"
            )
        for problem in found.get("problems", []):
            print(f"problem: {problem}")

    # --- first backup ----------------------------------------------------------------------------------------------

    def ready(self, check: bool) -> None:
        """Make the stanza where it is missing; print {"changed", "first": no backup is there yet}."""
        if not check:
            self.wait_for_others()
        repositories = self.repositories()
        with self.session() as connection:
            own = int(self.ask(connection, "SELECT system_identifier FROM pg_control_system()"))
        for number, repository in zip(self.config["repositories"], repositories, strict=True):
            theirs = [database["system-id"] for database in repository.get("db", [])]
            if theirs and theirs[-1] != own:
                folder = self.config["repository"]
                place, back, anew = {
                    1: (folder, "make restore", f"move the repository away: mv {folder} {folder}.old"),
                    2: ("backup_copy", "make restore with -e restore_repository=2", "give backup_copy another path"),
                }[number]
                raise Failed(
                    f"{place} holds the backups of another cluster ({theirs[-1]}; this one is {own}), so nothing is"
                    f" archived. To have that one back: {back}. To begin anew, {anew}"
                )
        changed = self.lacks_stanza(repositories)
        if changed and not check:
            self.pgbackrest("stanza-create")
        print(json.dumps({"changed": changed, "first": not all(repository["backup"] for repository in repositories)}))

    def keep_release(self, name: str, text: str) -> None:
        """Keep a release of DAGs and operators: base64 of its tar.gz, whole and with that folder alone."""
        if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
            raise Failed(f"'{name}' is no name of a release")
        try:
            content = base64.b64decode(text, validate=False)
            with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
                members = archive.getnames()
        except (ValueError, tarfile.TarError, EOFError, OSError) as error:
            raise Failed(f"release {name} did not come whole: {error}") from error
        if not members or any(member.split("/")[0] != name for member in members):
            raise Failed(f"release {name} holds other folders")
        folder = self.records / "releases"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path, data in (
            (folder / f"{name}.tar.gz", content),
            (folder / f"{name}.tar.gz.sha256", f"{hashlib.sha256(content).hexdigest()}  {name}.tar.gz\n".encode()),
        ):
            staged = path.with_name(f".{path.name}")
            staged.write_bytes(data)
            staged.replace(path)

    def read_release(self, name: str) -> str:
        """Return a kept release as base64 of its tar.gz; raises Failed when it is not there or not whole."""
        path = self.records / "releases" / f"{name}.tar.gz"
        try:
            content, wanted = path.read_bytes(), Path(f"{path}.sha256").read_text().split()[0]
        except (OSError, IndexError) as error:
            raise Failed(f"release {name} is not beside the backups: {error}") from error
        if hashlib.sha256(content).hexdigest() != wanted:
            raise Failed(f"{path} is damaged: its checksum is another")
        return base64.b64encode(content).decode()

    # --- restore ---------------------------------------------------------------------------------------------------

    def proof_for(self, target: datetime | None, backups: list[dict[str, Any]]) -> tuple[dict[str, Any], str] | None:
        """Return the newest proof up to `target` that a backup leads to, and that backup's label, or None.

        Raises Failed for an unreadable one.
        """
        for path in sorted(self.proofs.glob("proof_*.json"), reverse=True):
            try:
                proof: dict[str, Any] = json.loads(path.read_text())
                at = parse_instant(proof["at"])
            except (ValueError, KeyError) as error:
                raise Failed(f"{path} is damaged ({error}); with an older backup: move that file away") from error
            labels = [backup["label"] for backup in backups if backup["timestamp"]["stop"] <= at.timestamp()]
            if labels and (target is None or at < target):
                return proof, labels[-1]
        return None

    def data_state(self) -> tuple[str, str]:
        """Return what is in the data folder: ("blank" | "full" | "broken", words about it)."""
        if not self.data.exists() or not any(self.data.iterdir()):
            return "blank", "the data folder is empty"
        try:
            tables = 0
            for database in self.databases:
                with self.session(database) as connection, connection.cursor() as cursor:
                    cursor.execute(TABLES)
                    tables += len(cursor.fetchall())
        except Exception as error:
            return (
                "broken",
                f"there is data in {self.data}, and no server answers: {str(error).strip().splitlines()[0]}",
            )
        return ("full", f"a server with {tables} tables runs") if tables else ("blank", "the databases have no tables")

    def inspect(self, target_time: str, over: str, name: str, repository: int) -> None:
        """Print {"problems", ...}: every reason against a restore, before anything is touched."""
        problems: list[dict[str, str]] = []
        found: dict[str, Any] = {"problems": problems, "at": now()}

        def problem(text: str, fix: str) -> None:
            problems.append({"problem": text, "fix": fix})

        target = None
        try:
            target = parse_instant(target_time) if target_time else None
        except Failed as error:
            problem(str(error), "give TARGET_TIME in UTC")
        state, words = self.data_state()
        found |= {"state": state, "words": words}
        if state != "blank" and over != name:
            problem(
                f"{name} is not empty: {words}",
                f"if that data may be replaced: make restore ARGS='-e restore_over={name}'",
            )
        option = f"--repo={repository}"
        try:
            backups = self.info(repository)["backup"]
            if not backups:
                other = ", or take the second repository: -e restore_repository=2"
                problem(
                    f"repository {repository} has no backup of stanza {self.stanza}",
                    "check backup_copy"
                    if repository == 2
                    else f"check backup_repository, or its mount{other if 2 in self.config['repositories'] else ''}",
                )
            else:
                first, last = backups[0]["timestamp"]["stop"], backups[-1]
                found |= {
                    "backup": last["label"],
                    "bytes": last["info"]["size"],
                    "of": instant(last["timestamp"]["stop"]),
                }
                if target and target.timestamp() < first:
                    problem(
                        f"{target_time} is before the end of the oldest backup",
                        f"take an instant after {instant(first)}",
                    )
                free = shutil.disk_usage(self.data.parent).free
                if free < last["info"]["size"] * 1.1:
                    problem(
                        f"{free} bytes are free beside {self.data}, and {last['info']['size']} come back",
                        "make room: what is replaced is kept beside it until you remove it",
                    )
                self.proof_for(target, backups)
                began = time.monotonic()
                newest = self.verify(option)
                if target and target.timestamp() > newest:
                    problem(f"the changes in the repository end at {instant(newest)}", "take an instant before that")
                found["verify_seconds"] = round(time.monotonic() - began, 1)
        except Failed as error:
            problem(
                str(error),
                "restore an older state that is whole (pgbackrest --stanza=platform info), or the second repository:"
                " -e restore_repository=2",
            )
        print(json.dumps(found))

    def restore(self, target_time: str, repository: int) -> None:
        """Restore beside what is there, stop at the proof, compare every table; print what was found.

        The server must be stopped. What was in the data folder stays in a folder beside it. Afterwards the server's own
        start replays the rest of the WAL.
        """
        began = time.monotonic()
        target = parse_instant(target_time) if target_time else None
        option = f"--repo={repository}"
        proof, label = self.proof_for(target, self.info(repository)["backup"]) or (None, "")
        if (self.data / "postmaster.pid").exists() and self.process_runs():
            raise Failed(f"a server runs on {self.data}: stop it first")
        aside = ""
        if self.data.exists() and any(self.data.iterdir()):
            aside = f"{self.data}.before-{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}"
            self.data.rename(aside)
        self.data.mkdir(mode=0o700, exist_ok=True, parents=True)
        options = [option, "--archive-mode=preserve", f"--process-max={os.cpu_count() or 1}"]
        if proof:
            options += [f"--set={label}", "--type=name", f"--target={proof['name']}", "--target-action=pause"]
        elif target:
            options += ["--type=time", f"--target={target.isoformat(sep=' ')}", "--target-action=promote"]
        self.pgbackrest("restore", *options)
        if aside and not target and self.system_id(Path(aside)) == self.system_id(self.data):
            # What was written and not archived yet: replayed after the archive's end, as far as it is whole.
            for path in Path(aside, "pg_wal").iterdir():
                if re.fullmatch(r"[0-9A-F]{24}", path.name):
                    shutil.copy2(path, self.data / "pg_wal")
        result = {
            "aside": aside,
            "copy_seconds": round(time.monotonic() - began, 1),
            "proof": None,
            "tables": 0,
            "rows": 0,
        }
        if proof:
            with self.private_server(self.data) as socket:
                self.wait_for_replay(socket, paused=True)
                found = self.fingerprints(socket)
            if problems := differences(proof["databases"], found):
                raise Failed(f"the restored tables differ from {proof['name']}: " + "; ".join(problems[:20]))
            result |= {
                "proof": proof["name"], "proof_at": proof["at"], "backup": label, "dags": proof["dags"],
                "tables": sum(len(tables) for tables in found.values()),
                "rows": sum(rows for tables in found.values() for rows, _ in tables.values()),
            }  # fmt: skip
            self.aim(target)
        # Proofs of a future that will not have been: a later restore must not wait for them.
        if target:
            for path in self.proofs.glob("proof_*.json"):
                with contextlib.suppress(OSError, ValueError, KeyError):
                    if parse_instant(json.loads(path.read_text())["at"]) > target:
                        path.unlink()
        result["seconds"] = round(time.monotonic() - began, 1)
        print(json.dumps(result))

    def aim(self, target: datetime | None) -> None:
        """Have the next start replay up to `target`, or all there is, instead of up to the proof."""
        path = self.data / "postgresql.auto.conf"
        lines = [line for line in path.read_text().splitlines() if not line.startswith("recovery_target")]
        if target:
            lines += [f"recovery_target_time = '{target.isoformat(sep=' ')}'", "recovery_target_action = 'promote'"]
        path.write_text("\n".join(lines) + "\n")

    def control(self, data: Path) -> str:
        """Return what pg_controldata says of a data folder; "" where it can't read it."""
        argv = [f"{self.config['binaries']}/pg_controldata", str(data)]
        return subprocess.run(
            argv, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
        ).stdout

    def system_id(self, data: Path) -> list[str]:
        """Return the cluster's identifier in a list; [] where there is none to read."""
        return re.findall(r"^Database system identifier: +(\d+)$", self.control(data), re.MULTILINE)

    def process_runs(self) -> bool:
        """Tell whether the process of postmaster.pid exists."""
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((self.data / "postmaster.pid").read_text().split()[0]), 0)
            return True
        return False

    @contextlib.contextmanager
    def private_server(self, data: Path, *, durable: bool = True) -> Iterator[str]:
        """Run a server on `data` that only this user reaches, over a socket; yield the socket's folder."""
        folder = self.state / "private"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        (folder / "hba.conf").write_text("local all all peer\n")
        control = self.control(data)
        settings = {
            SETTING_NAMES.get(name, name): value
            for name in CONTROL_SETTINGS
            for value in re.findall(rf"^{name} setting: +(\d+)$", control, re.MULTILINE)
        } | {
            "listen_addresses": "", "unix_socket_directories": str(folder), "port": str(self.config["port"]),
            "hba_file": f"{folder}/hba.conf", "ident_file": f"{folder}/ident.conf", "shared_buffers": "64MB",
            "hot_standby": "on", "autovacuum": "off", "logging_collector": "off", "ssl": "off", "archive_mode": "off",
            "fsync": "on" if durable else "off",
        }  # fmt: skip
        (folder / "ident.conf").touch()
        (folder / "postgresql.conf").write_text("".join(f"{name} = '{value}'\n" for name, value in settings.items()))
        log = folder / "log"
        with log.open("wb") as output:
            server = subprocess.Popen(
                [f"{self.config['binaries']}/postgres", "-D", str(data), "-c", f"config_file={folder}/postgresql.conf"],
                stdout=output, stderr=output, cwd="/",
            )  # fmt: skip
        self._server, self._log = server, log
        try:
            yield str(folder)
        finally:
            if server.poll() is None:
                server.send_signal(signal.SIGINT)
                try:
                    server.wait(120)
                except subprocess.TimeoutExpired:
                    server.kill()
                    server.wait()
            shutil.rmtree(folder, ignore_errors=True)

    def wait_for_replay(self, socket: str | None, *, paused: bool, seconds: float = LONGEST_START) -> dict[str, Any]:
        """Wait until the server stands at its target (paused), or takes writes; return {"last_commit"}."""
        query = (
            "SELECT json_build_array(pg_is_in_recovery(),"
            " pg_is_in_recovery() AND pg_get_wal_replay_pause_state() = 'paused', pg_last_xact_replay_timestamp())"
        )
        deadline, said = time.monotonic() + seconds, ""
        while time.monotonic() < deadline:
            if socket and self._server.poll() is not None:
                lines = self._log.read_text(errors="replace").splitlines()
                raise Failed(
                    "the server ended: "
                    + " / ".join(line for line in lines if re.search("FATAL|PANIC|ERROR", line))[-2000:]
                )
            try:
                with self.session(socket=socket) as connection:
                    recovers, stands, last = self.ask(connection, query)
                if stands if paused else not recovers:
                    return {"last_commit": last}
            except Exception as error:
                said = str(error).strip()
            time.sleep(0.2)
        raise Failed(f"the server did not come so far within {seconds:.0f} s {said}")

    def promoted(self, seconds: float) -> None:
        """Wait until the restored server takes writes; print {"last_commit", "dags", "release", "connections"}."""
        found = self.wait_for_replay(None, paused=False, seconds=seconds)
        with self.session("airflow") as connection:
            found["dags"] = self.dags(connection)
            found["release"] = self.release(connection)
            found["connections"] = []
            if self.ask(connection, "SELECT to_regclass('public.connection') IS NOT NULL"):
                found["connections"] = self.ask(connection, ENCRYPTED)
        print(json.dumps(found))

    # --- drill -----------------------------------------------------------------------------------------------------

    def run_drill(self) -> None:
        """Restore the newest backup up to now into a scratch cluster, compare every table, remove it."""
        began = time.monotonic()
        self.verify()
        newest = self.info()["backup"][-1]
        proof = self.prove(newest["label"])
        self.pgbackrest("check")
        scratch = Path(self.config["drill"])
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(mode=0o700, parents=True)
        try:
            free = shutil.disk_usage(scratch).free
            if free < newest["info"]["size"] * 1.1:
                raise Failed(
                    f"{scratch} has {free} bytes free, the drill needs {newest['info']['size']};"
                    " set backup_drill_directory"
                )
            copying = time.monotonic()
            self.pgbackrest(
                "restore", "--repo=1", f"--pg1-path={scratch}", f"--set={newest['label']}", "--type=name",
                f"--target={proof['name']}", "--target-action=pause", "--archive-mode=off",
            )  # fmt: skip
            copied = time.monotonic()
            with self.private_server(scratch, durable=False) as socket:
                self.wait_for_replay(socket, paused=True, seconds=self.config["drill_seconds"])
                found = self.fingerprints(socket)
            if problems := differences(proof["databases"], found):
                raise Failed("the restored tables differ: " + "; ".join(problems[:20]))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        rows = sum(count for tables in found.values() for count, _ in tables.values())
        done = {
            "ok": True, "at": now(), "label": newest["label"], "seconds": round(time.monotonic() - began, 1),
            "copy_seconds": round(copied - copying, 1), "rows": rows,
            "tables": sum(len(tables) for tables in found.values()),
        }  # fmt: skip
        self.record("drill", done)
        print(
            f"drill: {done['label']} restored in {done['seconds']} s, {rows} rows of {done['tables']} tables are equal"
        )

    def job(self, name: str) -> None:
        """Run what a timer asks for; a failure is in status.json and in the unit's state."""
        runs = {"export": self.run_export, "drill": self.run_drill, "status": self.run_status}
        try:
            runs[name]() if name in runs else self.run_backup(name)
        except Exception as error:
            if name != "status":
                section = "backup" if name in ("full", "diff") else name
                self.record(section, {"ok": False, "at": now(), "error": str(error).strip()[:2000]})
            raise


def become(user: str) -> None:
    """As root, become the cluster's owner: pgBackRest refuses root, and PostgreSQL knows its owner by the socket."""
    if os.geteuid() == 0:
        entry = pwd.getpwnam(user)
        os.initgroups(user, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
        os.environ["HOME"] = entry.pw_dir


def main(argv: list[str] | None = None) -> int:
    """Run one command; 1 and a sentence on standard error when it failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configuration", default=CONFIGURATION)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in (*JOBS, "show", "state"):
        commands.add_parser(name)
    commands.add_parser("ready").add_argument("--check", action="store_true")
    inspect = commands.add_parser("inspect")
    restore = commands.add_parser("restore")
    for command in (inspect, restore):
        command.add_argument("--target-time", default="")
        command.add_argument("--repository", type=int, default=1)
    inspect.add_argument("--over", default="")
    inspect.add_argument("--name", required=True)
    commands.add_parser("keep-release").add_argument("name")
    commands.add_parser("read-release").add_argument("name")
    commands.add_parser("promoted").add_argument("--seconds", type=float, default=LONGEST_START)
    given = parser.parse_args(argv)
    config = json.loads(Path(given.configuration).read_text())
    become(config["user"])
    os.umask(0o077)
    backup = Backup(config)
    try:
        if given.command in JOBS:
            backup.job(given.command)
        elif given.command == "show":
            backup.show()
        elif given.command == "state":
            print(json.dumps(dict(zip(("state", "words"), backup.data_state(), strict=True))))
        elif given.command == "keep-release":
            backup.keep_release(given.name, sys.stdin.read())
        elif given.command == "read-release":
            print(backup.read_release(given.name))
        elif given.command == "ready":
            backup.ready(given.check)
        elif given.command == "inspect":
            backup.inspect(given.target_time, given.over, given.name, given.repository)
        elif given.command == "restore":
            backup.restore(given.target_time, given.repository)
        else:
            backup.promoted(given.seconds)
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
