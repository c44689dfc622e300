"""One update of the learner against a bare PyTorch loop over the same tokens, and over padded rows.

    python benchmarks/learner_vs_torch.py [--parameters 5]

One process and one thread, float32. The batch is 32 groups of 8 responses, prompts of 80 to 140
tokens and responses of about 60, all with an advantage. Each way trains its own copy of a Llama, in
turn, six times; medians without the first.

- ``learner``: ``Learner.update`` with the GRPO loss, from rows of tokens to new weights, with all
  that it counts (clip, KL, entropy, mismatch) and its default options.
- ``same tokens``: the micro-batches that the learner would make, made before the clock starts; then
  transformers' model with the same attention, its logits at the learned places only, log_softmax,
  the clipped GRPO loss, backward, ``clip_grad_norm_`` and ``torch.optim.AdamW``. Nothing is
  counted, sharded or checked.
- ``no shared prompts``: the same loop where every response has its own prompt: a packed row without
  padding, which is what flash attention's users have.
- ``padded``: the same loop over padded rows, sorted by length, through transformers' own SDPA: what
  most loops do.

Ends with lines RATIO <name> <value>: seconds of the loop over seconds of the learner.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from bi_ray.config import LearnerConfig, ModelConfig, OptimizerConfig, RLConfig
from bi_ray.learning.learner import Learner
from bi_ray.learning.rl import microbatch_loss
from bi_ray.policy.attention import PACKED_ATTENTION
from bi_ray.policy.checkpoint import load_model
from bi_ray.policy.packing import MicroBatch, Row, pack

ROOT = Path(__file__).parents[1]
GROUPS, SAMPLES, ROUNDS = 32, 8, 6
# millions: width, layers, intermediate width
SIZES = {1: (128, 4, 344), 5: (256, 6, 768), 30: (512, 10, 1536)}
OPTIMIZER = OptimizerConfig(learning_rate=1e-6)


def make_rows(vocabulary: int) -> list[Row]:
    """The batch; tokens and sampler's log-probabilities are random."""
    rng = random.Random(0)
    rows = []
    for _ in range(GROUPS):
        prompt = tuple(rng.randrange(vocabulary) for _ in range(rng.randint(80, 140)))
        for number in range(SAMPLES):
            response = tuple(
                rng.randrange(vocabulary) for _ in range(max(5, round(rng.gauss(60, 15))))
            )
            logprobs = tuple(-5 - rng.random() for _ in response)
            rows.append(
                Row(
                    prompt + response,
                    len(prompt),
                    1 / (60 * GROUPS * SAMPLES),
                    (-1.0) ** number,
                    logprobs,
                )
            )
    return rows


def write_model(millions: int, folder: Path) -> Path:
    """The shipped base for 1 million parameters, else a random Llama with its tokenizer and
    vocabulary.
    """
    base = ROOT / "models" / "tiny-base"
    if millions == 1:
        return base
    width, layers, intermediate = SIZES[millions]
    config = LlamaConfig.from_pretrained(
        base, hidden_size=width, num_hidden_layers=layers, intermediate_size=intermediate,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, head_dim=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in base.glob("token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def bare_loop(model: PreTrainedModel, batches: list[MicroBatch]) -> Callable[[], None]:
    """One update as a function; see the head of this file."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=OPTIMIZER.learning_rate, betas=OPTIMIZER.betas
    )

    def update() -> None:
        for batch in batches:
            more = {"layout": batch.layout} if batch.layout else {}
            hidden = model.model(
                input_ids=batch.tokens, position_ids=batch.positions, use_cache=False, **more
            )
            logits = model.lm_head(hidden.last_hidden_state.flatten(0, 1)[batch.sources])
            logprobs = logits.log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]
            ratio = (logprobs - batch.sampler_logprobs).exp()
            clipped = ratio.clamp(0.8, 1.2) * batch.advantages
            (-(batch.weights * torch.minimum(ratio * batch.advantages, clipped)).sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return update


def main() -> None:
    """Print the seconds of an update."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parameters", type=int, choices=SIZES, default=1, help="millions")
    millions = parser.parse_args().parameters
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1
    )
    base = write_model(millions, folder / "model")
    options = LearnerConfig()
    learner = Learner(base, ModelConfig(), options, OPTIMIZER, torch.device("cpu"))
    loss = microbatch_loss(learner.policy, None, RLConfig())
    rows = make_rows(learner.model.config.vocab_size)
    ways: dict[str, Callable[[], object]] = {
        "learner": lambda: learner.update(1, rows, loss, OPTIMIZER.learning_rate)
    }
    tokens: dict[str, int] = {}
    for name, packing in (
        ("same tokens", "shared"),
        ("no shared prompts", "flat"),
        ("padded", "padded"),
    ):
        model = load_model(base)
        if packing != "padded":
            model.set_attn_implementation(PACKED_ATTENTION)
        batches = pack(rows, options.microbatch_tokens, packing=packing)
        tokens[name] = sum(batch.tokens.numel() for batch in batches)
        ways[name] = bare_loop(model, batches)
    tokens["learner"] = tokens["same tokens"]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, work in ways.items():
            began = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    size = sum(p.numel() for p in learner.model.parameters()) / 1e6
    print(
        f"{size:.2f} M parameters, {len(rows)} responses, 1 thread, micro-batches of {options.microbatch_tokens}"
    )
    for name, median in medians.items():
        print(
            f"{name:18s} {median:.2f} s, {tokens[name]} tokens, {len(rows) / median:.0f} responses/s"
        )
    for name in ("same tokens", "no shared prompts", "padded"):
        print(
            f"RATIO learner_vs_torch_{name.replace(' ', '_')} {medians[name] / medians['learner']:.2f}"
        )
    print(f"RATIO learner_vs_torch {medians['same tokens'] / medians['learner']:.2f}")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
