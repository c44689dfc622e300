"""The asynchronous RL step, with generation on one core and training on another, against the longer
of its two phases.

Each phase is timed alone under the same pin: in a synchronous run one waits while the other works.
Then the same steps run asynchronously. A random model of 5 M parameters, 2 engines and 1 learner,
each of 1 thread.

    python benchmarks/async_vs_limit.py
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path
from typing import Any

from rl_runs import column, random_model, run_config, run_rl, work_folder

WARM_UP = 2


def _run(
    arguments: argparse.Namespace, model: Path, folder: Path, max_staleness: int
) -> list[dict[str, Any]]:
    steps = arguments.steps + 2 * WARM_UP  # the last ones have nothing left to generate beside them
    options = {
        "model": {"max_response_tokens": arguments.tokens},
        "rl": {
            "steps": steps,
            "prompts_per_step": arguments.prompts,
            "samples_per_prompt": arguments.samples,
            "checkpoint_every_steps": steps,
            "max_staleness": max_staleness,
        },
    }
    cores = sorted(os.sched_getaffinity(0))
    folder.mkdir()
    rows = run_rl(run_config(model, options), folder, ({cores[0]}, {cores[-1]}))
    return rows[WARM_UP:-WARM_UP]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="5m")
    parser.add_argument("--steps", type=int, default=7, help="that are measured")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128, help="longest response")
    parser.add_argument("--staleness", type=int, default=2, help="versions")
    arguments = parser.parse_args()
    with work_folder() as folder:
        model = random_model(folder / "model", arguments.size)
        alone = _run(arguments, model, folder / "synchronous", 0)
        together = _run(arguments, model, folder / "asynchronous", arguments.staleness)
    phases = {
        name: statistics.median(column(alone, name))
        for name in ("generate_s", "compute_s", "step_s")
    }
    # a mean: what one step waits for, the next need not
    step_s = statistics.mean(column(together, "step_s"))
    print("alone:    " + "  ".join(f"{name} {value:.3f}" for name, value in phases.items()))
    print(
        f"together: step_s {step_s:.3f}  {[round(value, 2) for value in column(together, 'step_s')]}"
    )
    for name in (
        "staleness_mean",
        "staleness_max",
        "mixed_version_share",
        "idle_share_learner",
        "idle_share_engine_1",
    ):
        print(f"          {name} {statistics.mean(column(together, name)):.3f}")
    print(f"RATIO async_vs_limit {step_s / max(phases['generate_s'], phases['compute_s']):.3f}")


if __name__ == "__main__":
    main()
