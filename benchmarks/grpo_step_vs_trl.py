"""Compare a whole GRPO step with TRL's GRPOTrainer, on the quickstart's prompts.

    python benchmarks/grpo_step_vs_trl.py [--steps 6]

The policy is the shipped base model, whose responses end by themselves. This project runs the real
driver with two engines, two learners and the verifier. TRL generates with transformers in one
process, in its own environment (build/trl, created by the first run). The two sides take turns,
one step each; the first step of each does not count.
"""

from __future__ import annotations

from common import arguments_parser, quickstart
from grpo.race import Race, race, rl_section

from bi_ray.config.run import RunConfig

PROMPTS, SAMPLES = 24, 12
SETUP = (
    f"A GRPO step of {PROMPTS} prompts x {SAMPLES} rollouts that end by themselves, "
    "models/tiny-base (0.82 M), on two cores: this project (driver, 2 engines, 2 learners, "
    "verifier) and TRL's GRPOTrainer, same prompts, reward, loss and learning rate, in turn."
)


def main() -> None:
    """Measure and print."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--steps", type=int, default=6, help="of each side, the first included")
    steps = parser.parse_args().steps
    options = quickstart().model_dump(exclude={"rl"})
    options["rl"] = rl_section(PROMPTS, SAMPLES, steps)
    config = RunConfig.model_validate(options)
    race(Race("grpo_step_vs_trl", SETUP, config, False, (72, 144, 288)))


if __name__ == "__main__":
    main()
