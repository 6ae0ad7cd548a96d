"""Escapes that the service refuses before anything runs, and limits that end what it lets pass."""

from __future__ import annotations

import pytest

from tests.unit.transformation_service.scripts.conftest import Platform, Service
from tests.unit.transformation_service.scripts.escapes import ENDLESS, ESCAPES, Escape, ids

pytestmark = pytest.mark.database
FORBIDDEN = "statement-not-allowed", "function-not-allowed", "relation-not-allowed", "invalid-sql"


def assert_healthy(service: Service) -> None:
    assert service.http.get("/health").status_code == 200


@pytest.mark.parametrize("escape", ESCAPES, ids=ids(ESCAPES))
def test_the_service_refuses(running: Service, provisioned: Platform, data: str, escape: Escape) -> None:
    answer = running.run(sql=escape.sql, limits={"statements": 20})
    assert answer.status_code == 400, answer.text
    assert answer.json()["type"].rsplit(":", 1)[1] in FORBIDDEN
    assert provisioned.value("SELECT count(*) FROM script_run") == 0
    assert provisioned.everything() == data
    assert answer.elapsed.total_seconds() < 5
    assert_healthy(running)


@pytest.mark.parametrize("escape", ENDLESS, ids=ids(ENDLESS))
def test_what_never_ends_is_ended(running: Service, provisioned: Platform, data: str, escape: Escape) -> None:
    run = running.done(sql=escape.sql, limits={"seconds": 1})
    assert run["error"]["type"] in ("TimeLimit", "RowLimit")
    assert provisioned.everything() == data
    assert_healthy(running)


def test_a_body_beyond_the_limit_is_refused_unread(running: Service, data: str, provisioned: Platform) -> None:
    answer = running.run(sql="SELECT '" + "x" * 70_000 + "'")
    assert answer.status_code == 413
    assert provisioned.everything() == data
    assert_healthy(running)
