"""Compare an asynchronous RL step with the longer of its two phases, which is its lower bound.

Generation runs on one core and training on another. First each phase is timed alone: in a
synchronous run one waits while the other works. Then the same steps run asynchronously. The model
is random and has 5 M parameters; there are 2 engines and 1 learner of one thread each.

    python benchmarks/async_vs_limit.py
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path

from common import Metrics, arguments_parser, print_ratio, rounded
from rl_runs import column, medians, random_model, rl_options, run_config, run_rl, work_folder

WARM_UP_STEPS = 2
SHOWN = (
    "staleness_mean",
    "staleness_max",
    "mixed_version_share",
    "idle_share_learner",
    "idle_share_engine_1",
)


def _run(
    arguments: argparse.Namespace, model: Path, folder: Path, max_staleness: int
) -> list[Metrics]:
    """Metrics of the measured steps."""
    # As many steps are left out at the end, where nothing remains to be generated beside training.
    steps = arguments.steps + 2 * WARM_UP_STEPS
    rl = rl_options(arguments.prompts, arguments.samples, steps) | {"max_staleness": max_staleness}
    options = {"model": {"max_response_tokens": arguments.tokens}, "rl": rl}
    cores = sorted(os.sched_getaffinity(0))
    folder.mkdir()
    rows = run_rl(run_config(model, options), folder, ({cores[0]}, {cores[-1]}))
    return rows[WARM_UP_STEPS:-WARM_UP_STEPS]


def main() -> None:
    """Measure and print."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--size", default="5m", help="of the model, a key of rl_runs.SHAPES")
    parser.add_argument("--steps", type=int, default=7, help="measured steps")
    parser.add_argument("--prompts", type=int, default=8, help="prompts per step")
    parser.add_argument("--samples", type=int, default=8, help="responses per prompt")
    parser.add_argument("--tokens", type=int, default=128, help="maximum length of a response")
    parser.add_argument("--staleness", type=int, default=2, help="rl.max_staleness, in versions")
    arguments = parser.parse_args()
    with work_folder() as folder:
        model = random_model(folder / "model", arguments.size)
        synchronous = _run(arguments, model, folder / "synchronous", 0)
        asynchronous = _run(arguments, model, folder / "asynchronous", arguments.staleness)
    phases = medians(synchronous, "generate_s", "compute_s", "step_s")
    step_seconds = column(asynchronous, "step_s")
    # The mean, because a wait may fall on some steps and not on others.
    step_s = statistics.mean(step_seconds)
    print("synchronous:  " + "  ".join(f"{name} {value:.3f}" for name, value in phases.items()))
    print(f"asynchronous: step_s {step_s:.3f}  {rounded(step_seconds)}")
    for name in SHOWN:
        print(f"              {name} {statistics.mean(column(asynchronous, name)):.3f}")
    print_ratio("async_vs_limit", step_s / max(phases["generate_s"], phases["compute_s"]), 3)


if __name__ == "__main__":
    main()
