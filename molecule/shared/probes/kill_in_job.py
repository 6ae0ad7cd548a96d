"""Wait for the middle of a job of the TransformationService, and kill it right there if asked to."""

import json
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

TOKEN = Path("/etc/transformation_service/credentials/token")


def main(data: dict[str, Any]) -> dict[str, int]:
    """Take ``url``, ``slot``, ``batches`` to wait for, ``seconds`` to wait at most, whether to ``kill`` the service.

    Returns the job's ``done`` and ``total`` batches at that moment. Raises where the job was over before.
    """
    headers = {"Authorization": f"Bearer {TOKEN.read_text().strip()}"}
    end = time.monotonic() + data["seconds"]
    while time.monotonic() < end:
        request = urllib.request.Request(f"{data['url']}/api/v1/transformations", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            listed = json.load(answer)
        for job in listed["transformations"]:
            if job["slot"] != data["slot"]:
                continue
            if job["state"] not in ("queued", "running"):
                raise RuntimeError(f"too late: {job['state']}, {job['batches']}")
            if job["batches"]["done"] >= data["batches"]:
                if data["kill"]:
                    unit = "transformation-service.service"
                    subprocess.run(["systemctl", "kill", "--kill-whom=all", "--signal=KILL", unit], check=True)
                return {"done": job["batches"]["done"], "total": job["batches"]["total"]}
        time.sleep(0.02)
    raise RuntimeError(f"no job for slot {data['slot']} in {data['seconds']} s")
