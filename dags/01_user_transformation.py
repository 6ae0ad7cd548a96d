"""
### user_transformation

Normalises every `User` record once a day, at 02:00 UTC: phone numbers to E.164, e-mail addresses to one form,
duplicates marked. The work happens in the TransformationService; this DAG starts it, waits for it without holding a
worker, and reports the figures.

**The slot.** Work belongs to a *slot*, the UTC instant of the schedule's tick. Records are transformed once per slot,
however often a task is retried, cleared or triggered again. A run started by hand belongs to the slot in its param
`slot`, else to its logical date, else to its day.

**When it fails.** Short faults of the service are retried within the task, within seconds. Each of the task's own
retries, 2 to 15 minutes apart, takes over where the failed job stopped. To run it again by hand, clear `apply_rules`:
records that are done stay untouched. The button *Transformation job* on the task leads to the job; its figures are in
the task's XCom `return_value`.

**Configuration.** Variable `transformation_service_url`; connection `transformation_service` (token, timeout).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Param

from plugins.operators import RuleEngineOperator

with DAG(
    dag_id="user_transformation",
    description="Daily transformation of User records",
    doc_md=__doc__,
    schedule="0 2 * * *",
    start_date=datetime(2024, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=4,  # a run that waits for its retry holds up no run of another slot
    dagrun_timeout=timedelta(hours=4),
    params={
        "slot": Param(
            None,
            type=["null", "string"],
            title="Slot",
            description="UTC instant of the work, such as 2026-01-31T02:00:00Z. Empty: the logical date.",
        ),
    },
    default_args={
        "owner": "transformation",
        "retries": 4,
        "retry_delay": timedelta(minutes=2),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(minutes=15),
        "execution_timeout": timedelta(minutes=30),
    },
    tags=["transformation", "user"],
):
    start = EmptyOperator(task_id="start")

    apply_rules = RuleEngineOperator(
        task_id="apply_rules",
        transformation_service_url="{{ var.value.transformation_service_url }}",
        entity_type="User",
        rules=["normalize_phone", "standardize_email", "deduplicate"],
        batch_size=1000,
        retry_count=3,
    )

    end = EmptyOperator(task_id="end")

    start >> apply_rules >> end
