"""What a rule is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from transformation_service.entities import Entity, Record


class Unprocessable(Exception):
    """The rule can't process this record: it is kept as it is and marked with this message."""


class Rule(ABC):
    """One rule. Applying it twice gives what applying it once gives.

    Attributes:
        name: The name in requests.
        revision: Raised with every change of what the rule makes of a record; part of the rule set version, so that a
            slot that the old revision transformed is new work for the new one.
        fields: For each entity type that the rule serves, the columns that it works on.
    """

    name: ClassVar[str]
    revision: ClassVar[int]
    fields: ClassVar[dict[str, tuple[str, ...]]]

    @property
    def summary(self) -> str:
        """What the rule does, in one sentence: the first line of its docstring."""
        return (type(self).__doc__ or "").strip().splitlines()[0]

    @abstractmethod
    def apply(self, entity: Entity, record: Record) -> Record:
        """Return the columns that change, with their new values.

        Raises:
            Unprocessable: The record can't be processed; the message says why and quotes no value, which may be
                personal data.
        """


class NeighbourRule(Rule):
    """A rule that must see other records: those that share a blocking key, so that not every pair is compared.

    ``apply`` works on one record alone; the engine calls :meth:`apply_batch`.
    """

    per_key: ClassVar[int] = 25
    """How many earlier records per blocking key are compared: bounds the work when very many share one."""

    @abstractmethod
    def keys(self, entity: Entity, record: Record) -> tuple[str, ...]:
        """Return the record's blocking keys."""

    @abstractmethod
    def apply_batch(
        self, entity: Entity, records: Sequence[Record], earlier: Sequence[Record]
    ) -> list[Record | Unprocessable]:
        """Return for each record its changed columns or why it can't be processed.

        Args:
            entity: What the records are.
            records: The batch, by id.
            earlier: Records before the batch that share a key with one of it, by id.
        """

    def apply(self, entity: Entity, record: Record) -> Record:
        """Process a record that has no neighbours."""
        (result,) = self.apply_batch(entity, [record], [])
        if isinstance(result, Unprocessable):
            raise result
        return result
