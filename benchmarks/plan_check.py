"""Compare what `bi-ray plan` predicts for this machine with real RL steps.

    python benchmarks/plan_check.py [2m] [15m] [1m] [5m] [30m]

The sizes 2m and 15m are probes: the costs of an engine's step, of a sequence in it, of a learner's
layer and of a sync are fitted to their real steps, by least squares without negative costs. The
sizes 1m, 5m and 30m are predicted. A prediction uses only these figures of its own size: the shape
of the model, the work of a step (mean lengths of prompts and responses, the share of groups that
learners train on), and the rates of bare matrix products of that shape and of copies.

The models are random; there are 2 engines of one thread and 1 learner of two threads. Medians of
the steps after the first two. Sizes can be measured one by one: each keeps its figures in
build/bench/plan_steps/, and as soon as those of the probes exist, the predictions are printed. The
fitted costs are written to build/bench/plan_hardware.json, for `bi-ray plan --hardware`.

Prints `RATIO plan_check <value>`: the whole step, predicted over measured, of the worst prediction.
"""

from __future__ import annotations

import statistics
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from common import BUILD, arguments_parser, print_ratio
from datasets import load_from_disk
from rl_runs import column, medians, random_model, rl_options, run_config, run_rl, work_folder

from bi_ray.config.base import Config
from bi_ray.config.run import RunConfig
from bi_ray.planning.hardware import HARDWARE, Hardware
from bi_ray.planning.job import Job
from bi_ray.planning.plan import make_plan, measure_for
from bi_ray.planning.shapes import Shape
from bi_ray.planning.times import decode, prefill, publish, take, train, update


class Run(NamedTuple):
    """The steps of one run; ``tokens`` is the maximum length of a response."""

    size: str
    prompts: int
    samples: int
    tokens: int


WARM_UP_STEPS, STEPS = 2, 4
PROBES = [Run("2m", 8, 8, 128), Run("2m", 4, 4, 64), Run("15m", 2, 8, 64)]
PREDICTED = [Run("1m", 16, 8, 128), Run("5m", 8, 8, 128), Run("30m", 8, 4, 64)]
PHASES = ("rollout", "learner", "publish", "sync", "else")
STEPS_FOLDER = BUILD / "plan_steps"
HARDWARE_FILE = BUILD / "plan_hardware.json"
# Hardware without any fixed cost, whose products and copies run at full rate.
FREE = {
    "engine_step_s": 0.0,
    "engine_layer_s": 0.0,
    "engine_sequence_s": 0.0,
    "learner_layer_s": 0.0,
    "sync_s": 0.0,
    "activation_passes": 0.0,
    "step_s": 0.0,
    "training_mfu": 1.0,
    "prefill_mfu": 1.0,
    "decode_bandwidth_share": 1.0,
}


class Measured(Config):
    """Medians of a run's real steps: their work, and the seconds of each phase."""

    shape: Shape
    hardware: Hardware
    prompt_tokens: float
    response_tokens: float
    informative_share: float
    seconds: dict[str, float]


def file_of(run: Run) -> Path:
    """The file with the figures of a run."""
    return STEPS_FOLDER / f"{'_'.join(map(str, run))}.json"


def config_of(run: Run, model: Path) -> RunConfig:
    """The configuration of a run."""
    options = {
        "model": {"max_response_tokens": run.tokens},
        "learner": {"threads_per_worker": 2},
        "rl": rl_options(run.prompts, run.samples, WARM_UP_STEPS + STEPS),
    }
    return run_config(model, options)


def job_of(run: Run, measured: Measured, costs: dict[str, float]) -> Job:
    """A measured step as the planner takes it, on hardware with these costs."""
    return Job(
        config_of(run, Path("model")),
        measured.shape,
        measured.hardware.model_copy(update=costs),
        measured.prompt_tokens,
        measured.response_tokens,
        measured.informative_share,
        0,
    )


def run_steps(run: Run) -> None:
    """Take real steps, measure the rates of this machine at that shape, and keep the figures."""
    with work_folder() as folder:
        config = config_of(run, random_model(folder / "model", run.size))
        shape = Shape.read(folder / "model")
        hardware = measure_for(config, shape, HARDWARE["cpu"])
        rows = run_rl(config, folder)[WARM_UP_STEPS:-1]  # the last one waits for a checkpoint
        lengths = [len(row) for row in load_from_disk(str(folder / "data/rl"))["prompt_tokens"]]
    timed_parts = ("generate_s", "compute_s", "write_s", "sync_s")
    seconds = dict(zip(PHASES, medians(rows, *timed_parts).values(), strict=False))
    rest_s = []
    for row in rows:
        timed_s = sum(row[name] for name in timed_parts)
        rest_s.append(row["step_s"] - timed_s)
    seconds["else"] = statistics.median(rest_s)
    learned_samples = statistics.median(column(rows, "learned_samples"))
    measured = Measured(
        shape=shape,
        hardware=hardware,
        prompt_tokens=statistics.mean(lengths),
        response_tokens=statistics.median(column(rows, "response_tokens_mean")),
        informative_share=min(1.0, learned_samples / (run.prompts * run.samples)),
        seconds=seconds,
    )
    file_of(run).write_text(measured.model_dump_json(indent=1))


def fitted_costs(measured: dict[Run, Measured]) -> dict[str, float]:
    """The costs that explain the probes best, as fields of ``Hardware``."""
    probes = [measured[run] for run in PROBES]
    jobs = [job_of(run, measured[run], FREE) for run in PROBES]
    engines = _fit(
        [_engine_features(job) for job in jobs], [probe.seconds["rollout"] for probe in probes]
    )
    learner_s, sync_s, other_s = [], [], []
    for probe, job in zip(probes, jobs, strict=True):
        learner_s.append(probe.seconds["learner"] - update(job).seconds)
        sync_s.append(max(0.0, probe.seconds["sync"] - take(job).seconds))
        unexplained_s = probe.seconds["else"] + probe.seconds["publish"] - publish(job).seconds
        other_s.append(max(0.0, unexplained_s))
    learners = _fit([_learner_features(job) for job in jobs], learner_s)
    return {
        "training_mfu": 1 / learners[0],
        "prefill_mfu": 1 / engines[0],
        "decode_bandwidth_share": 1 / engines[0],
        "engine_step_s": engines[1],
        "engine_layer_s": engines[2],
        "engine_sequence_s": engines[3],
        "sync_s": statistics.mean(sync_s),
        "step_s": statistics.mean(other_s),
        "learner_layer_s": learners[1],
        "activation_passes": learners[2],
    }


def _engine_features(job: Job) -> list[float]:
    """Seconds of products, and numbers of steps, layers and sequences of an engine."""
    return [
        prefill(job).seconds + decode(job).seconds,
        job.decode_steps,
        job.decode_steps * job.shape.layers,
        job.engine_sequences * job.response_tokens,
    ]


def _learner_features(job: Job) -> list[float]:
    """Seconds of products, the number of layers, and seconds to move the activations once."""
    training = train(job)
    bandwidth = job.hardware.memory_bytes_per_s * job.learner_devices
    return [
        training.seconds,
        job.microbatches * job.shape.layers,
        training.memory_bytes / bandwidth,
    ]


def _fit(features: list[list[float]], seconds: list[float]) -> list[float]:
    """Non-negative least squares of relative errors, over every subset of the features.

    Returns:
        A cost per feature; the first, by which the time of products is multiplied, is at least 1.
    """
    matrix = np.array(features)
    measured = np.array(seconds)
    scaled = matrix / measured[:, None]
    wanted = (measured - matrix[:, 0]) / measured
    count = matrix.shape[1]
    best, least_error = np.zeros(count), float("inf")
    for subset in _subsets(count):
        costs = np.zeros(count)
        costs[subset] = np.linalg.lstsq(scaled[:, subset], wanted, rcond=None)[0]
        error = float(np.square(scaled @ costs - wanted).sum())
        if (costs >= 0).all() and error < least_error:
            best, least_error = costs, error
    return [1 + float(best[0]), *map(float, best[1:])]


def _subsets(count: int) -> list[list[int]]:
    """All subsets of the first ``count`` indices but the empty one, small ones first."""
    subsets = []
    for size in range(1, count + 1):
        subsets += [list(subset) for subset in combinations(range(count), size)]
    return subsets


def predicted_seconds(run: Run, measured: Measured, costs: dict[str, float]) -> dict[str, float]:
    """Seconds of each phase according to the planner."""
    job = job_of(run, measured, costs)
    plan = make_plan(
        job.config,
        job.shape,
        job.hardware,
        job.prompt_tokens,
        job.response_tokens,
        job.informative_share,
    )
    seconds = {"rollout": 0.0, "learner": 0.0, "sync: publish": 0.0, "sync: engines": 0.0}
    for phase in plan.phases:
        name = phase.name if phase.name in seconds else phase.name.partition(":")[0]
        seconds[name] += phase.seconds
    return dict(zip(PHASES, [*seconds.values(), job.hardware.step_s], strict=True))


def show(run: Run, measured: Measured, costs: dict[str, float]) -> float:
    """Print a run; returns predicted over measured seconds of the step."""
    kind = "probe" if run in PROBES else "predicted"
    product_rate = measured.hardware.flops_float32 / 1e9
    decode_rate = (measured.hardware.decode_flops or 0) / 1e9
    print(
        f"{kind} {run.size}: {measured.shape.parameters / 1e6:.2f} M, {run.prompts} prompts of "
        f"{measured.prompt_tokens:.0f} tokens x {run.samples} responses of "
        f"{measured.response_tokens:.0f}; {product_rate:.0f} and {decode_rate:.0f} GFLOP/s per core"
    )
    predicted = predicted_seconds(run, measured, costs)
    for phase in PHASES:
        _show_phase(phase, predicted[phase], measured.seconds[phase])
    step_s, real_step_s = sum(predicted.values()), sum(measured.seconds.values())
    _show_phase("step", step_s, real_step_s)
    return step_s / real_step_s


def _show_phase(phase: str, predicted_s: float, measured_s: float) -> None:
    ratio = f"{predicted_s / measured_s:.2f}" if measured_s > 0 else ""
    print(f"  {phase:8s} predicted {predicted_s:7.3f} s  measured {measured_s:7.3f} s  {ratio}")


def main() -> None:
    """Measure the sizes, and compare all that have been measured."""
    parser = arguments_parser(__doc__)
    all_sizes = ["2m", "15m", "1m", "5m", "30m"]
    parser.add_argument("sizes", nargs="*", default=all_sizes, help="sizes to measure now")
    sizes = parser.parse_args().sizes
    STEPS_FOLDER.mkdir(parents=True, exist_ok=True)
    measured = {}
    for run in PROBES + PREDICTED:
        if run.size in sizes:
            run_steps(run)
        if file_of(run).exists():
            measured[run] = Measured.model_validate_json(file_of(run).read_text())
    missing = [run.size for run in PROBES if run not in measured]
    if missing:
        raise SystemExit(f"measure the probes first: {', '.join(missing)}")
    costs = fitted_costs(measured)
    hardware = measured[PROBES[0]].hardware.model_copy(update=costs)
    HARDWARE_FILE.write_text(hardware.model_dump_json(indent=1))
    print("  ".join(f"{name} {cost:.3g}" for name, cost in costs.items()))
    ratios = []
    for run, figures in measured.items():
        ratio = show(run, figures, costs)
        if run in PREDICTED:
            ratios.append(ratio)
    if ratios:
        print_ratio("plan_check", max(ratios, key=lambda ratio: max(ratio, 1 / ratio)))


if __name__ == "__main__":
    main()
