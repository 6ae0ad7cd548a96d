"""What every endpoint reads of a request alike: the slot, the idempotency key, the id in a path."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime
from datetime import time as clock_time
from typing import Any

from transformation_service.problems import Problem

MAX_KEY_LENGTH = 255


def parse_slot(text: str) -> datetime:
    """Return the instant that a slot names: an ISO 8601 instant with offset, or a date, which is its midnight UTC.

    Raises:
        Problem: 400, it is neither.
    """
    try:
        if len(text) == 10:
            return datetime.combine(date.fromisoformat(text), clock_time(), UTC)
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise Problem(
        400,
        "invalid-slot",
        f"slot {text[:40]!r} is no instant such as 2026-01-31T02:00:00Z and no date such as 2026-01-31.",
    )


def check_key(key: str | None) -> str:
    """Return the idempotency key.

    Raises:
        Problem: 400, it is missing, blank or too long.
    """
    key = (key or "").strip()
    if not key:
        raise Problem(
            400,
            "missing-idempotency-key",
            "Send the header 'Idempotency-Key': one value for one piece of work, the same in every retry.",
        )
    if len(key) > MAX_KEY_LENGTH:
        raise Problem(400, "invalid-idempotency-key", f"Idempotency-Key is longer than {MAX_KEY_LENGTH} characters.")
    return key


def read_id(text: str, unknown: Callable[[], Problem]) -> uuid.UUID:
    """Return the id in a path; what is none raises what ``unknown`` makes."""
    try:
        return uuid.UUID(text)
    except ValueError:
        raise unknown() from None


def known(document: dict[str, Any] | None, unknown: Callable[[], Problem]) -> dict[str, Any]:
    """Return a document that was found; ``None`` raises what ``unknown`` makes."""
    if document is None:
        raise unknown()
    return document
