"""How fast problems are made, and what it costs to inject every behavior, on one core.

    python benchmarks/generate.py

Counted are problems whose values are all within the limits, as a graph and as text; in CPU seconds
of this process, so that what else the machine does matters little. Beside it, with the draws that
fall into another set (the set sft owns a fifth of all hashes). A demonstration is the plan, its
text, and the checker on every line of it, vanilla or with behaviors. What the behaviors cost,
(injected - vanilla) / (drawn + vanilla), is against a problem with its solution, which is what the
authors' generator makes: 375 a second at 15 to 20 operations, and 75 at 25. The further ratios are
of whole injected demonstrations to that, to bare problems, and to those of a set. Five rounds,
medians. Ends with lines RATE <task> <problems a second>.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from bi_ray.config import BehaviorConfig, IGSMConfig, PromptBenchConfig, RecipeConfig
from bi_ray.injection.recipes import Recipe
from bi_ray.tasks.igsm.task import IGSMTask
from bi_ray.tasks.promptbench.task import PromptBenchTask
from bi_ray.tasks.registry import build_task

ROUNDS, PROBLEMS = 5, 600
TASKS = {
    "igsm_op15_20": IGSMConfig(mode="paper", sets={"sft": {"ops": [15, 20]}}),
    "igsm_op25": IGSMConfig(mode="paper", sets={"sft": {"ops": 25}}),
    "igsm_op15_20_clean": IGSMConfig(mode="clean", sets={"sft": {"ops": [15, 20]}}),
    "igsm_op25_clean": IGSMConfig(mode="clean", sets={"sft": {"ops": 25}}),
    "promptbench_depth5": PromptBenchConfig(sets={"sft": {"depth": 5, "redundant_nodes": [0, 8]}}),
}
BEHAVIORS = RecipeConfig(
    behaviors=[
        BehaviorConfig(name=name, probability=probability)
        for name, probability in (("reflection", 0.1), ("analysis", 0.3), ("subgoal", 1.0))
    ]
)
RATIOS: dict[str, Callable[[dict[str, float]], float]] = {
    "behaviors/demonstrated": lambda one: (
        (one["injected"] - one["vanilla"]) / (one["drawn"] + one["vanilla"])
    ),
    "injected/demonstrated": lambda one: one["injected"] / (one["drawn"] + one["vanilla"]),
    "injected/drawn": lambda one: one["injected"] / one["drawn"],
    "injected/in_set": lambda one: one["injected"] / one["in set"],
}


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds that a piece of work takes, and what it gives."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def measure(name: str, config: IGSMConfig | PromptBenchConfig) -> dict[str, list[float]]:
    """Seconds a problem, of every round: drawing, problems of a set, demonstrations without and
    with behaviors.
    """
    recipes = Recipe(RecipeConfig(), seed=0), Recipe(BEHAVIORS, seed=0)
    found: dict[str, list[float]] = {"drawn": [], "in set": [], "vanilla": [], "injected": []}
    for number in range(ROUNDS + 1):  # the first round warms up
        task = build_task(config, seed=number)
        rng = random.Random(f"{name}/{number}")

        def draw(task: Any = task, rng: random.Random = rng) -> None:
            assert isinstance(task, IGSMTask | PromptBenchTask)
            for _ in range(PROBLEMS):
                task.describe(task.draw(rng, config.sets["sft"]), rng)

        drawn, _ = seconds(draw)
        in_set, problems = seconds(
            lambda task=task: [task.problem("sft", index) for index in range(PROBLEMS)]
        )
        demonstrated = [
            seconds(lambda recipe=recipe: [recipe.demonstrate(task, one) for one in problems])[0]  # noqa: B023
            for recipe in recipes
        ]
        if number:
            for key, took in zip(found, (drawn, in_set, *demonstrated), strict=True):
                found[key].append(took / PROBLEMS)
    return found


def main() -> None:
    """Print the ratios and rates."""
    lines: list[str] = []
    for name, config in TASKS.items():
        found = measure(name, config)
        rounds = [dict(zip(found, one, strict=True)) for one in zip(*found.values(), strict=True)]
        times = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        print(
            f"{name:20s} {', '.join(f'{1e6 * took:.0f} us {key}' for key, took in times.items())}"
        )
        for what, ratio in RATIOS.items():
            print(f"RATIO {name} {what} {statistics.median(map(ratio, rounds)):.2f}")
        lines.append(f"RATE {name} {1 / times['drawn']:.0f}")
        lines.append(f"RATE {name}_in_set {1 / times['in set']:.0f}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
