"""Remove old rows of Airflow's database: history by Airflow's own command, what that does not see by us.

Runs with Airflow's interpreter, in the environment of an Airflow component.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

# Named one by one: a table that a later Airflow adds to its default is cleaned when somebody has looked at it.
# Not `dag` and `dag_version`, which are few and which other rows need.
TABLES = (
    *("dag_run", "task_instance", "task_instance_history", "task_reschedule", "task_state_store", "xcom"),
    *("_xcom_archive", "log", "job", "import_error", "asset_event", "callback", "deadline", "trigger"),
    *("revoked_token", "connection_test_request"),
)


def clean_history(days: int) -> int:
    """Run `airflow db clean` and return its exit code."""
    before = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="seconds")
    # Without the last option, a table that can't be cleaned is a line in the log and a success.
    options = ["--skip-archive", "--batch-size", "10000", "--yes", "--error-on-cleanup-failure"]
    command = ["db", "clean", "--clean-before-timestamp", before, "--tables", ",".join(TABLES), *options]
    return subprocess.run([sys.executable, "-m", "airflow", *command], check=False).returncode


def delete(credential: str, statement: str) -> int:
    """Execute a statement as the role of a URL among the unit's credentials, and return how many rows it removed."""
    import psycopg2
    from sqlalchemy.engine import make_url

    text = Path(os.environ["CREDENTIALS_DIRECTORY"], credential).read_text(encoding="utf-8").strip()
    url = make_url(text.removeprefix("db+")).set(drivername="postgresql")
    with (
        contextlib.closing(psycopg2.connect(url.render_as_string(hide_password=False))) as connection,
        connection,  # commits
        connection.cursor() as cursor,
    ):
        cursor.execute(statement)
        return int(cursor.rowcount)


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, required=True, help="older history is removed")
    options = parser.parse_args()
    sessions = delete("sql_alchemy_conn", "DELETE FROM session WHERE expiry < now() AT TIME ZONE 'UTC'")
    print(f"Removed {sessions} expired sessions", flush=True)
    # In a schema that `airflow db clean` does not look into. Airflow reads a result once, within seconds.
    old = "date_done < now() AT TIME ZONE 'UTC' - interval '1 day'"
    results = delete("result_backend", f"DELETE FROM celery_taskmeta WHERE {old}")  # noqa: S608 - a constant
    print(f"Removed {results} results of Celery", flush=True)
    sys.exit(clean_history(options.days))


if __name__ == "__main__":
    main()
