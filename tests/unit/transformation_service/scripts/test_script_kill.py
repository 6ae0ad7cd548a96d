"""The real process, killed at two places of a script. No other service runs: it would take the script."""

from __future__ import annotations

import signal

import psycopg
import pytest

from tests.unit.transformation_service.scripts.conftest import Platform, Service

pytestmark = pytest.mark.database
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'transformation_scripts'"


@pytest.mark.parametrize("place", ["between two statements", "between the effects and their confirmation"])
def test_a_killed_service_does_the_script_once(own_service: Service, platform: Platform, place: str) -> None:
    platform.load("User", 50)
    platform.load("Application", 1)
    length = platform.value("SELECT sum(length(country) + 1) FROM user_record WHERE country IS NOT NULL")
    own_service.start()
    blocked = SESSIONS + " AND wait_event_type = 'Lock' AND query ~ %s"
    with psycopg.connect(platform.superuser_url) as holder, psycopg.connect(platform.superuser_url) as second:
        holder.execute("SELECT FROM application_record FOR UPDATE")
        run = own_service.accepted(
            sql="UPDATE user_record SET country = country || 'x'; UPDATE application_record SET name = name || 'x'"
        )
        own_service.until(lambda: platform.value(blocked, '^UPDATE "application') == 1)
        if "confirmation" in place:
            second.execute("SELECT FROM script_run FOR UPDATE")
            holder.rollback()
            own_service.until(lambda: platform.value(blocked, "^SELECT confirm") == 1)
        own_service.end(signal.SIGKILL)
        # The server ends the session of a client that is gone, although its statement still waits.
        own_service.until(lambda: platform.value(SESSIONS) == 0)
    assert platform.value("SELECT state FROM script_run") == "running"
    own_service.start()
    ended = own_service.ended(run)
    assert ended["state"] == "succeeded", ended
    assert platform.value("SELECT sum(length(country)) FROM user_record") == length
    assert platform.value("SELECT name ~ '[^x]x$' FROM application_record")
    assert platform.value("SELECT attempts FROM script_run") == 2
