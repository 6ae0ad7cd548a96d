from __future__ import annotations

import hashlib
import json
from typing import Any

import phonenumbers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformation_service import samples
from transformation_service.entities import ENTITIES
from transformation_service.rules import RULES, NeighbourRule, Unprocessable, rule_set_version
from transformation_service.rules.validate_category import CATEGORIES


def record(entity: str, **values: Any) -> dict[str, Any]:
    return {"id": 1, **dict.fromkeys(ENTITIES[entity].columns), **values}


def apply(rule: str, entity: str = "User", **values: Any) -> dict[str, Any]:
    return RULES[rule].apply(ENTITIES[entity], record(entity, **values))


def refused(rule: str, entity: str = "User", **values: Any) -> str:
    with pytest.raises(Unprocessable) as error:
        apply(rule, entity, **values)
    return str(error.value)


@pytest.mark.parametrize(
    ("raw", "country", "wanted"),
    [
        ("030 901820", "DE", "+4930901820"),
        ("0049 (30) 90-18-20", " de ", "+4930901820"),
        ("+49 30 901820", "US", "+4930901820"),
        ("+49 30 901820", None, "+4930901820"),
        ("06 12 34 56 78", "FR", "+33612345678"),
        ("(201) 555-0123", "US", "+12015550123"),
        ("02 1234 5678", "IT", "+390212345678"),  # Italy keeps the leading zero
        ("03-1234-5678", "JP", "+81312345678"),
        (None, "DE", None),
        ("   ", "DE", None),
    ],
)
def test_phone_numbers_become_e164(raw: str | None, country: str | None, wanted: str | None) -> None:
    assert apply("normalize_phone", phone=raw, country=country) == {"phone": wanted}


def test_phone_extension_is_kept_apart() -> None:
    assert apply("normalize_phone", phone="(201) 555-0123 ext. 42", country="US") == {
        "phone": "+12015550123",
        "phone_extension": "42",
    }


@pytest.mark.parametrize(
    ("raw", "country", "reason"),
    [
        ("call reception", "DE", "not a phone number"),
        ("030 901820", None, "no country code, and the record's country is none"),
        ("030 901820", "XX", "no country code, and the record's country is none"),
        ("12", "DE", "no number of its country's numbering plan"),
        ("+1 555 0100", "US", "no number of its country's numbering plan"),
        ("1" * 40, "DE", "too long"),
    ],
)
def test_phone_numbers_that_are_none_are_refused(raw: str, country: str | None, reason: str) -> None:
    assert refused("normalize_phone", phone=raw, country=country) == reason


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (" Jane.Doe@Example.COM ", "jane.doe@example.com"),
        ("mailto:jane@example.com", "jane@example.com"),
        ('"Doe, Jane" <jane@example.com>', "jane@example.com"),
        ("jane [at] example [dot] com", "jane@example.com"),
        ("jane+news@googlemail.com", "jane+news@gmail.com"),
        ("jane@BÜCHER.example", "jane@bücher.example"),
        ("jane@xn--bcher-kva.example", "jane@bücher.example"),
        ("jane@example.com;", "jane@example.com"),
        ("", None),
    ],
)
def test_addresses_get_one_form(raw: str, wanted: str | None) -> None:
    assert apply("standardize_email", email=raw) == {"email": wanted}
    assert apply("standardize_email", "Application", owner_email=raw) == {"owner_email": wanted}


@pytest.mark.parametrize(
    "raw", ["n/a", "a@@example.com", "@example.com", "jane@localhost", "a b@example.com", "j@-x.com"]
)
def test_addresses_that_are_none_are_refused_without_quoting_them(raw: str) -> None:
    reason = refused("standardize_email", email=raw)
    assert reason.startswith("not an e-mail address")
    assert raw not in reason


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ("DOE, JANE", "Jane Doe"),
        ("  jane   doe ", "Jane Doe"),
        ("Doe, Jane", "Jane Doe"),
        ("DOE, Jane", "Jane Doe"),
        ("o'brien, patrick", "Patrick O'Brien"),
        ("Ronald McDonald", "Ronald McDonald"),
        ("Ludwig van der Berg", "Ludwig van der Berg"),
        ("Zoe\u0308 Smith", "Zoë Smith"),
        ("李 小龙", "李 小龙"),
        ("John Smith III", "John Smith III"),
    ],
)
def test_names_of_people(raw: str, wanted: str) -> None:
    assert apply("normalize_name", full_name=raw) == {"full_name": wanted}


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [("OPEN LEDGER™", "Open Ledger"), ("open_ledger 2", "Open Ledger 2"), ("GitLab (TM)", "GitLab"), ("SAP", "SAP")],
)
def test_names_of_applications(raw: str, wanted: str) -> None:
    assert apply("normalize_name", "Application", name=raw) == {"name": wanted}


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (None, "no name"),
        (" , ", "no name"),
        ("12-34", "no letter in the name"),
        ("x" * 201, "longer than 200 characters"),
    ],
)
def test_names_that_are_none_are_refused(raw: str | None, reason: str) -> None:
    assert refused("normalize_name", full_name=raw) == reason


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ("finance", "Finance"),
        (" CRM ", "Customer Relations"),
        ("Fiannce", "Finance"),
        ("cyber-security", "Security"),
        ("HR", "Human Resources"),
        ("Analitics", "Analytics"),
    ],
)
def test_categories_are_mapped(raw: str, wanted: str) -> None:
    assert apply("validate_category", "Application", category=raw) == {"category": wanted}


@pytest.mark.parametrize("raw", ["Gardening", "hx", "???", None])
def test_foreign_categories_are_refused(raw: str | None) -> None:
    assert "category" in refused("validate_category", "Application", category=raw)


def test_every_category_maps_to_itself() -> None:
    for category in CATEGORIES:
        assert apply("validate_category", "Application", category=category) == {"category": category}


DOCUMENT = {"hostname": "db-1.prod.example.internal", "ip_address": "10.1.2.3", "port": 5432, "service": "postgresql"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"port": 0}, "document.port: minimum"),
        ({"port": "5432"}, "document.port: type"),
        ({"ip_address": "300.1.2.3"}, "document.ip_address: anyOf"),
        ({"hostname": "-x-"}, "document.hostname: pattern"),
        ({"tags": ["a", "a"]}, "document.tags: uniqueItems"),
    ],
)
def test_schema_faults_are_named_without_values(changes: dict[str, Any], reason: str) -> None:
    assert refused("validate_schema", "DiscoveryMetadata", source="agent", document={**DOCUMENT, **changes}) == reason


def test_schema_names_missing_members_and_says_how_many_faults_are_left() -> None:
    reason = refused("validate_schema", "DiscoveryMetadata", source="agent", document={"hostname": "a"})
    assert reason == "document: required (ip_address, service)"
    many = {"hostname": 1, "ip_address": 1, "port": "x", "service": 1, "tags": 1}
    assert refused("validate_schema", "DiscoveryMetadata", source="agent", document=many).endswith(" more")


def test_a_conforming_record_is_not_changed() -> None:
    assert apply("validate_schema", "DiscoveryMetadata", source="agent", document=DOCUMENT) == {}


def test_metadata_is_derived_from_the_document() -> None:
    metadata = apply("enrich_metadata", "DiscoveryMetadata", document=DOCUMENT)["metadata"]
    assert len(metadata.pop("fingerprint")) == 64
    assert metadata == {
        "completeness": 0.67,
        "host": "db-1",
        "domain": "prod.example.internal",
        "environment": "production",
        "ip_version": 4,
        "scope": "private",
        "network": "10.1.2.0/24",
        "well_known_service": "postgresql",
    }


@pytest.mark.parametrize("document", [None, {}, [], "text", 3])
def test_metadata_needs_an_object(document: Any) -> None:
    assert "no JSON object" in refused("enrich_metadata", "DiscoveryMetadata", document=document)


def duplicates(entity: str, *records: dict[str, Any], earlier: list[dict[str, Any]] | None = None) -> list[Any]:
    numbered = [{**record(entity), **values, "id": number} for number, values in enumerate(records, 1)]
    found = RULES["deduplicate"].apply_batch(ENTITIES[entity], numbered, earlier or [])  # type: ignore[attr-defined]
    return [str(result) if isinstance(result, Unprocessable) else result["duplicate_of"] for result in found]


def test_users_are_duplicates_when_two_traits_agree() -> None:
    jane = {"full_name": "Jane Doe", "email": "jane@example.com", "phone": "+4930901820"}
    assert duplicates(
        "User",
        jane,
        {"full_name": "Doe, Jnae", "email": "jane+x@EXAMPLE.com", "phone": None},  # slip in the name, same mailbox
        {"full_name": "Jane Doe", "email": "other@example.com", "phone": None},  # a namesake
        {"full_name": "Bob Doe", "email": "bob@example.com", "phone": "+4930901820"},  # same household
        {"full_name": None, "email": "j.ane@example.com", "phone": "030 90 18 20"},
        {"full_name": "  ", "email": "none", "phone": "1"},
    ) == [None, 1, None, None, None, "nothing to compare: no name, address or number"]


def test_national_and_international_spelling_of_a_number_agree() -> None:
    assert duplicates(
        "User",
        {"full_name": "Jane Doe", "phone": "+49 151 23456789"},
        {"full_name": "Jane Doe", "phone": "0151/23456789 ext. 3"},
    ) == [None, 1]


def test_applications_differ_by_number_and_owner() -> None:
    assert duplicates(
        "Application",
        {"name": "Open Ledger 12", "owner_email": "a@example.com"},
        {"name": "OPEN LEDGRE 12", "owner_email": None},
        {"name": "Open Ledger 13", "owner_email": "a@example.com"},
        {"name": "Open Ledger 12", "owner_email": "b@example.com"},
    ) == [None, 1, None, None]


def test_a_duplicate_points_at_the_first_record_and_never_at_another_duplicate() -> None:
    jane = {"full_name": "Jane Doe", "email": "jane@example.com"}
    assert duplicates("User", jane, jane, jane, jane) == [None, 1, 1, 1]


def test_records_of_earlier_batches_are_seen() -> None:
    earlier = {**record("User"), "full_name": "Jane Doe", "email": "jane@example.com", "id": -5}
    assert duplicates("User", {"full_name": "Jane Doe", "email": "jane@example.com"}, earlier=[earlier]) == [-5]


def test_deduplicate_does_not_compare_every_pair() -> None:
    """5,000 users in blocks: an all-pairs comparison would need 12 million and a minute."""
    import time

    users = [{**record("User"), **values, "id": n} for n, values in enumerate(samples.generate("User", 5_000, 3), 1)]
    started = time.process_time()
    RULES["deduplicate"].apply_batch(ENTITIES["User"], users, [])  # type: ignore[attr-defined]
    assert time.process_time() - started < 5


texts = st.none() | st.text(max_size=40)
phones = texts | st.from_regex(r"[+0(]{0,2}[0-9 ()./x-]{3,20}", fullmatch=True)
emails = (
    texts
    | st.emails()
    | st.from_regex(r"[A-Za-zÄİß.+]{1,8}( \[at\] |@)[A-Za-zéß-]{1,8}\.(com|example|de)", fullmatch=True)
)
names = texts | st.from_regex(r"([A-Z][a-z]{1,6}|dr\.|van|III|[A-Z]{2,5}|\(x\)|, ?|\"| |-|'){1,8}", fullmatch=True)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=4,
)
documents = json_values | st.dictionaries(
    st.sampled_from(["hostname", "ip_address", "port", "service", "owner", "tags", "x"]), json_values
)
RECORDS = {
    "User": st.fixed_dictionaries(
        {
            "full_name": names,
            "email": emails,
            "phone": phones,
            "country": texts | st.sampled_from(list(samples.LOCALES)),
        }
    ),
    "Application": st.fixed_dictionaries(
        {"name": names, "category": texts | st.sampled_from(list(CATEGORIES)), "owner_email": emails, "version": texts}
    ),
    "DiscoveryMetadata": st.fixed_dictionaries({"source": texts, "document": documents}),
}
PAIRS = [(rule, entity) for rule in RULES for entity in RULES[rule].fields]


@pytest.mark.parametrize(("name", "entity"), PAIRS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_rules_are_idempotent_and_stay_in_their_fields(name: str, entity: str, data: st.DataObject) -> None:
    before = record(entity, **data.draw(RECORDS[entity]))
    rule = RULES[name]
    try:
        changed = rule.apply(ENTITIES[entity], dict(before))
    except Unprocessable:
        return
    assert set(changed) <= set(rule.fields[entity])
    once = {**before, **changed}
    assert {**once, **rule.apply(ENTITIES[entity], dict(once))} == once
    if name == "normalize_phone" and once["phone"] is not None:
        assert phonenumbers.is_valid_number(phonenumbers.parse(once["phone"]))


@settings(max_examples=50, deadline=None)
@given(users=st.lists(RECORDS["User"], max_size=8))
def test_deduplicate_is_idempotent_over_a_batch(users: list[dict[str, Any]]) -> None:
    once = duplicates("User", *users)
    again = duplicates(
        "User",
        *(
            {**user, "duplicate_of": found if isinstance(found, int) else None}
            for user, found in zip(users, once, strict=True)
        ),
    )
    assert again == once
    assert all(found is None or isinstance(found, str) or found < number for number, found in enumerate(once, 1))


def test_every_rule_leaves_its_own_result_of_the_samples_alone() -> None:
    for name, entity in PAIRS:
        for values in samples.generate(entity, 300, 11):
            before = record(entity, **values)
            try:
                once = {**before, **RULES[name].apply(ENTITIES[entity], dict(before))}
            except Unprocessable:
                continue
            assert {**once, **RULES[name].apply(ENTITIES[entity], dict(once))} == once, (name, before)


def test_rule_set_version_depends_on_order_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    version = rule_set_version(["normalize_phone", "deduplicate"])
    assert version == rule_set_version(["normalize_phone", "deduplicate"])
    assert version != rule_set_version(["deduplicate", "normalize_phone"])
    monkeypatch.setattr(type(RULES["deduplicate"]), "revision", 2)
    assert version != rule_set_version(["normalize_phone", "deduplicate"])


# What each rule makes of fixed records. A change here is a change of what the service does to data: raise the rule's
# revision, then copy the new digest from the failure.
DIGESTS = {
    ("normalize_phone", 1): "443210fb440aeec3",
    ("standardize_email", 1): "36c2bf92f30733a4",
    ("deduplicate", 1): "ea57c5dbfe8b10af",
    ("normalize_name", 1): "7e5333863c6c27f5",
    ("validate_category", 1): "4ac9d6d7410753e2",
    ("validate_schema", 1): "c8148254e5aea40b",
    ("enrich_metadata", 1): "4048b1cfe328b1a0",
}


@pytest.mark.parametrize("name", RULES)
def test_a_changed_result_needs_a_new_revision(name: str) -> None:
    rule = RULES[name]
    results: list[Any] = []
    for entity in rule.fields:
        records = [{**record(entity, **values), "id": number} for number, values in enumerate(GOLDEN[entity], 1)]
        if isinstance(rule, NeighbourRule):
            results += map(_shown, rule.apply_batch(ENTITIES[entity], records, []))
            continue
        for before in records:
            try:
                results.append(rule.apply(ENTITIES[entity], before))
            except Unprocessable as reason:
                results.append(str(reason))
    digest = hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()[:16]
    assert DIGESTS.get((name, rule.revision)) == digest


def _shown(result: Any) -> Any:
    return str(result) if isinstance(result, Unprocessable) else result


GOLDEN: dict[str, list[dict[str, Any]]] = {
    "User": [
        {"full_name": "DOE, jane", "email": " Jane@Example.COM", "phone": "(201) 555-0123 x4", "country": "US"},
        {"full_name": "jean-luc PICARD", "email": "jl [at] example.fr", "phone": "06 12 34 56 78", "country": "fr"},
        {"full_name": "12", "email": "none", "phone": "none", "country": "Germany"},
        {"full_name": "Jane Deo", "email": "jane+x@example.com", "phone": None, "country": None},
        {"full_name": "o'neil, dr. ann", "email": '"A" <a@BÜCHER.example>', "phone": "0049 30 901820", "country": "DE"},
    ],
    "Application": [
        {"name": "OPEN_LEDGER™", "category": "crm", "owner_email": "A@example.com", "version": "1.0"},
        {"name": "GitLab", "category": "Fiannce", "owner_email": None, "version": "latest"},
        {"name": "gitlba", "category": "ops", "owner_email": "b@example.com", "version": "2"},
        {"name": None, "category": "Gardening", "owner_email": "x", "version": None},
    ],
    "DiscoveryMetadata": [
        {"source": "agent", "document": DOCUMENT},
        {"source": "gossip", "document": {"hostname": "web1.stg", "ip_address": "2001:db8::1", "port": 443}},
        {"source": "agent", "document": []},
    ],
}
