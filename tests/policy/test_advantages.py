import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bi_ray.policy.advantages import group_advantages


@pytest.mark.parametrize(("right", "samples"), [(1, 8), (3, 8), (7, 8), (1, 2), (5, 12)])
def test_binary_rewards_give_equation_6(right, samples):
    advantages = group_advantages([1.0] * right + [0.0] * (samples - right))
    assert advantages[:right] == pytest.approx([math.sqrt((samples - right) / right)] * right)
    assert advantages[right:] == pytest.approx([-math.sqrt(right / (samples - right))] * (samples - right))


@settings(deadline=None)
@given(st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=12), st.floats(0, 1))
def test_against_statistics(rewards, epsilon):
    for kind, std in (("population", statistics.pstdev), ("sample", statistics.stdev)):
        advantages = group_advantages(rewards, kind, epsilon)
        if len(set(rewards)) == 1:
            assert advantages == [0.0] * len(rewards)
        else:
            mean = statistics.fmean(rewards)
            assert advantages == pytest.approx([(r - mean) / (std(rewards) + epsilon) for r in rewards])
            assert sum(advantages) == pytest.approx(0, abs=1e-9)


def test_equal_rewards_whose_mean_rounds_have_no_advantage():
    assert group_advantages([0.1] * 3) == [0.0] * 3  # 0.1 + 0.1 + 0.1 is not 0.3
    assert group_advantages([1.05]) == [0.0]
    assert group_advantages([]) == []


def test_a_reward_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="finite"):
        group_advantages([1.0, float("nan")])
