"""Influence against gradients of single rollouts, and against Eq. 5 computed the long way."""

import itertools
import random

import pytest
import torch
from ranks import logprobs_of
from transformers import LlamaConfig, LlamaForCausalLM

from bi_ray.batches.scored_group import Rollout, ScoredGroup
from bi_ray.readiness.influence import (
    Differentiator,
    direction_in_halves,
    dot,
    flatten,
    measure_influence,
    norm,
    objective_direction,
    pairwise_influence,
    reward_direction,
)
from bi_ray.readiness.rollouts import unweighted_rows

# tiny tensors: on a busy machine a second thread is what everything waits for
torch.set_num_threads(1)
TOKENS = 40
TEMPERATURE = 0.8


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=request.param,
        initializer_range=0.2,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).eval()


def group(rng, name, right, of, prompt=6):
    draw = lambda count: tuple(rng.randrange(TOKENS) for _ in range(count))  # noqa: E731
    rollouts = tuple(
        Rollout(
            tokens := draw(rng.randint(1, 9)),
            float(i < right),
            i < right,
            tuple(rng.choices("abc", k=len(tokens))),
        )
        for i in range(of)
    )
    return ScoredGroup(name, draw(prompt), rollouts)


@pytest.fixture(scope="module")
def queries():
    rng = random.Random(1)
    return [group(rng, f"q{right}", right, 4) for right in range(5)]


@pytest.fixture(scope="module")
def target():
    rng = random.Random(2)
    return [
        group(rng, f"t{number}", right, 3, prompt=5) for number, right in enumerate((1, 2, 0, 3))
    ]


def gradient_of(model, group, rollout, token_scale="sum"):
    """grad log pi(o|q) as one vector, by plain autograd over the one sequence."""
    logprobs = logprobs_of(
        model, (*group.prompt_tokens, *rollout.tokens), len(group.prompt_tokens), TEMPERATURE
    )
    value = logprobs.sum() if token_scale == "sum" else logprobs.mean()
    return torch.cat(
        [part.flatten() for part in torch.autograd.grad(value, list(model.parameters()))]
    ).double()


def make_differentiator(model, **options):
    return Differentiator(model, TEMPERATURE, microbatch_tokens=64, **options)


@pytest.mark.parametrize("token_scale", ["sum", "mean"])
def test_influence_is_equation_5_computed_the_long_way(model, queries, target, token_scale):
    differentiator = make_differentiator(model)
    direction = objective_direction(differentiator, target, token_scale)
    measured = measure_influence(differentiator, queries, direction, token_scale)

    def K(one, other):
        return float(
            gradient_of(model, *one, token_scale) @ gradient_of(model, *other, token_scale)
        )

    rollouts = [(g, o, a) for g in target for o, a in zip(g.rollouts, g.advantages(), strict=True)]
    for query, found in zip(queries, measured, strict=True):
        sides = {True: [], False: []}
        for own in query.rollouts:
            side = [a * K((g, o), (query, own)) for g, o, a in rollouts]
            sides[own.right].append(sum(side) / len(side))
        plus, minus = (
            sum(side) / len(side) if side else None for side in (sides[True], sides[False])
        )
        assert found.k_plus == (plus and pytest.approx(plus, rel=1e-4))
        assert found.k_minus == (minus and pytest.approx(minus, rel=1e-4))
        alpha = query.right / 4
        expected = (
            (alpha * (1 - alpha)) ** 0.5 * ((plus or 0) - (minus or 0))
            if query.informative
            else 0.0
        )
        assert found.dj == pytest.approx(expected, rel=1e-4, abs=1e-12)


def test_derivatives_equal_those_of_gradients_made_one_by_one(model, queries, target):
    differentiator = make_differentiator(model)
    direction = objective_direction(differentiator, target, "sum")
    rows = unweighted_rows(queries)
    measured = torch.stack(
        [values.sum() for values in differentiator.along(rows, direction)]
    ).double()
    flat = flatten(direction).double()
    exact = torch.stack([gradient_of(model, g, o) @ flat for g in queries for o in g.rollouts])
    assert float((measured - exact).norm() / exact.norm()) <= 1e-4


def test_the_size_of_micro_batches_changes_nothing(model, queries, target):
    small = make_differentiator(model)
    large = Differentiator(model, TEMPERATURE, microbatch_tokens=4096)
    one, other = (
        objective_direction(differentiator, target, "sum") for differentiator in (small, large)
    )
    assert float((flatten(one) - flatten(other)).norm()) <= 1e-5 * norm(one)
    first, second = (
        measure_influence(differentiator, queries, one, "sum") for differentiator in (small, large)
    )
    assert [q.dj for q in first] == pytest.approx([q.dj for q in second], rel=1e-4, abs=1e-7)


def test_behaviors_share_out_the_whole_influence(model, queries, target):
    differentiator = make_differentiator(model)
    for query, found in zip(
        queries,
        measure_influence(
            differentiator, queries, objective_direction(differentiator, target, "sum"), "sum"
        ),
        strict=True,
    ):
        assert sum(part for _, part in found.behaviors.values()) == pytest.approx(
            found.dj, rel=1e-6, abs=1e-12
        )
        assert sum(count for count, _ in found.behaviors.values()) == sum(
            len(o.tokens) for o in query.rollouts
        )


def test_a_behavior_gets_the_derivative_of_its_own_tokens(model, queries, target):
    differentiator = make_differentiator(model)
    query = queries[2]
    direction = objective_direction(differentiator, target, "sum")
    found = measure_influence(differentiator, [query], direction, "sum")[0].behaviors["b"][1]
    derivatives = differentiator.along(unweighted_rows([query]), direction)
    expected = sum(
        advantage / 4 * float(value)
        for rollout, advantage, values in zip(
            query.rollouts, query.advantages(), derivatives, strict=True
        )
        for behavior, value in zip(rollout.behaviors, values, strict=True)
        if behavior == "b"
    )
    assert found == pytest.approx(expected, rel=1e-5)


def test_halves_make_up_the_whole_direction_and_their_cosine_tells_signal_from_noise(model, target):
    differentiator = make_differentiator(model)
    whole, cosine = direction_in_halves(differentiator, target, "sum")
    exact = objective_direction(differentiator, target, "sum")
    assert float((flatten(whole) - flatten(exact)).norm()) <= 1e-5 * norm(exact)
    one, other = (
        flatten(objective_direction(differentiator, target[part::2], "sum")) for part in (0, 1)
    )
    assert cosine == pytest.approx(float(torch.cosine_similarity(one, other, dim=0)), abs=1e-6)
    assert direction_in_halves(differentiator, [target[0], target[0]], "sum")[1] == pytest.approx(
        1, abs=1e-5
    )
    assert direction_in_halves(differentiator, target[:1], "sum")[1] is None


@pytest.mark.parametrize("token_scale", ["sum", "mean"])
def test_all_against_all_agrees_with_the_directional_way_and_keeps_the_self_term_apart(
    model, queries, token_scale
):
    differentiator = make_differentiator(model)
    matrix = pairwise_influence(differentiator, queries, token_scale)
    direction = objective_direction(differentiator, queries, token_scale)
    measured = measure_influence(differentiator, queries, direction, token_scale)
    assert matrix.mean(dim=0).tolist() == pytest.approx(
        [q.dj for q in measured], rel=1e-4, abs=1e-9
    )
    assert torch.equal(matrix, matrix.T)
    assert bool((matrix.diagonal() >= 0).all())
    for i, j in itertools.product((1, 2, 3), repeat=2):
        gradients = [
            sum(
                a / 4 * gradient_of(model, g, o, token_scale)
                for o, a in zip(g.rollouts, g.advantages(), strict=True)
            )
            for g in (queries[i], queries[j])
        ]
        assert float(matrix[i, j]) == pytest.approx(float(gradients[0] @ gradients[1]), rel=1e-4)


def test_shifted_passes_are_within_two_percent_of_forward_mode(model, queries, target):
    exact, shifted = make_differentiator(model), make_differentiator(model, method="shifted")
    direction = objective_direction(exact, target, "sum")
    rows = unweighted_rows(queries)
    one, other = (
        torch.cat(differentiator.along(rows, direction)) for differentiator in (exact, shifted)
    )
    assert 0 < float((one - other).norm() / one.norm()) < 0.02


def test_the_reward_direction_predicts_what_a_small_step_does_to_expected_reward():
    """On two-token responses, the expected reward and its gradient are sums over every response."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=3,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.5,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval().double()
    responses = list(itertools.product(range(3), repeat=2))
    reward = {response: float(response[0] == 1 or response == (2, 2)) for response in responses}

    def probability(response):
        return logprobs_of(model, (0, *response), 1).sum().exp()

    expected = sum(probability(response) * reward[response] for response in responses)
    exact = torch.cat(
        [p.flatten() for p in torch.autograd.grad(expected, list(model.parameters()))]
    )
    chances = [probability(response).item() for response in responses]
    rng = random.Random(0)
    groups = [
        ScoredGroup(
            str(i),
            (0,),
            tuple(
                Rollout(o, reward[o], bool(reward[o])) for o in rng.choices(responses, chances, k=4)
            ),
        )
        for i in range(4000)
    ]
    estimate = reward_direction(Differentiator(model, 1.0, microbatch_tokens=30_000), groups)
    assert float((flatten(estimate) - exact).norm() / exact.norm()) < 0.05
    assert dot(estimate, estimate) == pytest.approx(norm(estimate) ** 2)
