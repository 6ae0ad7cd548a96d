"""What the daily transformation DAGs have in common: limits, retries, and the slot that every path to a day shares.

A DAG file keeps what a reader looks for first (id, schedule, owner, tags, the work itself) and takes the rest from
here::

    with DAG(dag_id="...", schedule="0 2 * * *", ..., **daily_settings(owner="transformation")):
        RuleEngineOperator(..., slot=SLOT_OF_DAY)
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from airflow.sdk import Param

SLOT_OF_DAY = "{{ slot_of_day(params, dag_run) }}"
"""Template of :func:`slot_of_day` for the run at hand, in every DAG made with :func:`daily_settings`."""


class Run(Protocol):
    """The part of a DAG run that says when its work is due."""

    @property
    def logical_date(self) -> datetime | None:
        """The tick of the schedule, if the run belongs to one."""

    @property
    def run_after(self) -> datetime:
        """When the run may start; never empty."""


def slot_of_day(params: Mapping[str, Any], dag_run: Run) -> str:
    """Name the day that a run works for, so that every run of one UTC day, whoever started it, does the same work.

    The service transforms a record once per slot. With the instant of each run as slot, an entity would be transformed
    twice a day: by its own schedule and by ``master_orchestration``.

    :param params: the run's params; a ``slot`` among them is taken as it is
    :param dag_run: its logical date decides, else (a run started by hand or by another DAG) the time it may start at;
        neither changes when the run is retried or cleared on a later day
    :return: midnight UTC, as ``2026-01-31T00:00:00Z``
    """
    if given := params.get("slot"):
        return str(given)
    moment = dag_run.logical_date or dag_run.run_after
    return moment.astimezone(UTC).strftime("%Y-%m-%dT00:00:00Z")


def daily_settings(*, owner: str, longest_run: timedelta = timedelta(hours=4)) -> dict[str, Any]:
    """Return arguments for ``DAG``, made anew for each.

    :param owner: who answers for the DAG's tasks
    :param longest_run: a run that takes longer is failed
    """
    return {
        "start_date": datetime(2024, 1, 1, tzinfo=UTC),  # its zone is the zone of the schedule
        "catchup": False,
        "max_active_runs": 4,  # a run that waits for its retry holds up no run of another slot
        "dagrun_timeout": longest_run,
        "params": {
            "slot": Param(
                None,
                type=["null", "string"],
                title="Slot",
                description="UTC instant that names the work, such as 2026-01-31T12:00:00Z. Empty: the day of the run.",
            ),
        },
        "user_defined_macros": {"slot_of_day": slot_of_day},
        "default_args": {
            "owner": owner,
            "retries": 4,
            "retry_delay": timedelta(minutes=2),
            "retry_exponential_backoff": True,
            "max_retry_delay": timedelta(minutes=15),
            "execution_timeout": timedelta(minutes=30),
        },
    }
