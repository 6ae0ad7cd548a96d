"""Prometheus metrics of one process."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

__all__ = ["CONTENT_TYPE", "Metrics"]

SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The metrics, in a registry of their own so that two applications in one process don't meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        PlatformCollector(self.registry)
        ProcessCollector(registry=self.registry)
        prefix = "transformation_service"
        self.requests = Counter(
            f"{prefix}_http_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.jobs = Counter(
            f"{prefix}_jobs", "Jobs that reached a state.", ["entity_type", "state"], registry=self.registry
        )
        self.running = Gauge(f"{prefix}_jobs_running", "Jobs that this process works on.", registry=self.registry)
        self.batches = Counter(f"{prefix}_batches", "Batches confirmed.", ["entity_type"], registry=self.registry)
        self.records = Counter(
            f"{prefix}_records", "Records in confirmed batches.", ["entity_type", "outcome"], registry=self.registry
        )
        self.batch_seconds = Histogram(
            f"{prefix}_batch_seconds",
            "Time from reading a batch to its commit.",
            ["entity_type"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.rule_seconds = Histogram(
            f"{prefix}_rule_seconds",
            "Time of one rule over a batch.",
            ["rule"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.job_seconds = Histogram(
            f"{prefix}_job_seconds",
            "Time from the start of a job to its success.",
            ["entity_type"],
            buckets=(0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600),
            registry=self.registry,
        )
        self.database_up = Gauge(
            f"{prefix}_database_up", "1 if the last use of the database worked.", registry=self.registry
        )

    def render(self) -> bytes:
        """Return the text exposition."""
        return generate_latest(self.registry)
