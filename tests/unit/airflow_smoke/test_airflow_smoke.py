"""The judgements one by one, then the whole module against an API that answers as told."""

from __future__ import annotations

import http.server
import json
import threading
import urllib.parse
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from roles.airflow_smoke.library import airflow_smoke as subject

HEALTHY = {name: {"status": "healthy"} for name in ("metadatabase", "scheduler", "triggerer", "dag_processor")}
PATH = "/api/v2/dags/user_transformation"
DAG = {
    "dag_id": "user_transformation",
    "is_paused": False,
    "is_stale": False,
    "bundle_version": "abc123",
    "max_active_runs": 1,
}


def failing(judge: Any, *arguments: Any) -> str:
    with pytest.raises(subject.CheckFailed) as caught:
        judge(*arguments)
    return str(caught.value)


# --- judgements -------------------------------------------------------------------------------------------------------


def test_health_judges_the_body_and_not_the_http_status() -> None:
    assert "dag_processor healthy" in subject.judge_health(HEALTHY)
    found = failing(
        subject.judge_health, HEALTHY | {"scheduler": {"status": "unhealthy"}, "triggerer": {"status": None}}
    )
    assert found.startswith("scheduler is unhealthy; triggerer is not running.")
    assert "dag_processor is not running" in failing(subject.judge_health, HEALTHY | {"dag_processor": None})


def test_import_errors_show_file_and_last_line() -> None:
    errors = [{"filename": "dags/x.py", "stack_trace": "Traceback\n  File ...\nSyntaxError: invalid syntax\n\n"}]
    assert failing(subject.judge_import_errors, errors) == "dags/x.py: SyntaxError: invalid syntax"
    assert failing(subject.judge_import_errors, errors * 7).endswith(" and 2 more")
    assert subject.judge_import_errors([]) == "none"


def test_dags_must_be_there_fresh_and_from_the_release() -> None:
    judge = subject.judge_dags
    assert judge([DAG], ["user_transformation"], "abc123") == "1 served from abc123, 0 paused"
    assert judge([DAG | {"is_paused": True}], [], None) == "1 served from abc123, 1 paused"
    assert failing(judge, [DAG | {"is_stale": True}], ["user_transformation"], None) == "user_transformation is missing"
    found = failing(judge, [DAG], ["user_transformation", "test_load"], "def456")
    assert found == "test_load is missing; user_transformation is served from release abc123, not def456"
    # Without a list of DAGs the release counts for all of them.
    assert "is served from release unknown" in failing(judge, [DAG | {"bundle_version": None}], [], "def456")


def test_workers_must_consume_and_not_only_answer() -> None:
    queue = {"name": "default"}
    replies = {"celery@worker-1": [queue], "celery@worker-2": []}
    judge = subject.judge_workers
    assert judge({"celery@worker-1": [queue]}, ["worker-1"], ["default"]) == "worker-1 consuming default"
    assert judge({"celery@any": [queue]}, [], ["default"]) == "any consuming default"
    found = failing(judge, replies, ["worker-1", "worker-2", "worker-3"], ["default", "big"])
    assert found.startswith(
        "worker-3 does not answer over the broker; worker-2 answers and consumes no queue; "
        "no worker consumes queue big."
    )
    assert "(answering: elsewhere)" in failing(judge, {"celery@elsewhere": [queue]}, ["worker-1"], [])
    assert "no worker consumes queue default" in failing(judge, {}, [], ["default"])
    assert "consumes no queue" in failing(judge, {"celery@worker-1": {"error": "x"}}, ["worker-1"], [])


def test_the_task_must_have_run_on_a_worker_host() -> None:
    instances = [{"task_id": "start", "hostname": ""}, {"task_id": "apply_rules", "hostname": "scheduler-1"}]
    found = failing(subject.judge_placement, instances, "apply_rules", ["worker-1", "worker-2"])
    assert found == "apply_rules ran on scheduler-1, expected one of worker-1, worker-2"
    assert subject.judge_placement(instances, "apply_rules", ["scheduler-1"]) == "apply_rules ran on scheduler-1"
    assert "no task" in failing(subject.judge_placement, [], "apply_rules", [])


def test_each_task_of_a_group_must_have_run_on_a_worker_host() -> None:
    instances = [
        {"task_id": "apply_rules.b", "hostname": "worker-2"},
        {"task_id": "apply_rules.a", "hostname": "worker-1"},
        {"task_id": "apply_rules_not", "hostname": "elsewhere"},
    ]
    judge = subject.judge_placement
    assert judge(instances, "apply_rules", ["worker-1", "worker-2"]) == "a ran on worker-1, b ran on worker-2"
    found = failing(judge, instances, "apply_rules", ["worker-1"])
    assert found == "apply_rules.b ran on worker-2, expected one of worker-1"


AFTER = {
    "rules": "normalize_phone",
    "state": "succeeded",
    "records_total": 100,
    "ledger_rows": 100,
    "distinct_records": 100,
    "transformed": 97,
    "marked": 3,
    "missing": 0,
    "effects": 1100,
    "confirmed": 1300,
}


@pytest.mark.parametrize(
    ("differences", "found"),
    [
        ({"state": "running"}, "normalize_phone: the job is running"),
        (
            {"ledger_rows": 101, "records_total": 101},
            "normalize_phone: 1 ledger rows too many: a record was done twice",
        ),
        ({"records_total": 120}, "normalize_phone: the job took 120 records, the ledger holds 100"),
        ({"missing": 2}, "normalize_phone: 2 records are not in the ledger"),
        ({"effects": 1101}, "the records show 101 transformations and the jobs 100"),
        (
            {"records_total": 0, "ledger_rows": 0, "distinct_records": 0, "effects": 1000, "confirmed": 1200},
            "normalize_phone: only 0 records, 1 are needed to prove something: load records first",
        ),
    ],
)
def test_the_ledger_must_show_each_record_once(differences: dict[str, Any], found: str) -> None:
    before = {"effects": 1000, "confirmed": 1200}
    other = AFTER | {"rules": "deduplicate", "transformed": 100, "marked": 0}
    assert subject.judge_ledger(before, [AFTER, other], 1) == (
        "100 records, each once per rule set: normalize_phone 97 transformed, 3 marked; "
        "deduplicate 100 transformed, 0 marked"
    )
    totals = {name: value for name, value in differences.items() if name in ("effects", "confirmed")}
    assert failing(subject.judge_ledger, before, [AFTER | differences, other | totals], 1) == found


def test_the_table_is_aligned_and_says_what_failed() -> None:
    table = subject.format_table(
        [
            subject.Result("login", True, 0.05, "admin"),
            subject.Result("DAG run", False, 12.25, "failed\nend of the log:"),
            subject.Result("ledger", None, 0, "needs DAG run"),
        ]
    )
    assert table == [
        "ok       login      0.05 s  admin",
        "FAILED   DAG run   12.25 s  failed",
        "                            end of the log:",
        "skipped  ledger     0.00 s  needs DAG run",
        "         total     12.30 s  1 of 3 checks failed",
    ]


def test_the_log_tail_takes_both_forms_of_the_api() -> None:
    structured = {
        "content": [
            {"event": "::group::Log message source details"},
            {"event": "Task failed", "error_detail": [{"exc_type": "RuleEngineError", "exc_value": "HTTP 500"}]},
        ]
    }
    assert subject.log_tail(structured) == ["Task failed", "RuleEngineError: HTTP 500"]
    assert subject.log_tail({"content": [f"line {number}" for number in range(20)]})[0] == "line 5"


# --- the whole module -------------------------------------------------------------------------------------------------


class Airflow(http.server.ThreadingHTTPServer):
    """An API server that answers as told: "METHOD /path" -> JSON, a list of JSON in turn, or an HTTP status."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, Any]] = []
        self.answers: dict[str, Any] = {
            "POST /auth/token": {"access_token": "a-token"},
            "GET /api/v2/monitor/health": HEALTHY,
            "GET /api/v2/version": {"version": "3.3.2"},
            "GET /api/v2/importErrors": {"import_errors": [], "total_entries": 0},
            "GET /api/v2/dags": {"dags": [DAG], "total_entries": 1},
            "GET /api/v2/pools": {
                "pools": [{"name": "default_pool", "slots": 128, "occupied_slots": 3}],
                "total_entries": 1,
            },
            "GET /api/v2/dags/user_transformation": DAG,
            "PATCH /api/v2/dags/user_transformation": DAG,
            "GET /api/v2/dags/user_transformation/dagRuns": {"dag_runs": [], "total_entries": 0},
            "POST /api/v2/dags/user_transformation/dagRuns": {"dag_run_id": "smoke__x"},
            "PATCH /api/v2/dags/user_transformation/dagRuns/smoke__x": {},
            "GET /api/v2/dags/user_transformation/dagRuns/smoke__x": [
                {"state": "queued"},
                {"state": "success", "bundle_version": "abc123"},
            ],
            "GET /api/v2/dags/user_transformation/dagRuns/smoke__x/taskInstances": {
                "task_instances": [
                    {"task_id": "apply_rules", "hostname": "worker-1", "state": "success", "try_number": 1}
                ],
                "total_entries": 1,
            },
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def sent(self, method: str) -> list[Any]:
        return [body for request, body in self.requests if request.startswith(f"{method} ")]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Airflow

    def answer(self) -> None:
        name = f"{self.command} {urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)}"
        length = int(self.headers.get("Content-Length") or 0)
        self.server.requests.append((name, json.loads(self.rfile.read(length) or "null")))
        answer = self.server.answers.get(name, 404)
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if name.startswith("GET /api/v2/dags") and self.headers.get("Authorization") != "Bearer a-token":
            answer = 401
        status, body = (answer, {"detail": "told so"}) if isinstance(answer, int) else (200, answer)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    do_GET = do_POST = do_PATCH = answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(subject, "POLL_SECONDS", 0.01)
    # The broker is a process of its own; what workers answer is judged above, the query itself on real hosts.
    monkeypatch.setattr(subject.Smoke, "_workers", lambda self: "worker-1 consuming default")
    monkeypatch.setattr(subject.Smoke, "_queues", lambda self: "default empty")
    server = Airflow()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def smoke(airflow: Airflow, *, check: bool = False, **options: Any) -> dict[str, subject.Result]:
    defaults = {name: spec.get("default") for name, spec in subject.ARGUMENTS.items()}
    given = defaults | {"url": airflow.url, "password": "pw", "settle_seconds": 0, "workers": ["worker-1"]} | options
    return {result.name: result for result in subject.Smoke(given, read_only=check).run()}


def failures(results: dict[str, subject.Result]) -> list[str]:
    return [name for name, result in results.items() if result.ok is False]


def test_a_healthy_platform_passes_and_the_run_has_a_slot_of_its_own(airflow: Airflow) -> None:
    results = smoke(airflow, version="3.3.2", release="abc123", dags=["user_transformation"])
    assert failures(results) == []
    assert results["placement"].detail == "apply_rules ran on worker-1, release abc123"
    assert (results["ledger"].ok, results["pools"].detail) == (None, "default_pool 3/128 used")
    (trigger,) = (body for name, body in airflow.requests if name == f"POST {PATH}/dagRuns")
    assert trigger["logical_date"] is None
    assert trigger["dag_run_id"] == f"smoke__{trigger['conf']['slot']}"
    assert trigger["conf"]["slot"].endswith("Z")
    assert airflow.sent("PATCH") == []


def test_independent_failures_come_together_and_dependent_checks_are_skipped(airflow: Airflow) -> None:
    airflow.answers["GET /api/v2/monitor/health"] = HEALTHY | {"scheduler": {"status": "unhealthy"}}
    airflow.answers["GET /api/v2/version"] = {"version": "3.3.1"}
    airflow.answers["GET /api/v2/importErrors"] = {
        "import_errors": [{"filename": "x.py", "stack_trace": "NameError: y"}],
        "total_entries": 1,
    }
    results = smoke(airflow, version="3.3.2", dags=["test_load"])
    assert failures(results) == ["health", "version", "import errors", "DAGs"]
    assert (results["DAG run"].ok, results["DAG run"].detail) == (None, "needs health")
    assert results["ledger"].detail == "needs DAG run"


def test_a_refused_login_is_not_repeated(airflow: Airflow) -> None:
    airflow.answers["POST /auth/token"] = 401
    results = smoke(airflow, settle_seconds=60)
    assert results["login"].detail == "POST /auth/token: HTTP 401, told so"
    assert len(airflow.sent("POST")) == 1
    assert results["DAGs"].detail == "needs login"
    assert results["health"].ok


def test_a_platform_that_settles_in_time_passes(airflow: Airflow) -> None:
    airflow.answers["GET /api/v2/monitor/health"] = [HEALTHY | {"triggerer": {"status": None}}] * 3 + [HEALTHY]
    assert failures(smoke(airflow, settle_seconds=30)) == []


def test_a_failed_run_shows_the_end_of_the_log(airflow: Airflow) -> None:
    run = "GET /api/v2/dags/user_transformation/dagRuns/smoke__x"
    airflow.answers[run] = {"state": "failed"}
    airflow.answers[f"{run}/taskInstances"]["task_instances"][0] |= {"state": "failed", "try_number": 3}
    airflow.answers[f"{run}/taskInstances/apply_rules/logs/3"] = {"content": [{"event": "HTTP 500 from the service"}]}
    results = smoke(airflow)
    assert results["DAG run"].detail.splitlines() == [
        "smoke__x failed: apply_rules failed",
        "end of the log of apply_rules try 3 on worker-1:",
        "  HTTP 500 from the service",
    ]
    assert results["placement"].ok is None


def test_a_run_over_its_time_is_ended_and_reported(airflow: Airflow) -> None:
    airflow.answers["GET /api/v2/dags/user_transformation/dagRuns/smoke__x"] = {"state": "queued"}
    instances = "GET /api/v2/dags/user_transformation/dagRuns/smoke__x/taskInstances"
    airflow.answers[instances]["task_instances"][0] |= {"state": None}
    results = smoke(airflow, run_seconds=0)
    assert results["DAG run"].detail == "smoke__x still queued after 0 s, marked failed: apply_rules not scheduled"
    assert airflow.sent("PATCH") == [{"state": "failed"}]


RUNS = f"GET {PATH}/dagRuns"
BUSY = {"dag_runs": [{"dag_run_id": "scheduled__1"}], "total_entries": 1}


def occupy(airflow: Airflow, state: str) -> None:
    task = {"task_id": "apply_rules", "hostname": "worker-2", "state": state, "try_number": 2}
    airflow.answers[RUNS] = BUSY
    airflow.answers[f"{RUNS}/scheduled__1/taskInstances"] = {"task_instances": [task], "total_entries": 1}
    airflow.answers[f"{RUNS}/scheduled__1/taskInstances/apply_rules/logs/2"] = {"content": ["connection refused"]}


def test_a_run_that_waits_for_a_retry_before_ours_is_told_at_once(airflow: Airflow) -> None:
    occupy(airflow, "up_for_retry")
    results = smoke(airflow, run_seconds=300)
    assert results["DAG run"].detail.startswith(
        "scheduled__1 waits for a retry, and max_active_runs is 1. Clear its task"
    )
    assert results["DAG run"].detail.endswith("try 2 on worker-2:\n  connection refused")
    assert len(airflow.sent("POST")) == 1  # the login: nothing was triggered


def test_a_run_that_works_before_ours_is_awaited(airflow: Airflow) -> None:
    occupy(airflow, "running")
    assert "scheduled__1 still running after 0 s" in smoke(airflow, run_seconds=0)["DAG run"].detail
    airflow.answers[RUNS] = [BUSY, BUSY, {"dag_runs": [], "total_entries": 0}]
    assert failures(smoke(airflow)) == []


def test_a_paused_dag_is_left_alone_unless_asked(airflow: Airflow) -> None:
    airflow.answers["GET /api/v2/dags/user_transformation"] = DAG | {"is_paused": True}
    results = smoke(airflow)
    assert "user_transformation is paused" in results["DAG run"].detail
    assert airflow.sent("PATCH") == []
    assert failures(smoke(airflow, unpause=True)) == []
    assert airflow.sent("PATCH") == [{"is_paused": False}, {"is_paused": True}]


def test_check_mode_only_reads(airflow: Airflow) -> None:
    results = smoke(airflow, check=True)
    assert "DAG run" not in results
    assert [name for name, _ in airflow.requests if not name.startswith("GET ")] == ["POST /auth/token"]


def test_the_run_must_use_the_expected_release(airflow: Airflow) -> None:
    run = "GET /api/v2/dags/user_transformation/dagRuns/smoke__x"
    airflow.answers[run] = {"state": "success", "bundle_version": "older"}
    assert smoke(airflow, release="abc123")["placement"].detail == "the run used release older, expected abc123"


def test_an_unreachable_ledger_fails_the_ledger_only(airflow: Airflow) -> None:
    ledger = {"host": "127.0.0.1", "port": 1, "database": "d", "user": "u", "password": "p", "sslmode": "require"}
    results = smoke(airflow, ledger=ledger | {"entity": "User", "table": "user_record", "minimum": 1})
    assert failures(results) == ["ledger"]
    assert results["ledger"].detail.startswith("d at 127.0.0.1:1 as u: ")


def test_nothing_listens(airflow: Airflow, unused_tcp_port: int) -> None:
    results = smoke(airflow, url=f"http://127.0.0.1:{unused_tcp_port}")
    assert failures(results) == ["login", "health", "version"]
    assert "Connection refused" in results["login"].detail


def test_the_module_fails_with_the_list_and_the_table_but_only_warns_in_check_mode(
    airflow: Airflow, capsys: Any
) -> None:
    airflow.answers["GET /api/v2/version"] = {"version": "3.3.1"}
    arguments = {"url": airflow.url, "password": "hush-hush", "version": "3.3.2", "workers": ["worker-1"]}

    def run(**extra: Any) -> dict[str, Any]:
        given = arguments | {"_ansible_inject_invocation": True} | extra
        with patch_module_args(given), pytest.raises(SystemExit):
            subject.main()
        output, errors = capsys.readouterr()
        assert "hush-hush" not in output + errors
        # Where Ansible's controller code is imported too, a module's warnings go to the display, not into the answer.
        return {"warnings": errors} | json.loads(output.strip().splitlines()[-1])

    failed = run()
    assert failed["failed"]
    assert failed["msg"].startswith("1 of 11 smoke checks failed:\n- version: Airflow 3.3.1 answers, expected 3.3.2")
    assert failed["msg"].endswith("1 of 11 checks failed")
    checked = run(_ansible_check_mode=True)
    assert not checked.get("failed")
    assert "Check mode" in str(checked["warnings"])
    reported = run(report_only=True, run=False)
    assert not reported.get("failed")
    assert not reported["changed"]
