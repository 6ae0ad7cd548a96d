"""Rule deduplicate."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rapidfuzz.distance import OSA

from transformation_service.entities import Entity, Record
from transformation_service.rules.base import NeighbourRule, Unprocessable

NAME_SIMILARITY = 0.85  # one slip, be it two letters swapped, in seven letters
PHONE_DIGITS = 9  # what national and international spelling of one number share
MIN_PHONE_DIGITS = 7


@dataclass(frozen=True)
class Traits:
    """What two records are compared by, free of spelling: ``name`` has its words in alphabetical order."""

    name: str
    email: str
    phone: str


def traits(entity: Entity, record: Record) -> Traits:
    """Return the traits of a record, whether earlier rules have put it in order or not."""
    if entity.name == "User":
        return Traits(_letters(record["full_name"]), _mailbox(record["email"]), _digits(record["phone"]))
    return Traits(_letters(record["name"]), _mailbox(record["owner_email"]), "")


def _letters(text: str | None) -> str:
    plain = unicodedata.normalize("NFKD", (text or "").casefold())
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    return " ".join(sorted(re.findall(r"\w+", plain)))


def _mailbox(address: str | None) -> str:
    local, _, domain = (address or "").strip().casefold().rpartition("@")
    return f"{local.partition('+')[0].replace('.', '')}@{domain}" if local and domain else ""


def _digits(phone: str | None) -> str:
    digits = re.sub(r"\D", "", re.split(r"(?i)(?:x|ext|#)", phone or "")[0])
    return digits[-PHONE_DIGITS:] if len(digits) >= MIN_PHONE_DIGITS else ""


class Deduplicate(NeighbourRule):
    """Points a near duplicate's ``duplicate_of`` at the earliest record that it repeats.

    Users are the same when two of name, mailbox and phone number agree: families share a phone, namesakes a name.
    Applications are the same when their names agree, numbers exactly, and their owners don't differ. Names agree when
    at most one letter in seven slipped.
    Only records that share a blocking key are compared: the mailbox, the phone number, or a name's initials with the
    beginning of its longest word.
    """

    name: ClassVar[str] = "deduplicate"
    revision: ClassVar[int] = 1
    fields: ClassVar[dict[str, tuple[str, ...]]] = {
        "User": ("full_name", "email", "phone", "duplicate_of"),
        "Application": ("name", "owner_email", "duplicate_of"),
    }

    def keys(self, entity: Entity, record: Record) -> tuple[str, ...]:
        """Return the record's blocking keys, none when there is nothing to compare."""
        return _keys(traits(entity, record))

    def apply_batch(
        self, entity: Entity, records: Sequence[Record], earlier: Sequence[Record]
    ) -> list[Record | Unprocessable]:
        """Return ``duplicate_of`` for each record: an id smaller than its own, or ``None``."""
        originals: dict[str, list[tuple[int, Traits]]] = defaultdict(list)

        def remember(record: Record, its: Traits) -> None:
            for key in _keys(its):
                if len(originals[key]) < self.per_key:
                    originals[key].append((record["id"], its))

        for record in earlier:
            remember(record, traits(entity, record))
        results: list[Record | Unprocessable] = []
        for record in records:
            its = traits(entity, record)
            keys = _keys(its)
            if not keys:
                results.append(Unprocessable("nothing to compare: no name, address or number"))
                continue
            twins = [other_id for key in keys for other_id, other in originals[key] if _same(entity.name, its, other)]
            results.append({"duplicate_of": min(twins, default=None)})
            if not twins:
                remember(record, its)
        return results


def _keys(its: Traits) -> tuple[str, ...]:
    keys = []
    if its.email:
        keys.append(f"email:{its.email}"[:200])
    if its.phone:
        keys.append(f"phone:{its.phone}")
    words = its.name.split()
    if words:
        longest = max(words, key=len)
        initials = "".join(word[0] for word in words)
        keys.append(f"name:{initials}:{longest[:3]}"[:200])
    return tuple(keys)


def _same(entity_name: str, one: Traits, other: Traits) -> bool:
    names = bool(one.name and other.name) and (
        OSA.normalized_similarity(one.name, other.name, score_cutoff=NAME_SIMILARITY) > 0
    )
    if entity_name == "User":
        mailboxes = bool(one.email) and one.email == other.email
        phones = bool(one.phone) and one.phone == other.phone
        return names + mailboxes + phones >= 2
    owners = not one.email or not other.email or one.email == other.email
    return names and owners and _numbers(one.name) == _numbers(other.name)


def _numbers(name: str) -> list[str]:
    """Return the numbers in a name: 'Desk 2' is no misspelt 'Desk 3'."""
    return re.findall(r"\d+", name)
