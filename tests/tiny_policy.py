"""A tiny Llama on disk and a way to run something on several gloo processes without Ray."""

import multiprocessing
import os
import tempfile
from pathlib import Path

import torch
from torch import distributed
from transformers import LlamaConfig, LlamaForCausalLM

from bi_ray.pretraining.tokenizer import build_tokenizer
from bi_ray.tasks.promptbench import node_names, phrases

VOCABULARY = 192
multiprocessing.set_forkserver_preload(["bi_ray.learning.rl", "bi_ray.learning.sft", "torch.distributed.tensor"])


def tiny_policy(directory: Path, tied: bool = True, layers: int = 2, hidden: int = 64, seed: int = 0) -> Path:
    """A policy directory with random weights."""
    tokenizer = build_tokenizer(phrases(), node_names(32))
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=hidden * 2,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=tied,
            initializer_range=0.1,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype="float32",
        )
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _enter(rank, ranks, rendezvous, function, arguments):
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(rank), str(ranks)
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)
    function(*arguments)
    distributed.destroy_process_group()


def on_ranks(ranks, function, *arguments):
    """Call ``function(*arguments)`` on every rank of a fresh process group; results go through files."""
    with tempfile.TemporaryDirectory() as folder:
        # A server that imported torch and transformers once, and forks: importing takes longer than the tests.
        torch.multiprocessing.start_processes(
            _enter, (ranks, f"{folder}/rendezvous", function, arguments), nprocs=ranks, start_method="forkserver"
        )


def distance(left, right):
    """Relative distance of two dicts of tensors, as one long vector."""
    assert left.keys() == right.keys()
    difference = sum(float((left[name].double() - right[name].double()).square().sum()) for name in left)
    return (difference / sum(float(right[name].double().square().sum()) for name in right)) ** 0.5
