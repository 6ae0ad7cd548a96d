from __future__ import annotations

from datetime import UTC, datetime

import pytest
from airflow.sdk import Connection
from fake_service import Answer, FakeService, job_document, set_connection

from plugins.hooks import transformation_service as module
from plugins.hooks.transformation_service import (
    Endpoint,
    TransformationJobNotFound,
    TransformationServiceHook,
    TransformationServiceRefused,
    TransformationServiceUnavailable,
    next_poll,
    parse_retry_after,
    pause,
    summary,
)

WORK = {
    "entity_type": "User",
    "rules": ["normalize_phone"],
    "batch_size": 500,
    "slot": "2026-01-31T02:00:00Z",
    "idempotency_key": "k" * 64,
}


def connection(**fields: object) -> Connection:
    return Connection(conn_id="transformation_service", conn_type="http", **fields)


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({"host": "service-1", "port": 5000}, "http://service-1:5000"),
        ({"host": "http://service-1:5000"}, "http://service-1:5000"),
        ({"host": "http://service-1", "port": 5000}, "http://service-1:5000"),
        ({"host": "http://service-1:5000/", "port": 5000}, "http://service-1:5000"),
        ({"host": "service-1", "schema": "https", "port": 8443}, "https://service-1:8443"),
    ],
)
def test_endpoint_reads_every_way_to_write_a_host(fields, url):
    assert Endpoint.of(connection(**fields)).base_url == url


def test_a_url_overrides_the_host_and_keeps_token_and_timeout():
    endpoint = Endpoint.of(
        connection(host="other", password="token", extra='{"timeout": 300}'), "http://service-1:5000/"
    )
    assert (endpoint.base_url, endpoint.token, endpoint.timeout) == ("http://service-1:5000", "token", 300.0)
    assert "token" not in repr(endpoint).replace("token=", "")


@pytest.mark.parametrize("timeout", ['"soon"', "0", "-1", "null", "[]"])
def test_a_timeout_that_is_no_positive_number_is_named(timeout):
    with pytest.raises(ValueError, match=r'extra "timeout" is .*; write a number of seconds above 0'):
        Endpoint.of(connection(host="service-1", extra=f'{{"timeout": {timeout}}}'))


def test_a_connection_without_host_is_named():
    with pytest.raises(ValueError, match=r"transformation_service: 'http://' names no host"):
        Endpoint.of(connection())


def test_submit_sends_key_token_and_body(service: FakeService):
    service.say(Answer(202, job_document()))
    job = TransformationServiceHook().submit(**WORK)
    (call,) = service.calls
    assert job["state"] == "queued"
    assert (call.method, call.path) == ("POST", "/api/v1/transformations")
    assert call.headers["Idempotency-Key"] == "k" * 64
    assert call.headers["Authorization"] == "Bearer s3cret-token"
    assert call.body == {key: value for key, value in WORK.items() if key != "idempotency_key"}


@pytest.mark.parametrize("fault", [Answer(503, {}), Answer(502, "<html>"), Answer(429, {}), Answer(drop=True)])
def test_passing_faults_are_repeated_with_the_same_request(service: FakeService, waits, fault):
    service.say(fault, fault, job_document("running"))
    assert TransformationServiceHook(retry_count=2).submit(**WORK)["state"] == "running"
    assert len(service.calls) == 3
    assert len({str((call.headers["Idempotency-Key"], call.body)) for call in service.calls}) == 1
    assert 0.5 <= waits[0] <= 1.0 <= waits[1] <= 2.0


def test_retries_end(service: FakeService, waits):
    service.say(Answer(503, {"title": "Unavailable", "detail": "database is away"}))
    with pytest.raises(TransformationServiceUnavailable, match="503 Unavailable: database is away"):
        TransformationServiceHook(retry_count=2).get_job("x")
    assert len(service.calls) == 3
    assert len(waits) == 2


def test_no_connection_is_a_passing_fault(service: FakeService, waits):
    service.stop()
    with pytest.raises(TransformationServiceUnavailable, match="ConnectError"):
        TransformationServiceHook(retry_count=1).get_job("x")
    assert len(waits) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 409, 422])
def test_a_refusal_is_not_repeated_and_tells_why(service: FakeService, waits, status):
    service.say(Answer(status, {"title": "Unknown rule", "detail": "known: normalize_phone"}))
    with pytest.raises(TransformationServiceRefused, match="Unknown rule: known: normalize_phone") as caught:
        TransformationServiceHook().submit(**WORK)
    assert caught.value.status == status
    assert len(service.calls) == 1
    assert waits == []


def test_an_unknown_job_is_not_an_unknown_address(service: FakeService):
    service.say(Answer(404, {"title": "Not found"}))
    with pytest.raises(TransformationJobNotFound):
        TransformationServiceHook().get_job("x")
    with pytest.raises(TransformationServiceRefused) as caught:
        TransformationServiceHook().submit(**WORK)
    assert not isinstance(caught.value, TransformationJobNotFound)


def test_a_page_of_a_proxy_is_no_job(service: FakeService, waits):
    service.say(Answer(200, "<html>Welcome</html>"), job_document("running"))
    assert TransformationServiceHook().get_job("x")["state"] == "running"


def test_the_service_decides_how_long_to_wait_within_bounds(service: FakeService, waits):
    service.say(Answer(503, {}, {"Retry-After": "7"}), Answer(503, {}, {"Retry-After": "9000"}), job_document())
    TransformationServiceHook().get_job("x")
    assert 7 <= waits[0] <= 7 * 1.25
    assert waits[1] == module.LONGEST_WAIT


def test_the_token_is_in_no_message(service: FakeService, waits, caplog):
    service.say(Answer(500, {}), Answer(401, {"title": "Unauthorized"}))
    with pytest.raises(TransformationServiceRefused) as caught:
        TransformationServiceHook().get_job("x")
    assert "s3cret-token" not in str(caught.value) + caplog.text


def test_a_job_id_cannot_leave_its_path(service: FakeService):
    service.say(job_document())
    TransformationServiceHook().get_job("../../health?x=1")
    assert service.calls[0].path == "/api/v1/transformations/..%2F..%2Fhealth%3Fx%3D1"


def test_the_timeout_of_the_connection_holds(monkeypatch, waits):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, never answers
        set_connection(monkeypatch, host="127.0.0.1", port=silent.getsockname()[1], extra={"timeout": 0.1})
        with pytest.raises(TransformationServiceUnavailable, match="ReadTimeout"):
            TransformationServiceHook(retry_count=0).get_job("x")


def test_retry_after_is_read_as_number_and_as_date():
    now = datetime(2026, 1, 31, 2, 0, tzinfo=UTC)
    assert parse_retry_after("3", now=now) == 3.0
    assert parse_retry_after("Sat, 31 Jan 2026 02:00:30 GMT", now=now) == 30.0
    assert parse_retry_after("Sat, 31 Jan 2026 01:00:00 GMT", now=now) == 0.0
    assert parse_retry_after("later", now=now) is None
    assert parse_retry_after(None) is None


def test_pauses_grow_and_stay_bounded():
    for attempt in range(20):
        wanted = min(module.LONGEST_WAIT, 2.0**attempt)
        assert wanted / 2 <= pause(attempt, None) <= wanted


def test_polls_start_short_and_cost_a_tenth():
    assert [next_poll(waited) for waited in (0, 1, 5, 20, 60, 3600)] == [0.5, 0.5, 0.5, 2.0, 6.0, 10.0]


def test_the_summary_is_small_and_complete():
    job = job_document("succeeded")
    result = summary(job, "http://service-1:5000/api/v1/transformations/1")
    assert "progress" not in result
    assert result["counts"] == {"total": 2500, "transformed": 2490, "marked": 10}
    assert result["job_id"] == job["id"]
    assert summary({"id": "1", "state": "failed"}, "")["counts"] is None
