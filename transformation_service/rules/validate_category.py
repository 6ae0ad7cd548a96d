"""Rule validate_category."""

from __future__ import annotations

from typing import ClassVar

from rapidfuzz import process, utils
from rapidfuzz.distance import OSA

from transformation_service.entities import Entity, Record
from transformation_service.rules.base import Rule, Unprocessable

# Every category with the other words that people use for it.
CATEGORIES: dict[str, tuple[str, ...]] = {
    "Analytics": ("business intelligence", "bi", "reporting", "data analytics"),
    "Collaboration": ("chat", "messaging", "groupware"),
    "Customer Relations": ("crm", "customer relationship management", "sales"),
    "Development": ("dev tools", "developer tools", "engineering", "devops"),
    "Finance": ("accounting", "erp", "payments", "billing"),
    "Human Resources": ("hr", "hrm", "people", "payroll"),
    "Infrastructure": ("it", "platform", "operations", "ops"),
    "Marketing": ("advertising", "campaigns"),
    "Security": ("infosec", "cyber security", "iam", "identity"),
    "Support": ("help desk", "service desk", "ticketing"),
}
SPELLINGS = {
    spelling: category
    for category, others in CATEGORIES.items()
    for spelling in (utils.default_process(category), *others)
}
LONG_SPELLINGS = [spelling for spelling in SPELLINGS if len(spelling) > 4]
MIN_SIMILARITY = 0.85  # one slip, be it two letters swapped, in seven letters


class ValidateCategory(Rule):
    """Maps an application's category to the controlled vocabulary, by its other names and with misspellings.

    A category that is near none of the vocabulary is left as it is and marked.
    """

    name: ClassVar[str] = "validate_category"
    revision: ClassVar[int] = 1
    fields: ClassVar[dict[str, tuple[str, ...]]] = {"Application": ("category",)}

    def apply(self, entity: Entity, record: Record) -> Record:
        """Return ``category``."""
        text = utils.default_process(record["category"] or "")
        if not text:
            raise Unprocessable("no category")
        if text in SPELLINGS:
            return {"category": SPELLINGS[text]}
        found = process.extractOne(text, LONG_SPELLINGS, scorer=OSA.normalized_similarity, score_cutoff=MIN_SIMILARITY)
        if found is None:
            raise Unprocessable(f"unknown category; known are {', '.join(CATEGORIES)}")
        return {"category": SPELLINGS[found[0]]}
