import pytest

from bi_ray.config import PromptBenchConfig, RLConfig, RunConfig
from bi_ray.learning.groups import build_batch
from bi_ray.policy.rollout import Group, PolicyVersion, Sample
from bi_ray.verification import DataFailure, Verdict


def config(**rl):
    return RunConfig(
        name="batch",
        task=PromptBenchConfig(sets={name: {} for name in ("sft", "rl", "test_id", "test_ood")}),
        arms=["vanilla"],
        rl=RLConfig(**rl),
    )


def group(key, size):
    samples = [Sample([5, 6], [-0.1, -0.2], "text", False, PolicyVersion(1, 0)) for _ in range(size)]
    return Group(key, (1, 2, 3), samples)


def verdicts(*rewards):
    return [Verdict(float(r), bool(r), True, False, bool(r)) for r in rewards]


def test_groups_without_advantage_teach_nothing_but_count():
    batch, metrics = build_batch(
        [(group("a", 4), verdicts(1, 1, 0, 0)), (group("b", 4), verdicts(0, 0, 0, 0))], config()
    )
    assert [sample.key for sample in batch.samples] == ["a/0", "a/1", "a/2", "a/3"]
    assert [sample.advantage for sample in batch.samples] == pytest.approx([1, 1, -1, -1])
    assert (batch.groups_total, batch.samples_total) == (2, 8)
    assert metrics["informative_share"] == 0.5
    assert metrics["reward"] == 0.25


def test_with_a_kl_term_every_sample_is_learned_from():
    batch, _ = build_batch([(group("b", 4), verdicts(0, 0, 0, 0))], config(kl={"estimator": "k3", "coefficient": 0.1}))
    assert [sample.advantage for sample in batch.samples] == [0, 0, 0, 0]


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
