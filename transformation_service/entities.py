"""What the service transforms: each entity type, its table and the columns that rules may read and write."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Record = dict[str, Any]
"""One row as a rule sees it: column name to value, always with ``id`` and never with bookkeeping columns."""


@dataclass(frozen=True, kw_only=True)
class Entity:
    """One entity type.

    Attributes:
        name: The name in requests, e.g. ``User``.
        table: Its table in schema ``public``.
        inputs: Columns that a loader may fill, each with its PostgreSQL type.
        derived: Columns that only rules write, each with its PostgreSQL type.
    """

    name: str
    table: str
    inputs: MappingProxyType[str, str]
    derived: MappingProxyType[str, str]

    @property
    def columns(self) -> dict[str, str]:
        """Every column that a rule may see besides ``id``, with its PostgreSQL type."""
        return {**self.inputs, **self.derived}


def _entity(name: str, table: str, inputs: dict[str, str], derived: dict[str, str]) -> Entity:
    return Entity(name=name, table=table, inputs=MappingProxyType(inputs), derived=MappingProxyType(derived))


ENTITIES: MappingProxyType[str, Entity] = MappingProxyType(
    {
        entity.name: entity
        for entity in (
            _entity(
                "User",
                "user_record",
                {"full_name": "text", "email": "text", "phone": "text", "country": "text"},
                {"phone_extension": "text", "duplicate_of": "bigint"},
            ),
            _entity(
                "Application",
                "application_record",
                {"name": "text", "category": "text", "owner_email": "text", "version": "text"},
                {"duplicate_of": "bigint"},
            ),
            _entity(
                "DiscoveryMetadata",
                "discovery_metadata_record",
                {"source": "text", "document": "jsonb"},
                {"metadata": "jsonb"},
            ),
        )
    }
)
