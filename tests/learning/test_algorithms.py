"""Every algorithm against formulas by hand, and against exact expectations over a policy of two
tokens.
"""

import dataclasses
import itertools
import math

import pytest
import torch

from bi_ray.batches.advantages import step_advantages
from bi_ray.config.algorithms import KLConfig
from bi_ray.config.base import ConfigError
from bi_ray.config.training import RLConfig
from bi_ray.learning.algorithms import load_algorithm
from bi_ray.learning.algorithms.base import LearnedTokens
from bi_ray.learning.losses import policy_loss, token_weights


def token_loss(config, ratios, advantages, sequences=None):
    """Values, gradients for log pi and clip marks of tokens whose ratio is given; log pi_base is
    -1.
    """
    base = torch.full((len(ratios),), -1.0, dtype=torch.float64)
    logprobs = (base + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_(True)
    sequences = torch.arange(len(ratios)) if sequences is None else torch.tensor(sequences)
    advantages = torch.tensor(advantages, dtype=torch.float64)
    result = load_algorithm(config)(LearnedTokens(logprobs, base, advantages, sequences), config)
    (gradient,) = torch.autograd.grad(result.values.sum(), logprobs)
    return (
        result.values.tolist(),
        gradient.tolist(),
        result.clipped_low.tolist(),
        result.clipped_high.tolist(),
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, None),  # on-policy: the gradient is -A
        (1.0, -2.0, 2.0, 2.0, None),
        (1.27, 1.0, -1.27, -1.27, None),  # inside
        (1.29, 1.0, -1.28, 0.0, "high"),  # a good token that is already likelier: enough
        (1.29, -1.0, 1.29, 1.29, None),  # a bad one that became likelier: always pushed down
        (0.79, -1.0, 0.8, 0.0, "low"),  # a bad one that is already rarer: enough
        (0.79, 1.0, -0.79, -0.79, None),  # a good one that became rarer: always pushed up
        (5.0, 0.0, 0.0, 0.0, None),
    ],
)
@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "dapo", "reinforce_pp"])
def test_clip_edges(algorithm, ratio, advantage, loss, gradient, clipped):
    found = token_loss(RLConfig(algorithm=algorithm, clip_high=0.28), [ratio], [advantage])
    assert found == (
        [pytest.approx(loss)],
        [pytest.approx(gradient)],
        [clipped == "low"],
        [clipped == "high"],
    )


def test_cispo_clips_the_weight_and_keeps_the_gradient():
    values, gradient, low, high = token_loss(
        RLConfig(algorithm="cispo"), [0.1, 4.0, 9.0], [1.0, -2.0, 3.0]
    )
    assert gradient == pytest.approx([-0.1, 8.0, -15.0])
    assert values == pytest.approx(
        [-0.1 * (math.log(0.1) - 1), 8 * (math.log(4) - 1), -15 * (math.log(9) - 1)]
    )
    assert (low, high) == ([False] * 3, [False, False, True])


def test_gpg_has_no_ratio():
    assert token_loss(RLConfig(algorithm="gpg"), [3.0, 0.5], [1.0, -2.0])[1] == [-1.0, 2.0]


def test_gspo_clips_whole_responses_by_the_geometric_mean():
    config = RLConfig(algorithm="gspo", clip_low=0.1, clip_high=0.1)
    ratios, sequences = [1.5, 0.6, 1.0, 2.0], [0, 0, 0, 1]
    values, gradient, _, high = token_loss(config, ratios, [2.0, 2.0, 2.0, 1.0], sequences)
    mean = (1.5 * 0.6) ** (1 / 3)
    assert values == pytest.approx([-2 * mean] * 3 + [-1.1])
    # three equal losses of one third each
    assert gradient == pytest.approx([-2 * mean] * 3 + [0.0])
    assert high == [False, False, False, True]


def test_rloo_clips_whole_responses_by_the_product():
    ratios, sequences = [1.5, 0.6, 2.0], [0, 0, 1]
    values, gradient, _, high = token_loss(
        RLConfig(algorithm="rloo"), ratios, [2.0, 2.0, 1.0], sequences
    )
    assert values == pytest.approx([-1.8, -1.8, -1.2])
    assert gradient == pytest.approx([-3.6, -3.6, 0.0])  # the gradient of two equal losses
    assert high == [False, False, True]


def test_advantages_by_hand():
    groups = [[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.5, 1.0]]
    flat = [reward for group in groups for reward in group]
    leave = step_advantages(groups, "leave_one_out", "none", 0)
    for group, found in zip(groups, leave, strict=True):
        others = [(sum(group) - reward) / (len(group) - 1) for reward in group]
        assert found == pytest.approx(
            [reward - other for reward, other in zip(group, others, strict=True)]
        )
    mean = sum(flat) / len(flat)
    spread = math.sqrt(sum((reward - mean) ** 2 for reward in flat) / (len(flat) - 1)) + 0.1
    whitened = step_advantages(groups, "batch", "sample", 0.1)
    assert [len(group) for group in whitened] == [4, 4, 3]
    assert sum(whitened, []) == pytest.approx([(reward - mean) / spread for reward in flat])
    centered = [reward - sum(group) / len(group) for group in groups for reward in group]
    spread = math.sqrt(sum(value**2 for value in centered) / len(centered))
    found = step_advantages(groups, "group_batch", "population", 0)
    assert sum(found, []) == pytest.approx([value / spread for value in centered])
    assert step_advantages(groups, "group", "none", 0)[0] == [0.5, -0.5, -0.5, 0.5]
    assert step_advantages([], "batch", "population", 0) == []


# --- a policy of two tokens: sigmoid(theta_t) is the probability of token 1 at place t; a response
# ends after its first token 0, or after three tokens. All of what follows is summed over every
# response, or every pair of them.

LIMIT = 3
THETA = torch.tensor([0.3, -0.4, 0.9], dtype=torch.float64)
RESPONSES = [(0,), (1, 0), (1, 1, 0), (1, 1, 1)]


def reward_of(response):
    return float(sum(response) % 2)


def response_logprobs(theta, response):
    return torch.stack(
        [
            torch.nn.functional.logsigmoid(theta[t] if token else -theta[t])
            for t, token in enumerate(response)
        ]
    )


def probability(theta, response):
    return response_logprobs(theta, response).sum().exp()


def step_gradient(config, responses, theta=THETA, sampler_theta=THETA):
    """Gradient of the step's loss for theta, of one group, through the library."""
    theta = theta.clone().requires_grad_(True)
    [advantages] = step_advantages(
        [[reward_of(r) for r in responses]],
        config.advantage,
        config.advantage_std,
        config.advantage_epsilon,
    )
    lengths = [len(response) for response in responses]
    weights = token_weights(lengths, config.loss_scale, len(responses), budget_tokens=LIMIT)

    def per_token(values):
        return torch.tensor(
            [v for v, n in zip(values, lengths, strict=True) for _ in range(n)], dtype=torch.float64
        )

    result = policy_loss(
        load_algorithm(config),
        config,
        torch.cat([response_logprobs(theta, response) for response in responses]),
        torch.cat([response_logprobs(sampler_theta, response) for response in responses]),
        per_token(advantages),
        per_token(weights),
        per_token(range(len(responses))).long(),
    )
    (gradient,) = torch.autograd.grad(result.loss, theta)
    return gradient


def expected_gradient(config, size=2):
    """The exact expectation over all groups of ``size`` responses."""
    total = torch.zeros_like(THETA)
    for responses in itertools.product(RESPONSES, repeat=size):
        chance = math.prod(float(probability(THETA, response)) for response in responses)
        total += chance * step_gradient(config, responses)
    return total


def value_gradient():
    """grad of the expected reward."""
    theta = THETA.clone().requires_grad_(True)
    value = sum(probability(theta, response) * reward_of(response) for response in RESPONSES)
    return torch.autograd.grad(value, theta)[0]


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({"algorithm": "rloo"}, 1.0),  # leave-one-out is unbiased
        # its own reward is in the baseline; over the length limit
        ({"algorithm": "dr_grpo"}, (1 - 1 / 2) / LIMIT),
        ({"algorithm": "gpg", "loss_scale": "sequence_sum"}, 1 - 1 / 2),
        ({"algorithm": "gpg", "loss_scale": "sequence_sum", "advantage": "leave_one_out"}, 1.0),
        ({"algorithm": "cispo", "loss_scale": "sequence_sum", "advantage_std": "none"}, 1 - 1 / 2),
        (
            {
                "algorithm": "grpo",
                "loss_scale": "sequence_sum",
                "advantage": "leave_one_out",
                "advantage_std": "none",
            },
            1,
        ),
        # with groups of two, the std is 1/2 wherever the rewards differ: population std doubles the
        # gradient
        ({"algorithm": "grpo", "loss_scale": "sequence_sum"}, 2 * (1 - 1 / 2)),
        ({"algorithm": "dapo", "loss_scale": "sequence_sum"}, 2 * (1 - 1 / 2)),
        ({"algorithm": "reinforce_pp", "loss_scale": "sequence_sum"}, 2 * (1 - 1 / 2)),
    ],
    ids=str,
)
def test_the_expected_on_policy_gradient_is_that_of_the_expected_reward(options, factor):
    found, wanted = expected_gradient(RLConfig(**options)), value_gradient()
    assert torch.allclose(found, -factor * wanted, atol=1e-12), (found / wanted).tolist()


def test_gspo_on_policy_is_the_mean_over_tokens():
    responses = [(1, 1, 0), (1, 0)]
    found = step_gradient(RLConfig(algorithm="gspo"), responses)
    theta = THETA.clone().requires_grad_(True)
    value = (
        -1 * response_logprobs(theta, (1, 1, 0)).mean() + response_logprobs(theta, (1, 0)).mean()
    ) / 2
    assert torch.allclose(found, -torch.autograd.grad(value, theta)[0])


def test_importance_weights_make_another_samplers_gradient_unbiased():
    """Responses of another policy, leave-one-out advantages replaced by the reward: exact for
    weights of sequences.
    """
    sampler = torch.tensor([0.0, 0.2, 0.1], dtype=torch.float64)
    config = RLConfig(algorithm="gpg", importance={"level": "sequence", "treatment": "none"})
    total = torch.zeros_like(THETA)
    for response in RESPONSES:
        theta = THETA.clone().requires_grad_(True)
        logprobs, drawn = response_logprobs(theta, response), response_logprobs(sampler, response)
        one = torch.ones(len(response), dtype=torch.float64)
        sequences = torch.zeros(len(response), dtype=torch.int64)
        result = policy_loss(
            load_algorithm(config),
            config,
            logprobs,
            drawn,
            one * reward_of(response),
            one,
            sequences,
        )
        total += probability(sampler, response) * torch.autograd.grad(result.loss, theta)[0]
    assert torch.allclose(total, -value_gradient())


@pytest.mark.parametrize(
    ("estimator", "with_ratio", "of"),
    [
        ("k1", False, None),
        ("k2", False, "policy"),
        ("k3", False, "reference"),
        ("k1", True, "policy"),
        ("k3", True, "policy"),
    ],
)
def test_which_kl_the_gradient_of_an_estimator_is_of(estimator, with_ratio, of):
    """At one place, exactly: both tokens, weighted by the chance of sampling them."""
    reference = torch.tensor([0.7, -0.7], dtype=torch.float64).log_softmax(0)
    theta = torch.tensor([-0.2, 0.5], dtype=torch.float64, requires_grad=True)
    policy = theta.log_softmax(0)
    config = RLConfig(kl=KLConfig(estimator=estimator, coefficient=1, with_ratio=with_ratio))
    sampled, chance = policy.detach(), policy.detach().exp()
    sequences = torch.arange(2)
    result = policy_loss(
        load_algorithm(config), config, policy, sampled, 0 * chance, chance, sequences, reference
    )
    found = torch.autograd.grad(result.loss, theta, retain_graph=True)[0]
    exact = {
        None: 0 * policy.sum(),
        "policy": (policy.exp() * (policy - reference)).sum(),
        "reference": (reference.exp() * (reference - policy)).sum(),
    }[of]
    assert torch.allclose(found, torch.autograd.grad(exact, theta)[0], atol=1e-15)


def test_a_far_off_token_does_not_break_the_gradient():
    for algorithm in ("grpo", "gspo", "rloo", "cispo", "gpg"):
        config = RLConfig(algorithm=algorithm)
        logprobs = torch.tensor([-0.1, -200.0], requires_grad=True)
        sampler, one = torch.tensor([-300.0, -0.1]), torch.ones(2)
        loss = policy_loss(
            load_algorithm(config), config, logprobs, sampler, one, one, torch.tensor([0, 1])
        ).loss
        loss.backward()
        assert torch.isfinite(logprobs.grad).all(), algorithm


def test_an_import_path_without_a_function_is_named():
    with pytest.raises(ConfigError, match=r"rl\.algorithm: math has no function 'lose'"):
        load_algorithm(RLConfig(algorithm="math:lose"))


def summed(tokens, config):
    result = load_algorithm(RLConfig())(tokens, config)
    return dataclasses.replace(result, values=result.values.sum())


def test_an_algorithm_that_sums_by_itself_is_told():
    config, one = RLConfig(algorithm=f"{__name__}:summed"), torch.ones(3)
    with pytest.raises(
        ConfigError, match=r"gave losses of shape \[\] for 3 tokens; it must give one per token"
    ):
        policy_loss(load_algorithm(config), config, -one, -one, one, one, torch.arange(3))
