#!/usr/bin/python
"""Run one case of the load matrix: some DAG runs at once, timed by Airflow's own clock."""

from __future__ import annotations

DOCUMENTATION = r"""
module: load_case
short_description: Run a DAG for a load test, and time it
description:
  - Triggers O(runs) runs of O(dag) at once, waits until all have ended, and repeats that O(repeats) times.
  - Each run gets a slot of its own in the year 2000, which the TransformationService keeps apart as a load test's.
  - Unpauses the DAG for as long as it needs. Samples the broker's queues meanwhile.
options:
  url: {description: Address of the API server., required: true}
  user: {description: Airflow user., required: true}
  password: {description: The user's password., required: true}
  ca_file: {description: CA certificate of the API server; empty for the host's trust store., type: path}
  dag: {description: DAG with the params records and batch_size and slot., default: test_load}
  task: {description: Task whose XCom has the figures of the transformation., default: apply_rules}
  records: {description: Records for each run., type: int, required: true}
  batch_size: {description: Records per transaction., type: int, default: 1000}
  runs: {description: Runs at once., type: int, default: 1}
  repeats: {description: How often., type: int, default: 1}
  seconds: {description: Fails when the runs of one repetition take longer., type: int, default: 1800}
  first_slot: {description: Number of the first slot; each run needs another., type: int, required: true}
  broker_url_file: {description: File with the broker's URL., type: path, default: /etc/airflow/credentials/broker_url}
  queues: {description: Queues whose length is sampled., type: list, elements: str, default: [default]}
attributes:
  check_mode: {support: none}
"""
EXAMPLES = r"""
- name: Five runs of 10,000 records at once
  load_case:
    url: http://scheduler-1:8080
    user: admin
    password: "{{ airflow_admin_password }}"
    records: 10000
    runs: 5
    first_slot: 100
"""
RETURN = r"""
repetitions:
  description: >-
    For each C(seconds) from the first trigger to the last end, C(began) and C(ended) in seconds since 1970, and
    C(runs), each with C(run_id), C(seconds) from queued to ended, C(service_seconds) of the job and C(records).
  type: list
  returned: success
queue:
  description: C(at) in seconds since 1970, C(length) messages that wait for a worker, C(unacknowledged) ones in work.
  type: list
  returned: success
"""

import threading
import time
import urllib.parse
from datetime import UTC, datetime, timedelta
from typing import Any

from ansible.module_utils.airflow_api import Api, ApiFailed
from ansible.module_utils.basic import AnsibleModule

POLL_SECONDS = 0.25
FIRST_SLOT = datetime(2000, 1, 1, tzinfo=UTC)


class QueueSampler(threading.Thread):
    """Reads the queues' lengths, four times a second, until stopped."""

    def __init__(self, url: str, queues: list[str]) -> None:
        super().__init__(daemon=True)
        self._url, self._queues = url, queues
        self._stopped = threading.Event()
        self.samples: list[dict[str, float]] = []

    def run(self) -> None:
        """Sample; a broker that does not answer leaves a gap."""
        import redis

        client = redis.Redis.from_url(self._url, socket_timeout=2, socket_connect_timeout=2)
        while not self._stopped.wait(POLL_SECONDS):
            try:
                lengths: list[Any] = [client.llen(queue) for queue in self._queues]
                in_work: Any = client.hlen("unacked")
                sample = {"at": time.time(), "length": sum(lengths), "unacknowledged": in_work}
            except redis.RedisError:
                continue
            # What stays the same needs no second sample.
            if not self.samples or {**self.samples[-1], "at": 0} != {**sample, "at": 0}:
                self.samples.append(sample)

    def stop(self) -> list[dict[str, float]]:
        """End the thread and return what it has seen."""
        self._stopped.set()
        self.join(timeout=5)
        return self.samples


def instant(text: str) -> float:
    """Seconds since 1970 of the API's ISO 8601."""
    return datetime.fromisoformat(text).timestamp()


class Case:
    """Repetitions of the same runs."""

    def __init__(self, api: Api, options: dict[str, Any]) -> None:
        self._api, self._options = api, options
        self._dag = urllib.parse.quote(options["dag"], safe="")
        self._slot = int(options["first_slot"])

    def repeat(self) -> list[dict[str, Any]]:
        """Run all repetitions with the DAG unpaused, and leave it as it was."""
        paused = self._api.get(f"/dags/{self._dag}")["is_paused"]
        self._pause(False)
        try:
            return [self._once() for _ in range(self._options["repeats"])]
        finally:
            if paused:
                self._pause(True)

    def _pause(self, paused: bool) -> None:
        self._api.call("PATCH", f"/api/v2/dags/{self._dag}?update_mask=is_paused", {"is_paused": paused})

    def _once(self) -> dict[str, Any]:
        began = time.time()
        ids = [self._trigger() for _ in range(self._options["runs"])]
        runs: dict[str, dict[str, Any]] = {}
        while len(runs) < len(ids):
            if time.time() - began > self._options["seconds"]:
                raise ApiFailed(f"{len(ids) - len(runs)} of {len(ids)} runs took over {self._options['seconds']} s")
            time.sleep(POLL_SECONDS)
            for run_id in ids:
                if run_id not in runs:
                    run = self._api.get(self._path(run_id))
                    if run["state"] in {"success", "failed"}:
                        runs[run_id] = run
        ended = max(instant(run["end_date"]) for run in runs.values())
        return {
            "began": began,
            "ended": ended,
            "seconds": round(ended - began, 2),
            "runs": [self._figures(run) for run in runs.values()],
        }

    def _path(self, run_id: str) -> str:
        return f"/dags/{self._dag}/dagRuns/{urllib.parse.quote(run_id, safe='')}"

    def _trigger(self) -> str:
        slot = FIRST_SLOT + timedelta(seconds=self._slot)
        self._slot += 1
        conf = {
            "records": self._options["records"],
            "batch_size": self._options["batch_size"],
            "slot": slot.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        run = self._api.call("POST", f"/api/v2/dags/{self._dag}/dagRuns", {"logical_date": None, "conf": conf})
        return str(run["dag_run_id"])

    def _figures(self, run: dict[str, Any]) -> dict[str, Any]:
        run_id = run["dag_run_id"]
        if run["state"] != "success":
            raise ApiFailed(f"run {run_id} of {self._options['dag']} is {run['state']}; its log tells why")
        task = urllib.parse.quote(self._options["task"], safe="")
        # As an object, not as the text of one.
        path = f"{self._path(run_id)}/taskInstances/{task}/xcomEntries/return_value"
        job = self._api.get(path, deserialize="false", stringify="false")["value"]
        if job["counts"]["total"] != self._options["records"]:
            raise ApiFailed(f"run {run_id} took {job['counts']['total']} records, not {self._options['records']}")
        return {
            "run_id": run_id,
            "seconds": round(instant(run["end_date"]) - instant(run["queued_at"]), 2),
            "service_seconds": round(instant(job["finished_at"]) - instant(job["created_at"]), 2),
            "records": job["counts"]["total"],
        }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "url": {"required": True},
            "user": {"required": True},
            "password": {"required": True, "no_log": True},
            "ca_file": {"type": "path"},
            "dag": {"default": "test_load"},
            "task": {"default": "apply_rules"},
            "records": {"type": "int", "required": True},
            "batch_size": {"type": "int", "default": 1000},
            "runs": {"type": "int", "default": 1},
            "repeats": {"type": "int", "default": 1},
            "seconds": {"type": "int", "default": 1800},
            "first_slot": {"type": "int", "required": True},
            "broker_url_file": {"type": "path", "default": "/etc/airflow/credentials/broker_url"},
            "queues": {"type": "list", "elements": "str", "default": ["default"]},
        }
    )
    options = module.params
    try:
        with open(options["broker_url_file"], encoding="utf-8") as file:
            sampler = QueueSampler(file.read().strip(), options["queues"])
        api = Api(options["url"], ca_file=options["ca_file"])
        api.login(options["user"], options["password"])
        sampler.start()
        repetitions = Case(api, options).repeat()
    except (ApiFailed, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=True, repetitions=repetitions, queue=sampler.stop())


if __name__ == "__main__":
    main()
