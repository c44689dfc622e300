import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bi_ray.batches.advantages import (
    EQUAL_REWARDS,
    group_advantages,
    learned_rewards,
    rewards_differ,
    step_advantages,
)


@pytest.mark.parametrize(("right", "samples"), [(1, 8), (3, 8), (7, 8), (1, 2), (5, 12)])
def test_binary_rewards_give_equation_6(right, samples):
    advantages = group_advantages([1.0] * right + [0.0] * (samples - right))
    assert advantages[:right] == pytest.approx([math.sqrt((samples - right) / right)] * right)
    assert advantages[right:] == pytest.approx(
        [-math.sqrt(right / (samples - right))] * (samples - right)
    )


@settings(deadline=None)
@given(st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=12), st.floats(0, 1))
def test_against_statistics(rewards, epsilon):
    for kind, std in (("population", statistics.pstdev), ("sample", statistics.stdev)):
        advantages = group_advantages(rewards, kind, epsilon)
        if len(set(rewards)) == 1:
            assert advantages == [0.0] * len(rewards)
        else:
            mean = statistics.fmean(rewards)
            assert advantages == pytest.approx(
                [(r - mean) / (std(rewards) + epsilon) for r in rewards]
            )
            assert sum(advantages) == pytest.approx(0, abs=1e-9)


def test_equal_rewards_whose_mean_rounds_have_no_advantage():
    assert group_advantages([0.1] * 3) == [0.0] * 3  # 0.1 + 0.1 + 0.1 is not 0.3
    assert group_advantages([1.05]) == [0.0]
    assert group_advantages([]) == []


def test_a_reward_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="finite"):
        group_advantages([1.0, float("nan")])


ROUNDING = {
    "last bit": [0.1 + 0.2, 0.3],
    "sums in another order": [sum([0.1] * 10), 1.0],
    "terms that cancel": [0.1 + 0.2 - 0.3, 0.0, 0.0],
    "float32": [float(np.float32(0.1) + np.float32(0.7)), 0.8],
    "large": [1e9 + 0.1, 1e9 + 0.1000001],
    "subnormal": [1e-320, 0.0],
    "signed zeros": [0.0, -0.0],
}


@pytest.mark.parametrize("kind", ["group", "leave_one_out", "batch", "group_batch"])
@pytest.mark.parametrize("std", ["population", "sample", "none"])
@pytest.mark.parametrize("name", ROUNDING)
def test_rewards_equal_but_for_rounding_have_no_advantage(kind, std, name):
    rewards = ROUNDING[name]
    assert not rewards_differ(rewards)
    [advantages] = step_advantages([rewards], kind, std, 0.0)
    assert max(map(abs, advantages)) <= EQUAL_REWARDS * max(1.0, *map(abs, rewards))
    if kind != "group_batch":
        assert set(advantages) == {0.0}


@pytest.mark.parametrize("scale", [1e-4, 1.0, 7.3, 1e6, 1e200, 1e308])
@pytest.mark.parametrize(
    ("std", "deviation"), [("population", statistics.pstdev), ("sample", statistics.stdev)]
)
def test_advantages_do_not_depend_on_the_unit_of_the_rewards(scale, std, deviation):
    rewards = [0.0, 0.25, 1.0, 1.0]
    wanted = [(reward - 0.5625) / deviation(rewards) for reward in rewards]
    assert group_advantages([scale * reward for reward in rewards], std) == pytest.approx(wanted)


def test_binary_advantages_are_those_of_the_plain_formula_to_the_last_bit():
    for samples in range(2, 33):
        for right in range(1, samples):
            rewards = [1.0] * right + [0.0] * (samples - right)
            mean = math.fsum(rewards) / samples
            squares = math.fsum((reward - mean) ** 2 for reward in rewards)
            for std, epsilon in (("population", 0.0), ("sample", 1e-6)):
                spread = math.sqrt(squares / (samples - (std == "sample"))) + epsilon
                assert group_advantages(rewards, std, epsilon) == [
                    (reward - mean) / spread for reward in rewards
                ]
            assert group_advantages(rewards, "none") == [reward - mean for reward in rewards]


def test_a_difference_that_is_no_float_is_refused():
    with pytest.raises(ValueError, match="too large"):
        group_advantages([1.7e308, -1.7e308, -1.7e308], "none")
    assert group_advantages([1.7e308, -1.7e308]) == [1.0, -1.0]


def test_a_group_without_a_right_answer_counts_by_its_answers():
    assert learned_rewards([0.05, 0.0, 0.3], [0.0, 0.0, 0.0]) == [0.0, 0.0, 0.0]
    assert learned_rewards([1.05, 0.0, 0.05], [1.0, 0.0, 0.0]) == [1.05, 0.0, 0.05]
    assert learned_rewards([1.0, 0.8], [1.0, 1.0]) == [1.0, 0.8]  # all right, some too long
    # a reward function that gives partial credit
    assert learned_rewards([0.2, 0.45], [0.2, 0.4]) == [0.2, 0.45]
