"""What `bi-ray plan` predicts for this machine against real RL steps.

    python benchmarks/plan_check.py --probe       # minutes: real steps at the sizes 2m and 15m, and what they cost
    python benchmarks/plan_check.py               # predicts 1m, 5m and 30m, then runs them

Random models, 2 engines of 1 thread, 1 learner of 2 threads; medians of the steps after two that warm everything up.
No figure of a predicted size goes into its prediction but these: the shape, what the step has to do (mean lengths of
prompts and responses, the share of groups that teach something) and the rate of bare matrix products of that shape.
What an engine's step, a sequence in it, a learner's layer and a sync cost comes from the probed sizes, by least
squares with no negative cost. The result is left in build/bench/plan_hardware.json, for `bi-ray plan --hardware`.

Ends with a line RATIO plan_check <whole step, predicted / measured, of the size that is furthest off>.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from common import BUILD
from datasets import load_from_disk
from rl_runs import column, random_model, run_config, run_rl, work_folder

from bi_ray.cli_plan import measure_for
from bi_ray.config import RunConfig
from bi_ray.planning.hardware import HARDWARE, Hardware, load_hardware
from bi_ray.planning.job import Job
from bi_ray.planning.plan import make_plan
from bi_ray.planning.shapes import Shape
from bi_ray.planning.times import decode, prefill, publish, take, train, update

WARM_UP, STEPS = 2, 4
# prompts, samples, longest response
PROBES = [("2m", (8, 8, 128)), ("2m", (4, 4, 64)), ("15m", (8, 8, 64)), ("15m", (2, 8, 64))]
PREDICTED = {"1m": (16, 8, 128), "5m": (8, 8, 128), "30m": (8, 4, 64)}
PHASES = ("rollout", "learner", "publish", "sync", "else")
HARDWARE_FILE = BUILD / "plan_hardware.json"


@dataclass(frozen=True, slots=True)
class Measured:
    """Real steps of one size: what they had to do, and the seconds of each phase."""

    config: RunConfig
    shape: Shape
    hardware: Hardware
    prompt_tokens: float
    response_tokens: float
    informative_share: float
    seconds: dict[str, float]

    def job(self, hardware: Hardware) -> Job:
        """The same step for the planner."""
        return Job(
            self.config, self.shape, hardware, self.prompt_tokens, self.response_tokens, self.informative_share, 0
        )


def run_steps(size: str, geometry: tuple[int, int, int]) -> Measured:
    """Real steps, and the rates of this machine at that shape."""
    prompts, samples, tokens = geometry
    with work_folder() as folder:
        options = {
            "model": {"max_response_tokens": tokens},
            "learner": {"threads_per_worker": 2},
            "rl": {
                "steps": WARM_UP + STEPS,
                "prompts_per_step": prompts,
                "samples_per_prompt": samples,
                "checkpoint_every_steps": WARM_UP + STEPS,
            },
        }
        config = run_config(random_model(folder / "model", size), options)
        shape = Shape.read(folder / "model")
        hardware = measure_for(config, shape, HARDWARE["cpu"])
        rows = run_rl(config, folder)[WARM_UP:-1]  # the last one waits for a checkpoint
        lengths = [len(row) for row in load_from_disk(str(folder / "data/rl"))["prompt_tokens"]]

    def median(name: str) -> float:
        return statistics.median(column(rows, name))

    names = ("generate_s", "compute_s", "write_s", "sync_s")
    seconds = dict(zip(PHASES, map(median, names), strict=False))
    seconds["else"] = statistics.median(row["step_s"] - sum(row[name] for name in names) for row in rows)
    share = min(1.0, median("learned_samples") / (prompts * samples))
    return Measured(config, shape, hardware, statistics.mean(lengths), median("response_tokens_mean"), share, seconds)


def fitted(probes: list[Measured]) -> dict[str, float]:
    """The costs that explain the probes, fields of ``Hardware``."""
    free = {name: 0.0 for name in ("engine_step_s", "engine_layer_s", "engine_sequence_s", "learner_layer_s", "sync_s")}
    free |= {"activation_passes": 0.0, "step_s": 0.0, "training_mfu": 1.0, "prefill_mfu": 1.0}
    free |= {"decode_bandwidth_share": 1.0}
    jobs = [probe.job(probe.hardware.model_copy(update=free)) for probe in probes]
    rollout = [probe.seconds["rollout"] for probe in probes]
    engines = _costs(
        [
            [prefill(job).seconds + decode(job).seconds, job.decode_steps, job.decode_steps * job.shape.layers,
             job.engine_sequences * job.response_tokens]
            for job in jobs
        ],
        rollout,
    )  # fmt: skip
    learners = _costs(
        [
            [train(job).seconds, job.microbatches * job.shape.layers,
             train(job).memory_bytes / (job.hardware.memory_bytes_per_s * job.learner_devices)]
            for job in jobs
        ],
        [probe.seconds["learner"] - update(job).seconds for probe, job in zip(probes, jobs, strict=True)],
    )  # fmt: skip
    fixed = {
        "sync_s": statistics.mean(
            max(0.0, probe.seconds["sync"] - take(job).seconds) for probe, job in zip(probes, jobs, strict=True)
        ),
        "step_s": statistics.mean(
            max(0.0, probe.seconds["else"] + probe.seconds["publish"] - publish(job).seconds)
            for probe, job in zip(probes, jobs, strict=True)
        ),
    }
    mfu = {"training_mfu": learners[0], "prefill_mfu": engines[0], "decode_bandwidth_share": engines[0]}
    shares = {name: min(1.0, 1 / max(1.0, times)) for name, times in mfu.items()}
    names = ("engine_step_s", "engine_layer_s", "engine_sequence_s")
    return shares | dict(zip(names, engines[1:], strict=True)) | fixed | {
        "learner_layer_s": learners[1], "activation_passes": learners[2],
    }  # fmt: skip


def _costs(features: list[list[float]], seconds: list[float]) -> list[float]:
    """Least squares of relative errors, no cost negative; the first, of products at full rate, is at least 1."""
    matrix = np.array(features)
    target = np.array(seconds) - matrix[:, 0]
    scaled, wanted = matrix / np.array(seconds)[:, None], target / np.array(seconds)
    best, least = np.zeros(matrix.shape[1]), float("inf")
    for size in range(1, matrix.shape[1] + 1):
        for chosen in map(list, combinations(range(matrix.shape[1]), size)):
            found = np.zeros(matrix.shape[1])
            found[chosen] = np.linalg.lstsq(scaled[:, chosen], wanted, rcond=None)[0]
            error = float(np.square(scaled @ found - wanted).sum())
            if (found >= 0).all() and error < least:
                best, least = found, error
    return [1 + float(best[0]), *map(float, best[1:])]


def predicted(one: Measured, costs: dict[str, Any]) -> dict[str, float]:
    """Seconds of each phase by the planner, and of the step."""
    hardware = one.hardware.model_copy(update=costs)
    plan = make_plan(one.config, one.shape, hardware, one.prompt_tokens, one.response_tokens, one.informative_share)
    found = {"rollout": 0.0, "learner": 0.0, "sync: publish": 0.0, "sync: engines": 0.0}
    for phase in plan.phases:
        name = phase.name if phase.name in found else phase.name.partition(":")[0]
        found[name] += phase.seconds
    return dict(zip(PHASES, [*found.values(), plan.job.hardware.step_s], strict=True))


def show(name: str, one: Measured, costs: dict[str, Any]) -> float:
    """Print a size; returns predicted / measured of the step."""
    ours, real = predicted(one, costs), one.seconds
    whole = sum(ours.values()) / sum(real.values())
    print(
        f"{name}: {one.shape.parameters / 1e6:.2f} M, prompts of {one.prompt_tokens:.0f} tokens, responses of "
        f"{one.response_tokens:.0f}, {one.informative_share:.0%} learned from; "
        f"{one.hardware.flops_float32 / 1e9:.0f} and {(one.hardware.decode_flops or 0) / 1e9:.0f} GFLOP/s a core"
    )
    for phase in PHASES:
        ratio = ours[phase] / real[phase]
        print(f"  {phase:8s} predicted {ours[phase]:7.3f} s  measured {real[phase]:7.3f} s  {ratio:.2f}")
    print(f"  {'step':8s} predicted {sum(ours.values()):7.3f} s  measured {sum(real.values()):7.3f} s  {whole:.2f}")
    return whole


def main() -> None:
    """Probe, or predict and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probe", action="store_true")
    parser.add_argument("--sizes", nargs="*", default=list(PREDICTED), choices=list(PREDICTED))
    arguments = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    if arguments.probe:
        probes = [run_steps(*run) for run in PROBES]
        costs = fitted(probes)
        hardware = probes[0].hardware.model_copy(update=costs)
        HARDWARE_FILE.write_text(hardware.model_dump_json(indent=1))
        print(json.dumps(costs, indent=1))
        for (size, geometry), probe in zip(PROBES, probes, strict=True):
            show(f"probe {size} {geometry}", probe, costs)
        return
    if not Path(HARDWARE_FILE).exists():
        raise SystemExit("run it with --probe first")
    hardware = load_hardware(str(HARDWARE_FILE))
    measured = {"name", "flops_float32", "flops_bfloat16", "decode_flops", "memory_bytes_per_s", "memory_bytes"}
    costs = {name: value for name, value in hardware.model_dump().items() if name not in measured}
    ratios = [show(size, run_steps(size, PREDICTED[size]), costs) for size in arguments.sizes]
    print(f"RATIO plan_check {max(ratios, key=lambda ratio: max(ratio, 1 / ratio)):.2f}")


if __name__ == "__main__":
    main()
