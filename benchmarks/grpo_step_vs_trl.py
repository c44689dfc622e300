"""A whole GRPO step against TRL's GRPOTrainer: the quickstart's prompts and natural stops.

    python benchmarks/grpo_step_vs_trl.py [--steps 6]

The policy is the shipped base itself, whose responses end by themselves. Ours is the real driver
with two engines, two learners and the verifier; TRL generates with transformers, in one process, in
its own environment (build/trl, made at the first run). In turn, a step each; the first counts on
neither side.
"""

from __future__ import annotations

import argparse

from common import ROOT
from grpo.race import race

from bi_ray.config import RunConfig, load_config

PROMPTS, SAMPLES = 24, 12


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    steps = parser.parse_args().steps
    config = load_config(ROOT / "configs" / "quickstart.yaml", RunConfig)
    rl = {
        "prompts_per_step": PROMPTS,
        "samples_per_prompt": SAMPLES,
        "steps": steps,
        "checkpoint_every_steps": 1000,
    }
    rl["optimizer"] = {"learning_rate": 1e-6}  # small, so that lengths stay what they are
    options = config.model_dump(exclude={"rl"}) | {"rl": rl}
    options["model"]["path"] = str(ROOT / config.model.path)
    setup = (
        f"A GRPO step of {PROMPTS} prompts x {SAMPLES} rollouts, natural stops, models/tiny-base (0.82 M), on two "
        "cores: this project (driver, 2 engines, 2 learners, verifier) and TRL's GRPOTrainer, same prompts, reward, "
        "loss and learning rate, in turn."
    )
    race("grpo_step_vs_trl", RunConfig.model_validate(options), False, (72, 144, 288), setup)


if __name__ == "__main__":
    main()
