"""20 tasks that wait for a file, and one that waits in the triggerer, to be in the middle of something."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from airflow.providers.standard.sensors.date_time import DateTimeSensorAsync
from airflow.sdk import DAG, get_current_context, task

with DAG(
    "upgrade_probe", schedule=None, is_paused_upon_creation=False, max_active_tasks=64, default_args={"retries": 2}
):

    @task
    def held(number: int) -> int:
        """Wait for the file."""
        context: Any = get_current_context()
        while not Path(context["dag_run"].conf["gate"]).exists():
            time.sleep(0.2)
        return number

    held.expand(number=list(range(20)))
    DateTimeSensorAsync(task_id="deferred", target_time="{{ dag_run.conf['until'] }}")
