import math

import pytest
import torch
from ranks import TOKENS

from bi_ray.config import RLConfig
from bi_ray.learning.losses import grpo_loss, k3, nll_loss, token_weights
from bi_ray.learning.rl import batch_rows, policy_loss
from bi_ray.policy.advantages import group_advantages
from bi_ray.policy.batch import LearnerBatch, TrainSample
from bi_ray.policy.checkpoint import load_model
from bi_ray.policy.logprobs import token_logprobs
from bi_ray.policy.packing import pack


class Ignored:
    def add(self, name, value): ...

    def keep_largest(self, name, value): ...


def gradient_of_token(ratio, advantage, clip=0.2):
    """(loss, d loss / d log pi, clipped) of one token of weight 1."""
    logprob = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, dtype=torch.float64)
    result = grpo_loss(logprob, 0 * one, advantage * one, one, clip)
    result.loss.backward()
    return float(result.loss), float(logprob.grad), bool(result.clipped)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, False),  # on-policy: the gradient is -A
        (1.0, -2.0, 2.0, 2.0, False),
        (1.19, 1.0, -1.19, -1.19, False),  # inside
        (1.21, 1.0, -1.2, 0.0, True),  # a good token that is already likelier: enough
        (1.21, -1.0, 1.21, 1.21, False),  # a bad one that became likelier: always pushed down
        (0.79, -1.0, 0.8, 0.0, True),  # a bad one that is already rarer: enough
        (0.79, 1.0, -0.79, -0.79, False),  # a good one that became rarer: always pushed up
        (5.0, 0.0, 0.0, 0.0, False),
    ],
)
def test_clip_edges(ratio, advantage, loss, gradient, clipped):
    assert gradient_of_token(ratio, advantage) == pytest.approx((loss, gradient, clipped))


def test_k3_is_unbiased_not_negative_and_has_the_right_gradient():
    """Exact sums over a distribution of five outcomes."""
    torch.manual_seed(0)
    policy = torch.randn(5, dtype=torch.float64).log_softmax(0)
    reference = torch.randn(5, dtype=torch.float64).log_softmax(0)
    estimates = k3(policy, reference)
    assert (estimates >= 0).all()
    kl = (policy.exp() * (policy - reference)).sum()
    assert float((policy.exp() * estimates).sum()) == pytest.approx(float(kl))
    assert torch.equal(k3(policy, policy), torch.zeros_like(policy))
    variable = policy.clone().requires_grad_(True)
    k3(variable, reference).sum().backward()
    assert torch.allclose(variable.grad, 1 - (reference - policy).exp())


def test_kl_term_in_the_loss():
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    reference, weights = torch.tensor([-1.5, -1.0]), torch.tensor([0.25, 0.5])
    result = grpo_loss(logprobs, logprobs.detach(), torch.zeros(2), weights, 0.2, reference, 0.3)
    expected = 0.3 * sum(w * (math.exp(d) - d - 1) for w, d in ((0.25, -0.5), (0.5, 1.0)))
    assert float(result.loss) == pytest.approx(expected)
    assert float(grpo_loss(logprobs, logprobs, torch.zeros(2), weights, 0.2).kl.sum()) == 0


def test_nll():
    assert float(nll_loss(torch.tensor([-1.0, -3.0]), torch.tensor([0.5, 0.25]))) == pytest.approx(1.25)


def test_token_weights():
    assert token_weights([2, 8], "sequence_sum", 5) == [0.2, 0.2]
    assert token_weights([2, 8], "sequence_mean", 5) == pytest.approx([0.1, 0.025])
    assert token_weights([2, 8], "token_mean", 5) == [0.1, 0.1]
    assert token_weights([], "token_mean", 5) == []


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(tiny_model(tied=True)).double()


def sampled_groups(model, rewards, temperature=1.0):
    """Groups of random responses with the log-probabilities that ``model`` gives them, in float64."""
    generator = torch.Generator().manual_seed(0)
    groups = []
    for number, group in enumerate(rewards):
        prompt = torch.randint(0, TOKENS, (5 + number,), generator=generator)
        samples = []
        for sample, advantage in enumerate(group_advantages(group)):
            response = torch.randint(0, TOKENS, (3 + 2 * sample,), generator=generator)
            tokens = torch.cat([prompt, response])[None]
            learned = torch.arange(tokens.shape[1])[None] >= len(prompt)
            logprobs = token_logprobs(model, tokens, learned, temperature)[0].tolist()
            samples.append(
                TrainSample(
                    f"{number}/{sample}", tuple(prompt.tolist()), tuple(response.tolist()), tuple(logprobs), advantage
                )
            )
        groups.append(samples)
    return groups


def make_batch(groups):
    kept = [sample for group in groups for sample in group if sample.advantage]
    return LearnerBatch(kept, len(groups), sum(map(len, groups)))


def flat_gradient(model, batch, config, limit=10**9, ranks=1):
    model.zero_grad()
    loss = policy_loss(model, None, config)
    for micro in (micro for share in pack(batch_rows(batch, config), limit, ranks) for micro in share):
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
    """Three groups of four, 1, 2 and 4 right: the last one has no advantage but counts in the mean over groups."""
    rewards = [[1, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]]
    groups = sampled_groups(model, rewards)
    config = RLConfig(loss_scale="sequence_sum", advantage_std="population", advantage_epsilon=0.0)
    got = -flat_gradient(model, make_batch(groups), config, limit=40, ranks=2)
    wanted = torch.zeros_like(got)
    for samples, group_rewards in zip(groups, rewards, strict=True):
        right = [sequence_gradient(model, s) for s, r in zip(samples, group_rewards, strict=True) if r]
        wrong = [sequence_gradient(model, s) for s, r in zip(samples, group_rewards, strict=True) if not r]
        if right and wrong:
            alpha = len(right) / len(samples)
            wanted += math.sqrt(alpha * (1 - alpha)) * (sum(right) / len(right) - sum(wrong) / len(wrong))
    wanted /= len(groups)
    assert float((got - wanted).norm() / wanted.norm()) <= 1e-6


@pytest.mark.parametrize("scale", ["sequence_sum", "sequence_mean", "token_mean"])
def test_micro_batches_and_ranks_do_not_change_the_gradient(model, scale):
    batch = make_batch(sampled_groups(model, [[1, 0, 0, 0, 1], [0, 1, 0, 0, 0]], temperature=0.8))
    config = RLConfig(loss_scale=scale, temperature=0.8)
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

        def keep_largest(self, name, value):
            counted[name] = max(counted.get(name, 0), value)

    config = RLConfig(temperature=0.5)
    batch = make_batch(sampled_groups(model, [[1, 0, 0]], temperature=0.5))
    [[micro]] = pack(batch_rows(batch, config), 10**9)
    policy_loss(model, None, config)(micro, Counted())
    assert counted["mismatch_max"] < 1e-5
    assert counted["clip_share"] == 0
    assert counted["kl"] == 0


def test_samples_must_fit_together():
    with pytest.raises(ValueError, match="no prompt tokens"):
        TrainSample("a", (), (1,), (-1.0,), 1.0)
    with pytest.raises(ValueError, match="2 tokens, 1 log"):
        TrainSample("a", (1,), (1, 2), (-1.0,), 1.0)
    with pytest.raises(ValueError, match="samples_total"):
        LearnerBatch([TrainSample("a", (1,), (1,), (-1.0,), 1.0)], 1, 0)
