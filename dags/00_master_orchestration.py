"""
### master_orchestration

Runs the day's three transformations one after the other: users, then applications, then discovery metadata. It waits
for each in the triggerer, so it holds no worker, and stops at the first that fails.

| | |
|---|---|
| Schedule | 01:00 UTC |
| Starts, in order | `user_transformation`, `application_transformation`, `discovery_transformation` |
| Owner | transformation, Slack `#transformations` |
| Runbook | `docs/runbooks/transformation_dags.md` in the repository of this DAG |
| Needs | all three unpaused; a paused one fails its task here at once, with its name |

**The slot.** The master hands its UTC day on as the slot of all three, also when one of them starts after midnight or
days later. Their own schedules (02:00, 03:00, 04:00 UTC) name the same slot: they find the day's work done, or do it
when the master was paused or stopped. The param `slot` overrides the day, and is handed on.

**When it fails.** A transformation that failed has used up its own retries, so its task here fails at once and what
comes after it does not start. Open the run by the button *Triggered DAG* and put right what stopped it. Then clear the
failed task *here*: it starts a new run for the same slot, which takes over where the failed one stopped, and the
master goes on with the rest. Faults of the platform itself, such as a lost worker, are retried.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.operators.trigger_dagrun import DagIsPaused, TriggerDagRunOperator
from airflow.sdk import DAG, ExceptionRetryPolicy, RetryAction, RetryRule, chain
from airflow.sdk.exceptions import AirflowException

from plugins.daily import SLOT_OF_DAY, daily_settings

# The operator raises a plain AirflowException for a failed run, and only for that.
STOP_ON_FAILURE = ExceptionRetryPolicy(
    [
        RetryRule(
            exception=[AirflowException, DagIsPaused],
            match_subclasses=False,
            action=RetryAction.FAIL,
            reason="The transformation failed after its own retries, or is paused",
        )
    ]
)

with DAG(
    dag_id="master_orchestration",
    description="The day's transformations in order: users, applications, discovery",
    doc_md=__doc__,
    schedule="0 1 * * *",
    tags=["transformation", "orchestration"],
    **daily_settings(owner="transformation", longest_run=timedelta(hours=12)),
):
    triggers = [
        TriggerDagRunOperator(
            task_id=f"trigger_{dag_id}",
            trigger_dag_id=dag_id,
            conf={"slot": SLOT_OF_DAY},
            logical_date=None,  # the slot says which day it is for; a tick of that DAG's own would collide
            fail_when_dag_is_paused=True,  # its run would stay queued, and this task would wait
            wait_for_completion=True,
            deferrable=True,
            poke_interval=1,
            retry_policy=STOP_ON_FAILURE,
        )
        for dag_id in ("user_transformation", "application_transformation", "discovery_transformation")
    ]

    chain(EmptyOperator(task_id="start"), *triggers, EmptyOperator(task_id="end"))
