"""The rules: one file each, found by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from types import MappingProxyType

from transformation_service.rules.base import NeighbourRule, Rule, Unprocessable
from transformation_service.rules.deduplicate import Deduplicate
from transformation_service.rules.enrich_metadata import EnrichMetadata
from transformation_service.rules.normalize_name import NormalizeName
from transformation_service.rules.normalize_phone import NormalizePhone
from transformation_service.rules.standardize_email import StandardizeEmail
from transformation_service.rules.validate_category import ValidateCategory
from transformation_service.rules.validate_schema import ValidateSchema

__all__ = ["RULES", "NeighbourRule", "Rule", "Unprocessable", "rule_set_version"]

RULES: MappingProxyType[str, Rule] = MappingProxyType(
    {
        rule.name: rule
        for rule in (
            NormalizePhone(),
            StandardizeEmail(),
            Deduplicate(),
            NormalizeName(),
            ValidateCategory(),
            ValidateSchema(),
            EnrichMetadata(),
        )
    }
)


def rule_set_version(names: Sequence[str]) -> str:
    """Return a short hash of the ordered rules and their revisions: the identity of what is done to a record."""
    meaning = [[name, RULES[name].revision] for name in names]
    return hashlib.sha256(json.dumps(meaning).encode()).hexdigest()[:12]
