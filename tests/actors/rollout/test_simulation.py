"""RL trainings through kills of everything: each ends in the rows and weights of the undisturbed
one.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest
from simulation import KINDS, LIMIT_S, STEPS, Outcome, Training
from virtual_time import run

# A pause is between two kills, in seconds; a step takes some 100 s, a start of an engine 50 s.
MIXTURES = {
    "engines": ("engine",),
    "engines that hang": ("hung engine", "engine"),
    "starts that fail": ("failed start", "engine"),
    "learners": ("learner",),
    "engines and learners": ("engine", "learner"),
    "engines, learners, driver": ("engine", "learner", "driver"),
    "scale and engines": ("scale", "engine"),
    "everything": KINDS,
}


@pytest.fixture(autouse=True)
def quiet():
    """Thousands of deaths are reported, as they should be; nobody reads it here."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def trained(folder: Path, **options) -> Outcome:
    folder.mkdir(parents=True)
    return run(Training(folder, **options).run(), LIMIT_S)


def test_the_undisturbed_training_has_every_step_once_and_all_its_groups(tmp_path):
    outcome = trained(tmp_path / "run")
    assert [row["step"] for row in outcome.rows] == list(range(STEPS + 1))
    assert all(row.get("groups", 8) == 8 for row in outcome.rows)
    assert outcome.same_as(trained(tmp_path / "again", seed=1))


@pytest.mark.parametrize("mixture", MIXTURES)
def test_killed_trainings_end_like_the_undisturbed_one(mixture, tmp_path):
    table = _kill(tmp_path, {mixture: MIXTURES[mixture]}, trainings=1)
    print(table)
    assert table.all_equal


@pytest.mark.parametrize("mixture", ["engines and learners", "everything"])
def test_with_batches_made_ahead_every_step_has_one_row_and_all_its_groups(mixture, tmp_path):
    outcome = trained(tmp_path / "run", seed=3, kinds=MIXTURES[mixture], kills=40, max_staleness=2)
    assert [row["step"] for row in outcome.rows] == list(range(STEPS + 1))
    assert all(row.get("groups", 8) == 8 for row in outcome.rows)


@pytest.mark.slow
def test_a_thousand_kills(tmp_path):
    table = _kill(tmp_path, MIXTURES, trainings=4)
    print(table)
    assert table.all_equal
    assert table.kills.total() >= 1000


class _Table:
    """One line per mixture of kills, one per kind of kill."""

    def __init__(self) -> None:
        self.lines = [f"{'what is killed':<28}{'kills':>7}{'trainings':>11}{'equal':>7}"]
        self.kills: Counter[str] = Counter()
        self.all_equal = True

    def add(self, name: str, kills: Counter[str], equal: list[bool]) -> None:
        self.lines.append(f"{name:<28}{kills.total():>7}{len(equal):>11}{sum(equal):>7}")
        self.kills += kills
        self.all_equal &= all(equal)

    def __str__(self) -> str:
        kinds = [f"{kind:<28}{count:>7}" for kind, count in sorted(self.kills.items())]
        return "\n".join(["", *self.lines, f"{'all':<28}{self.kills.total():>7}", "", *kinds])


def _kill(folder: Path, mixtures: dict[str, tuple[str, ...]], trainings: int) -> _Table:
    undisturbed = trained(folder / "undisturbed")
    table = _Table()
    for name, kinds in mixtures.items():
        kills: Counter[str] = Counter()
        equal = []
        for seed in range(trainings):
            outcome = trained(folder / name / str(seed), seed=seed, kinds=kinds, kills=40)
            kills += outcome.kills
            equal.append(outcome.same_as(undisturbed))
        table.add(name, kills, equal)
    return table
