"""Seeded, messy sample records: the same seed and library versions give the same records on every machine."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import phonenumbers
from faker import Faker
from phonenumbers import PhoneNumberFormat, PhoneNumberType

from transformation_service.entities import Record
from transformation_service.rules.validate_category import CATEGORIES

# Region to locale, in which people there write names.
LOCALES = {
    "US": "en_US", "GB": "en_GB", "IE": "en_IE", "AU": "en_AU", "DE": "de_DE", "AT": "de_AT", "FR": "fr_FR",
    "ES": "es_ES", "IT": "it_IT", "NL": "nl_NL", "PL": "pl_PL", "SE": "sv_SE", "BR": "pt_BR", "TR": "tr_TR",
    "JP": "ja_JP", "IN": "en_IN",
}  # fmt: skip
NEAR_DUPLICATES = 0.08
BROKEN = 0.05
REMEMBERED = 500  # earlier records that a near duplicate may repeat

# fmt: off
ADJECTIVES = (
    "Agile", "Bright", "Central", "Digital", "Global", "Instant", "Modern", "Open", "Prime", "Rapid", "Secure", "Smart",
    "Unified", "Virtual",
)
NOUNS = (
    "Atlas", "Beacon", "Board", "Bridge", "Compass", "Desk", "Forge", "Harbor", "Ledger", "Portal", "Pulse", "Relay",
    "Signal", "Studio", "Vault",
)
# fmt: on
SERVICES = {"ssh": 22, "http": 80, "https": 443, "postgresql": 5432, "redis": 6379, "amqp": 5672, "elasticsearch": 9200}


def generate(entity_type: str, count: int, seed: int) -> Iterator[Record]:
    """Yield ``count`` records of an entity type with its input columns.

    About one in twelve nearly repeats an earlier one, one in twenty has something that no rule can repair.

    Raises:
        KeyError: The entity type is unknown.
    """
    makers: dict[str, Callable[[random.Random], Iterator[Record]]] = {
        "User": _users,
        "Application": _applications,
        "DiscoveryMetadata": _discoveries,
    }
    # A seed per entity, so that two entities of one seed don't mirror each other.
    chance = random.Random(f"{entity_type}:{seed}")  # noqa: S311 - reproducible on purpose, nothing secret
    fresh = makers[entity_type](chance)
    earlier: list[Record] = []
    for _ in range(count):
        if earlier and chance.random() < NEAR_DUPLICATES:
            yield _near_duplicate(chance, chance.choice(earlier))
            continue
        record = next(fresh)
        if len(earlier) < REMEMBERED:
            earlier.append(record)
        else:
            earlier[chance.randrange(REMEMBERED)] = record
        yield record


def _users(chance: random.Random) -> Iterator[Record]:
    regions = list(LOCALES)
    fakers = {region: Faker(locale) for region, locale in LOCALES.items()}
    for faker in fakers.values():
        faker.seed_instance(chance.getrandbits(32))
    while True:
        region = chance.choice(regions)
        faker = fakers[region]
        first, last = faker.first_name(), faker.last_name()
        yield {
            "full_name": _messy_name(chance, first, last),
            "email": _messy_email(chance, faker, first, last),
            "phone": _messy_phone(chance, region),
            "country": f" {region}" if chance.random() < 0.02 else chance.choice([region, region, region.lower()]),
        }


def _messy_name(chance: random.Random, first: str, last: str) -> str | None:
    if chance.random() < BROKEN / 2:
        return chance.choice([None, "", "12345", "---"])
    return chance.choice(
        [
            f"{first} {last}",
            f"{last}, {first}",
            f"{first} {last}".upper(),
            f"{first} {last}".lower(),
            f"  {first}   {last} ",
            f"{last.upper()}, {first}",
            f"Dr. {first} {last}",
        ]
    )


def _ascii(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isascii() and letter.isalnum())


def _messy_email(chance: random.Random, faker: Faker, first: str, last: str) -> str | None:
    if chance.random() < BROKEN:
        return chance.choice(
            [None, "n/a", "someone at somewhere", "user@@example.com", "@example.org", "name@localhost"]
        )
    local = f"{_ascii(first)}.{_ascii(last)}".strip(".") or f"user{chance.randrange(100_000)}"
    local += chance.choice(["", "", str(chance.randrange(1000))])
    domain = chance.choice(["example.com", "example.org", "Example.NET", "mail.example.com", "bücher.example"])
    address = f"{local}@{domain}"
    return chance.choice(
        [
            address,
            address,
            address.title(),
            address.upper(),
            f" {address} ",
            f"{local}+news@{domain}",
            f"mailto:{address}",
            f'"{_ascii(first)}" <{address}>',
            f"{local} [at] {domain}",
        ]
    )


def _messy_phone(chance: random.Random, region: str) -> str | None:
    if chance.random() < BROKEN:
        return chance.choice([None, "", "unknown", "12", "+999 123 456", "call reception", "0000000000"])
    return _spelled(chance, _number(chance, region), region)


def _number(chance: random.Random, region: str) -> phonenumbers.PhoneNumber:
    kind = chance.choice([PhoneNumberType.MOBILE, PhoneNumberType.FIXED_LINE])
    example = phonenumbers.example_number_for_type(region, kind)
    if example is None:
        raise KeyError(region)
    digits = str(example.national_number)
    for _ in range(20):
        candidate = phonenumbers.PhoneNumber(
            country_code=example.country_code,
            national_number=int(digits[:-5] + f"{chance.randrange(100_000):05d}"),
            italian_leading_zero=example.italian_leading_zero,
        )
        if phonenumbers.is_valid_number_for_region(candidate, region):
            return candidate
    return example


def _spelled(chance: random.Random, number: phonenumbers.PhoneNumber, region: str) -> str:
    national = phonenumbers.format_number(number, PhoneNumberFormat.NATIONAL)
    international = phonenumbers.format_number(number, PhoneNumberFormat.INTERNATIONAL)
    return chance.choice(
        [
            national,
            "".join(letter for letter in national if letter.isdigit()),
            national.replace(" ", "."),
            international,
            phonenumbers.format_number(number, PhoneNumberFormat.E164),
            phonenumbers.format_out_of_country_calling_number(number, region),
            international.replace("+", "(+", 1).replace(" ", ") ", 1),
            f"{national} ext. {chance.randrange(10, 9999)}",
            f"  {international}\t",
        ]
    )


def _applications(chance: random.Random) -> Iterator[Record]:
    words = [*CATEGORIES, *(other for others in CATEGORIES.values() for other in others)]
    while True:
        name = f"{chance.choice(ADJECTIVES)} {chance.choice(NOUNS)} {chance.randrange(1, 500)}"
        category = chance.choice(words)
        owner = f"team-{chance.randrange(60)}@example.com"
        yield {
            "name": chance.choice(
                [name, name.upper(), name.lower(), f" {name}™", name.replace(" ", "_"), f"{name} (TM)"]
            ),
            "category": chance.choice([None, "???", "Gardening"])
            if chance.random() < BROKEN
            else chance.choice(
                [category, category.upper(), category.lower(), f" {category} ", _slip(chance, category)]
            ),
            "owner_email": chance.choice([owner, owner.upper(), f" {owner}", None]),
            "version": "latest"
            if chance.random() < 0.02
            else chance.choice(["1.0", "2.3.1", f"{chance.randrange(9)}.{chance.randrange(20)}", None]),
        }


def _discoveries(chance: random.Random) -> Iterator[Record]:
    while True:
        service, port = chance.choice(list(SERVICES.items()))
        place = chance.choice(["prod", "stg", "dev", "qa", "uat", "lab", "eu1"])
        document: Any = {
            "hostname": f"{service}-{chance.randrange(1, 400):03d}.{place}.example.internal",
            "ip_address": f"10.{chance.randrange(256)}.{chance.randrange(256)}.{chance.randrange(1, 255)}"
            if chance.random() < 0.8
            else f"2001:db8::{chance.randrange(1, 65535):x}",
            "port": port,
            "service": service,
            "owner": chance.choice([None, "platform", "data", "payments"]),
            "tags": chance.sample(["critical", "pci", "internal", "legacy", "batch"], chance.randrange(3)),
        }
        if chance.random() < BROKEN:
            document = chance.choice(
                [
                    {**document, "ip_address": "300.1.2.3"},
                    {**document, "port": 0},
                    {**document, "hostname": "-not a host-"},
                    {"hostname": document["hostname"]},
                    {},
                    [document],
                ]
            )
        yield {"source": chance.choice(["agent", "cloud-api", "import", "scanner"]), "document": document}


def _slip(chance: random.Random, text: str) -> str:
    """Return the text with two neighbouring letters swapped somewhere after the first."""
    if len(text) < 5:
        return text
    at = chance.randrange(2, len(text) - 1)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def _near_duplicate(chance: random.Random, record: Record) -> Record:
    twin = dict(record)
    if twin.get("full_name"):
        twin["full_name"] = _slip(chance, str(twin["full_name"]).strip())
    if twin.get("name"):
        twin["name"] = str(twin["name"]).swapcase()
    for column in ("email", "owner_email"):
        if "@" in (twin.get(column) or "") and "<" not in twin[column] and chance.random() < 0.5:
            local, _, domain = twin[column].partition("@")
            twin[column] = f"{local}+{chance.choice(['work', 'old'])}@{domain.upper()}"
    return twin
