"""Log-probabilities of tokens under a model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def token_logprobs(
    model: nn.Module, tokens: Tensor, learned: Tensor, temperature: float = 1.0, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of the marked tokens, given all tokens before them in their row.

    The output matrix is applied from the first marked column on only, and the softmax to marked positions only, so
    prompts and padding cost no logits in memory.

    Args:
        model: a causal language model of transformers (called as one, so that FSDP gathers its shards).
        tokens: [rows, length], int64, padded on the right.
        learned: [rows, length], bool; the first column is never marked.
        temperature: the logits are divided by it, as the sampler did.
        with_entropy: also return the entropy of the distribution at each marked position, without gradient.

    Returns:
        Log-probabilities and entropies (or None), each [marked tokens] in row-major order, float32 or wider.
    """
    length = tokens.shape[1]
    columns = learned.any(dim=0).nonzero()
    first = int(columns[0]) if len(columns) else length - 1
    # The logits at position t - 1 are about token t; those after the last token are about nothing.
    logits = model(input_ids=tokens, use_cache=False, logits_to_keep=length - first + 1).logits[:, :-1]
    index = learned[:, first:].flatten().nonzero().squeeze(1)
    logits = logits.flatten(0, 1).index_select(0, index)  # [marked tokens, vocabulary]
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    targets = tokens[:, first:].flatten().index_select(0, index)
    logprobs = -functional.cross_entropy(logits, targets, reduction="none")
    return logprobs, _entropy(logits.detach()) if with_entropy else None


def _entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of each row of ``logits`` [rows, vocabulary]."""
    logs = functional.log_softmax(logits, dim=-1)
    return -(logs.exp() * logs).sum(dim=-1)
