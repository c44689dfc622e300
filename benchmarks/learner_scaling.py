"""Compare updates of several groups of learners with those of one learner of one thread.

    python benchmarks/learner_scaling.py [--parameters 5]

Batch and model are those of ``learner_vs_torch.py``, with 5 million parameters. All groups of
learners start once (gloo, and FSDP2 for two learners) and take turns: while one makes an update,
the others wait on a pipe. Two learners run with ``gradient_sync: step`` and
``reshard_after_forward: false``, which send least and suit a model that fits each learner, and with
the defaults, which save memory. ``2 apart`` is the limit of the machine: two learners that do not
communicate, each with every second group of responses. Medians of six rounds without the first.
Prints lines `RATIO <name> <value>`: updates per second over those of one learner of one thread.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from common import (
    arguments_parser,
    medians_of,
    print_ratio,
    start_process_group,
)
from learner_vs_torch import OPTIMIZER, ROUNDS, SAMPLES, SIZES, make_rows, write_model
from torch import distributed


@dataclass(frozen=True, slots=True)
class Group:
    """Learners that make an update together.

    Attributes:
        learners: their number.
        threads: of each learner.
        options: of ``LearnerConfig``.
        apart: they do not communicate; each takes its share of the batch.
    """

    learners: int
    threads: int
    options: dict[str, Any] = field(default_factory=dict)
    apart: bool = False


ONE = "1 x 1 thread"
SEND_LEAST = {"gradient_sync": "step", "reshard_after_forward": False}
GROUPS = {
    ONE: Group(1, 1),
    "1 x 2 threads": Group(1, 2),
    "2 x 1 thread": Group(2, 1, SEND_LEAST),
    "2 x 1 thread, defaults": Group(2, 1),
    "2 apart": Group(2, 1, apart=True),
}
RATIOS = {
    "learner_scaling_threads": "1 x 2 threads",
    "learner_scaling_apart": "2 apart",
    "learner_scaling_defaults": "2 x 1 thread, defaults",
    "learner_scaling": "2 x 1 thread",
}


def learn(base: Path, folder: Path, group: Group, number: int, orders: Connection) -> None:
    """Run learner ``number`` of a group: one update per order, answered when it is done."""
    from bi_ray.config.run import ModelConfig
    from bi_ray.config.training import LearnerConfig, RLConfig
    from bi_ray.learning.learner import Learner
    from bi_ray.learning.rl import microbatch_loss

    torch.set_num_threads(group.threads)
    if group.apart:
        folder = folder / str(number)
        folder.mkdir()
        start_process_group(folder)
    else:
        start_process_group(folder, number, group.learners)
    options = LearnerConfig(**group.options)
    learner = Learner(base, ModelConfig(), options, OPTIMIZER, torch.device("cpu"))
    loss = microbatch_loss(learner.policy, None, RLConfig())
    rows = make_rows(learner.model.config.vocab_size)
    if group.apart:
        groups = [index // SAMPLES for index in range(len(rows))]
        rows = [row for row, of in zip(rows, groups, strict=True) if of % 2 == number]
    orders.send("ready")
    while orders.recv():
        distributed.barrier()
        began = time.perf_counter()
        learner.update(1, rows, loss, OPTIMIZER.learning_rate)
        orders.send(time.perf_counter() - began)
    distributed.destroy_process_group()


def start(base: Path, folder: Path, group: Group) -> list[Connection]:
    """Start a group of learners; returns a pipe to each."""
    folder.mkdir()
    spawn = multiprocessing.get_context("spawn")
    pipes = []
    for number in range(group.learners):
        ours, theirs = spawn.Pipe()
        arguments = (base, folder, group, number, theirs)
        spawn.Process(target=learn, args=arguments, daemon=True).start()
        pipes.append(ours)
    return pipes


def update(pipes: list[Connection]) -> float:
    """Let a group make one update; returns the seconds of its slowest learner."""
    for pipe in pipes:
        pipe.send(True)
    return max(pipe.recv() for pipe in pipes)


def main() -> None:
    """Print the seconds of an update."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--parameters", type=int, choices=SIZES, default=5, help="millions")
    millions = parser.parse_args().parameters
    folder = Path(tempfile.mkdtemp())
    base = write_model(millions, folder / "model")
    pipes_of: dict[str, list[Connection]] = {}
    for name, group in GROUPS.items():
        pipes_of[name] = start(base, folder / str(len(pipes_of)), group)
    for pipes in pipes_of.values():
        for pipe in pipes:
            pipe.recv()
    seconds: dict[str, list[float]] = {name: [] for name in GROUPS}
    for _ in range(ROUNDS):
        for name, pipes in pipes_of.items():
            seconds[name].append(update(pipes))
    for pipes in pipes_of.values():
        for pipe in pipes:
            pipe.send(False)
    medians = medians_of({name: values[1:] for name, values in seconds.items()})
    for name, median in medians.items():
        print(f"{name:23s} {median:.2f} s per update")
    for ratio, name in RATIOS.items():
        print_ratio(ratio, medians[ONE] / medians[name])


if __name__ == "__main__":
    main()
