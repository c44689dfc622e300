"""Compare one update of the learner with bare PyTorch loops over packed and padded rows.

    python benchmarks/learner_vs_torch.py [--parameters 5]

One process and one thread, float32. The batch is 32 groups of 8 responses, with prompts of 80 to
140 tokens and responses of about 60, all with an advantage. Each way trains its own copy of a
Llama. They take turns six times; medians without the first.

- ``learner``: ``Learner.update`` with the GRPO loss, from rows of tokens to new weights, with all
  its metrics (clipping, KL, entropy, mismatch) and its default options.
- ``same tokens``: the micro-batches that the learner would make, made before the clock starts; then
  transformers' model with the same attention, logits only at tokens that are trained on,
  log_softmax, the clipped GRPO loss, backward, ``clip_grad_norm_`` and ``torch.optim.AdamW``.
  Without metrics, sharding or checks.
- ``no shared prompts``: the same loop, but every response has its own prompt: packed rows without
  padding, as users of flash attention have them.
- ``padded``: the same loop over padded rows, sorted by length, with transformers' own SDPA, as in
  most training loops.

Prints lines `RATIO <name> <value>`: seconds of the loop over seconds of the learner.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from common import (
    ROOT,
    arguments_parser,
    medians_of,
    print_ratio,
    start_process_group,
    times_in_turn,
)
from torch import distributed
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from bi_ray.config.run import ModelConfig
from bi_ray.config.training import LearnerConfig, OptimizerConfig, RLConfig
from bi_ray.learning.learner import Learner
from bi_ray.learning.rl import microbatch_loss
from bi_ray.policy.attention import PACKED_ATTENTION
from bi_ray.policy.checkpoint import load_model
from bi_ray.policy.packing import MicroBatch, Row, pack

GROUPS, SAMPLES, ROUNDS = 32, 8, 6
# by millions of parameters: width, layers, width inside an MLP
SIZES = {1: (128, 4, 344), 5: (256, 6, 768), 30: (512, 10, 1536)}
OPTIMIZER = OptimizerConfig(learning_rate=1e-6)
LOOPS = {"same tokens": "shared", "no shared prompts": "flat", "padded": "padded"}


def make_rows(vocabulary: int) -> list[Row]:
    """The batch, with random tokens and random log-probabilities of the sampler."""
    rng = random.Random(0)
    weight = 1 / (60 * GROUPS * SAMPLES)
    rows = []
    for _ in range(GROUPS):
        prompt = _random_tokens(rng, vocabulary, rng.randint(80, 140))
        for number in range(SAMPLES):
            response = _random_tokens(rng, vocabulary, max(5, round(rng.gauss(60, 15))))
            logprobs = tuple(-5 - rng.random() for _ in response)
            advantage = (-1.0) ** number
            rows.append(Row(prompt + response, len(prompt), weight, advantage, logprobs))
    return rows


def _random_tokens(rng: random.Random, vocabulary: int, count: int) -> tuple[int, ...]:
    return tuple(rng.randrange(vocabulary) for _ in range(count))


def write_model(millions: int, folder: Path) -> Path:
    """The shipped base model for 1 million parameters, else a random Llama with its tokenizer."""
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
    """A function that makes one update; see the module's docstring."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=OPTIMIZER.learning_rate, betas=OPTIMIZER.betas
    )

    def update() -> None:
        for batch in batches:
            layout = {"layout": batch.layout} if batch.layout else {}
            hidden = model.model(
                input_ids=batch.tokens, position_ids=batch.positions, use_cache=False, **layout
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
    parser = arguments_parser(__doc__)
    parser.add_argument("--parameters", type=int, choices=SIZES, default=1, help="millions")
    millions = parser.parse_args().parameters
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    start_process_group(folder)
    base = write_model(millions, folder / "model")
    options = LearnerConfig()
    learner = Learner(base, ModelConfig(), options, OPTIMIZER, torch.device("cpu"))
    loss = microbatch_loss(learner.policy, None, RLConfig())
    rows = make_rows(learner.model.config.vocab_size)
    ways: dict[str, Callable[[], object]] = {
        "learner": lambda: learner.update(1, rows, loss, OPTIMIZER.learning_rate)
    }
    tokens: dict[str, int] = {}
    for name, packing in LOOPS.items():
        model = load_model(base)
        if packing != "padded":
            model.set_attn_implementation(PACKED_ATTENTION)
        batches = pack(rows, options.microbatch_tokens, packing=packing)
        tokens[name] = sum(batch.tokens.numel() for batch in batches)
        ways[name] = bare_loop(model, batches)
    tokens["learner"] = tokens["same tokens"]
    medians = medians_of(times_in_turn(ways, ROUNDS))
    size = sum(parameter.numel() for parameter in learner.model.parameters()) / 1e6
    print(
        f"{size:.2f} M parameters, {len(rows)} responses, 1 thread, "
        f"micro-batches of {options.microbatch_tokens} tokens"
    )
    for name, median in medians.items():
        rate = len(rows) / median
        print(f"{name:18s} {median:.2f} s, {tokens[name]} tokens, {rate:.0f} responses/s")
    for name in LOOPS:
        ratio = medians[name] / medians["learner"]
        print_ratio(f"learner_vs_torch_{name.replace(' ', '_')}", ratio)
    print_ratio("learner_vs_torch", medians["same tokens"] / medians["learner"])
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
