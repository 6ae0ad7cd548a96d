"""What the data must look like before and after a transformation: SQL and limits, without Airflow.

The DAGs' tasks `pre_check` and `quality_check` and ``scripts/validate_input.py`` ask the same figures from here. The
statements read only; the role ``platform_checks`` may run them.
"""

# ruff: noqa: S608 - statements are made of the names in this file, and job ids of the service
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NULL_SHARE = 0.2
"""Share of records without a value above which a field counts as lost by the loader, and not as left out by people."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where the records of an entity are, and what each should have.

    Attributes:
        table: The table or view, with the columns ``id`` and those below.
        inputs: Fields that a loader fills for nearly all records.
        results: Fields that a record has after the rules, or else is marked.
        duplicates: Whether it has ``duplicate_of``, written by the rule ``deduplicate``.
    """

    table: str
    inputs: tuple[str, ...]
    results: tuple[str, ...]
    duplicates: bool = False


ENTITIES: Mapping[str, Data] = {
    "User": Data(
        table="user_record",
        inputs=("full_name", "email", "phone", "country"),
        results=("country",),  # without it a national number cannot be read; the rules leave other fields empty
        duplicates=True,
    ),
    "Application": Data(table="application_record", inputs=("name", "category"), results=("name", "category")),
    "DiscoveryMetadata": Data(
        table="discovery_metadata_record", inputs=("source", "document"), results=("document", "metadata")
    ),
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number: a scalar query and the limits that it must keep."""

    sql: str
    at_least: float | None = None
    at_most: float | None = None

    def keeps(self, value: float) -> bool:
        """Whether a value is within the limits."""
        return not (
            (self.at_least is not None and value < self.at_least) or (self.at_most is not None and value > self.at_most)
        )

    @property
    def limits(self) -> str:
        """The limits in words."""
        bounds = (("at least", self.at_least), ("at most", self.at_most))
        return ", ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)


def columns_query(entity_type: str) -> str:
    """Return a query for the columns that the entity's table lacks, one a row; all of them if there is no table."""
    data = ENTITIES[entity_type]
    wanted = dict.fromkeys(("id", *data.inputs, *data.results, *(["duplicate_of"] if data.duplicates else [])))
    names = ", ".join(f"'{name}'" for name in wanted)
    # An unknown table gives null; the search path decides which one is meant, as in the other queries.
    return (
        f"SELECT wanted FROM unnest(ARRAY[{names}]) AS wanted WHERE NOT EXISTS (SELECT FROM pg_attribute "
        f"WHERE attrelid = to_regclass('{data.table}') AND attname = wanted AND NOT attisdropped)"
    )


def records_query(entity_type: str) -> str:
    """Return a query for whether there is any record: one boolean."""
    return f"SELECT EXISTS (SELECT FROM {ENTITIES[entity_type].table})"


def input_figures(entity_type: str) -> dict[str, Figure]:
    """Return what must be true of the records before a transformation, by the figure's name."""
    data = ENTITIES[entity_type]
    return {
        "records": Figure(sql=f"SELECT count(*) FROM {data.table}", at_least=1),
        "repeated_ids": Figure(sql=f"SELECT count(*) - count(DISTINCT id) FROM {data.table}", at_most=0),
        **{
            f"null_share_{field}": Figure(
                sql=f"SELECT round(avg(({field} IS NULL)::int), 4) FROM {data.table}",
                at_most=NULL_SHARE,
            )
            for field in data.inputs
        },
    }


def output_figures(
    entity_type: str, job_ids: Sequence[str], duplicates_at_most: float | None = None
) -> dict[str, Figure]:
    """Return what must be true after the jobs of a run, by the figure's name.

    :param job_ids: the jobs, one for each rule set, or templates of their ids
    :param duplicates_at_most: share of records that may be duplicates of others; None: any
    """
    data = ENTITIES[entity_type]
    ids = ", ".join(f"'{job_id}'" for job_id in job_ids)
    job = f"transformation_job AS job WHERE job.id IN ({ids})"
    records = f"{data.table} AS record WHERE record.id <= (SELECT max(max_record_id) FROM {job})"
    figures = {
        "rule_sets": Figure(sql=f"SELECT count(*) FROM {job}", at_least=len(job_ids)),
        "records": Figure(sql=f"SELECT count(*) FROM {records}", at_least=1),
        # One for each rule set that has not seen a record: neither transformed nor marked.
        "missing_in_ledger": Figure(
            sql=f"SELECT count(*) FROM {data.table} AS record CROSS JOIN {job} AND record.id <= job.max_record_id "
            "AND NOT EXISTS (SELECT FROM transformation_record AS done "
            "WHERE done.job_id = job.id AND done.record_id = record.id)",
            at_most=0,
        ),
        **{
            f"null_{field}": Figure(
                sql=f"SELECT count(*) FROM {records} AND record.{field} IS NULL AND NOT EXISTS "
                f"(SELECT FROM transformation_record AS done WHERE done.job_id IN ({ids}) "
                "AND done.record_id = record.id AND done.outcome = 'marked')",
                at_most=0,
            )
            for field in data.results
        },
    }
    if data.duplicates and duplicates_at_most is not None:
        figures["duplicate_share"] = Figure(
            sql=f"SELECT round(avg((record.duplicate_of IS NOT NULL)::int), 4) FROM {records}",
            at_most=duplicates_at_most,
        )
    return figures


def query(figures: Mapping[str, Figure]) -> str:
    """Return one query for all figures: rows of name and value."""
    return "\nUNION ALL ".join(
        f"SELECT '{name}' AS figure, ({figure.sql})::float8 AS value" for name, figure in figures.items()
    )
