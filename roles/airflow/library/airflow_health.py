#!/usr/bin/python
"""Wait until the Airflow components of a platform are healthy."""

from __future__ import annotations

DOCUMENTATION = r"""
module: airflow_health
short_description: Wait until Airflow is healthy
description:
  - Asks the API server for its version and for the state of scheduler, triggerer, dag-processor and metadata database,
    and sends one request to the execution API, whose first answer after a start takes longer than a task would wait.
  - Asks the log server of a worker.
  - The health page answers 200 whatever it says, so its text is what counts.
options:
  api: {description: URL of the API server; empty on a host that runs none., default: ""}
  version: {description: Version that must answer., default: ""}
  worker: {description: Whether a worker runs on this host., type: bool, default: false}
  seconds: {description: How long to wait., type: int, default: 180}
attributes:
  check_mode: {support: full}
"""
EXAMPLES = r"""
- name: Wait until Airflow is healthy
  airflow_health:
    api: http://scheduler-1:8080
    version: 3.3.2
"""
RETURN = r"""
waited: {description: Seconds until all was healthy., type: float, returned: success}
"""

import json
import socket
import time
import urllib.error
import urllib.request
from typing import Any

from ansible.module_utils.basic import AnsibleModule

PAUSE_SECONDS = 0.5
LOG_SERVER_PORT = 8793


def fetch(url: str) -> Any:
    """Return the JSON at a URL. Raises OSError or ValueError."""
    with urllib.request.urlopen(url, timeout=15) as answer:  # noqa: S310 - the scheme is the inventory's
        return json.load(answer)


def unhealthy(health: dict[str, dict[str, Any]]) -> list[str]:
    """Name the components that are not healthy in the answer of /api/v2/monitor/health."""
    wanted = ("metadatabase", "scheduler", "triggerer", "dag_processor")
    return [
        f"{name} is {health.get(name, {}).get('status')}"
        for name in wanted
        if health.get(name, {}).get("status") != "healthy"
    ]


def problems(api: str, version: str, worker: bool) -> list[str]:
    """Return what is wrong now, in words."""
    found = []
    if api:
        try:
            running = fetch(f"{api}/api/v2/version")["version"]
            if version and running != version:
                found.append(f"the API server runs {running}, not {version}")
            found += unhealthy(fetch(f"{api}/api/v2/monitor/health"))
            fetch(f"{api}/execution/health")
        except (OSError, ValueError) as error:
            found.append(f"{api} does not answer: {error}")
    if worker:
        try:
            socket.create_connection(("127.0.0.1", LOG_SERVER_PORT), timeout=3).close()
        except OSError as error:
            found.append(f"the worker's log server (port {LOG_SERVER_PORT}) does not answer: {error}")
    return found


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "api": {"default": ""},
            "version": {"default": ""},
            "worker": {"type": "bool", "default": False},
            "seconds": {"type": "int", "default": 180},
        },
        supports_check_mode=True,
    )
    p = module.params
    start = time.monotonic()
    while True:
        found = problems(p["api"].rstrip("/"), p["version"], p["worker"])
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
