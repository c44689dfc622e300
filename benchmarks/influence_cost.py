"""Cost and error of influence per direction: forward mode and shifted passes against a gradient for
every rollout.

    python benchmarks/influence_cost.py

The gradient of each rollout on its own, with an inner product, is what one would write first, and
what LESS stores (without its random projection, which only costs more). All three run on the same
rollouts of the shipped base, in turn, five times; medians. Ends with lines RATIO <name> <value>.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bi_ray.batches.scored import Rollout, ScoredGroup
from bi_ray.config import RunConfig, load_config
from bi_ray.data.problems import ProblemRow
from bi_ray.injection.demonstrations import demonstrate
from bi_ray.policy.chat import encode_prompt
from bi_ray.policy.checkpoint import load_model, load_tokenizer
from bi_ray.readiness.influence import Differentiator, dot, objective_direction
from bi_ray.readiness.rollouts import unweighted_rows
from bi_ray.tasks.registry import build_task

ROOT = Path(__file__).parents[1]
QUERIES, TARGETS, SAMPLES, ROUNDS = 8, 8, 4, 5


def groups_of(config: RunConfig, base: Path, first: int, count: int) -> list[ScoredGroup]:
    """Demonstrations and spoilt copies of them as rollouts: real lengths, and both right and wrong
    ones.
    """
    task, tokenizer = build_task(config.task, 0), load_tokenizer(base)
    rng = random.Random(first)
    groups = []
    for index in range(first, first + count):
        problem = task.problem("rl", index)
        prompt = tuple(encode_prompt(tokenizer, task.system_prompt, problem.question))
        assert problem.graph is not None
        row = ProblemRow(
            problem.id, problem.question, problem.answer, problem.graph.to_json(), prompt
        )
        response = demonstrate(task, config.arms["bridge"], config, [row], tokenizer)[0][
            "response_tokens"
        ]
        rollouts = []
        for number in range(SAMPLES):
            tokens = list(response)
            if number % 2:
                tokens[rng.randrange(len(tokens))] = rng.randrange(len(tokenizer))
            rollouts.append(Rollout(tuple(tokens), float(number % 2 == 0), number % 2 == 0))
        groups.append(ScoredGroup(problem.id, prompt, tuple(rollouts)))
    return groups


def _timed(work: Callable[[], list[float]]) -> tuple[float, list[float]]:
    began = time.perf_counter()
    values = work()
    return time.perf_counter() - began, values


def main() -> None:
    """Print the costs."""
    config = load_config(ROOT / "configs" / "quickstart.yaml", RunConfig)
    base = ROOT / config.model.path
    queries, target = groups_of(config, base, 0, QUERIES), groups_of(config, base, QUERIES, TARGETS)
    rows = unweighted_rows(queries)
    eager, fused = (load_model(base, attention=name).eval() for name in ("eager", "sdpa"))
    forward, shifted, plain = (
        Differentiator(eager),
        Differentiator(fused, method="shifted"),
        Differentiator(fused),
    )
    direction = objective_direction(plain, target, "sum")

    def one_by_one() -> list[float]:
        return [dot(direction, plain.gradient([row])) for row in rows]

    def along(tool: Differentiator) -> Callable[[], list[float]]:
        return lambda: [float(values.double().sum()) for values in tool.along(rows, direction)]

    ways = {
        "one by one": one_by_one,
        "forward mode": along(forward),
        "shifted passes": along(shifted),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, list[float]] = {}
    for _ in range(ROUNDS + 1):  # the first round warms up
        for name, work in ways.items():
            took, found[name] = _timed(work)
            seconds[name].append(took)
    exact = torch.tensor(found["one by one"], dtype=torch.float64)
    mean = sum(len(row.tokens) for row in rows) / len(rows)
    print(f"{len(rows)} rollouts of {mean:.0f} tokens, {torch.get_num_threads()} threads")
    for name in ways:
        median = statistics.median(seconds[name][1:])
        error = float(
            (torch.tensor(found[name], dtype=torch.float64) - exact).norm() / exact.norm()
        )
        each = 1000 * median / len(rows)
        print(
            f"{name:15s} {median:.2f} s a direction, {each:.1f} ms a rollout, relative error {error:.1e}"
        )
    ratio = statistics.median(seconds["one by one"][1:]) / statistics.median(
        seconds["forward mode"][1:]
    )
    print(f"RATIO influence_forward_vs_one_by_one {ratio:.2f}")
    ratio = statistics.median(seconds["one by one"][1:]) / statistics.median(
        seconds["shifted passes"][1:]
    )
    print(f"RATIO influence_shifted_vs_one_by_one {ratio:.2f}")


if __name__ == "__main__":
    main()
