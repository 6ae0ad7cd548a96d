"""Random sequences of work and faults; afterwards the ledger has each record exactly once, and its value is right.

Operator and trigger run as they come, each try in processes of its own, against the service's real process and
PostgreSQL. ``EXACTLY_ONCE_EXAMPLES=2000 EXACTLY_ONCE_SEED=5`` tries more of them, and others.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis import strategies as st

from tests.exactly_once.world import Blow, Fault, InBatch, InExchange, Place, Run, World
from transformation_service import database, loading, samples
from transformation_service.entities import ENTITIES

pytestmark = pytest.mark.database
RECORDS = 40
EXAMPLES = int(os.environ.get("EXACTLY_ONCE_EXAMPLES", "200"))
SEED = int(os.environ.get("EXACTLY_ONCE_SEED", "1"))
ALL_RULES = ("normalize_phone", "standardize_email", "deduplicate")
# Any order of these comes to the same values, so that one clean run of each tells what is right.
RULE_SETS = [ALL_RULES, ALL_RULES, ALL_RULES, ("normalize_phone",), ("standardize_email",)]
VALUES = "full_name, email, phone, country, phone_extension, duplicate_of, mark_reason"


@dataclass(frozen=True)
class Step:
    """Tries that start at once, nearly always one; only the first of them meets the fault."""

    runs: tuple[Run, ...]
    fault: Fault | None
    fails: str | None
    defer_after: float
    batch_size: int


def run_of(path: str, day: int, rules: tuple[str, ...]) -> Run:
    hour = {"master": 1, "schedule": 2, "manual": 10, "manual again": 23}[path]
    instant = datetime(2026, 1, 30 + day, tzinfo=UTC) + timedelta(hours=hour)
    return Run(path.removesuffix(" again"), instant, rules)


runs = st.builds(
    run_of,
    path=st.sampled_from(["schedule", "master", "manual", "manual again"]),
    day=st.sampled_from([0, 0, 0, 1]),
    rules=st.sampled_from(RULE_SETS),
)
in_exchange = st.builds(InExchange, st.sampled_from([0, 0, 1, 2]), st.booleans())
in_batch = st.builds(InBatch, st.integers(1, RECORDS), st.sampled_from(Place))
# One choice among all kinds, so that each comes as often as any other.
faults = st.sampled_from(
    [
        (moment, blow)
        for blow in Blow
        for moment in (in_exchange, in_batch)
        if (moment, blow) != (in_batch, Blow.ANSWER_LOST)
    ]
).flatmap(lambda kind: st.builds(Fault, kind[0], st.just(kind[1])))
steps = st.builds(
    Step,
    runs=st.one_of(st.tuples(runs), st.tuples(runs), st.tuples(runs, runs).filter(lambda pair: pair[0] != pair[1])),
    fault=st.one_of(faults, faults, st.none()),
    fails=st.sampled_from([*[None] * 5, "submitted", "waiting", "reporting"]),
    defer_after=st.sampled_from([0, 0.6, 2]),
    batch_size=st.sampled_from([7, 7, 10]),
)
sequences = st.lists(steps, min_size=1, max_size=4)


@pytest.fixture(scope="module")
def database_url(postgresql_server: Any) -> str:
    with psycopg.connect(postgresql_server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE exactly_once")
    url: str = postgresql_server.url("exactly_once")
    database.migrate(url)
    loading.load(url, ENTITIES["User"], samples.generate("User", RECORDS, 7))
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE pristine AS SELECT * FROM user_record")
    return url


@pytest.fixture
def make_world(database_url: str, tmp_path: Path) -> Callable[[str | None], Any]:
    @contextmanager
    def make(mutant: str | None = None) -> Iterator[World]:
        world = World(database_url, tmp_path, mutant)
        try:
            yield world
        finally:
            world.close()

    return make


class Clean:
    """The records' values after one undisturbed run of each rule set."""

    def __init__(self) -> None:
        self._known: dict[frozenset[tuple[str, ...]], list[tuple[Any, ...]]] = {}

    def values(self, world: World, rule_sets: frozenset[tuple[str, ...]]) -> list[tuple[Any, ...]]:
        if rule_sets not in self._known:
            world.reset()
            for rules in sorted(rule_sets):
                world.attempt(run_of("schedule", 0, rules))
            world.settle()
            self._known[rule_sets] = world.rows(f"SELECT id, {VALUES} FROM user_record ORDER BY id")
        return self._known[rule_sets]


def play(world: World, sequence: list[Step]) -> None:
    """Do the steps; at the end nothing is left to retry."""
    world.reset()
    for step in sequence:
        arguments = {"defer_after": step.defer_after, "batch_size": step.batch_size}
        with ThreadPoolExecutor() as side:
            others = [side.submit(world.attempt, run, **arguments) for run in step.runs[1:]]
            world.attempt(step.runs[0], step.fault, fails=step.fails, **arguments)
        for other in others:
            other.result()
    world.settle()


def assert_exactly_once(world: World, sequence: list[Step], clean: list[tuple[Any, ...]]) -> None:
    works = {(run.slot, run.rules) for step in sequence for run in step.runs}
    jobs = world.rows("SELECT slot, rules, state, records_total, transformed + marked FROM transformation_job")
    assert sorted((slot, tuple(rules)) for slot, rules, *_ in jobs) == sorted(works), "one job per slot and rule set"
    assert {tuple(rest) for _, _, *rest in jobs} == {("succeeded", RECORDS, RECORDS)}
    ledger = world.rows(
        "SELECT record_id, ledger.slot, rules, count(*) FROM transformation_record AS ledger"
        " JOIN transformation_job AS job ON job.id = job_id GROUP BY 1, 2, 3"
    )
    wanted = {(number, *work) for number in range(1, RECORDS + 1) for work in works}
    assert {(number, slot, tuple(rules)) for number, slot, rules, _ in ledger} == wanted
    assert {times for *_, times in ledger} == {1}, "each record once per slot and rule set"
    assert world.rows("SELECT DISTINCT transform_count FROM user_record") == [(len(works),)]
    # The key names the work: every try, run and path has sent the same one, or the service alone would stand guard.
    keys = world.rows("SELECT job_id, count(*) FROM transformation_request GROUP BY job_id")
    assert [times for _, times in keys] == [1] * len(works), "one idempotency key per work"
    assert world.rows(f"SELECT id, {VALUES} FROM user_record ORDER BY id") == clean


class Judge:
    """Plays a sequence and judges what it has left behind."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._clean = Clean()

    def __call__(self, sequence: list[Step]) -> None:
        clean = self._clean.values(self._world, frozenset(run.rules for step in sequence for run in step.runs))
        try:
            play(self._world, sequence)
            assert_exactly_once(self._world, sequence, clean)
        except BaseException:
            note(f"EXACTLY_ONCE_SEED={SEED}\n{self._world.log.read_text()}")
            raise


def for_random_sequences(judge: Callable[[list[Step]], None]) -> None:
    """The same ones every time; where one fails, the simplest that does."""
    unlimited = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    chosen = settings(
        max_examples=EXAMPLES, phases=[Phase.generate, Phase.shrink], report_multiple_bugs=False, **unlimited
    )
    seed(SEED)(chosen(given(sequences)(lambda sequence: judge(sequence))))()


def test_each_record_is_transformed_once_whatever_happens(make_world: Any) -> None:
    with make_world() as world:
        for_random_sequences(Judge(world))
        struck = Counter(blow for blow, _ in world.blows.elements())
        print({f"{blow.value}, {moment.__name__}": count for (blow, moment), count in world.blows.items()})
        assert all(struck[blow] * 50 >= EXAMPLES for blow in Blow), "faults are drawn, but hardly ever happen"


@pytest.mark.parametrize(
    ("mutant", "says"),
    [
        ("key with the try number", "one idempotency key per work"),
        ("key with the run", "one idempotency key per work"),
        ("slot is the run's instant", "one job per slot and rule set"),
        ("effects and ledger in several transactions", ""),  # many ways: a job that never ends, a value that is missing
    ],
)
def test_the_property_finds(make_world: Any, mutant: str, says: str) -> None:
    """Each of these mistakes would transform twice, or half; a property that holds for them proves nothing."""
    found: list[AssertionError] = []
    with make_world(mutant) as world:
        judge = Judge(world)

        def hunt(sequence: list[Step]) -> None:
            if not found:
                try:
                    judge(sequence)
                except AssertionError as failure:
                    found.append(failure)

        for_random_sequences(hunt)
    assert found, "every sequence went well"
    assert says in str(found[0])
