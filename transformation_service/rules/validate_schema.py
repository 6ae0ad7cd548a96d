"""Rule validate_schema."""

from __future__ import annotations

from typing import Any, ClassVar

from jsonschema import Draft202012Validator, ValidationError

from transformation_service.entities import Entity, Record
from transformation_service.rules.base import Rule, Unprocessable

_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"  # RFC 1123, 2.1
_TEXT = {"type": ["string", "null"]}
SCHEMAS: dict[str, dict[str, Any]] = {
    "User": {
        "type": "object",
        "required": ["full_name", "email"],
        "properties": {
            "full_name": {"type": "string", "minLength": 1, "maxLength": 200},
            "email": {"type": "string", "minLength": 3, "maxLength": 320, "pattern": "@"},
            "phone": _TEXT,
            "country": {"type": ["string", "null"], "pattern": "^[A-Za-z]{2}$"},
        },
    },
    "Application": {
        "type": "object",
        "required": ["name", "category"],
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 200},
            "category": {"type": "string", "minLength": 1},
            "owner_email": _TEXT,
            "version": {"type": ["string", "null"], "pattern": r"^\d+(\.\d+){0,3}([-+][0-9A-Za-z.-]+)?$"},
        },
    },
    "DiscoveryMetadata": {
        "type": "object",
        "required": ["source", "document"],
        "properties": {
            "source": {"enum": ["agent", "cloud-api", "import", "scanner"]},
            "document": {
                "type": "object",
                "required": ["hostname", "ip_address", "service"],
                "properties": {
                    "hostname": {
                        "type": "string",
                        "maxLength": 253,
                        "pattern": rf"^{_LABEL}(\.{_LABEL})*$",
                    },
                    "ip_address": {"anyOf": [{"format": "ipv4"}, {"format": "ipv6"}], "type": "string"},
                    "port": {"type": "integer", "minimum": 1, "maximum": 65535},
                    "service": {"type": "string", "minLength": 1},
                    "owner": _TEXT,
                    "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
                },
            },
        },
    },
}
MAX_FAULTS = 3


class ValidateSchema(Rule):
    """Checks a record against its entity's JSON Schema (draft 2020-12) and marks one that does not conform."""

    name: ClassVar[str] = "validate_schema"
    revision: ClassVar[int] = 1
    fields: ClassVar[dict[str, tuple[str, ...]]] = {
        "User": ("full_name", "email", "phone", "country"),
        "Application": ("name", "category", "owner_email", "version"),
        "DiscoveryMetadata": ("source", "document"),
    }

    def __init__(self) -> None:
        self._validators = {
            name: Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
            for name, schema in SCHEMAS.items()
        }

    def apply(self, entity: Entity, record: Record) -> Record:
        """Return nothing to change."""
        instance = {column: record[column] for column in self.fields[entity.name]}
        faults = sorted(
            {
                # Place and violated keyword, not the message: that one quotes the value.
                f"{'.'.join(map(str, error.absolute_path)) or 'record'}: {error.validator}"
                + (
                    f" ({', '.join(sorted(set(error.validator_value) - set(error.instance)))})"
                    if _missing(error)
                    else ""
                )
                for error in self._validators[entity.name].iter_errors(instance)
            }
        )
        if faults:
            more = f" and {len(faults) - MAX_FAULTS} more" if len(faults) > MAX_FAULTS else ""
            raise Unprocessable("; ".join(faults[:MAX_FAULTS]) + more)
        return {}


def _missing(error: ValidationError) -> bool:
    return bool(error.validator == "required" and isinstance(error.instance, dict))
