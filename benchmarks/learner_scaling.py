"""Updates per second of two learners of one thread, and of one learner of two, over those of one
learner of one thread.

    python benchmarks/learner_scaling.py [--parameters 5]

The batch and the model are those of ``learner_vs_torch.py``, of 5 million parameters. The groups of
learners are started once (gloo, FSDP2 where there are two) and take turns: while one makes an
update, the others wait on a pipe. Two learners with ``gradient_sync: step`` and
``reshard_after_forward: false``, which send least and suit a model that fits each of them; and with
the defaults, which spare memory. ``2 apart`` is what the machine allows: two learners that know
nothing of each other, each with every second group. Medians of six rounds without the first. Ends
with lines RATIO <name> <value>.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from learner_vs_torch import OPTIMIZER, ROUNDS, SAMPLES, SIZES, make_rows, write_model
from torch import distributed

APART = "2 apart"
SEND_LEAST = {"gradient_sync": "step", "reshard_after_forward": False}
GROUPS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "1 x 1 thread": (1, 1, {}),
    "1 x 2 threads": (1, 2, {}),
    "2 x 1 thread": (2, 1, SEND_LEAST),
    "2 x 1 thread, defaults": (2, 1, {}),
    APART: (2, 1, {}),
}


def learn(
    base: Path,
    rendezvous: str,
    rank: int,
    ranks: int,
    half: int | None,
    threads: int,
    options: dict[str, Any],
    orders: Connection,
) -> None:
    """One learner: an update for every order, then the seconds that it took; of all rows, or of one
    half of them.
    """
    from bi_ray.config import LearnerConfig, ModelConfig, RLConfig
    from bi_ray.learning.learner import Learner
    from bi_ray.learning.rl import microbatch_loss

    torch.set_num_threads(threads)
    distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks
    )
    learner = Learner(base, ModelConfig(), LearnerConfig(**options), OPTIMIZER, torch.device("cpu"))
    loss = microbatch_loss(learner.policy, None, RLConfig())
    rows = make_rows(learner.model.config.vocab_size)
    if half is not None:
        rows = [row for number, row in enumerate(rows) if number // SAMPLES % 2 == half]
    orders.send(0.0)
    while orders.recv():
        distributed.barrier()
        began = time.perf_counter()
        learner.update(1, rows, loss, OPTIMIZER.learning_rate)
        orders.send(time.perf_counter() - began)
    distributed.destroy_process_group()


def main() -> None:
    """Print the seconds of an update."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parameters", type=int, choices=SIZES, default=5, help="millions")
    folder = Path(tempfile.mkdtemp())
    base = write_model(parser.parse_args().parameters, folder / "model")
    spawn = multiprocessing.get_context("spawn")
    orders: dict[str, list[Connection]] = {}
    for name, (ranks, threads, options) in GROUPS.items():
        ours, theirs = zip(*(spawn.Pipe() for _ in range(ranks)), strict=True)
        for rank in range(ranks):
            rendezvous = f"{folder}/{len(orders)}"
            group = (
                (f"{rendezvous}-{rank}", 0, 1, rank)
                if name == APART
                else (rendezvous, rank, ranks, None)
            )
            arguments = base, *group, threads, options, theirs[rank]
            spawn.Process(target=learn, args=arguments, daemon=True).start()
        orders[name] = list(ours)
    for pipe in (pipe for pipes in orders.values() for pipe in pipes):
        pipe.recv()
    seconds: dict[str, list[float]] = {name: [] for name in orders}
    for _ in range(ROUNDS):
        for name, pipes in orders.items():
            for pipe in pipes:
                pipe.send(True)
            seconds[name].append(max(pipe.recv() for pipe in pipes))
    for pipe in (pipe for pipes in orders.values() for pipe in pipes):
        pipe.send(False)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"{name:23s} {median:.2f} s an update")
    one = medians["1 x 1 thread"]
    print(f"RATIO learner_scaling_threads {one / medians['1 x 2 threads']:.2f}")
    print(f"RATIO learner_scaling_apart {one / medians[APART]:.2f}")
    print(f"RATIO learner_scaling_defaults {one / medians['2 x 1 thread, defaults']:.2f}")
    print(f"RATIO learner_scaling {one / medians['2 x 1 thread']:.2f}")


if __name__ == "__main__":
    main()
