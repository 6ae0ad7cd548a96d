"""What the daily transformation DAGs have in common: limits, retries, the slot that every path to a day shares, and the
chain of tasks.

A DAG file keeps what a reader looks for first (id, schedule, owner, tags, the work itself) and takes the rest from
here::

    with DAG(dag_id="...", schedule="0 2 * * *", ..., **daily_settings(owner="transformation")):
        transformation_tasks(entity_type="User", stages=[["normalize_phone", "standardize_email"], ["deduplicate"]])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

from airflow.providers.common.sql.operators.sql import SQLColumnCheckOperator
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import BaseOperator, Param, TaskGroup
from airflow.sdk.bases.skipmixin import SkipMixin

from plugins import quality
from plugins.operators import RuleEngineOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

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


def daily_settings(
    *, owner: str, longest_run: timedelta = timedelta(hours=4), params: Mapping[str, Param] | None = None
) -> dict[str, Any]:
    """Return arguments for ``DAG``, made anew for each.

    :param owner: who answers for the DAG's tasks
    :param longest_run: a run that takes longer is failed
    :param params: params beside ``slot``
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
            **(params or {}),
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


class DataCheck(SQLColumnCheckOperator):
    """Compare figures of the database with their limits, in one statement.

    A figure beyond its limit fails the run at once, with all figures in the message: the same query would give the same
    answer in every retry. Those are for a database that does not answer.

    :param entity_type: whose records, see :data:`plugins.quality.ENTITIES`
    :param figures: see :mod:`plugins.quality`
    :param enabled: template of ``on`` or ``off``; a TransformationService of one's own may keep its records elsewhere
    """

    template_fields: Sequence[str] = (*SQLColumnCheckOperator.template_fields, "enabled")

    def __init__(
        self,
        *,
        entity_type: str,
        figures: Mapping[str, quality.Figure],
        enabled: str = "{{ var.value.get('data_checks', 'on') }}",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            table=quality.ENTITIES[entity_type].table,
            column_mapping={
                name: {
                    "max": {"geq_to": figure.at_least} if figure.at_most is None else {"leq_to": figure.at_most},
                }
                for name, figure in figures.items()
            },
            conn_id="transformation_db",
            retry_on_failure=False,
            **kwargs,
        )
        # The operator's own query would look at the table once for each figure, and cannot see the ledger.
        self.sql = f"SELECT figure, 'max', value FROM (\n{quality.query(figures)}\n) AS figures"  # noqa: S608 - our own text
        self.entity_type = entity_type
        self.enabled = enabled

    def execute(self, context: Context) -> Any:
        """Check, unless the checks are off."""
        if self.enabled == "off":
            self.log.info("Not checked: the variable data_checks is off")
        else:
            self.check(context)

    def check(self, context: Context) -> None:
        """Check.

        :raises AirflowFailException: a figure is beyond its limit
        """
        super().execute(context)


class InputCheck(DataCheck, SkipMixin):
    """Check an entity's records before they are transformed. Without records there is nothing to do: all that follows
    is skipped, and the run succeeds.
    """

    def __init__(self, *, entity_type: str, **kwargs: Any) -> None:
        super().__init__(entity_type=entity_type, figures=quality.input_figures(entity_type), **kwargs)

    def check(self, context: Context) -> None:
        """Check the columns first, as every other query needs them.

        :raises AirflowFailException: a column is missing, or a figure is beyond its limit
        """
        hook = self.get_db_hook()
        if missing := [row[0] for row in hook.get_records(quality.columns_query(self.entity_type))]:
            self._raise_exception(f"{quality.ENTITIES[self.entity_type].table} lacks {', '.join(missing)}")
        if not hook.get_first(quality.records_query(self.entity_type))[0]:
            self.log.info("No %s records: nothing to transform", self.entity_type)
            self.skip(context["ti"], context["task"].get_flat_relatives(upstream=False))
        super().check(context)


class Summary(BaseOperator):
    """Tell what a run did, per rule set and in all, in its log and as its result.

    ``{"entity_type", "slot", "already_done", "rule_sets": {name: figures}, "all": figures}``; figures are ``total``,
    ``transformed`` and ``marked`` records, ``seconds``, and ``already_done``: whether a run before this one did it.
    In ``all`` a record counts once for each rule set.

    :param rule_sets: task id of each rule set by its name
    """

    def __init__(self, *, rule_sets: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rule_sets = rule_sets

    def execute(self, context: Context) -> dict[str, Any]:
        """Read the results of the rule sets' tasks."""
        jobs = {name: context["ti"].xcom_pull(task_ids=task_id) for name, task_id in self.rule_sets.items()}
        run = context["dag_run"]
        result = summarize(jobs, run.start_date or run.run_after)
        self.log.info("%s, slot %s", result["entity_type"], result["slot"])
        for name, figures in [*result["rule_sets"].items(), ("all", result["all"])]:
            self.log.info(
                "%s: %s records, %s transformed, %s marked, %.1f s%s",
                *(name, figures["total"], figures["transformed"], figures["marked"], figures["seconds"]),
                ", done by an earlier run" if figures["already_done"] else "",
            )
        if result["already_done"]:
            self.log.info("Nothing was left to do: an earlier run has done this slot")
        return result


def summarize(jobs: Mapping[str, Mapping[str, Any]], begin: datetime) -> dict[str, Any]:
    """Put the results of the rule sets together, see :class:`Summary`.

    :param jobs: summary of each rule set's job, as :class:`plugins.operators.RuleEngineOperator` returns it
    :param begin: when the run started
    """

    def figures(job: Mapping[str, Any]) -> dict[str, Any]:
        finished = datetime.fromisoformat(job["finished_at"])
        return {
            **{name: job["counts"][name] for name in ("total", "transformed", "marked")},
            "seconds": round((finished - datetime.fromisoformat(job["started_at"])).total_seconds(), 3),
            # A retry in this run finds its own job done, too.
            "already_done": bool(job["replayed"]) and finished < begin,
        }

    rule_sets = {name: figures(job) for name, job in jobs.items()}
    done = all(each["already_done"] for each in rule_sets.values())
    sums = {name: sum(each[name] for each in rule_sets.values()) for name in ("total", "transformed", "marked")}
    seconds = round(sum(each["seconds"] for each in rule_sets.values()), 3)
    first = next(iter(jobs.values()))
    return {
        "entity_type": first["entity_type"],
        "slot": first["slot"],
        "already_done": done,
        "rule_sets": rule_sets,
        "all": {**sums, "seconds": seconds, "already_done": done},
    }


def transformation_tasks(
    *, entity_type: str, stages: Sequence[Sequence[str]], batch_size: int, duplicates_at_most: float | None = None
) -> None:
    """Add the tasks of a daily transformation to the DAG at hand: check the input, apply each rule to all records of
    the day, check the result, summarize.

    Each rule is a rule set of its own: a task that can be retried and seen alone, and a job in the service.

    :param stages: rules, those of one stage at the same time, one stage after the other
    :param batch_size: records per transaction of the service
    :param duplicates_at_most: share of records that may be duplicates before the run fails; None: any
    """
    with TaskGroup("apply_rules"):
        applied = [
            [
                RuleEngineOperator(
                    task_id=rule,
                    transformation_service_url="{{ var.value.transformation_service_url }}",
                    entity_type=entity_type,
                    rules=[rule],
                    batch_size=batch_size,
                    slot=SLOT_OF_DAY,
                )
                for rule in rules
            ]
            for rules in stages
        ]
    task_ids = {task.rules[0]: task.task_id for tasks in applied for task in tasks}
    jobs = [f"{{{{ ti.xcom_pull(task_ids='{task_id}')['job_id'] }}}}" for task_id in task_ids.values()]
    steps: list[Sequence[BaseOperator]] = [
        [EmptyOperator(task_id="start")],
        [InputCheck(task_id="pre_check", entity_type=entity_type)],
        *applied,
        [
            DataCheck(
                task_id="quality_check",
                entity_type=entity_type,
                figures=quality.output_figures(entity_type, jobs, duplicates_at_most),
            )
        ],
        [Summary(task_id="summary", rule_sets=task_ids)],
        [EmptyOperator(task_id="end")],
    ]
    for before, after in pairwise(steps):
        for task in before:
            task >> after
