"""
### user_transformation

Puts every `User` record in order once a day: phone numbers in E.164, e-mail addresses in one form, duplicates marked.
The TransformationService does the work; this DAG checks its input, starts it, waits without holding a worker, checks
the result and tells the figures.

| | |
|---|---|
| Schedule | 02:00 UTC, and from `master_orchestration` at 01:00 UTC; whichever comes first does the day's work |
| Rules | `normalize_phone` and `standardize_email` at the same time, then `deduplicate` |
| Batch | 1000 records |
| Owner | transformation, Slack `#transformations` |
| Runbook | `docs/runbooks/transformation_dags.md` in the repository of this DAG |
| Connections | `transformation_service` (token, timeout); `transformation_db`, read only, for the checks |
| Variables | `transformation_service_url`; `data_checks`, `on` or `off` |

**The tasks.** `pre_check` looks at the table: its columns, repeated ids, the share of empty fields. Without records all
that follows is skipped, and the run succeeds. `apply_rules` has one task for each rule. `quality_check` fails the run
when a record is in the ledger of a rule neither as transformed nor as marked, when a record without country is not
marked, or when more than a quarter of all records are duplicates. `summary` tells what was done, per rule and in all.

**The slot.** Work belongs to a *slot*, here a UTC day. Each rule sees a record once per slot, however often a task is
retried, cleared or triggered again: a later run of the same day finds the slot done, succeeds at once and says so in
`summary`. A run started by hand belongs to the slot in its param `slot`, else to the day of its logical date, else to
its own day. Records that came in after the day's run are next day's work; to have them done today, trigger a run with a
slot of your own, such as the present instant. It covers all records anew.

**When it fails.** Short faults of the service are retried within the task, within seconds. Each of a task's own
retries, 2 to 15 minutes apart, takes over where the failed job stopped. A failed check is not retried: its message has
the figures. To run a task again by hand, clear it: records that are done stay untouched. The button *Transformation
job* on the tasks in `apply_rules` leads to the job.
"""

from __future__ import annotations

from airflow.sdk import DAG

from plugins.daily import daily_settings, transformation_tasks

with DAG(
    dag_id="user_transformation",
    description="Daily transformation of User records",
    doc_md=__doc__,
    schedule="0 2 * * *",
    tags=["transformation", "user"],
    **daily_settings(owner="transformation"),
) as dag:
    transformation_tasks(
        entity_type="User",
        stages=[["normalize_phone", "standardize_email"], ["deduplicate"]],
        batch_size=1000,
        duplicates_at_most=0.25,
    )
