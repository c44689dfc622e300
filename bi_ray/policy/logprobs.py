"""Log-probabilities of tokens under a model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from bi_ray.policy.attention import PACKED_ATTENTION
from bi_ray.policy.files import CheckpointError
from bi_ray.policy.packing import Layout, MicroBatch

CHUNK_LOGITS = 2**26  # 256 MiB in float32
ALL_AT_ONCE = 2**62  # no chunks: forward-mode differentiation cannot recompute them


class TokenLogprobs(nn.Module):
    """A causal language model as a function from micro-batches to log-probabilities.

    It is a module, so that FSDP gathers the output matrix for it.

    Args:
        model: the language model, of transformers.
        chunk_logits: how many logits may exist at a time; more are computed in chunks, and again in
            the backward pass.

    Raises:
        CheckpointError: the model's logits are not its output matrix times its decoder's output
            (they are scaled or capped, as in Gemma 2).
    """

    def __init__(self, model: PreTrainedModel, chunk_logits: int = CHUNK_LOGITS) -> None:
        super().__init__()
        if model.device.type != "meta":  # rank 0 has checked it
            _check_head(model)
        self.model = model
        self._chunk_logits = chunk_logits

    def forward(
        self,
        batch: MicroBatch,
        temperature: float = 1.0,
        with_entropy: bool = False,
        top_p: float = 1.0,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of the learned tokens, given all tokens before them in their sequence.

        The output matrix is applied at learned positions only: prompts and padding cost no logits.

        Args:
            batch: the tokens.
            temperature: the logits are divided by it, as the sampler did.
            with_entropy: also return the entropy of each learned token's distribution, without
                gradient.
            top_p: the distribution is cut as the sampler cut it, see ``_nucleus_logprobs``.

        Returns:
            Log-probabilities and entropies (or None), each [learned tokens], float32 or wider.
        """
        hidden = self._decode(batch).flatten(0, 1).index_select(0, batch.sources)
        head = self.model.get_output_embeddings()
        rows = self._chunk_logits // self.model.config.vocab_size
        if top_p < 1.0:
            rows //= 4  # sorting makes copies
        rows = max(1, rows)
        options = temperature, with_entropy, top_p
        if len(hidden) <= rows:
            return _logprobs(head, hidden, batch.targets, *options)
        logprobs: list[Tensor] = []
        entropies: list[Tensor] = []
        chunks = zip(hidden.split(rows), batch.targets.split(rows), strict=True)
        for chunk in chunks:
            chunk_logprobs, chunk_entropies = checkpoint(
                _logprobs, head, *chunk, *options, use_reentrant=False, preserve_rng_state=False
            )
            logprobs.append(chunk_logprobs)
            entropies.append(chunk_entropies)
        if not with_entropy:
            return torch.cat(logprobs), None
        return torch.cat(logprobs), torch.cat(entropies)

    def _decode(self, batch: MicroBatch) -> Tensor:
        """The last hidden states, [rows, length, width]."""
        more: dict[str, Layout | None] = {}
        if self.model.config._attn_implementation == PACKED_ATTENTION:
            more["layout"] = batch.layout  # flash attention reads it from the positions
        out = self.model.get_decoder()(
            input_ids=batch.tokens, position_ids=batch.positions, use_cache=False, **more
        )
        hidden: Tensor = out.last_hidden_state
        return hidden


@torch.no_grad()
def _check_head(model: PreTrainedModel) -> None:
    kind = type(model).__name__
    if model.get_decoder() is model:
        raise CheckpointError(
            f"{kind} has no decoder apart from its head: set model.path to another model"
        )
    training = model.training
    model.eval()  # dropout would make the two passes differ
    matches = _head_matches(model)
    model.train(training)
    if not matches:
        raise CheckpointError(
            f"{kind} scales or caps its logits, which is not supported: "
            "set model.path to another model"
        )


def _head_matches(model: PreTrainedModel) -> bool:
    # not 0: often padding, whose embedding is 0
    tokens = torch.tensor([[1, 2]], device=model.device)
    hidden = model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
    logits = model(input_ids=tokens, use_cache=False).logits
    return torch.allclose(model.get_output_embeddings()(hidden).to(logits.dtype), logits)


def _logprobs(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    temperature: float,
    with_entropy: bool,
    top_p: float,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of ``targets`` [tokens] given ``hidden`` [tokens, width], and entropies."""
    logits = head(hidden)
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    if top_p < 1.0:
        return _nucleus_logprobs(logits, targets, top_p, with_entropy)
    logs = functional.log_softmax(logits, dim=-1)
    entropy = None
    if with_entropy:
        seen = logs.detach()
        entropy = -(seen.exp() * seen).sum(dim=-1)
    return -functional.nll_loss(logs, targets, reduction="none"), entropy


def _nucleus_logprobs(
    logits: Tensor, targets: Tensor, top_p: float, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities among the most probable tokens that have ``top_p`` together (the nucleus).

    The nucleus is vLLM's: probabilities are added up from the smallest on, and tokens are dropped
    while the sum is at most 1 - top_p, but never the last one. Among equal logits at the edge the
    target is the one that stays. After an update, or where the sampler computes differently, the
    target may be outside of the learner's own nucleus: then it is added, so that its
    log-probability is finite and has a gradient.

    Args:
        logits: [tokens, vocabulary], divided by the temperature.
        targets: [tokens], int64.
        top_p: below 1.
        with_entropy: also return the entropy of the nucleus, without gradient.

    Returns:
        Log-probabilities and entropies (or None), each [tokens].
    """
    ascending = logits.sort(dim=-1).values
    total = ascending.detach().softmax(dim=-1).cumsum(dim=-1)
    dropped = total <= 1 - torch.tensor(top_p, dtype=logits.dtype, device=logits.device)
    dropped[:, -1] = False
    kept = ascending.masked_fill(dropped, -torch.inf)
    normalizer = kept.logsumexp(dim=-1)
    target = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    least = ascending.detach().masked_fill(dropped, torch.inf).amin(dim=-1)
    outside = target.detach() < least
    logprobs = target - torch.where(outside, torch.logaddexp(normalizer, target), normalizer)
    entropy = None
    if with_entropy:
        seen = (kept - normalizer.unsqueeze(-1)).detach()
        entropy = -(seen.exp() * seen.masked_fill(dropped, 0.0)).sum(dim=-1)
    return logprobs, entropy
