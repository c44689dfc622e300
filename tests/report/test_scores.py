"""Statistics against brute force, closed forms and published values."""

import itertools
import math

import numpy as np
import pytest

from bi_ray.intervals import Interval, bootstrap_mean, pass_at_k, wilson
from bi_ray.report.gain_difference import gain_difference
from bi_ray.report.scores import SetScore, make_table, score_set

RNG = np.random.default_rng(0)


# --- Wilson


@pytest.mark.parametrize("total", [1, 7, 100, 1000])
def test_wilson_ends_are_where_the_score_test_just_refuses(total):
    """Its definition: the shares p at which |share - p| is 1.96 standard deviations of p."""
    for right in {0, 1, total // 3, total // 2, total}:
        interval = wilson(right, total)
        assert interval.value == right / total
        for end in (interval.low, interval.high):
            if 1e-9 < end < 1 - 1e-9:
                deviation = math.sqrt(end * (1 - end) / total)
                assert abs(right / total - end) == pytest.approx(1.959964 * deviation, rel=1e-5)
        assert interval.low <= interval.value <= interval.high
        assert 0 <= interval.low < interval.high <= 1


def test_wilson_equals_a_published_example():
    """Newcombe 1998, table I: 81 of 263."""
    _, low, high = wilson(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    _, low, high = wilson(0, 20)
    assert (round(low, 4), round(high, 4)) == (0.0, 0.1611)


def test_wilson_covers():
    """95 % of the intervals of simulated accuracies hold the truth."""
    for truth in (0.1, 0.4):
        draws = RNG.binomial(200, truth, size=4000)
        covered = np.mean(
            [(interval := wilson(int(n), 200)).low <= truth <= interval.high for n in draws]
        )
        assert 0.93 < covered < 0.97


@pytest.mark.parametrize(("right", "total"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_share(right, total):
    with pytest.raises(ValueError, match="expected 0 <= right <= total"):
        wilson(right, total)


def test_an_interval_of_a_standard_error_ends_where_wilson_does_for_many():
    interval = Interval.of_error(0.3, math.sqrt(0.3 * 0.7 / 1e6))
    assert interval == pytest.approx(wilson(300_000, 1_000_000), abs=1e-5)
    assert (interval.sign, Interval.of_error(0.0, 1.0).sign) == (1, 0)


# --- pass@k


@pytest.mark.parametrize("samples", [1, 4, 6])
def test_pass_at_k_equals_counting_all_choices(samples):
    for right, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        outcomes = [1] * right + [0] * (samples - right)
        choices = list(itertools.combinations(outcomes, k))
        assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_pass_at_k_is_unbiased():
    truth, samples, k = 0.3, 8, 4
    mean = sum(
        math.comb(samples, c) * truth**c * (1 - truth) ** (samples - c) * pass_at_k(samples, c, k)
        for c in range(samples + 1)
    )
    assert mean == pytest.approx(1 - (1 - truth) ** k)


def test_pass_at_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="pass@5"):
        pass_at_k(4, 2, 5)


# --- bootstrap


def naive_bootstrap(values, draws, rng):
    """By loops: seeds with replacement, then problems within each."""
    means = []
    for _ in range(draws):
        chosen = [values[i] for i in rng.integers(len(values), size=len(values))]
        means.append(np.mean([np.mean(rng.choice(one, size=len(one))) for one in chosen]))
    return np.quantile(means, [0.025, 0.975])


@pytest.mark.parametrize("seeds", [1, 3])
def test_bootstrap_equals_the_naive_one(seeds):
    values = [RNG.choice([-1, 0, 1], p=[0.1, 0.6, 0.3], size=80 + 20 * i) for i in range(seeds)]
    interval = bootstrap_mean(values, 10_000, seed=1)
    low, high = naive_bootstrap(values, 4000, np.random.default_rng(2))
    assert interval.value == pytest.approx(np.mean([one.mean() for one in values]))
    width = high - low
    assert interval.low == pytest.approx(low, abs=0.08 * width)
    assert interval.high == pytest.approx(high, abs=0.08 * width)


def test_bootstrap_of_a_proportion_is_as_wide_as_its_standard_error():
    values = np.repeat([0.0, 1.0], [600, 400])
    interval = bootstrap_mean([values], 10_000, seed=0)
    half = 1.96 * math.sqrt(0.4 * 0.6 / 1000)
    assert interval.low == pytest.approx(0.4 - half, abs=0.003)
    assert interval.high == pytest.approx(0.4 + half, abs=0.003)


def test_several_seeds_that_differ_widen_the_interval():
    """Between seeds 0.2, 0.5 and 0.8, with problems too many to matter, all draws of seeds can be
    counted.
    """
    values = [np.repeat([0.0, 1.0], [2 * 10**5 - n, n]) for n in (40_000, 100_000, 160_000)]
    interval = bootstrap_mean(values, 10_000, seed=0)
    draws = [np.mean(draw) for draw in itertools.product((0.2, 0.5, 0.8), repeat=3)]
    counted = np.quantile(draws, [0.025, 0.975], method="inverted_cdf")
    assert (interval.low, interval.high) == pytest.approx(counted, abs=0.01)
    pooled = bootstrap_mean([np.concatenate(values)], 10_000, seed=0)
    assert interval.high - interval.low > 50 * (pooled.high - pooled.low)


def test_bootstrap_is_the_same_for_the_same_seed():
    values = [np.random.default_rng(1).normal(size=100)]  # 0 and 1 have few means to choose from
    assert bootstrap_mean(values, 1000, seed=3) == bootstrap_mean(values, 1000, seed=3)
    assert bootstrap_mean(values, 1000, seed=3) != bootstrap_mean(values, 1000, seed=4)


def test_bootstrap_covers():
    """Of 400 simulated studies, 95 % of the intervals of the gain hold the true gain."""
    covered = 0
    for study in range(400):
        gains = RNG.choice([-1, 0, 1], p=[0.1, 0.7, 0.2], size=200)
        interval = bootstrap_mean([gains], 1000, seed=study)
        covered += interval.low <= 0.1 <= interval.high
    assert 0.91 < covered / 400 < 0.985


@pytest.mark.parametrize("values", [[], [[]], [[1.0], []]])
def test_nothing_to_draw_from_is_refused(values):
    with pytest.raises(ValueError, match="nothing to draw from"):
        bootstrap_mean(values, 100, seed=0)


# --- from rows to the table


def row(problem: str, right: bool | None, mode: str = "greedy", **fields) -> dict:
    """A sample; ``right`` None: it failed."""
    base = {
        "mode": mode,
        "id": problem,
        "answer": "1",
        "failure": None if right is not None else "data: hung",
    }
    verdict = {"right": right, "truncated": False, "format_right": True, "trace_valid": bool(right)}
    return base | (verdict if right is not None else {}) | fields


def score(
    arm: str, stage: str, rights: list[int], seed: int = 0, set_name: str = "test_id"
) -> SetScore:
    return score_set(
        arm, stage, set_name, seed, [row(str(i), bool(right)) for i, right in enumerate(rights)]
    )


def test_traces_are_graded_beside_accuracy():
    rows = [
        row("0", True, progress=1.0, reflections=3, right_reflections=3),
        row("1", False, progress=0.5, reflections=1, right_reflections=0),
        row("2", False, progress=0.0, reflections=0, right_reflections=0),
        row("0", True, "sampled", progress=0.0, reflections=9, right_reflections=0),
        row("3", None),
    ]
    result = score_set("bridge", "SFT", "test_id", 0, rows)
    assert (result.progress, result.right_reflections) == (0.5, 0.75)
    table = make_table([result, score("bridge", "RL", [1, 1, 0])], draws=100)[0]
    assert (table.sft.progress, table.sft.right_reflections) == (0.5, 0.75)
    # rows without these fields
    assert (table.rl.progress, table.rl.right_reflections) == (None, None)
    plain = [row("0", True, progress=1.0, reflections=0, right_reflections=0)]
    assert score_set("vanilla", "SFT", "test_id", 0, plain).right_reflections is None


def test_rows_become_a_score():
    rows = [
        row("a", True),
        row("b", False, truncated=True, format_right=False),
        row("c", None),
        row("d", False),
        row("e", True, trace_valid=False),
        *[row("a", right, "sampled") for right in (True, True, False, True)],
        *[row("b", right, "sampled") for right in (False, False, False, False)],
        *[row("d", right, "sampled") for right in (True, None, True, True)],
    ]
    result = score_set("bridge", "SFT", "test_id", 7, rows)
    assert result.greedy == {"a": True, "b": False, "d": False, "e": True}
    assert result.sampled == {"a": (3, 4), "b": (0, 4), "d": (3, 3)}
    assert (result.truncated, result.format_right, result.trace_valid, result.failures) == (
        0.25,
        0.75,
        0.25,
        2,
    )
    assert result.informative == pytest.approx(1 / 3)
    assert result.pass_at(1) == pytest.approx((3 / 4 + 0 + 1) / 3)
    assert result.pass_at(2) == pytest.approx((1 + 0) / 2)  # d has too few samples for it
    assert result.pass_at(4) is None


def test_without_graphs_there_is_no_share_of_valid_traces():
    rows = [row("a", True, trace_valid=None), row("b", False, trace_valid=None)]
    before = score_set("base", "SFT", "test_id", 0, rows)
    assert before.trace_valid is None
    assert make_table([before], draws=10)[0].sft.trace_valid is None


def test_a_set_where_everything_failed_has_no_score():
    with pytest.raises(ValueError, match="no greedy response has a verdict"):
        score_set("bridge", "SFT", "test_id", 0, [row("a", None)])


def test_the_table_holds_accuracies_gains_and_their_pairing():
    before, after = [1] * 30 + [0] * 70, [1] * 20 + [0] * 10 + [1] * 40 + [0] * 30
    (line,) = make_table(
        [score("bridge", "SFT", before), score("bridge", "RL", after)], draws=10_000
    )
    assert (line.arm, line.set, line.seeds, line.problems) == ("bridge", "test_id", 1, 100)
    assert line.sft.accuracy == wilson(30, 100)
    assert line.rl.accuracy == wilson(60, 100)
    assert line.gain.value == pytest.approx(0.3)
    # 40 gained, 10 lost: the variance of paired differences
    half = 1.96 * math.sqrt((0.5 - 0.3**2) / 100)
    assert line.gain.low == pytest.approx(0.3 - half, abs=0.015)
    assert line.gain.high == pytest.approx(0.3 + half, abs=0.015)
    assert line.gain.sign == 1


def test_a_gain_is_over_the_problems_that_both_have():
    before = score_set("a", "SFT", "s", 0, [row("x", False), row("y", True), row("z", True)])
    after = score_set("a", "RL", "s", 0, [row("x", True), row("y", True), row("z", None)])
    (line,) = make_table([before, after], draws=100)
    assert line.gain.value == 0.5
    assert line.rl.failures == 1


def test_before_rl_there_is_no_gain():
    (line,) = make_table([score("a", "SFT", [1, 0])], draws=100)
    assert (line.rl, line.gain) == (None, None)
    with pytest.raises(ValueError, match="no score before RL"):
        make_table([score("a", "RL", [1, 0])], draws=100)


def test_seeds_are_paired_with_themselves():
    scores = [
        score("a", "SFT", [0, 0, 1, 1], seed=0),
        score("a", "SFT", [1, 1, 1, 1], seed=1),
        score("a", "RL", [1, 1, 1, 1], seed=1),
        score("a", "RL", [1, 1, 1, 1], seed=0),
    ]
    (line,) = make_table(scores, draws=4000)
    assert (line.seeds, line.problems) == (2, 8)
    assert line.sft.accuracy.value == 0.75
    assert line.gain.value == 0.25


def test_arms_and_sets_stay_in_order():
    scores = [
        score(arm, "SFT", [0, 1], set_name=name)
        for arm in ("vanilla", "bridge")
        for name in ("id", "ood")
    ]
    assert [(line.arm, line.set) for line in make_table(scores, draws=10)] == [
        ("vanilla", "id"),
        ("vanilla", "ood"),
        ("bridge", "id"),
        ("bridge", "ood"),
    ]


def test_the_difference_of_two_gains_is_paired():
    """Arms that gain on the very same problems differ by 0 exactly, however noisy each gain is."""
    before, after = list(RNG.integers(2, size=50)), list(RNG.integers(2, size=50))
    same = [
        score(arm, stage, rights)
        for arm in ("a", "b")
        for stage, rights in (("SFT", before), ("RL", after))
    ]
    assert gain_difference(same, "a", "b", "test_id", draws=1000) == Interval(0, 0, 0)
    better = [*same[:2], score("b", "SFT", before), score("b", "RL", [1] * 50)]
    difference = gain_difference(better, "b", "a", "test_id", draws=4000)
    assert difference.value == pytest.approx(1 - np.mean(after))
    assert difference.sign == 1
    assert gain_difference(better, "a", "b", "test_id", draws=4000).sign == -1


def test_arms_without_a_common_seed_have_no_difference():
    scores = [
        score(arm, stage, [0, 1], seed) for seed, arm in enumerate("ab") for stage in ("SFT", "RL")
    ]
    assert gain_difference(scores, "a", "b", "test_id", draws=10) is None
