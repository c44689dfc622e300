"""Share of a synchronous RL step that is neither generation nor the learner's forward, backward and
optimizer.

Weight sync, verification, packing, transport and bookkeeping are in it. A random model of 5 M
parameters, 2 engines of 1 thread, 1 learner of 2 threads; the first two steps warm everything up.

    python benchmarks/overhead_share.py
"""

from __future__ import annotations

import argparse
import statistics

from rl_runs import column, random_model, run_config, run_rl, work_folder

WARM_UP = 2


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="5m")
    parser.add_argument("--steps", type=int, default=5, help="that are measured")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128, help="longest response")
    arguments = parser.parse_args()
    steps = arguments.steps + WARM_UP
    with work_folder() as folder:
        options = {
            "model": {"max_response_tokens": arguments.tokens},
            "rl": {
                "steps": steps,
                "prompts_per_step": arguments.prompts,
                "samples_per_prompt": arguments.samples,
                "checkpoint_every_steps": steps,
            },
            "learner": {"threads_per_worker": 2},
        }
        config = run_config(random_model(folder / "model", arguments.size), options)
        rows = run_rl(config, folder)[WARM_UP:]
    parts = {
        name: statistics.median(column(rows, name))
        for name in ("generate_s", "compute_s", "step_s")
    }
    parts |= {
        name: statistics.median(column(rows, name))
        for name in ("verify_s", "write_s", "sync_s", "pack_s")
    }
    shares = [
        1 - (row["generate_s"] + row["compute_s"] - row.get("pack_s", 0.0)) / row["step_s"]
        for row in rows
    ]
    print("  ".join(f"{name} {value:.3f}" for name, value in parts.items()))
    print(f"share of each step: {[round(share, 3) for share in shares]}")
    print(f"RATIO overhead_share {statistics.median(shares):.3f}")


if __name__ == "__main__":
    main()
