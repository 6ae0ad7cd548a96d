"""Lets every worker run more, or fewer, tasks at once, without a restart."""

from __future__ import annotations

from pathlib import Path


def main(data: int) -> list[object]:
    """Grow (or, below zero, shrink) each worker's pool by so many processes."""
    from celery import Celery

    app = Celery(broker=Path("/etc/airflow/credentials/broker_url").read_text().strip(), set_as_current=False)
    try:
        act = app.control.pool_grow if data > 0 else app.control.pool_shrink
        return list(act(abs(data), reply=True, timeout=5))
    finally:
        app.close()
