from itertools import combinations

import pytest
from pydantic import ValidationError

from bi_ray.config.training import RLConfig, ValidationConfig
from bi_ray.runs.validation import best_step, outcome_of, scores_of, stops_after, summarize


def row(mode, problem, right, failure=None):
    verdict = {} if failure else {"right": right, "truncated": not right, "tokens": 10 + right}
    return {"mode": mode, "id": problem, "failure": failure} | verdict


def test_figures_of_a_validation_against_counting_by_hand():
    config = ValidationConfig(samples_per_prompt=3)
    sampled = {"a": [True, False, False], "b": [True, True, False], "c": [False, False, False]}
    rows = [row("greedy", name, name != "c") for name in sampled]
    for name, values in sampled.items():
        rows += [row("sampled", name, right) for right in values]
    rows += [
        row("greedy", "d", None, "infrastructure: lost"),
        row("sampled", "d", None, "data: no verdict"),
    ]
    figures = summarize("val", rows, config)
    assert figures["validation/val/greedy"] == pytest.approx(2 / 3)  # d is no wrong answer
    assert figures["validation/val/failures"] == 2
    assert figures["validation/val/truncated"] == pytest.approx(1 / 3)
    assert figures["validation/val/tokens"] == pytest.approx((11 + 11 + 10) / 3)
    for k in (1, 2, 3):  # any of k drawn from the three, over every way to draw them
        chances = []
        for values in sampled.values():
            draws = list(combinations(values, k))
            chances.append(sum(map(any, draws)) / len(draws))
        assert figures[f"validation/val/pass_at_{k}"] == pytest.approx(sum(chances) / 3)
    assert summarize("val", [row("greedy", "d", None, "x")], config) == {
        "validation/val/failures": 1
    }


def test_what_is_compared_has_to_be_measured():
    assert ValidationConfig(samples_per_prompt=6).pass_at == (1, 2, 4, 6)
    assert ValidationConfig().pass_at == ()
    assert ValidationConfig(samples_per_prompt=8, metric="pass_at_8").metric == "pass_at_8"
    for settings in (
        {"metric": "pass_at_4"},
        {"samples_per_prompt": 8, "metric": "pass_at_3"},
        {"metric": "loss"},
    ):
        with pytest.raises(ValidationError):
            ValidationConfig(**settings)
    with pytest.raises(ValidationError, match="use_best needs"):
        RLConfig(keep_best=0, validation=ValidationConfig(use_best=True))


def test_patience():
    config = ValidationConfig(patience=2, min_gain=0.01)
    rising = {0: 0.1, 5: 0.2, 10: 0.3, 15: 0.305}
    assert stops_after(rising, config) is None  # one without a gain
    # 0.305 was none to beat, nor is 0.309 better than 0.3
    assert stops_after(rising | {20: 0.309}, config) == 20
    assert stops_after(rising | {20: 0.32, 25: 0.3}, config) is None
    assert stops_after(rising | {20: 0.2, 25: 0.9}, config) == 20  # whatever came later
    assert stops_after(rising | {20: 0.309}, ValidationConfig()) is None
    assert stops_after({}, config) is None


def test_the_best_step_and_the_outcome():
    rows = [{"step": 0, "validation/val/greedy": 0.5}, {"step": 1, "reward": 1}]
    rows += [{"step": 2, "validation/val/greedy": 0.7}, {"step": 3, "validation/val/greedy": 0.7}]
    assert scores_of(rows, ValidationConfig()) == {0: 0.5, 2: 0.7, 3: 0.7}
    assert scores_of(rows, None) == {}
    assert best_step({0: 0.5, 2: 0.7, 3: 0.7}) == 2
    assert best_step({}) is None
    steps = {0, 1, 2, 3}
    last = outcome_of(rows, RLConfig(steps=3, validation=ValidationConfig()), steps)
    assert (last.step, last.last_step, last.best_step, last.stopped) == (3, 3, 2, None)
    early = RLConfig(steps=9, validation=ValidationConfig(use_best=True, patience=1))
    best = outcome_of(rows, early, steps)
    assert (best.step, best.last_step) == (2, 3)
    assert best.stopped == (
        "stopped after step 3 of 9: validation/val/greedy did not rise by more than 0 in 1 "
        "validations; best 0.700 after step 2"
    )
    without = outcome_of(rows, early, usable={0, 3})  # the checkpoint of step 2 is damaged
    assert (without.step, without.last_step, without.best_step) == (3, 3, 2)
    worse = [{"step": 0, "validation/val/greedy": 0.5}, {"step": 1, "validation/val/greedy": 0.1}]
    falling = RLConfig(steps=1, validation=ValidationConfig(use_best=True))
    assert outcome_of(worse, falling, {0, 1}).step == 0
    assert outcome_of([{"step": 4}], RLConfig(steps=4), {0, 4}).step == 4


def test_which_steps_get_a_checkpoint():
    config = RLConfig(
        steps=10, checkpoint_every_steps=4, validation=ValidationConfig(every_steps=3)
    )
    assert [step for step in range(1, 11) if config.is_checkpointed(step)] == [3, 4, 6, 8, 9, 10]
    none_best = config.model_copy(update={"keep_best": 0})
    assert [step for step in range(1, 11) if none_best.is_checkpointed(step)] == [4, 8, 10]
