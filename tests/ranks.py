"""For tests of learners: several gloo processes without Ray, and plain PyTorch to compare with."""

import multiprocessing
import os
import tempfile

import torch
from torch import distributed

TOKENS = 150  # fewer than the tiny model has
multiprocessing.set_forkserver_preload(
    ["bi_ray.learning.rl", "bi_ray.learning.sft", "torch.distributed.tensor"]
)


def _enter(rank, ranks, rendezvous, function, arguments):
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(rank), str(ranks)
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks
    )
    function(*arguments)
    distributed.destroy_process_group()


def on_ranks(ranks, function, *arguments):
    """Call ``function(*arguments)`` on every rank of a new process group.

    The function returns nothing; it writes its results to files.
    """
    with tempfile.TemporaryDirectory() as folder:
        # A forkserver imports torch and transformers once: importing takes longer than the tests.
        torch.multiprocessing.start_processes(
            _enter,
            (ranks, f"{folder}/rendezvous", function, arguments),
            nprocs=ranks,
            start_method="forkserver",
        )


def logprobs_of(model, tokens, first, temperature=1.0):
    """Log-probabilities of ``tokens[first:]``, from the model's plain logits for one sequence."""
    logs = (model(input_ids=torch.tensor([tokens])).logits[0] / temperature).log_softmax(-1)
    return logs[torch.arange(first - 1, len(tokens) - 1), torch.tensor(tokens[first:])]


def distance(left, right):
    """Relative distance of two dicts of tensors, as one long vector."""
    assert left.keys() == right.keys()
    difference = sum(
        float((left[name].double() - right[name].double()).square().sum()) for name in left
    )
    return (difference / sum(float(right[name].double().square().sum()) for name in right)) ** 0.5
