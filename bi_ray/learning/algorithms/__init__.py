"""The losses of RL, one module each: pure functions from learned tokens to their losses.

DAPO, Dr.GRPO and REINFORCE++ use GRPO's loss; what sets them apart are their options
(``config.algorithms``).
"""

from __future__ import annotations

from bi_ray.config import RLConfig
from bi_ray.config.importing import load_object
from bi_ray.learning.algorithms import cispo, gpg, grpo, gspo, rloo
from bi_ray.learning.algorithms.base import Algorithm

_LOSSES: dict[str, Algorithm] = {
    "grpo": grpo.loss,
    "dr_grpo": grpo.loss,
    "dapo": grpo.loss,
    "reinforce_pp": grpo.loss,
    "gpg": gpg.loss,
    "rloo": rloo.loss,
    "gspo": gspo.loss,
    "cispo": cispo.loss,
}


def load_algorithm(config: RLConfig) -> Algorithm:
    """The loss that ``rl.algorithm`` names, built in or by import path.

    Raises:
        ConfigError: an import path with nothing behind it.
    """
    if ":" in config.algorithm:
        return load_object(config.algorithm, "rl.algorithm")
    return _LOSSES[config.algorithm]
