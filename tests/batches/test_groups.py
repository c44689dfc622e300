import random

import pytest

from bi_ray.batches.groups import build_batch, refill
from bi_ray.batches.queries import next_queries, refill_prompts, step_prompts
from bi_ray.batches.rollout import Group, Sample
from bi_ray.config.base import ConfigError
from bi_ray.config.run import RunConfig
from bi_ray.config.tasks import PromptBenchConfig
from bi_ray.config.training import RLConfig
from bi_ray.policy.version import PolicyVersion
from bi_ray.verification.verdicts import DataFailure, Verdict


def config(**rl):
    return RunConfig(
        name="batch",
        task=PromptBenchConfig(sets={name: {} for name in ("sft", "rl", "test_id", "test_ood")}),
        arms=["vanilla"],
        model={"max_response_tokens": 100},
        rl=RLConfig(**rl),
    )


def group(key, size, tokens=2):
    lengths = tokens if isinstance(tokens, list) else [tokens] * size
    samples = [Sample([5] * n, [-0.1] * n, "text", False, PolicyVersion(1, 0)) for n in lengths]
    return Group(key, (1, 2, 3), samples)


def verdicts(*rewards):
    return [Verdict(float(r), bool(r), True, False, bool(r)) for r in rewards]


MIXED = [(group("a", 4), verdicts(1, 1, 0, 0)), (group("b", 4, tokens=7), verdicts(0, 0, 0, 0))]


def test_groups_without_advantage_teach_nothing_but_count():
    batch, metrics = build_batch(MIXED, config())
    assert [sample.key for sample in batch.samples] == ["a/0", "a/1", "a/2", "a/3"]
    assert [sample.advantage for sample in batch.samples] == pytest.approx([1, 1, -1, -1])
    assert (batch.samples_total, batch.tokens_total) == (8, 8)
    assert metrics["informative_share"] == 0.5
    assert metrics["reward"] == 0.25
    assert not {"shaped_reward", "shaping", "trained_groups"} & set(metrics)


def test_kept_groups_without_variance_count_in_the_token_mean_and_cost_no_work():
    batch, _ = build_batch(MIXED, config(zero_variance_groups="keep"))
    assert (len(batch.samples), batch.samples_total, batch.tokens_total) == (4, 8, 36)


def test_with_a_kl_term_every_sample_is_learned_from():
    kl = {"estimator": "k3", "coefficient": 0.1}
    batch, _ = build_batch(MIXED[1:], config(kl=kl))
    assert [sample.advantage for sample in batch.samples] == [0, 0, 0, 0]
    assert build_batch(MIXED[1:], config(kl=kl, zero_variance_groups="drop"))[0].samples == []
    measured = config(kl=kl | {"coefficient": 0}, zero_variance_groups="keep")
    assert build_batch(MIXED[1:], measured)[0].samples == []


def test_reinforce_pp_learns_from_groups_without_variance():
    """The baseline is that of the step: 2 of 8 right, so 1/4, and the std sqrt(3)/4."""
    batch, _ = build_batch(MIXED, config(algorithm="reinforce_pp"))
    right, wrong = 3**0.5, -(3**-0.5)
    assert [sample.advantage for sample in batch.samples] == pytest.approx(
        [right] * 2 + [wrong] * 6
    )
    assert batch.tokens_total == 36


def advantages_of_mine(groups):
    return [[10 * reward for reward in rewards] for rewards in groups]


def test_advantages_by_import_path():
    batch, _ = build_batch(MIXED, config(advantage=f"{__name__}:advantages_of_mine"))
    assert [(sample.key, sample.advantage) for sample in batch.samples] == [
        ("a/0", 10.0),
        ("a/1", 10.0),
    ]


def one_too_few(groups):
    return [[0.0] * (len(rewards) - 1) for rewards in groups]


def test_advantages_of_ones_own_must_be_complete():
    with pytest.raises(
        ConfigError, match="one_too_few must give every group as many advantages as rewards"
    ):
        build_batch(MIXED, config(advantage=f"{__name__}:one_too_few"))


def test_a_data_failure_is_never_a_reward_of_zero():
    outcome = [*verdicts(1, 0, 0), DataFailure("the reward function hung")]
    dropped, metrics = build_batch([(group("a", 4), outcome)], config())
    assert dropped.samples == []
    assert metrics["data_failures"] == 1
    kept, metrics = build_batch([(group("a", 4), outcome)], config(incomplete_groups="keep"))
    assert len(kept.samples) == 3
    assert metrics["reward"] == pytest.approx(1 / 3)
    assert sum(sample.advantage for sample in kept.samples) == pytest.approx(0)


def test_the_share_of_valid_traces_is_of_those_that_could_be_checked():
    text = Verdict(1.0, True, True, False, None)
    _, metrics = build_batch([(group("a", 2), [text, text])], config())
    assert not {"trace_valid_rate", "reflections_per_sample", "analyses_per_sample"} & set(metrics)
    _, metrics = build_batch([(group("a", 3), [text, *verdicts(1, 0)])], config())
    assert metrics["trace_valid_rate"] == 0.5


def test_shaping_changes_advantages_and_leaves_the_reward():
    """Limit 100: the buffer begins at 80. Four right responses lose 0, 0, a half and all of the
    penalty.
    """
    judged = [(group("a", 4, tokens=[10, 80, 90, 100]), verdicts(1, 1, 1, 1))]
    options = {"advantage_std": "none", "shaping": {"overlong_penalty": 0.4}}
    batch, metrics = build_batch(judged, config(**options))
    assert [sample.advantage for sample in batch.samples] == pytest.approx(
        [0.15, 0.15, -0.05, -0.25]
    )
    assert (metrics["reward"], metrics["informative_share"]) == (1.0, 0.0)
    assert metrics["shaped_reward"] == pytest.approx(0.85)
    assert metrics["shaping"] == pytest.approx(-0.15)


def test_a_wrong_response_is_not_paid_for_being_short():
    judged = [(group("a", 4, tokens=[50, 100, 50, 100]), verdicts(1, 1, 0, 0))]
    batch, _ = build_batch(judged, config(advantage_std="none", shaping={"length_penalty": 0.2}))
    mean = (0.9 + 0.8) / 4
    wanted = [0.9 - mean, 0.8 - mean, -mean, -mean]
    assert [sample.advantage for sample in batch.samples] == pytest.approx(wanted)


def shaped_verdicts(*pairs, outcome=False):
    """Verdicts of (reward for the answer, what was added to it)."""
    return [
        Verdict(a + b, a >= 0.5, b > 0, False, None, outcome=a if outcome else None)
        for a, b in pairs
    ]


ALL_WRONG = {
    "format or trace": (shaped_verdicts((0.0, 0.05), (0.0, 0.0)), [2, 2], {}),
    "overlong": (verdicts(0, 0), [10, 100], {"shaping": {"overlong_penalty": 0.5}}),
    "a reward function": (shaped_verdicts((0.1, 0.05), (0.1, 0.0), outcome=True), [2, 2], {}),
}


@pytest.mark.parametrize("name", ALL_WRONG)
def test_a_group_without_a_right_answer_teaches_nothing_but_by_request(name):
    outcome, tokens, options = ALL_WRONG[name]
    judged = [(group("a", 2, tokens=tokens), outcome)]
    batch, metrics = build_batch(judged, config(**options))
    assert batch.samples == []
    assert metrics["informative_share"] == 0.0
    kept, _ = build_batch(
        judged, config(zero_variance_groups="keep", kl={"estimator": "k3"}, **options)
    )
    assert [sample.advantage for sample in kept.samples] == [0.0, 0.0]
    shaped, metrics = build_batch(judged, config(wrong_groups="shaped", **options))
    assert [sample.advantage for sample in shaped.samples] == pytest.approx([1.0, -1.0])
    assert metrics["informative_share"] == 0.0
    dynamic = RLConfig(dynamic_sampling={}, prompts_per_step=1, **options)
    assert refill(judged, 1, dynamic) == 1
    assert build_batch(judged, config(**dynamic.model_dump()))[0].samples == []


def test_partial_credit_of_a_reward_function_is_learned_from():
    outcome = shaped_verdicts((0.1, 0.0), (0.4, 0.0), outcome=True)
    batch, metrics = build_batch([(group("a", 2), outcome)], config())
    assert [sample.advantage for sample in batch.samples] == pytest.approx([-1.0, 1.0])
    assert metrics["informative_share"] == 1.0


def test_rounding_in_rewards_teaches_nothing():
    outcome = shaped_verdicts((0.1 + 0.2, 0.3), (0.3, 0.3), outcome=True)
    batch, metrics = build_batch([(group("a", 2), outcome)], config(wrong_groups="shaped"))
    assert (batch.samples, metrics["informative_share"]) == ([], 0.0)
    assert (
        refill([(group("a", 2), outcome)], 1, RLConfig(dynamic_sampling={}, prompts_per_step=1))
        == 1
    )


DYNAMIC = {"dynamic_sampling": {"max_rounds": 3}, "prompts_per_step": 2}


def test_dynamic_sampling_takes_the_first_informative_groups():
    names, rewards = "abcd", [(0, 0), (1, 0), (1, 1), (0, 1)]
    judged = [
        (group(name, 2), verdicts(*values)) for name, values in zip(names, rewards, strict=True)
    ]
    judged.append((group("e", 2), verdicts(1, 0)))  # one too many
    batch, metrics = build_batch(judged, config(**DYNAMIC))
    assert [sample.key for sample in batch.samples] == ["b/0", "b/1", "d/0", "d/1"]
    assert (batch.samples_total, batch.tokens_total) == (4, 8)
    assert metrics["reward"] == 0.5
    assert (metrics["groups"], metrics["trained_groups"], metrics["informative_share"]) == (
        5,
        2,
        0.6,
    )


def test_how_many_prompts_a_refill_asks_for():
    rl = RLConfig(dynamic_sampling={"max_rounds": 3}, prompts_per_step=8)
    good, bad = (group("g", 2), verdicts(1, 0)), (group("b", 2), verdicts(1, 1))
    # 6 missing at 1 in 4 would be 24: one step's at most
    assert refill([good] * 2 + [bad] * 6, 1, rl) == 8
    assert refill([good] * 6 + [bad] * 6, 2, rl) == 4  # 2 missing at 1 in 2
    assert refill([bad] * 8, 1, rl) == 8
    assert refill([good] * 8 + [bad] * 8, 1, rl) == 0  # enough
    assert refill([bad] * 8, 3, rl) == 0  # no round is left
    assert refill([bad] * 8, 1, RLConfig()) == 0
    failed = (group("f", 2), [*verdicts(1), DataFailure("hung")])
    assert refill([failed] * 8, 1, rl) == 8


def test_a_step_with_refill_ends_and_asks_for_no_prompt_twice():
    """Prompts of which one in ten is informative."""
    rl = RLConfig(dynamic_sampling={"max_rounds": 9}, prompts_per_step=8)

    def judge(prompts):
        return [(group(f"{p}", 2), verdicts(1, int(p % 10 > 0))) for p in prompts]

    for problems, found in ((1000, 8), (30, 3)):
        asked, judged, rounds = [], [], 0
        while more := next_queries(problems, asked, judged, rounds, 5, rl, 0):
            judged, rounds, asked = judged + judge(more), rounds + 1, asked + more
            assert asked[:8] == step_prompts(problems, 8, step=5, seed=0)
        assert len(set(asked)) == len(asked) <= 9 * 8
        run = config(**rl.model_dump())
        groups = {sample.key.split("/")[0] for sample in build_batch(judged, run)[0].samples}
        assert len(groups) == min(found, sum(p % 10 == 0 for p in asked))


def test_a_refill_depends_on_seed_and_step_alone():
    asked = [3, 1]
    state = random.getstate()
    found = refill_prompts(10, asked, 5, step=2, seed=0)
    assert random.getstate() == state
    assert found == refill_prompts(10, asked, 5, step=2, seed=0)
    assert refill_prompts(10, asked, 3, step=2, seed=0) == found[:3]
    assert set(found).isdisjoint(asked)
    assert (
        found
        != refill_prompts(10, asked, 5, step=3, seed=0)
        != refill_prompts(10, asked, 5, step=3, seed=1)
    )
    assert len(refill_prompts(10, asked, 99, 2, 0)) == 8
    assert refill_prompts(10, asked, 0, 2, 0) == []
