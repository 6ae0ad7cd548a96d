"""Rule normalize_name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import ClassVar

from nameparser import HumanName

from transformation_service.entities import Entity, Record
from transformation_service.rules.base import Rule, Unprocessable

INVISIBLE = re.compile(r"[\u200b-\u200f\u202a-\u202e\u2060\ufeff\u00ad]")
TRADEMARK = re.compile(r"\s*(?:[®™©]|\((?:r|tm|c)\))", re.IGNORECASE)
MAX_LENGTH = 200


def tidy(text: str) -> str:
    """Return the text in Unicode normal form C, without invisible characters, runs of blanks and a trailing comma."""
    text = unicodedata.normalize("NFC", INVISIBLE.sub("", text))
    return re.sub(r"\s+", " ", text).strip(" ,;")


def _person(text: str) -> str:
    if any(character.isalpha() and "LATIN" not in unicodedata.name(character, "") for character in text):
        return text  # order and case of a name are known to the library for Latin script only
    name = HumanName(text)
    # Mixed case is someone's own spelling: McDonald, van der Berg, LeRoy.
    if text.isupper() or text.islower():
        name.capitalize(force=True)
    for part in ("first", "middle", "last"):  # DOE, Jane
        word = getattr(name, part)
        if word.isupper() and len(word) > 2:
            setattr(name, part, word.title())
    return tidy(str(name))


def _application(text: str) -> str:
    text = tidy(TRADEMARK.sub("", text).replace("_", " "))
    return text.title() if (text.isupper() and len(text) > 4) or text.islower() else text


FORMS: dict[str, Callable[[str], str]] = {"User": _person, "Application": _application}


class NormalizeName(Rule):
    """Writes names of people as given name before family name and names of applications in one spelling.

    A user's name in capitals or small letters only gets the usual capitals; one in mixed case keeps them.
    """

    name: ClassVar[str] = "normalize_name"
    revision: ClassVar[int] = 1
    fields: ClassVar[dict[str, tuple[str, ...]]] = {"User": ("full_name",), "Application": ("name",)}

    def apply(self, entity: Entity, record: Record) -> Record:
        """Return the name column of the entity."""
        (column,) = self.fields[entity.name]
        raw = record[column]
        text = tidy(raw or "")
        if not text:
            raise Unprocessable("no name")
        if len(text) > MAX_LENGTH:
            raise Unprocessable(f"longer than {MAX_LENGTH} characters")
        if not any(character.isalpha() for character in text):
            raise Unprocessable("no letter in the name")
        # The parser of people's names may read its own result differently; only a form that it leaves alone is one.
        for _ in range(4):
            before, text = text, FORMS[entity.name](text)
            if text == before:
                return {column: text}
        raise Unprocessable("parts of the name can't be told apart")
