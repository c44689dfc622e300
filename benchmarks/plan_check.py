"""What `bi-ray plan` predicts for this machine against real RL steps.

    python benchmarks/plan_check.py [2m] [15m] [1m] [5m] [30m]

The sizes 2m and 15m are probed: what an engine's step, a sequence in it, a learner's layer and a
sync cost comes from their real steps, by least squares with no negative cost. The sizes 1m, 5m and
30m are predicted. No figure of a predicted size goes into its prediction but these: the shape, what
the step has to do (mean lengths of prompts and responses, the share of groups that teach
something), and the rates of bare products of that shape and of copies.

Random models, 2 engines of 1 thread, 1 learner of 2 threads; medians of the steps after two that
warm everything up. Sizes can be run one by one: each leaves its figures in build/bench/plan_steps/,
and as soon as the probes are there the rest is shown. The costs are left in
build/bench/plan_hardware.json, for `bi-ray plan --hardware`.

Ends with a line RATIO plan_check <whole step, predicted / measured, of the size that is furthest
off>.
"""

from __future__ import annotations

import argparse
import statistics
from itertools import combinations
from pathlib import Path

import numpy as np
from common import BUILD
from datasets import load_from_disk
from rl_runs import column, random_model, run_config, run_rl, work_folder

from bi_ray.config import Config, RunConfig
from bi_ray.planning.hardware import HARDWARE, Hardware
from bi_ray.planning.job import Job
from bi_ray.planning.plan import make_plan, measure_for
from bi_ray.planning.shapes import Shape
from bi_ray.planning.times import decode, prefill, publish, take, train, update

WARM_UP, STEPS = 2, 4
# size, prompts, samples, longest response
PROBES = [("2m", 8, 8, 128), ("2m", 4, 4, 64), ("15m", 2, 8, 64)]
PREDICTED = [("1m", 16, 8, 128), ("5m", 8, 8, 128), ("30m", 8, 4, 64)]
PHASES = ("rollout", "learner", "publish", "sync", "else")
STEPS_FOLDER = BUILD / "plan_steps"
HARDWARE_FILE = BUILD / "plan_hardware.json"
Run = tuple[str, int, int, int]


class Measured(Config):
    """Real steps of one size: what they had to do, and the seconds of each phase."""

    shape: Shape
    hardware: Hardware
    prompt_tokens: float
    response_tokens: float
    informative_share: float
    seconds: dict[str, float]


def file_of(run: Run) -> Path:
    """Where the figures of a run are kept."""
    return STEPS_FOLDER / f"{'_'.join(map(str, run))}.json"


def config_of(run: Run, model: Path) -> RunConfig:
    """Of its steps."""
    _, prompts, samples, tokens = run
    rl = {"prompts_per_step": prompts, "samples_per_prompt": samples}
    options = {
        "model": {"max_response_tokens": tokens},
        "learner": {"threads_per_worker": 2},
        "rl": rl | {"steps": WARM_UP + STEPS, "checkpoint_every_steps": WARM_UP + STEPS},
    }
    return run_config(model, options)


def job_of(run: Run, one: Measured, hardware: Hardware) -> Job:
    """The same step for the planner."""
    lengths = one.prompt_tokens, one.response_tokens
    return Job(
        config_of(run, Path("model")), one.shape, hardware, *lengths, one.informative_share, 0
    )


def run_steps(run: Run) -> None:
    """Take real steps, and the rates of this machine at that shape."""
    size, prompts, samples, _ = run
    with work_folder() as folder:
        config = config_of(run, random_model(folder / "model", size))
        shape = Shape.read(folder / "model")
        hardware = measure_for(config, shape, HARDWARE["cpu"])
        rows = run_rl(config, folder)[WARM_UP:-1]  # the last one waits for a checkpoint
        lengths = [len(row) for row in load_from_disk(str(folder / "data/rl"))["prompt_tokens"]]

    def median(name: str) -> float:
        return statistics.median(column(rows, name))

    names = ("generate_s", "compute_s", "write_s", "sync_s")
    seconds = dict(zip(PHASES, map(median, names), strict=False))
    seconds["else"] = statistics.median(
        row["step_s"] - sum(row[name] for name in names) for row in rows
    )
    found = Measured(
        shape=shape,
        hardware=hardware,
        prompt_tokens=statistics.mean(lengths),
        response_tokens=median("response_tokens_mean"),
        informative_share=min(1.0, median("learned_samples") / (prompts * samples)),
        seconds=seconds,
    )
    file_of(run).write_text(found.model_dump_json(indent=1))


def fitted(measured: dict[Run, Measured]) -> dict[str, float]:
    """The costs that explain the probes, fields of ``Hardware``."""
    free = {
        name: 0.0
        for name in (
            "engine_step_s",
            "engine_layer_s",
            "engine_sequence_s",
            "learner_layer_s",
            "sync_s",
        )
    }
    free |= {"activation_passes": 0.0, "step_s": 0.0, "training_mfu": 1.0, "prefill_mfu": 1.0}
    free |= {"decode_bandwidth_share": 1.0}
    probes = [measured[run] for run in PROBES]
    jobs = [
        job_of(run, measured[run], measured[run].hardware.model_copy(update=free)) for run in PROBES
    ]
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
            max(0.0, probe.seconds["sync"] - take(job).seconds)
            for probe, job in zip(probes, jobs, strict=True)
        ),
        "step_s": statistics.mean(
            max(0.0, probe.seconds["else"] + probe.seconds["publish"] - publish(job).seconds)
            for probe, job in zip(probes, jobs, strict=True)
        ),
    }
    mfu = {
        "training_mfu": learners[0],
        "prefill_mfu": engines[0],
        "decode_bandwidth_share": engines[0],
    }
    shares = {name: min(1.0, 1 / max(1.0, times)) for name, times in mfu.items()}
    names = ("engine_step_s", "engine_layer_s", "engine_sequence_s")
    return shares | dict(zip(names, engines[1:], strict=True)) | fixed | {
        "learner_layer_s": learners[1], "activation_passes": learners[2],
    }  # fmt: skip


def _costs(features: list[list[float]], seconds: list[float]) -> list[float]:
    """Least squares of relative errors, no cost negative; the first, of products at full rate, is
    at least 1.
    """
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


def predicted(run: Run, one: Measured, costs: dict[str, float]) -> dict[str, float]:
    """Seconds of each phase by the planner."""
    job = job_of(run, one, one.hardware.model_copy(update=costs))
    plan = make_plan(
        job.config,
        job.shape,
        job.hardware,
        job.prompt_tokens,
        job.response_tokens,
        job.informative_share,
    )
    found = {"rollout": 0.0, "learner": 0.0, "sync: publish": 0.0, "sync: engines": 0.0}
    for phase in plan.phases:
        name = phase.name if phase.name in found else phase.name.partition(":")[0]
        found[name] += phase.seconds
    return dict(zip(PHASES, [*found.values(), job.hardware.step_s], strict=True))


def show(run: Run, one: Measured, costs: dict[str, float]) -> float:
    """Print a run; returns predicted / measured of the step."""
    ours, real = predicted(run, one, costs), one.seconds
    kind, (size, prompts, samples, _) = "probed" if run in PROBES else "predicted", run
    rates = one.hardware.flops_float32 / 1e9, (one.hardware.decode_flops or 0) / 1e9
    print(
        f"{kind} {size}: {one.shape.parameters / 1e6:.2f} M, {prompts} prompts of {one.prompt_tokens:.0f} tokens x "
        f"{samples} responses of {one.response_tokens:.0f}; {rates[0]:.0f} and {rates[1]:.0f} GFLOP/s a core"
    )
    whole = {"step": (sum(ours.values()), sum(real.values()))}
    for phase, (plan_s, real_s) in (
        {phase: (ours[phase], real[phase]) for phase in PHASES} | whole
    ).items():
        ratio = f"{plan_s / real_s:.2f}" if real_s > 0 else ""
        print(f"  {phase:8s} predicted {plan_s:7.3f} s  measured {real_s:7.3f} s  {ratio}")
    return whole["step"][0] / whole["step"][1]


def main() -> None:
    """Run the sizes, and show what there is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="*", default=["2m", "15m", "1m", "5m", "30m"])
    sizes = parser.parse_args().sizes
    STEPS_FOLDER.mkdir(parents=True, exist_ok=True)
    for run in PROBES + PREDICTED:
        if run[0] in sizes:
            run_steps(run)
    there = [run for run in PROBES + PREDICTED if file_of(run).exists()]
    measured = {run: Measured.model_validate_json(file_of(run).read_text()) for run in there}
    if missing := [run[0] for run in PROBES if run not in measured]:
        raise SystemExit(f"not probed yet: {', '.join(missing)}")
    costs = fitted(measured)
    HARDWARE_FILE.write_text(
        measured[PROBES[0]].hardware.model_copy(update=costs).model_dump_json(indent=1)
    )
    print("  ".join(f"{name} {cost:.3g}" for name, cost in costs.items()))
    ratios = {run: show(run, one, costs) for run, one in measured.items()}
    if checked := [ratio for run, ratio in ratios.items() if run in PREDICTED]:
        print(f"RATIO plan_check {max(checked, key=lambda ratio: max(ratio, 1 / ratio)):.2f}")


if __name__ == "__main__":
    main()
