"""Apply transformation rules to the records of an entity, once per slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plugins.hooks.transformation_service import JOB
from plugins.operators.transformation_service import (
    TransformationServiceLink,
    TransformationServiceOperator,
    Work,
    is_empty,
    number,
)


class RuleEngineOperator(TransformationServiceOperator):
    """Run a list of rules over the records of an entity in the TransformationService and wait for the result.

    A job that failed or was cancelled goes on with what it left undone when the task runs again; the service's ledger
    keeps each record at one transformation per slot and set of rules.

    The XCom ``return_value`` is the job's summary: ``job_id``, ``job_url``, ``state``, ``slot``,
    ``rule_set_version``, ``counts`` (``total``, ``transformed``, ``marked`` records), ``batches``, times.

    :param entity_type: ``User``, ``Application`` or ``DiscoveryMetadata``
    :param rules: names of rules in the order of application
    :param batch_size: records per transaction of the service
    :param max_records: only the first that many records by id; empty or ``None``: all of them
    """

    kind = JOB
    template_fields: Sequence[str] = (
        *TransformationServiceOperator.template_fields,
        "entity_type",
        "rules",
        "batch_size",
        "max_records",
    )
    operator_extra_links = (TransformationServiceLink(JOB),)

    def __init__(
        self,
        *,
        entity_type: str,
        rules: Sequence[str],
        batch_size: int | str = 1000,
        max_records: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.entity_type = entity_type
        self.rules = rules
        self.batch_size = batch_size
        self.max_records = max_records

    def work(self, slot: str) -> Work:
        """Entity, slot and rules make the work, and the number of records where it is limited.

        The batch size does not: how the work is cut does not change what is done.
        """
        identity: list[Any] = [self.entity_type, slot, list(self.rules)]
        title = f"{self.entity_type}, slot {slot}, rules {', '.join(self.rules)}"
        body: dict[str, Any] = {
            "entity_type": self.entity_type,
            "rules": list(self.rules),
            "batch_size": number("batch_size", self.batch_size),
            "slot": slot,
        }
        if self.max_records is not None and not is_empty(self.max_records):
            body["max_records"] = limit = number("max_records", self.max_records)
            identity.append({"max_records": limit})
            title += f", first {limit} records"
        return Work(title, identity, body)

    def figures(self, result: Mapping[str, Any]) -> str:
        """Count records and batches."""
        counts, batches = result["counts"] or {}, result["batches"] or {}
        return (
            f"{counts.get('transformed', 0)} of {counts.get('total', 0)} {result['entity_type']} records transformed, "
            f"{counts.get('marked', 0)} marked, {batches.get('done', 0)} of {batches.get('total', 0)} batches done"
        )
