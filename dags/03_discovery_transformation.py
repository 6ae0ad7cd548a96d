"""
### discovery_transformation

Checks every `DiscoveryMetadata` record against its JSON Schema once a day and derives what its document implies: host,
domain, environment, network, fingerprint, completeness. The work happens in the TransformationService; this DAG starts
it, waits for it without holding a worker, and reports the figures.

| | |
|---|---|
| Schedule | 04:00 UTC, and from `master_orchestration` at 01:00 UTC; whichever comes first does the day's work |
| Rules, in order | `validate_schema`, `enrich_metadata` |
| Batch | 2000 records |
| Owner | transformation, Slack `#transformations` |
| Configuration | variable `transformation_service_url`; connection `transformation_service` (token, timeout) |

**The slot.** Work belongs to a *slot*, here a UTC day, and each record is transformed once per slot: a later run of the
same day succeeds at once and says in the log of `apply_rules` that the slot was done. The param `slot` overrides the
day; with the present instant in it, a run covers all records anew.

**Marked records.** A document that does not conform to the schema is left as it is and its record is *marked*, which is
no failure. The reason in the ledger of the service (`transformation_record`, outcome `marked`) names the place and the
broken rule, never the value.

**When it fails.** Short faults of the service are retried within seconds, the task itself 2 to 15 minutes apart; each
retry goes on where the failed job stopped. By hand: clear `apply_rules`. The button *Transformation job* on the task
leads to the job.
"""

from __future__ import annotations

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

from plugins.daily import SLOT_OF_DAY, daily_settings
from plugins.operators import RuleEngineOperator

with DAG(
    dag_id="discovery_transformation",
    description="Daily transformation of DiscoveryMetadata records",
    doc_md=__doc__,
    schedule="0 4 * * *",
    tags=["transformation", "discovery"],
    **daily_settings(owner="transformation"),
):
    start = EmptyOperator(task_id="start")

    apply_rules = RuleEngineOperator(
        task_id="apply_rules",
        transformation_service_url="{{ var.value.transformation_service_url }}",
        entity_type="DiscoveryMetadata",
        rules=["validate_schema", "enrich_metadata"],
        batch_size=2000,
        slot=SLOT_OF_DAY,
    )

    end = EmptyOperator(task_id="end")

    start >> apply_rules >> end
