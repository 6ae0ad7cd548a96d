"""
### test_load

Measures how fast the platform transforms: one job with all three rules over the first `User` records, as many as the
run is asked for. Started by hand or by a test; the figures are in the result (XCom `return_value`) of `apply_rules`.

| | |
|---|---|
| Schedule | none |
| Rules | `normalize_phone`, `standardize_email`, `deduplicate`, one after the other for each batch |
| Batch | 1000 records, or the param `batch_size` |
| Owner | transformation, Slack `#transformations` |
| Runbook | `docs/runbooks/transformation_dags.md` in the repository of this DAG |
| Connections | `transformation_service` (token, timeout) |
| Variables | `transformation_service_url` |

**Params.** `records`: how many, by id; with fewer in the table it takes all. `batch_size`: records per transaction.
`slot`: the instant that the work belongs to; empty: the run's own, so that each run works anew. A slot may be used once
for a number of records; with another number the service refuses it.

**What it changes.** It is real work on the real records, in a slot of its own: rules that were applied before find
nothing to change, and the daily work of the same records is not touched.

**When it fails.** As the daily transformations: see the runbook.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param

from plugins.daily import daily_settings
from plugins.operators import RuleEngineOperator

with DAG(
    dag_id="test_load",
    description="Load test: User records through all rules, as many as asked for",
    doc_md=__doc__,
    schedule=None,
    tags=["transformation", "user", "test"],
    **daily_settings(
        owner="transformation",
        params={
            "records": Param(10_000, type="integer", minimum=1, title="Records"),
            "batch_size": Param(1000, type="integer", minimum=1, maximum=10_000, title="Batch size"),
        },
    ),
):
    RuleEngineOperator(
        task_id="apply_rules",
        transformation_service_url="{{ var.value.transformation_service_url }}",
        entity_type="User",
        rules=["normalize_phone", "standardize_email", "deduplicate"],
        batch_size="{{ params.batch_size }}",
        max_records="{{ params.records }}",
        slot="{{ params.slot or dag_run.logical_date or dag_run.run_after }}",
    )
