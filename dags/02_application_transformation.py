"""
### application_transformation

Puts every `Application` record in order once a day: names in one spelling, categories mapped to the controlled
vocabulary. The TransformationService does the work; this DAG checks its input, starts it, waits without holding a
worker, checks the result and tells the figures.

| | |
|---|---|
| Schedule | 03:00 UTC, and from `master_orchestration` at 01:00 UTC; whichever comes first does the day's work |
| Rules | `normalize_name` and `validate_category` at the same time |
| Batch | 500 records |
| Owner | transformation, Slack `#transformations` |
| Runbook | `docs/runbooks/transformation_dags.md` in the repository of this DAG |
| Connections | `transformation_service` (token, timeout); `transformation_db`, read only, for the checks |
| Variables | `transformation_service_url`; `data_checks`, `on` or `off` |

**The tasks.** `pre_check` looks at the table: its columns, repeated ids, the share of empty fields. Without records all
that follows is skipped, and the run succeeds. `apply_rules` has one task for each rule. `quality_check` fails the run
when a record is in the ledger of a rule neither as transformed nor as marked, or when a record without name or category
is not marked. `summary` tells what was done, per rule and in all.

**The slot.** Work belongs to a *slot*, here a UTC day, and each rule sees a record once per slot: a later run of the
same day succeeds at once and says in `summary` that the slot was done. The param `slot` overrides the day; with the
present instant in it, a run covers all records anew.

**Marked records.** A category that is near none of the vocabulary is left as it is and the record is *marked*, which is
no failure. The ledger of the service (`transformation_record`, outcome `marked`) has the reason of each. Correct the
source; the next day's run takes the record up again.

**When it fails.** Short faults of the service are retried within seconds, a task itself 2 to 15 minutes apart; each
retry goes on where the failed job stopped. A failed check is not retried: its message has the figures. By hand: clear
the failed task. The button *Transformation job* on the tasks in `apply_rules` leads to the job.
"""

from __future__ import annotations

from airflow.sdk import DAG

from plugins.daily import daily_settings, transformation_tasks

with DAG(
    dag_id="application_transformation",
    description="Daily transformation of Application records",
    doc_md=__doc__,
    schedule="0 3 * * *",
    tags=["transformation", "application"],
    **daily_settings(owner="transformation"),
) as dag:
    transformation_tasks(
        entity_type="Application",
        stages=[["normalize_name", "validate_category"]],
        batch_size=500,
    )
