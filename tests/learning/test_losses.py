import dataclasses
import math

import pytest
import torch
from ranks import TOKENS, logprobs_of

from bi_ray.batches.advantages import group_advantages
from bi_ray.batches.batch import LearnerBatch, TrainSample
from bi_ray.config.algorithms import ALGORITHMS, ImportanceConfig, KLConfig
from bi_ray.config.training import RLConfig
from bi_ray.learning.algorithms import load_algorithm
from bi_ray.learning.losses import importance, kl_estimate, nll_loss, policy_loss, token_weights
from bi_ray.learning.rl import _shown, batch_rows, microbatch_loss
from bi_ray.policy.checkpoint import load_model
from bi_ray.policy.logprobs import TokenLogprobs
from bi_ray.policy.packing import pack


class Ignored:
    def add(self, name, value): ...

    def add_per_token(self, name, value): ...

    def keep_largest(self, name, value): ...


def test_k3_is_unbiased_not_negative_and_has_the_right_gradient():
    """Exact sums over a distribution of five outcomes."""
    torch.manual_seed(0)
    policy = torch.randn(5, dtype=torch.float64).log_softmax(0)
    reference = torch.randn(5, dtype=torch.float64).log_softmax(0)
    estimates = kl_estimate(policy, reference, "k3")
    assert (estimates >= 0).all()
    kl = (policy.exp() * (policy - reference)).sum()
    assert float((policy.exp() * estimates).sum()) == pytest.approx(float(kl))
    assert torch.equal(kl_estimate(policy, policy, "k3"), torch.zeros_like(policy))
    variable = policy.clone().requires_grad_(True)
    kl_estimate(variable, reference, "k3").sum().backward()
    assert torch.allclose(variable.grad, 1 - (reference - policy).exp())


def loss_of(config, logprobs, sampler, advantages, weights, sequences=None, reference=None):
    sequences = torch.zeros(len(logprobs), dtype=torch.int64) if sequences is None else sequences
    return policy_loss(
        load_algorithm(config), config, logprobs, sampler, advantages, weights, sequences, reference
    )


def test_kl_term_in_the_loss():
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    reference, weights = torch.tensor([-1.5, -1.0]), torch.tensor([0.25, 0.5])
    config = RLConfig(kl=KLConfig(estimator="k3", coefficient=0.3))
    result = loss_of(
        config, logprobs, logprobs.detach(), torch.zeros(2), weights, reference=reference
    )
    expected = 0.3 * sum(w * (math.exp(d) - d - 1) for w, d in ((0.25, -0.5), (0.5, 1.0)))
    assert float(result.loss.detach()) == pytest.approx(expected)
    measured = RLConfig(kl=KLConfig(estimator="k3", coefficient=0))
    result = loss_of(
        measured, logprobs, logprobs.detach(), torch.zeros(2), weights, reference=reference
    )
    assert float(result.loss.detach()) == 0
    assert float(result.per_token["kl"]) == pytest.approx(math.exp(-0.5) + 0.5 - 1 + math.e - 2)
    assert (
        float(
            loss_of(RLConfig(), logprobs, logprobs.detach(), torch.zeros(2), weights).per_token[
                "kl"
            ]
        )
        == 0
    )


def test_nll():
    assert float(nll_loss(torch.tensor([-1.0, -3.0]), torch.tensor([0.5, 0.25]))) == pytest.approx(
        1.25
    )


def test_token_weights():
    assert token_weights([2, 8], "sequence_sum", 5) == [0.2, 0.2]
    assert token_weights([2, 8], "sequence_mean", 5) == pytest.approx([0.1, 0.025])
    assert token_weights([2, 8], "token_mean", 5) == [0.1, 0.1]
    assert token_weights([2, 8], "token_mean", 5, tokens_total=40) == [0.025, 0.025]
    assert token_weights([2, 8], "sequence_budget", 5, budget_tokens=10) == pytest.approx(
        [0.02, 0.02]
    )
    assert token_weights([], "token_mean", 5) == []


def test_importance_weights_are_bounded():
    sampler = torch.zeros(4, dtype=torch.float64)
    logprobs = torch.tensor([3.0, 0.5, 1.0, 0.25], dtype=torch.float64).log().requires_grad_(True)
    one = torch.tensor([0, 0, 1, 1])  # products 1.5 and 0.25

    def factors(**options):
        result = importance(logprobs, sampler, one, ImportanceConfig(**options))
        assert not result.factors.requires_grad
        return result.factors.tolist(), result.cut.tolist()

    t, f = True, False
    learner = {"base": "learner", "cap": 2.0}
    assert factors(**learner, treatment="none") == (pytest.approx([3, 0.5, 1, 0.25]), [f, f, f, f])
    assert factors(**learner) == (pytest.approx([2, 0.5, 1, 0.25]), [t, f, f, f])
    assert factors(**learner, treatment="mask") == (pytest.approx([0, 0.5, 1, 0.25]), [t, f, f, f])
    assert factors(**learner, treatment="mask", floor=0.4) == (
        pytest.approx([0, 0.5, 1, 0]),
        [t, f, f, t],
    )
    assert factors(base="learner", level="sequence", cap=1.0) == (
        pytest.approx([1, 1, 0.25, 0.25]),
        [t, t, f, f],
    )
    # the ratio has the weight already: only what is too much is taken back, and exactly nothing
    # elsewhere
    assert factors(base="sampler", cap=2.0) == ([pytest.approx(2 / 3), 1.0, 1.0, 1.0], [t, f, f, f])
    assert factors(base="sampler", treatment="none") == ([1.0] * 4, [f] * 4)
    assert factors(base="sampler", treatment="mask") == ([0.0, 1.0, 1.0, 1.0], [t, f, f, f])


@pytest.mark.parametrize("treatment", ["none", "truncate", "mask"])
def test_the_gradient_is_the_bounded_weight_times_the_score(treatment):
    """Whatever the ratio's base: inside the clip, a token's gradient is -w A grad log pi."""
    sampler, advantages, weights = (
        torch.zeros(3),
        torch.tensor([1.0, -1.0, -1.0]),
        torch.tensor([0.5, 0.25, 0.125]),
    )
    found = []
    for base in ("sampler", "learner"):
        logprobs = torch.tensor([1.1, 3.0, 0.9]).log().requires_grad_(True)
        config = RLConfig(importance={"base": base, "treatment": treatment})
        loss_of(config, logprobs, sampler, advantages, weights).loss.backward()
        found.append(logprobs.grad.tolist())
    bounded = {"none": 3.0, "truncate": 2.0, "mask": 0.0}[treatment]
    assert found[0] == found[1] == pytest.approx([-0.5 * 1.1, 0.25 * bounded, 0.125 * 0.9])


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(tiny_model(tied=True)).double()


def sampled_groups(model, rewards, temperature=1.0):
    """Groups of random responses with their log-probabilities under ``model``, in float64."""
    generator = torch.Generator().manual_seed(0)
    groups = []
    for number, group in enumerate(rewards):
        prompt = torch.randint(0, TOKENS, (5 + number,), generator=generator)
        samples = []
        for sample, advantage in enumerate(group_advantages(group)):
            response = torch.randint(0, TOKENS, (3 + 2 * sample,), generator=generator)
            logprobs = logprobs_of(
                model, [*prompt.tolist(), *response.tolist()], len(prompt), temperature
            ).tolist()
            samples.append(
                TrainSample(
                    f"{number}/{sample}",
                    tuple(prompt.tolist()),
                    tuple(response.tolist()),
                    tuple(logprobs),
                    advantage,
                )
            )
        groups.append(samples)
    return groups


def make_batch(groups):
    kept = [sample for group in groups for sample in group if sample.advantage]
    return LearnerBatch(kept, sum(map(len, groups)))


def flat_gradient(model, batch, config, limit=10**9, ranks=1):
    model.zero_grad()
    loss = microbatch_loss(TokenLogprobs(model), None, config)
    rows = batch_rows(batch, config, 20)
    for micro in (
        micro for rank in range(ranks) for micro in pack(rows, limit, rank, ranks, "padded")
    ):
        loss(micro, Ignored()).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def sequence_gradient(model, sample):
    """grad log pi(o|q), the sum over the tokens of the response, from the model's plain logits."""
    model.zero_grad()
    tokens = torch.tensor([sample.prompt_tokens + sample.response_tokens])
    logs = model(input_ids=tokens).logits[0].log_softmax(-1)
    first = len(sample.prompt_tokens)
    sum(logs[t - 1, tokens[0, t]] for t in range(first, tokens.shape[1])).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_the_on_policy_gradient_is_equation_12(model):
    """Three groups of four, 1, 2 and 4 right: the last one has no advantage but counts in the mean
    over groups.
    """
    rewards = [[1, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]]
    groups = sampled_groups(model, rewards)
    config = RLConfig(loss_scale="sequence_sum", advantage_std="population", advantage_epsilon=0.0)
    got = -flat_gradient(model, make_batch(groups), config, limit=40, ranks=2)
    wanted = torch.zeros_like(got)
    for samples, group_rewards in zip(groups, rewards, strict=True):
        right = [
            sequence_gradient(model, s) for s, r in zip(samples, group_rewards, strict=True) if r
        ]
        wrong = [
            sequence_gradient(model, s)
            for s, r in zip(samples, group_rewards, strict=True)
            if not r
        ]
        if right and wrong:
            alpha = len(right) / len(samples)
            wanted += math.sqrt(alpha * (1 - alpha)) * (
                sum(right) / len(right) - sum(wrong) / len(wrong)
            )
    wanted /= len(groups)
    assert float((got - wanted).norm() / wanted.norm()) <= 1e-6


# moves the sampler's log-probabilities, so that ratios, clips and importance weights do something
OFF_POLICY = 0.05


def moved(batch, size=OFF_POLICY):
    """The batch as a sampler that is a little off would have made it."""
    generator = torch.Generator().manual_seed(1)

    def noise(values):
        return tuple(v + size * float(torch.randn((), generator=generator)) for v in values)

    samples = [
        dataclasses.replace(sample, logprobs=noise(sample.logprobs)) for sample in batch.samples
    ]
    return dataclasses.replace(batch, samples=samples)


@pytest.mark.parametrize(
    "options",
    [
        *({"algorithm": name} for name in ALGORITHMS),
        *({"loss_scale": scale} for scale in ("sequence_sum", "sequence_mean", "sequence_budget")),
        {
            "importance": {
                "base": "learner",
                "level": "sequence",
                "treatment": "mask",
                "cap": 1.02,
                "floor": 0.9,
            }
        },
    ],
    ids=str,
)
def test_micro_batches_and_ranks_do_not_change_the_gradient(model, options):
    batch = moved(
        make_batch(sampled_groups(model, [[1, 0, 0, 0, 1], [0, 1, 0, 0, 0]], temperature=0.8))
    )
    config = RLConfig(temperature=0.8, **options)
    whole = flat_gradient(model, batch, config)
    assert float(whole.norm()) > 0
    for limit, ranks in ((1, 1), (30, 1), (30, 3), (64, 2)):
        parts = flat_gradient(model, batch, config, limit, ranks)
        assert float((parts - whole).norm() / whole.norm()) <= 1e-9


def test_on_policy_ratio_is_one_at_any_temperature(model):
    """The sampler's temperature is the learner's: no clip, no mismatch."""
    counted = {}

    class Counted(Ignored):
        def add(self, name, value):
            counted[name] = counted.get(name, 0) + value

        add_per_token = add

        def keep_largest(self, name, value):
            counted[name] = max(counted.get(name, 0), value)

    config = RLConfig(temperature=0.5)
    batch = make_batch(sampled_groups(model, [[1, 0, 0]], temperature=0.5))
    [micro] = pack(batch_rows(batch, config, 20), 10**9, packing="padded")
    microbatch_loss(TokenLogprobs(model), None, config)(micro, Counted())
    assert counted["mismatch_max"] < 1e-5
    assert (
        counted["clip_low_share"]
        == counted["clip_high_share"]
        == counted["importance_cut_share"]
        == 0
    )
    shown = _shown(counted | {"tokens": len(micro.weights)})
    assert shown["effective_sample_share"] == pytest.approx(1)
    assert shown["clip_share"] == 0
    assert counted["kl"] == 0


def test_samples_must_fit_together():
    with pytest.raises(ValueError, match="no prompt tokens"):
        TrainSample("a", (), (1,), (-1.0,), 1.0)
    with pytest.raises(ValueError, match="2 tokens, 1 log"):
        TrainSample("a", (1,), (1, 2), (-1.0,), 1.0)
    with pytest.raises(ValueError, match="samples_total"):
        LearnerBatch([TrainSample("a", (1,), (1,), (-1.0,), 1.0)], 0)
