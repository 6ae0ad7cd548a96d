#!/usr/bin/python
"""Wait until the Airflow components of a host are healthy."""

from __future__ import annotations

DOCUMENTATION = r"""
module: airflow_health
short_description: Wait until Airflow's components on this host are healthy
description:
  - Judges this host alone. Airflow's health page tells of any scheduler that still sends heartbeats, on another host
    or the one from before a restart, so it proves nothing about what was started here.
  - "api-server: the wanted version answers, and the execution API, whose first answer after a start takes longer
    than a task would wait."
  - "scheduler, dag-processor, triggerer: the metadata database has a heartbeat of a process of this host that is
    not older than its unit's start."
  - "worker: consumes its queues, asked over the broker, and its log server answers."
  - Runs with the Python of Airflow's venv.
options:
  host: {description: Name of this host in Airflow., required: true}
  components: {description: What runs on this host., type: list, elements: str, required: true}
  api: {description: URL of the API server of this host., default: "http://127.0.0.1:8081"}
  proxy_port: {description: Port that this host's proxy has to listen on., type: int}
  version: {description: Version that must answer., default: ""}
  seconds: {description: How long to wait., type: int, default: 180}
attributes:
  check_mode: {support: full}
"""
EXAMPLES = r"""
- name: Wait until Airflow is healthy
  airflow_health:
    host: scheduler-1
    components: [api-server, scheduler, dag-processor, triggerer]
    version: 3.3.2
  vars:
    ansible_python_interpreter: /opt/airflow/venv/bin/python
"""
RETURN = r"""
waited: {description: Seconds until all was healthy., type: float, returned: success}
"""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.module_utils.airflow_runtime import credential
from ansible.module_utils.airflow_workers import BrokerFailed, active_queues, consumed
from ansible.module_utils.basic import AnsibleModule

PAUSE_SECONDS = 0.5
LOG_SERVER_PORT = 8793
JOBS = {"scheduler": "SchedulerJob", "dag-processor": "DagProcessorJob", "triggerer": "TriggererJob"}
# Each sends one every 5 s; Airflow itself calls a process dead after 30.
HEARTBEAT_SECONDS = 30


def fetch(url: str) -> Any:
    """Return the JSON at a URL. Raises OSError or ValueError."""
    with urllib.request.urlopen(url, timeout=15) as answer:  # noqa: S310 - the scheme is the inventory's
        return json.load(answer)


def api_problems(api: str, version: str) -> list[str]:
    """Say what is wrong with the API server."""
    try:
        running = fetch(f"{api}/api/v2/version")["version"]
        fetch(f"{api}/execution/health")
    except (OSError, ValueError) as error:
        return [f"{api} does not answer: {error}"]
    return [f"the API server runs {running}, not {version}"] if version and running != version else []


def job_problems(
    components: Sequence[str],
    jobs: Sequence[tuple[str, float, float]],
    starts: Mapping[str, float],
    now: float,
) -> list[str]:
    """Say which components sent no heartbeat since their units started.

    ``jobs``: rows (job type, start, last heartbeat) of this host's running jobs; ``starts``: start of each component's
    unit; all in seconds since the epoch, by this host's clock.
    """
    alive = {
        component
        for component in components
        for job_type, start, beat in jobs
        if job_type == JOBS[component] and start >= starts[component] and now - beat < HEARTBEAT_SECONDS
    }
    return [f"{component} has sent no heartbeat since its start" for component in components if component not in alive]


def read_jobs(host: str) -> list[tuple[str, float, float]]:
    """Read the running jobs of a host. Raises psycopg2.Error."""
    import psycopg2

    url = credential("sql_alchemy_conn").replace("+psycopg2", "", 1)
    with psycopg2.connect(url, connect_timeout=10) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT job_type, extract(epoch FROM start_date)::float8, extract(epoch FROM latest_heartbeat)::float8"
            " FROM job WHERE hostname = %s AND state = 'running' AND job_type = ANY(%s)",
            (host, list(JOBS.values())),
        )
        return list(cursor.fetchall())


def unit_starts(components: Sequence[str]) -> dict[str, float]:
    """Return when each component's main process started; one that does not run starts in the future."""
    boot = time.time() - time.monotonic()
    starts = {}
    for component in components:
        shown = subprocess.run(
            ["systemctl", "show", "-P", "ExecMainStartTimestampMonotonic", f"airflow-{component}.service"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        monotonic = int(shown.stdout.strip() or 0)
        starts[component] = boot + monotonic / 1e6 if monotonic else float("inf")
    return starts


def worker_problems(host: str, replies: Mapping[str, Any]) -> list[str]:
    """Judge Celery's ``active_queues`` of this host's worker."""
    queues = consumed(replies)
    if host not in queues:
        return ["the worker does not answer over the broker"]
    return [] if queues[host] else ["the worker answers and consumes no queue"]


def port_problems(port: int, name: str) -> list[str]:
    """Say whether nobody listens."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=3).close()
    except OSError as error:
        return [f"{name} (port {port}) does not answer: {error}"]
    return []


def problems(host: str, components: Sequence[str], api: str, version: str, proxy_port: int | None) -> list[str]:
    """Return what is wrong now, in words."""
    found = port_problems(proxy_port, "the proxy") if proxy_port else []
    if "api-server" in components:
        found += api_problems(api, version)
    with_jobs = [component for component in components if component in JOBS]
    if with_jobs:
        import psycopg2

        try:
            found += job_problems(with_jobs, read_jobs(host), unit_starts(with_jobs), time.time())
        except psycopg2.Error as error:  # libpq never puts the password into it
            found.append(f"the metadata database does not answer: {' '.join(str(error).split())}")
    if "worker" in components:
        try:
            found += worker_problems(host, active_queues(credential("broker_url"), [host]))
        except BrokerFailed as error:
            found.append(f"broker: {error}")
        found += port_problems(LOG_SERVER_PORT, "the worker's log server")
    return found


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "host": {"required": True},
            "components": {"type": "list", "elements": "str", "required": True},
            "api": {"default": "http://127.0.0.1:8081"},
            "proxy_port": {"type": "int"},
            "version": {"default": ""},
            "seconds": {"type": "int", "default": 180},
        },
        supports_check_mode=True,
    )
    p = module.params
    start = time.monotonic()
    while True:
        found = problems(p["host"], p["components"], p["api"].rstrip("/"), p["version"], p["proxy_port"])
        waited = round(time.monotonic() - start, 1)
        if not found:
            module.exit_json(changed=False, waited=waited)
        if waited > p["seconds"]:
            module.fail_json(
                msg=f"Not healthy after {waited} s: {'; '.join(found)}. `journalctl -u 'airflow-*'` there says why."
            )
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main()
