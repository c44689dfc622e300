"""Compare ways to compute the influence of rollouts along a direction: cost and error.

    python benchmarks/influence_cost.py

Forward mode and shifted passes are compared with one gradient per rollout and an inner product.
That is what one would write first, and what LESS stores (without its random projection, which only
adds cost). All three use the same rollouts of the shipped base model and take turns, five times;
medians. Prints lines `RATIO <name> <value>`.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from functools import partial

import torch
from common import arguments_parser, print_ratio, quickstart, timed

from bi_ray.batches.scored_group import Rollout, ScoredGroup
from bi_ray.config.run import RunConfig
from bi_ray.data.problems import ProblemRow
from bi_ray.injection.demonstrations import demonstrate
from bi_ray.policy.chat import encode_prompt
from bi_ray.policy.checkpoint import load_model, load_tokenizer
from bi_ray.readiness.influence import Differentiator, dot, objective_direction
from bi_ray.readiness.rollouts import unweighted_rows
from bi_ray.tasks.registry import build_task

QUERIES, TARGETS, SAMPLES, ROUNDS = 8, 8, 4, 5


def groups_of(config: RunConfig, first: int, count: int) -> list[ScoredGroup]:
    """Groups of rollouts: demonstrations, and copies of them with a wrong token."""
    task, tokenizer = build_task(config.task, 0), load_tokenizer(config.model.path)
    rng = random.Random(first)
    groups = []
    for index in range(first, first + count):
        problem = task.problem("rl", index)
        prompt = tuple(encode_prompt(tokenizer, task.system_prompt, problem.question))
        assert problem.graph is not None
        graph = problem.graph.to_json()
        row = ProblemRow(problem.id, problem.question, problem.answer, graph, prompt)
        [demonstration] = demonstrate(task, config.arms["bridge"], config, [row], tokenizer)
        rollouts = []
        for number in range(SAMPLES):
            tokens = list(demonstration["response_tokens"])
            is_right = number % 2 == 0
            if not is_right:
                tokens[rng.randrange(len(tokens))] = rng.randrange(len(tokenizer))
            rollouts.append(Rollout(tuple(tokens), float(is_right), is_right))
        groups.append(ScoredGroup(problem.id, prompt, tuple(rollouts)))
    return groups


def main() -> None:
    """Print the costs."""
    arguments_parser(__doc__).parse_args()
    config = quickstart()
    queries, target = groups_of(config, 0, QUERIES), groups_of(config, QUERIES, TARGETS)
    rows = unweighted_rows(queries)
    eager = load_model(config.model.path, attention="eager").eval()
    fused = load_model(config.model.path, attention="sdpa").eval()
    gradients = Differentiator(fused)
    direction = objective_direction(gradients, target, "sum")

    def one_by_one() -> list[float]:
        return [dot(direction, gradients.gradient([row])) for row in rows]

    def along(differentiator: Differentiator) -> list[float]:
        tokens = differentiator.along(rows, direction)
        return [float(values.double().sum()) for values in tokens]

    ways: dict[str, Callable[[], list[float]]] = {
        "one by one": one_by_one,
        "forward mode": partial(along, Differentiator(eager)),
        "shifted passes": partial(along, Differentiator(fused, method="shifted")),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    influences: dict[str, list[float]] = {}
    for _ in range(ROUNDS + 1):  # the first round warms up
        for name, work in ways.items():
            way_s, influences[name] = timed(work)
            seconds[name].append(way_s)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    mean_tokens = sum(len(row.tokens) for row in rows) / len(rows)
    print(f"{len(rows)} rollouts of {mean_tokens:.0f} tokens, {torch.get_num_threads()} threads")
    for name, median in medians.items():
        error = relative_error(influences[name], influences["one by one"])
        print(
            f"{name:15s} {median:.2f} s per direction, {1000 * median / len(rows):.1f} ms per "
            f"rollout, relative error {error:.1e}"
        )
    one_by_one_s = medians["one by one"]
    print_ratio("influence_forward_vs_one_by_one", one_by_one_s / medians["forward mode"])
    print_ratio("influence_shifted_vs_one_by_one", one_by_one_s / medians["shifted passes"])


def relative_error(values: list[float], exact: list[float]) -> float:
    """Norm of the difference over the norm of the exact values."""
    reference = torch.tensor(exact, dtype=torch.float64)
    difference = torch.tensor(values, dtype=torch.float64) - reference
    return float(difference.norm() / reference.norm())


if __name__ == "__main__":
    main()
