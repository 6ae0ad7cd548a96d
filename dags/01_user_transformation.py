"""
### user_transformation

Normalises every `User` record once a day: phone numbers to E.164, e-mail addresses to one form, duplicates marked. The
work happens in the TransformationService; this DAG starts it, waits for it without holding a worker, and reports the
figures.

| | |
|---|---|
| Schedule | 02:00 UTC, and from `master_orchestration` at 01:00 UTC; whichever comes first does the day's work |
| Rules, in order | `normalize_phone`, `standardize_email`, `deduplicate` |
| Batch | 1000 records |
| Owner | transformation, Slack `#transformations` |
| Configuration | variable `transformation_service_url`; connection `transformation_service` (token, timeout) |

**The slot.** Work belongs to a *slot*, here a UTC day. Records are transformed once per slot, however often a task is
retried, cleared or triggered again: a later run of the same day finds the slot done, succeeds at once and says so in
the log of `apply_rules`. A run started by hand belongs to the slot in its param `slot`, else to the day of its logical
date, else to its own day. Records that came in after the day's run are next day's work; to have them done today,
trigger a run with a slot of your own, such as the present instant. It covers all records anew.

**When it fails.** Short faults of the service are retried within the task, within seconds. Each of the task's own
retries, 2 to 15 minutes apart, takes over where the failed job stopped. To run it again by hand, clear `apply_rules`:
records that are done stay untouched. The button *Transformation job* on the task leads to the job; its figures are in
the task's XCom `return_value`.
"""

from __future__ import annotations

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

from plugins.daily import SLOT_OF_DAY, daily_settings
from plugins.operators import RuleEngineOperator

with DAG(
    dag_id="user_transformation",
    description="Daily transformation of User records",
    doc_md=__doc__,
    schedule="0 2 * * *",
    tags=["transformation", "user"],
    **daily_settings(owner="transformation"),
):
    start = EmptyOperator(task_id="start")

    apply_rules = RuleEngineOperator(
        task_id="apply_rules",
        transformation_service_url="{{ var.value.transformation_service_url }}",
        entity_type="User",
        rules=["normalize_phone", "standardize_email", "deduplicate"],
        batch_size=1000,
        slot=SLOT_OF_DAY,
    )

    end = EmptyOperator(task_id="end")

    start >> apply_rules >> end
