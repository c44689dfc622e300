"""One module per algorithm of RL: a pure function from the learned tokens of a micro-batch to their losses."""

from __future__ import annotations

from bi_ray.config import RLConfig
from bi_ray.importing import load_object
from bi_ray.learning.algorithms import cispo, dapo, dr_grpo, gpg, grpo, gspo, reinforce_pp, rloo
from bi_ray.learning.algorithms.base import Algorithm

_MODULES = (grpo, dr_grpo, dapo, gpg, rloo, reinforce_pp, gspo, cispo)


def load_algorithm(config: RLConfig) -> Algorithm:
    """The loss that ``rl.algorithm`` names, built in or by import path.

    Raises:
        ConfigError: an import path with nothing behind it.
    """
    if ":" in config.algorithm:
        return load_object(config.algorithm, "rl.algorithm")
    return {module.__name__.rpartition(".")[2]: module.loss for module in _MODULES}[config.algorithm]
