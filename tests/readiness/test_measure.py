"""What is measured of a policy, its averages over seeds, and what single steps were predicted to
do.
"""

import json
import math
import random
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from bi_ray.policy.checkpoint import load_model, load_tokenizer
from bi_ray.readiness.accuracy import describe_samples, entropies, perplexities
from bi_ray.readiness.influence import Differentiator, flatten, norm, reward_direction
from bi_ray.readiness.measure import (
    held_out_perplexity,
    measure_queries,
    pairs_by_right,
)
from bi_ray.readiness.realized import (
    Forecast,
    correlation,
    mean_and_error,
    realized_change,
    step_along,
)
from bi_ray.readiness.records import Pair, read_policy, read_queries
from bi_ray.readiness.rollouts import packing_rows, scored_group
from bi_ray.readiness.summary import bootstrap_ratio, summarize_readiness
from bi_ray.report.readiness import read_readiness, render_readiness
from bi_ray.verification.verdicts import Verdict

torch.set_num_threads(1)
SAMPLES = 4


@pytest.fixture(scope="module")
def policy(tiny_model):
    return tiny_model(True)


@pytest.fixture(scope="module")
def differentiator(policy):
    return Differentiator(load_model(policy, attention="eager").eval(), microbatch_tokens=512)


def rows_of(seed, count, tokenizer):
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        samples = []
        for index in range(SAMPLES):
            tokens = [rng.randrange(5, 100) for _ in range(rng.randint(3, 8))]
            right = index < number % (SAMPLES + 1)
            verdict = {
                "reward": float(right),
                "right": right,
                "truncated": False,
                "format_right": right,
            }
            verdict |= {"trace_valid": False, "reflections": index, "analyses": 0, "subgoals": 1}
            samples.append({"tokens": tokens, "response": tokenizer.decode(tokens)} | verdict)
        rows.append(
            {
                "id": f"{seed}-{number}",
                "prompt_tokens": [rng.randrange(5, 100) for _ in range(5)],
                "samples": samples,
            }
        )
    return rows


@pytest.fixture(scope="module")
def measured(differentiator, policy):
    tokenizer = load_tokenizer(policy)

    def measure(seed, pairwise_mib=100):
        queries, target = rows_of(seed, 10, tokenizer), rows_of(100 + seed, 5, tokenizer)
        groups = [
            [scored_group(row, tokenizer, lambda text: []) for row in rows]
            for rows in (queries, target)
        ]
        rows, whole = measure_queries(
            differentiator,
            groups[0],
            [row["samples"] for row in queries],
            groups[1],
            ("sum", "mean"),
            pairwise_mib,
        )
        demonstrations = {"own demonstrations": [([5, 6], [7, 8, 9]), ([5], [6, 7])]}
        perplexity = held_out_perplexity(differentiator, demonstrations)
        return rows, replace(whole, perplexity=perplexity)

    return measure


def test_entropy_and_perplexity_are_those_of_the_models_own_distribution(differentiator):
    prompt, response = [5, 6], [7, 8, 9]
    logits = (
        differentiator.model(input_ids=torch.tensor([[*prompt, *response]]))
        .logits[0, 1:-1]
        .double()
    )
    logs = logits.log_softmax(-1)
    expected = math.exp(-logs[range(3), response].mean().item())
    assert perplexities(differentiator.model, [(prompt, response), ([5], [6])], 64)[
        0
    ] == pytest.approx(expected, rel=1e-5)
    verdict = asdict(Verdict(1.0, True, True, False, None))
    row = {"tokens": response, "response": "", **verdict}
    group = scored_group({"id": "q", "prompt_tokens": prompt, "samples": [row, row]}, None, None)
    hotter = (logits / 2).log_softmax(-1)
    expected = -(hotter.exp() * hotter).sum(-1).mean().item()
    assert entropies(differentiator.model, [group], 2.0, 64)[0] == pytest.approx(expected, rel=1e-5)


def test_the_averages_of_a_summary_are_those_of_its_rows(measured):
    seeds = [measured(0), measured(1)]
    summary = summarize_readiness(
        [rows for rows, _ in seeds], [whole for _, whole in seeds], draws=200
    )
    rows = [row for rows, _ in seeds for row in rows]
    accuracy = summary.accuracy
    assert accuracy.histogram == [4, 4, 4, 4, 4]
    assert accuracy.informative.value == pytest.approx(0.6)
    assert accuracy.signal.value == pytest.approx(
        np.mean([math.sqrt(a * (4 - a)) / 4 for a in range(5)])
    )
    assert accuracy.pass_at == {
        1: pytest.approx(0.5),
        2: pytest.approx(np.mean([0, 0.5, 5 / 6, 1, 1])),
    }
    none = dict.fromkeys(("analysis", "correction", "verification", "planning"), 0.0)
    assert accuracy.behaviors == {"reflection": 1.5, "subgoal": 1.0} | none
    for scale in ("sum", "mean"):
        influence = summary.influence[scale]
        assert influence.all.dj.value == pytest.approx(
            np.mean([row.influence[scale].dj for row in rows])
        )
        groups = {group.right: group for group in influence.groups}
        assert groups[0].k_plus is None
        assert groups[4].k_minus is None
        chosen = [row.influence[scale].k_plus for row in rows if row.right == 2]
        k_plus = groups[2].k_plus
        assert k_plus.value == pytest.approx(np.mean(chosen))
        assert k_plus.low <= k_plus.value <= k_plus.high
        plain = influence.behaviors[0]
        assert plain.behavior == "plain"
        assert plain.dj.value == pytest.approx(influence.all.dj.value)
        assert plain.dj_per_token.value * plain.tokens == pytest.approx(20 * plain.dj.value)
    for group in summary.all_against_all.groups:
        assert group.dj.value == pytest.approx(group.self_term.value + group.without_self.value)
        assert group.self_term.value >= 0
    table = render_readiness({"vanilla": summary})
    assert table.row_count == 1
    assert list(table.columns[-1].cells) == [f"{summary.halves_cosine['sum']:.2f}"]


def test_samples_without_a_graph_say_nothing_of_traces_and_behaviors(measured):
    sample = {"tokens": [1, 2], **asdict(Verdict(1.0, True, True, False, None))}
    summary = describe_samples([sample] * 2)
    assert (summary.trace_valid, summary.behaviors, summary.format_right) == (None, {}, 1)
    rows, whole = measured(0)
    rows = [replace(row, trace_valid=None, behaviors={}) for row in rows]
    accuracy = summarize_readiness([rows], [whole], draws=50).accuracy
    assert (accuracy.trace_valid, accuracy.behaviors) == (None, {})


def test_gradients_that_do_not_fit_are_left_out(measured):
    rows, whole = measured(0, pairwise_mib=0)
    assert "pairs" not in whole.as_json()
    assert all("all_against_all" not in row.as_json() for row in rows)
    assert summarize_readiness([rows], [whole], draws=50).all_against_all is None


def test_pairs_leave_self_pairs_out():
    matrix = torch.tensor([[9.0, 1.0, 2.0], [1.0, 9.0, 3.0], [2.0, 3.0, 9.0]], dtype=torch.float64)
    assert pairs_by_right(matrix, [1, 1, 2]) == [
        Pair(1, 1, 2.0, 2),
        Pair(1, 2, 5.0, 2),
        Pair(2, 1, 5.0, 2),
    ]


def test_a_ratio_has_the_interval_of_its_sums():
    rng = np.random.default_rng(0)
    counts = [rng.integers(1, 9, size=200) for _ in range(3)]
    sums = [2.0 * count + rng.normal(size=200) for count in counts]
    ratio = bootstrap_ratio(sums, counts, 2000, 0)
    assert ratio.value == pytest.approx(sum(map(np.sum, sums)) / sum(map(np.sum, counts)))
    error = 1 / math.sqrt(600) / np.mean(counts)  # of a ratio with nearly fixed denominator
    assert ratio.high - ratio.low == pytest.approx(2 * 1.96 * error, rel=0.3)


def test_the_predicted_change_is_the_surrogates_own_to_first_order(differentiator, policy):
    """The surrogate sum of centered reward times log pi, on fixed samples, moves as its gradient
    says.
    """
    tokenizer = load_tokenizer(policy)
    query, *target = [scored_group(row, tokenizer, None) for row in rows_of(7, 6, tokenizer)[1:]]
    goal = reward_direction(differentiator, target)
    weights, predicted = step_along(
        differentiator, reward_direction(differentiator, [query]), 1e-3, goal
    )
    moved = flatten(weights) - flatten(differentiator.parameters)
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-3)

    def surrogate(parameters):
        other = Differentiator(differentiator.model)
        other.parameters = parameters
        rows = [row for g in target for row in packing_rows(g, g.centered_rewards())]
        from bi_ray.policy.packing import in_batches

        with torch.no_grad():
            return sum(
                float((other._logprobs(parameters, b) * b.weights).double().sum())
                for _, b in in_batches(rows, 512)
            )

    total = sum(len(g.rollouts) for g in target)
    realized = (surrogate(weights) - surrogate(differentiator.parameters)) / total
    assert predicted == pytest.approx(realized, rel=0.1, abs=1e-6)
    assert predicted != 0


def test_a_step_needs_a_gradient(differentiator):
    direction = {name: torch.zeros_like(p) for name, p in differentiator.parameters.items()}
    assert norm(direction) == 0
    with pytest.raises(ValueError, match="same reward"):
        step_along(differentiator, direction, 0.1, direction)


def test_a_forecast_is_compared_on_the_problems_that_both_steps_have():
    before = Forecast(
        10, torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0]), {"a": 0.0, "b": 0.5, "c": 1.0}
    )
    after = Forecast(
        20, torch.tensor([0.0, 0.0]), torch.tensor([0.1, 0.1]), {"a": 0.5, "b": 0.5, "d": 0.0}
    )
    row = after.against(before)
    assert row.predicted == pytest.approx(0.3)
    assert row.realized == pytest.approx(0.25)
    assert row.noise == pytest.approx(0.25)
    assert (row.since, row.target_reward) == (10, pytest.approx(1 / 3))
    assert before.against(None).predicted is None
    assert before.against(after).predicted is None  # RL went back


def test_a_change_is_paired_by_problem():
    change = realized_change(
        {"a": 0.0, "b": 1.0}, {"a": 0.5, "b": 1.0}, {"a": 0.0, "b": 0.5, "c": 1.0}
    )
    assert change["realized"] == 0.25
    assert change["odd"] == 0.25
    assert change["odd_low"] == change["odd_high"] == 0.25
    assert change["low"] == pytest.approx(0.25 - 1.96 * 0.25, abs=1e-3)
    assert mean_and_error([1.0]) == (1.0, 0.0)


@pytest.mark.parametrize("which", [0, 1])
def test_equal_values_have_no_correlation(which):
    series = [[0.1, 0.2, 0.3, 0.4, 0.5], [0.2, 0.1, 0.5, 0.3, 0.4]]
    series[which] = [0.3] * 5
    assert correlation(*series, draws=100) is None


def test_correlation_tells_a_trend_from_noise():
    rng = np.random.default_rng(1)
    x = rng.normal(size=40)
    trend = x + 0.3 * rng.normal(size=40)
    noise = rng.normal(size=40)
    assert correlation(x, trend, 1000).low > 0.8
    weak = correlation(x, noise, 1000)
    assert weak.low < 0 < weak.high
    assert correlation(x[:3], trend[:3], 10) is None


def test_results_are_read_from_run_directories(measured, tmp_path):
    rows, whole = measured(0)
    folder = tmp_path / "readiness" / "bridge"
    folder.mkdir(parents=True)
    (folder / "queries.jsonl").write_text("".join(json.dumps(row.as_json()) + "\n" for row in rows))
    (folder / "readiness.json").write_text(json.dumps(whole.as_json()))
    assert read_queries([folder / "queries.jsonl"]) == [rows]
    assert read_policy(folder / "readiness.json", rows[0]) == whole
    (tmp_path / "realized" / "bridge").mkdir(parents=True)
    points = [
        {
            "query": "q",
            "right": 1,
            "of": 4,
            "predicted": 0.1,
            "realized": 0.2,
            "low": 0.0,
            "high": 0.4,
        }
    ]
    points[0] |= {"odd": 0.15, "odd_low": 0.1, "odd_high": 0.2}
    result = {
        "points": points,
        "control": points[0],
        "unchanged_policy": {"noise_floor": 0.03},
        "step_norm": 0.4,
    }
    (tmp_path / "realized" / "bridge" / "realized.json").write_text(json.dumps(result))
    (tmp_path / "rl" / "bridge").mkdir(parents=True)
    watched = {
        "step": 0,
        "queries": [{"right": 1, "of": 4, "k_plus": 1.0, "k_minus": 0.5, "dj": 0.2}],
    }
    watched |= {
        "target_reward": 0.5,
        "target_se": 0.1,
        "predicted": None,
        "realized": None,
        "noise": None,
    }
    (tmp_path / "rl" / "bridge" / "influence.jsonl").write_text(json.dumps(watched) + "\n")
    found = read_readiness(["vanilla", "bridge"], [tmp_path], draws=50)
    assert list(found.readiness) == ["bridge"]
    assert found.realized["bridge"].noise_floor == 0.03
    assert found.during_rl["bridge"][0].groups[0].dj.value == pytest.approx(0.2)
