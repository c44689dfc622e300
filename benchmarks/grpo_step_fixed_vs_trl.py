"""Compare a GRPO step with TRL's GRPOTrainer at a fixed response length: our worst case.

    python benchmarks/grpo_step_fixed_vs_trl.py [--steps 6]

The benchmark makes a random model of 5 M parameters. Its end token is outside its vocabulary, so
that every response has 128 tokens, and the reward is a hash of the response, so that rewards differ
in every group and none is left out. The rest is as in grpo_step_vs_trl.
"""

from __future__ import annotations

from pathlib import Path

from common import BUILD, ROOT, arguments_parser, quickstart
from grpo.race import Race, race, rl_section
from rl_runs import SHAPES, write_random_llama

from bi_ray.config.run import RunConfig
from bi_ray.policy.checkpoint import load_tokenizer

PROMPTS, SAMPLES, TOKENS = 16, 8, 128


def make_endless_model(directory: Path) -> int:
    """Write a random Llama that never ends a response; returns its parameter count."""
    tokenizer = load_tokenizer(ROOT / "models" / "tiny-base")
    vocabulary = len(tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<|never|>"})
    return write_random_llama(directory, SHAPES["5m"], tokenizer, vocabulary)


def main() -> None:
    """Measure and print."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--steps", type=int, default=6, help="of each side, the first included")
    steps = parser.parse_args().steps
    path = BUILD / "model_5m"
    parameters = make_endless_model(path)
    options = quickstart().model_dump(exclude={"rl", "model"})
    options["rl"] = rl_section(PROMPTS, SAMPLES, steps)
    options["model"] = {"path": str(path), "max_prompt_tokens": 256, "max_response_tokens": TOKENS}
    setup = (
        f"A GRPO step of {PROMPTS} prompts x {SAMPLES} rollouts of exactly {TOKENS} tokens, "
        f"rewards that differ in every group, a random Llama of {parameters / 1e6:.1f} M, on two "
        "cores: this project (driver, 2 engines, 2 learners) and TRL's GRPOTrainer, same prompts, "
        "reward, loss and learning rate, in turn."
    )
    config = RunConfig.model_validate(options)
    race(Race("grpo_step_fixed_vs_trl", setup, config, True, (32, 64, 128)))


if __name__ == "__main__":
    main()
