"""Measure on one core how fast problems are generated, and what injecting every behavior costs.

    python benchmarks/generate.py

Counted are problems whose values are all within the limits, as a graph and as text. Times are CPU
seconds of this process, so that other work of the machine matters little. Also shown is the time
per problem of a set, which includes the draws that belong to another set (sft owns a fifth of all
hashes). A demonstration is the plan, its text and the check of each of its lines, vanilla or with
behaviors.

The cost of behaviors, (injected - vanilla) / (drawn + vanilla), is relative to a problem with its
solution, which is what the authors' generator makes: 375 per second at 15 to 20 operations, and 75
at 25. The other ratios are those of whole injected demonstrations to that, to bare problems, and to
problems of a set. Medians of five rounds. Prints lines `RATE <task> <problems per second>`.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass
from functools import partial

from common import arguments_parser, medians_of, print_ratio, timed

from bi_ray.config.recipes import BehaviorConfig, RecipeConfig
from bi_ray.config.tasks import IGSMConfig, PromptBenchConfig
from bi_ray.injection.recipes import Recipe
from bi_ray.tasks.base import Problem
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
        BehaviorConfig(name="reflection", probability=0.1),
        BehaviorConfig(name="analysis", probability=0.3),
        BehaviorConfig(name="subgoal", probability=1.0),
    ]
)


@dataclass(frozen=True, slots=True)
class Round:
    """CPU seconds per problem in one round.

    Attributes:
        drawn: a problem as graph and text.
        in_set: a problem of the set sft.
        vanilla: a demonstration without behaviors.
        injected: a demonstration with behaviors.
    """

    drawn: float
    in_set: float
    vanilla: float
    injected: float

    def ratios(self) -> dict[str, float]:
        """What a demonstration with behaviors costs relative to simpler things."""
        demonstrated = self.drawn + self.vanilla
        return {
            "behaviors/demonstrated": (self.injected - self.vanilla) / demonstrated,
            "injected/demonstrated": self.injected / demonstrated,
            "injected/drawn": self.injected / self.drawn,
            "injected/in_set": self.injected / self.in_set,
        }


class Generation:
    """One round's work on one task."""

    def __init__(self, name: str, config: IGSMConfig | PromptBenchConfig, seed: int) -> None:
        task = build_task(config, seed=seed)
        assert isinstance(task, IGSMTask | PromptBenchTask)
        self._task = task
        self._set = config.sets["sft"]
        self._rng = random.Random(f"{name}/{seed}")

    def draw(self) -> None:
        """Draw problems, whatever set they belong to."""
        for _ in range(PROBLEMS):
            self._task.describe(self._task.draw(self._rng, self._set), self._rng)

    def problems(self) -> list[Problem]:
        """The first problems of the set sft."""
        return [self._task.problem("sft", index) for index in range(PROBLEMS)]

    def demonstrate(self, recipe: Recipe, problems: list[Problem]) -> None:
        """A demonstration of each problem."""
        for problem in problems:
            recipe.demonstrate(self._task, problem)


def measure(name: str, config: IGSMConfig | PromptBenchConfig, seed: int) -> Round:
    """Measure one round."""
    vanilla, with_behaviors = Recipe(RecipeConfig(), seed=0), Recipe(BEHAVIORS, seed=0)
    generation = Generation(name, config, seed)
    drawn_s, _ = timed(generation.draw, time.process_time)
    in_set_s, problems = timed(generation.problems, time.process_time)
    demonstrated_s = []
    for recipe in (vanilla, with_behaviors):
        work = partial(generation.demonstrate, recipe, problems)
        demonstrated_s.append(timed(work, time.process_time)[0] / PROBLEMS)
    return Round(drawn_s / PROBLEMS, in_set_s / PROBLEMS, *demonstrated_s)


def main() -> None:
    """Print the ratios and rates."""
    arguments_parser(__doc__).parse_args()
    rates: dict[str, float] = {}
    for name, config in TASKS.items():
        measure(name, config, 0)  # warms up
        rounds = [measure(name, config, seed) for seed in range(1, ROUNDS + 1)]
        seconds = medians_of(
            {
                "drawn": [times.drawn for times in rounds],
                "in set": [times.in_set for times in rounds],
                "vanilla": [times.vanilla for times in rounds],
                "injected": [times.injected for times in rounds],
            }
        )
        shown = [f"{1e6 * value:.0f} us {part}" for part, value in seconds.items()]
        print(f"{name:20s} {', '.join(shown)}")
        ratios = [times.ratios() for times in rounds]
        for ratio in ratios[0]:
            median = statistics.median(of_round[ratio] for of_round in ratios)
            print_ratio(f"{name} {ratio}", median)
        rates[name] = 1 / seconds["drawn"]
        rates[f"{name}_in_set"] = 1 / seconds["in set"]
    for name, rate in rates.items():
        print(f"RATE {name} {rate:.0f}")


if __name__ == "__main__":
    main()
