"""What the tests of iGSM share."""

import random

from bi_ray.config.tasks import IGSMConfig, IGSMDifficultyConfig
from bi_ray.tasks.igsm.task import IGSMTask

SETS = ("pretrain", "sft", "rl", "val", "test_id", "test_ood", "influence_target")


def make_task(mode="clean", seed=0, ops=(15, 20), redundant_nodes=(1, 4), **options) -> IGSMTask:
    difficulty = IGSMDifficultyConfig(ops=ops, redundant_nodes=redundant_nodes)
    return IGSMTask(IGSMConfig(mode=mode, sets=dict.fromkeys(SETS, difficulty), **options), seed)


def draws(task, count, seed=0):
    rng = random.Random(seed)
    return [task.draw(rng, task.config.sets["sft"]) for _ in range(count)]


def operands(formula) -> int:
    """How many operands a quantity has, numbers of its own and those of products among them."""
    return sum(map(operands, formula[1:])) if isinstance(formula, tuple) else 1


def operations(graph) -> int:
    """Operations that the answer takes: max(1, k - 1) for each needed quantity of k operands."""
    return sum(max(1, operands(graph.nodes[name].formula) - 1) for name in graph.needed)
