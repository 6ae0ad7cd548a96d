"""Rule standardize_email."""

from __future__ import annotations

import re
from email.utils import parseaddr
from typing import ClassVar

from email_validator import EmailNotValidError, validate_email

from transformation_service.entities import Entity, Record
from transformation_service.rules.base import Rule, Unprocessable

SPELLED_AT = re.compile(r"\s*[\[({<]\s*at\s*[\])}>]\s*", re.IGNORECASE)
SPELLED_DOT = re.compile(r"\s*[\[({<]\s*dot\s*[\])}>]\s*", re.IGNORECASE)
# Old names of one and the same mailbox provider.
SAME_DOMAIN = {"googlemail.com": "gmail.com"}


def standardize(raw: str) -> str:
    """Return an address in its one standard form.

    Raises:
        Unprocessable: It is no address by RFC 5321/5322/6531 and the special-use registry of RFC 6761.
    """
    text = SPELLED_DOT.sub(".", SPELLED_AT.sub("@", raw.strip()))
    text = re.sub(r"^mailto:", "", text, flags=re.IGNORECASE)
    if "<" in text:
        text = parseaddr(text)[1]
    try:
        address = validate_email(text.strip().rstrip(".;,"), check_deliverability=False)
        local, domain = address.local_part.lower(), address.domain.lower()
        text = f"{local}@{SAME_DOMAIN.get(domain, domain)}"
        # Lower case may leave the normal form, but not in ASCII.
        return text if text.isascii() else validate_email(text, check_deliverability=False).normalized
    except EmailNotValidError as error:
        # Only the kind of the fault: the library's text may quote the address.
        raise Unprocessable(f"not an e-mail address ({'no @' if '@' not in text else 'syntax'})") from error


class StandardizeEmail(Rule):
    """Writes an e-mail address in one standard form: Unicode-normalised, in lower case, without decoration.

    Every provider of note ignores the case of the local part. No DNS is asked.
    """

    name: ClassVar[str] = "standardize_email"
    revision: ClassVar[int] = 1
    fields: ClassVar[dict[str, tuple[str, ...]]] = {"User": ("email",), "Application": ("owner_email",)}

    def apply(self, entity: Entity, record: Record) -> Record:
        """Return the address column of the entity."""
        (column,) = self.fields[entity.name]
        raw = record[column]
        if raw is None or not raw.strip():
            return {column: None}
        return {column: standardize(raw)}
