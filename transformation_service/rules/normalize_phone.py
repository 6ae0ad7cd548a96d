"""Rule normalize_phone."""

from __future__ import annotations

from typing import ClassVar

import phonenumbers
from phonenumbers import PhoneNumberFormat

from transformation_service.entities import Entity, Record
from transformation_service.rules.base import Rule, Unprocessable

REASONS = {
    phonenumbers.NumberParseException.INVALID_COUNTRY_CODE: "no country code, and the record's country is none",
    phonenumbers.NumberParseException.NOT_A_NUMBER: "not a phone number",
    phonenumbers.NumberParseException.TOO_SHORT_AFTER_IDD: "too short after the international prefix",
    phonenumbers.NumberParseException.TOO_SHORT_NSN: "too short",
    phonenumbers.NumberParseException.TOO_LONG: "too long",
}


class NormalizePhone(Rule):
    """Writes a phone number as E.164; a number without country code is read as one of the record's country.

    An extension is no part of E.164 and goes to ``phone_extension``.
    Source: ITU-T E.164; metadata and parsing by Google's libphonenumber.
    """

    name: ClassVar[str] = "normalize_phone"
    revision: ClassVar[int] = 1
    fields: ClassVar[dict[str, tuple[str, ...]]] = {"User": ("phone", "phone_extension")}

    def apply(self, entity: Entity, record: Record) -> Record:
        """Return ``phone`` and, when the number had one, ``phone_extension``."""
        raw = record["phone"]
        if raw is None or not raw.strip():
            return {"phone": None}
        region = (record.get("country") or "").strip().upper()
        try:
            number = phonenumbers.parse(raw, region if region in phonenumbers.SUPPORTED_REGIONS else None)
        except phonenumbers.NumberParseException as error:
            raise Unprocessable(REASONS.get(error.error_type, "not a phone number")) from error
        if not phonenumbers.is_valid_number(number):
            raise Unprocessable("no number of its country's numbering plan")
        changed: Record = {"phone": phonenumbers.format_number(number, PhoneNumberFormat.E164)}
        if number.extension:
            changed["phone_extension"] = number.extension
        return changed
