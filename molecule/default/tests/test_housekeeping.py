"""What is old goes and what is needed stays: the units themselves, on things that this test makes old."""

from __future__ import annotations

from platform_under_test import Platform

WAIT = "systemctl start --wait airflow-housekeeping-%s"
PLANT_SESSION = "INSERT INTO session (session_id, data, expiry) VALUES ('planted', '', now() - interval '1 hour')"
PLANT_RESULT = (
    "INSERT INTO celery_results.celery_taskmeta (id, task_id, status, date_done)"
    " VALUES (-1, 'planted', 'SUCCESS', now() - interval '2 days')"
)
LEFT = "SELECT (SELECT count(*) FROM session WHERE session_id = 'planted') + (SELECT count(*) FROM"
LEFT += " celery_results.celery_taskmeta WHERE task_id = 'planted')"


def psql(platform: Platform, statement: str) -> str:
    """Run a statement in Airflow's database as its superuser."""
    host = platform.host(platform.groups["postgresql"][0])
    return str(host.check_output("su postgres -c %s", f'psql --no-psqlrc -d airflow -Atqc "{statement}"')).strip()


def test_expired_sessions_and_old_results_go(platform: Platform) -> None:
    scheduler = platform.host(platform.groups["airflow_scheduler"][0])
    psql(platform, PLANT_SESSION)
    psql(platform, PLANT_RESULT)
    assert psql(platform, LEFT) == "2"
    scheduler.check_output(WAIT, "database")
    assert psql(platform, LEFT) == "0"
    # The history of the last weeks is untouched.
    assert int(psql(platform, "SELECT count(*) FROM dag_run")) > 0


def test_former_venvs_and_old_logs_go(platform: Platform) -> None:
    worker = platform.host(platform.groups["airflow_worker"][0])
    log = "/var/log/airflow-worker/dag_id=planted/old.log"
    try:
        for number in range(4):
            version = f"/opt/airflow/venvs/0.0.{number}"
            worker.check_output("mkdir -p %s && touch -d %s %s", version, f"{9 - number} days ago", version)
        worker.check_output("install -D /dev/null %s && touch -d '400 days ago' %s", log, log)
        worker.check_output(WAIT, "files")
        worker.check_output("systemctl start --wait systemd-tmpfiles-clean")
        left = worker.check_output("ls /opt/airflow/venvs").split()
        assert {"0.0.0", "0.0.1"}.isdisjoint(left)
        assert {"0.0.2", "0.0.3"} < set(left), "the newest former ones"
        assert worker.file("/opt/airflow/venv").linked_to.rpartition("/")[2] in left
        assert not worker.file(log).exists
    finally:
        worker.check_output("rm -rf /opt/airflow/venvs/0.0.? /var/log/airflow-worker/dag_id=planted")


def test_the_timers_wait_for_the_night(platform: Platform) -> None:
    for group, timers in (("airflow_scheduler", {"database", "files"}), ("transformation_service", {"files"})):
        host = platform.host(platform.groups[group][0])
        shown = host.check_output("systemctl list-timers --no-legend --no-pager 'airflow-housekeeping-*'")
        assert {word[21:-6] for word in shown.split() if word.endswith(".timer")} == timers
