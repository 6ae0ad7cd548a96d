from __future__ import annotations

from datetime import UTC, datetime

import pytest
from airflow.sdk import Connection
from fake_service import Answer, FakeService, job_document, run_document, set_connection

from plugins.hooks import transformation_service as module
from plugins.hooks.transformation_service import (
    JOB,
    RUN,
    Endpoint,
    TransformationServiceHook,
    TransformationServiceNotFound,
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
}
KEY = "k" * 64


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


@pytest.mark.parametrize("timeout", ['"soon"', "0", "-1", "false", "[]"])
def test_a_timeout_that_is_no_positive_number_is_named(timeout):
    with pytest.raises(ValueError, match=r'extra "timeout" is .*; write a number of seconds above 0'):
        Endpoint.of(connection(host="service-1", extra=f'{{"timeout": {timeout}}}'))


def test_empty_fields_of_the_form_are_the_defaults():
    endpoint = Endpoint.of(connection(host="service-1", extra='{"timeout": null, "verify": ""}'))
    assert (endpoint.timeout, endpoint.verify) == (30.0, True)


def test_a_connection_without_host_is_named():
    with pytest.raises(ValueError, match=r"transformation_service: 'http://' names no host"):
        Endpoint.of(connection())


def test_submit_sends_key_token_and_body(service: FakeService):
    service.say(Answer(202, job_document()))
    job = TransformationServiceHook().submit(JOB, WORK, idempotency_key=KEY)
    (call,) = service.calls
    assert job["state"] == "queued"
    assert (call.method, call.path) == ("POST", "/api/v1/transformations")
    assert call.headers["Idempotency-Key"] == KEY
    assert call.headers["Authorization"] == "Bearer s3cret-token"
    assert call.body == WORK


@pytest.mark.parametrize("fault", [Answer(503, {}), Answer(502, "<html>"), Answer(429, {}), Answer(drop=True)])
def test_passing_faults_are_repeated_with_the_same_request(service: FakeService, waits, fault):
    service.say(fault, fault, job_document("running"))
    assert TransformationServiceHook(retry_count=2).submit(JOB, WORK, idempotency_key=KEY)["state"] == "running"
    assert len(service.calls) == 3
    assert len({str((call.headers["Idempotency-Key"], call.body)) for call in service.calls}) == 1
    assert 0.5 <= waits[0] <= 1.0 <= waits[1] <= 2.0


def test_retries_end(service: FakeService, waits):
    service.say(Answer(503, {"title": "Unavailable", "detail": "database is away"}))
    with pytest.raises(TransformationServiceUnavailable, match="503 Unavailable: database is away"):
        TransformationServiceHook(retry_count=2).get(JOB, "x")
    assert len(service.calls) == 3
    assert len(waits) == 2


def test_no_connection_is_a_passing_fault(service: FakeService, waits):
    service.stop()
    with pytest.raises(TransformationServiceUnavailable, match="ConnectError"):
        TransformationServiceHook(retry_count=1).get(JOB, "x")
    assert len(waits) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 409, 422])
def test_a_refusal_is_not_repeated_and_tells_why(service: FakeService, waits, status):
    service.say(Answer(status, {"title": "Unknown rule", "detail": "known: normalize_phone"}))
    with pytest.raises(TransformationServiceRefused, match="Unknown rule: known: normalize_phone") as caught:
        TransformationServiceHook().submit(JOB, WORK, idempotency_key=KEY)
    assert caught.value.status == status
    assert len(service.calls) == 1
    assert waits == []


def test_an_unknown_job_is_not_an_unknown_address(service: FakeService):
    service.say(Answer(404, {"title": "Not found"}))
    with pytest.raises(TransformationServiceNotFound):
        TransformationServiceHook().get(JOB, "x")
    with pytest.raises(TransformationServiceRefused) as caught:
        TransformationServiceHook().submit(JOB, WORK, idempotency_key=KEY)
    assert not isinstance(caught.value, TransformationServiceNotFound)


def test_a_page_of_a_proxy_is_no_job(service: FakeService, waits):
    service.say(Answer(200, "<html>Welcome</html>"), job_document("running"))
    assert TransformationServiceHook().get(JOB, "x")["state"] == "running"


def test_the_service_decides_how_long_to_wait_within_bounds(service: FakeService, waits):
    service.say(Answer(503, {}, {"Retry-After": "7"}), Answer(503, {}, {"Retry-After": "9000"}), job_document())
    TransformationServiceHook().get(JOB, "x")
    assert 7 <= waits[0] <= 7 * 1.25
    assert waits[1] == module.LONGEST_WAIT


def test_the_token_is_in_no_message(service: FakeService, waits, caplog):
    service.say(Answer(500, {}), Answer(401, {"title": "Unauthorized"}))
    with pytest.raises(TransformationServiceRefused) as caught:
        TransformationServiceHook().get(JOB, "x")
    assert "s3cret-token" not in str(caught.value) + caplog.text


def test_a_job_id_cannot_leave_its_path(service: FakeService):
    service.say(job_document())
    TransformationServiceHook().get(JOB, "../../health?x=1")
    assert service.calls[0].path == "/api/v1/transformations/..%2F..%2Fhealth%3Fx%3D1"


def test_the_timeout_of_the_connection_holds(monkeypatch, waits):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, never answers
        set_connection(monkeypatch, host="127.0.0.1", port=silent.getsockname()[1], extra={"timeout": 0.1})
        with pytest.raises(TransformationServiceUnavailable, match="ReadTimeout"):
            TransformationServiceHook(retry_count=0).get(JOB, "x")


def test_retry_after_is_read_as_number_and_as_date():
    now = datetime(2026, 1, 31, 2, 0, tzinfo=UTC)
    assert parse_retry_after("3", now=now) == 3.0
    assert parse_retry_after("Sat, 31 Jan 2026 02:00:30 GMT", now=now) == 30.0
    assert parse_retry_after("Sat, 31 Jan 2026 01:00:00 GMT", now=now) == 0.0
    assert parse_retry_after("later", now=now) is None
    assert parse_retry_after(None) is None


def test_pauses_grow_and_stay_bounded():
    for attempt in range(20):
        wanted = min(module.LONGEST_OWN_WAIT, 2.0**attempt)
        assert wanted / 2 <= pause(attempt, None) <= wanted


def test_polls_start_short_and_cost_a_tenth():
    assert [next_poll(waited) for waited in (0, 1, 5, 20, 60, 3600)] == [0.5, 0.5, 0.5, 2.0, 6.0, 10.0]


def test_the_summary_is_small_and_complete():
    job = job_document("succeeded")
    result = summary(JOB, job, "http://service-1:5000/api/v1/transformations/1")
    assert "progress" not in result
    assert result["counts"] == {"total": 2500, "transformed": 2490, "marked": 10}
    assert (result["job_id"], result["job_url"]) == (job["id"], "http://service-1:5000/api/v1/transformations/1")
    assert summary(JOB, {"id": "1", "state": "failed"}, "")["counts"] is None


def test_the_summary_of_a_run_holds_its_rows_and_not_its_parameters():
    result = summary(RUN, run_document("succeeded"), "url")
    assert (result["run_id"], result["run_url"]) == (run_document()["id"], "url")
    assert (result["rows"], result["counts"]) == ([{"id": 1}], {"statements": 2, "rows": 13})
    assert "parameters" not in result


def test_a_run_is_started_read_and_cancelled_at_its_own_address(service: FakeService):
    service.say(run_document())
    hook = TransformationServiceHook()
    hook.submit(RUN, {"script": "a"}, idempotency_key=KEY)
    hook.get(RUN, "r-1")
    hook.cancel(RUN, "r-1")
    assert [(call.method, call.path) for call in service.calls] == [
        ("POST", "/api/v1/script-runs"),
        ("GET", "/api/v1/script-runs/r-1"),
        ("DELETE", "/api/v1/script-runs/r-1"),
    ]
    service.say(Answer(404, {}))
    with pytest.raises(TransformationServiceNotFound, match="no such script run"):
        hook.get(RUN, "r-1")


def test_a_connection_that_works_is_told(service: FakeService):
    service.say({"status": "ok"}, {"rules": []})
    good, said = TransformationServiceHook().test_connection()
    assert (good, said) == (True, f"The TransformationService at {service.url} answers and accepts the token")
    assert [call.path for call in service.calls] == ["/health", "/api/v1/rules"]


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ([{}, Answer(401, {})], "refuses the token (401); check the connection's password"),
        ([{}, Answer(403, {})], "refuses the token (403); check the connection's password"),
        ([Answer(404, {})], "answers GET /health with 404; check host and port, then its log"),
        ([Answer(503, {})], "answers GET /health with 503; check host and port, then its log"),
        ([{}, Answer(500, {})], "answers GET /api/v1/rules with 500; check host and port, then its log"),
    ],
)
def test_an_answer_that_is_not_good_is_told(service: FakeService, answers, says):
    service.say(*answers)
    good, said = TransformationServiceHook().test_connection()
    assert (good, said) == (False, f"The TransformationService at {service.url} {says}")


def test_a_missing_token_is_told(service: FakeService, monkeypatch):
    set_connection(monkeypatch, host="127.0.0.1", port=service.port, password=None)
    service.say({}, Answer(401, {}))
    assert "wants a token, and there is none" in TransformationServiceHook().test_connection()[1]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"host": ""}, "names no host; set the connection's host"),
        ({"host": "service-1", "extra": {"timeout": "soon"}}, "write a number of seconds above 0"),
        ({"host": "service-1.invalid"}, "has a name that does not resolve here; check the connection's host"),
        ({"host": "127.0.0.1", "port": 1}, "refuses the connection; check that it runs and listens on this port"),
        ({"host": "https://service-1", "extra": {"verify": "/no/such/ca.pem"}}, "No such file or directory"),
    ],
)
def test_a_connection_that_leads_nowhere_is_told(monkeypatch, fields, says):
    set_connection(monkeypatch, **fields)
    good, said = TransformationServiceHook().test_connection()
    assert not good
    assert says in said


def test_a_service_that_is_silent_is_told_in_time(monkeypatch):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        set_connection(monkeypatch, host="127.0.0.1", port=silent.getsockname()[1], extra={"timeout": 0.2})
        good, said = TransformationServiceHook().test_connection()
    assert not good
    assert "does not answer within 0.2 s" in said


def test_a_port_that_speaks_no_tls_is_told(service: FakeService, monkeypatch):
    set_connection(monkeypatch, host="127.0.0.1", schema="https", port=service.port)
    service.say({})
    good, said = TransformationServiceHook().test_connection()
    assert not good
    assert "is not trusted" in said
