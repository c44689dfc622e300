"""Measure the share of a synchronous RL step that is neither generation nor training.

This share is weight sync, verification, packing, transport and bookkeeping; training means forward
and backward passes and the optimizer. The model is random and has 5 M parameters; there are 2
engines of one thread and 1 learner of two threads. The first two steps only warm up.

    python benchmarks/overhead_share.py
"""

from __future__ import annotations

import statistics

from common import arguments_parser, print_ratio, rounded
from rl_runs import medians, random_model, rl_options, run_config, run_rl, work_folder

WARM_UP_STEPS = 2
PARTS = ("generate_s", "compute_s", "step_s", "verify_s", "write_s", "sync_s", "pack_s")


def main() -> None:
    """Measure and print."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--size", default="5m", help="of the model, a key of rl_runs.SHAPES")
    parser.add_argument("--steps", type=int, default=5, help="measured steps")
    parser.add_argument("--prompts", type=int, default=16, help="prompts per step")
    parser.add_argument("--samples", type=int, default=8, help="responses per prompt")
    parser.add_argument("--tokens", type=int, default=128, help="maximum length of a response")
    arguments = parser.parse_args()
    steps = arguments.steps + WARM_UP_STEPS
    options = {
        "model": {"max_response_tokens": arguments.tokens},
        "rl": rl_options(arguments.prompts, arguments.samples, steps),
        "learner": {"threads_per_worker": 2},
    }
    with work_folder() as folder:
        config = run_config(random_model(folder / "model", arguments.size), options)
        rows = run_rl(config, folder)[WARM_UP_STEPS:]
    shares = []
    for row in rows:
        training_s = row["compute_s"] - row.get("pack_s", 0.0)
        shares.append(1 - (row["generate_s"] + training_s) / row["step_s"])
    parts = medians(rows, *PARTS)
    print("  ".join(f"{name} {value:.3f}" for name, value in parts.items()))
    print(f"share of each step: {rounded(shares, 3)}")
    print_ratio("overhead_share", statistics.median(shares), 3)


if __name__ == "__main__":
    main()
