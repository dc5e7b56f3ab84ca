"""Every input of the corpora of tests/data/fuzz: accepted with the target's property, or refused with a clear error.

An input that showed a defect is in its target's corpus, so this test fails without the fix.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fuzz.mutators import mutated
from fuzz.names import NAMES
from fuzz.target import Outcomes, Target, execute
from fuzz.targets import TARGETS

CORPORA = Path(__file__).parents[1] / "data/fuzz"


def test_there_are_a_name_and_a_corpus_for_every_target() -> None:
    assert set(NAMES) == set(TARGETS) == {path.name for path in CORPORA.iterdir() if path.is_dir()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_the_corpus_of_a_target(name: str) -> None:
    outcomes = Outcomes()
    for path in sorted((CORPORA / name).iterdir()):
        wrong = execute(TARGETS[name], path.read_bytes(), outcomes)
        assert wrong is None, (path.name, outcomes.findings[wrong][1])
    assert outcomes.accepted


@pytest.mark.parametrize(
    ("data", "wrong"),
    [(b"x", None), (b"refused", None), (b"lines", "unclear message"), (b"traceback", "KeyError"), (b"assert", "Asser")],
)
def test_outcomes_are_judged(data: bytes, wrong: str | None) -> None:
    def run(data: bytes) -> None:
        if data == b"refused":
            raise ValueError("a message of one line")
        if data == b"lines":
            raise ValueError("a message\nof two lines")
        if data == b"traceback":
            raise KeyError("x")
        assert data == b"x"

    found = execute(Target("one", run, (ValueError,)), data, Outcomes())
    assert found is None if wrong is None else found is not None and found.startswith(wrong)


def test_mutations_of_mutated_graphs_are_bytes() -> None:
    """libFuzzer mutates inputs again, whose fields may have wrong wire types by then."""
    data = original = (CORPORA / "mindir/converted").read_bytes()
    for seed in range(2000):
        data = original if seed % 8 == 0 else data
        data = mutated("mindir", data, 1 << 13, seed, lambda data, largest: data[:largest])
        assert isinstance(data, bytes)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in NAMES if TARGETS[name].form != "bytes"])
def test_mutations_keep_the_form(name: str) -> None:
    """Without libFuzzer: mutated inputs of each corpus, judged as its own are. The seed is fixed."""
    target, outcomes, rng = TARGETS[name], Outcomes(), random.Random(7)
    seeds = [path.read_bytes() for path in sorted((CORPORA / name).iterdir())]
    changed = [
        mutated(target.form, rng.choice(seeds), target.largest, seed, lambda data, largest: data[: largest // 2])
        for seed in range(20)
    ]
    assert len(set(changed) - set(seeds)) > 10
    for data in changed:
        execute(target, data, outcomes)
    assert not outcomes.findings, next(iter(outcomes.findings.items()))
