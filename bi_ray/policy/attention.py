"""Attention over packed rows: a prompt is computed once for all its responses.

A response sees itself causally and its prompt as a whole. The two parts are attended to apart and
joined by their log-sum-exps, as in ring attention (arXiv:2310.01889); a kernel's backward pass,
given the joined output and the joined log-sum-exp, is the exact gradient of its part. Nothing is
padded, copied per response or masked.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bi_ray.policy.packing import Layout

PACKED_ATTENTION = "bi_ray_packed"
_EXACT = 1e-4  # of a norm, in float32
_FULL, _SLIDING = "full_attention", "sliding_attention"  # kinds of layers
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _PackedAttention(torch.autograd.Function):
    """Inputs and output [1, heads, tokens, head size]."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float
    ) -> Tensor:
        rows, heads, tokens, size = query.shape
        out = query.new_empty(rows, tokens, heads, size).transpose(1, 2)
        logsumexp = query.new_empty(rows, heads, tokens, dtype=_accumulated(query.dtype))
        for queries, keys, causal in _parts(layout):
            inputs = query[:, :, queries], key[:, :, keys], value[:, :, keys]
            part, part_logsumexp = _forward(*inputs, 0.0, causal, scale=scale)
            if causal:
                out[:, :, queries], logsumexp[:, :, queries] = part, part_logsumexp
                continue
            joined = logsumexp[:, :, queries]  # a view: of what was joined so far
            share = torch.sigmoid(part_logsumexp - joined).unsqueeze(-1)
            out[:, :, queries].lerp_(part, share.to(part.dtype))
            torch.logaddexp(joined, part_logsumexp, out=joined)
        ctx.save_for_backward(query, key, value, out, logsumexp)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        query, key, value, out, logsumexp = ctx.saved_tensors
        gradients = [torch.empty_like(tensor) for tensor in (query, key, value)]
        for queries, keys, causal in _parts(ctx.layout):
            parts = _backward(
                gradient[:, :, queries], query[:, :, queries], key[:, :, keys], value[:, :, keys],
                out[:, :, queries], logsumexp[:, :, queries], 0.0, causal, scale=ctx.scale,
            )  # fmt: skip
            tokens = queries, keys, keys
            for total, selected, part in zip(gradients, tokens, parts, strict=True):
                if causal:  # every token is in one segment, and segments come first
                    total[:, :, selected] = part
                else:
                    total[:, :, selected] += part
        return *gradients, None, None


_attend = torch.compiler.disable(_PackedAttention.apply)  # else every layout would be compiled anew


def _parts(layout: Layout) -> Iterator[tuple[slice, slice, bool]]:
    """Queries, the keys that they see, and whether they see them causally."""
    for start, length in layout.segments:
        yield slice(start, start + length), slice(start, start + length), True
    for start, length, prompt, prompt_length in layout.blocks:
        yield slice(start, start + length), slice(prompt, prompt + prompt_length), False


def _accumulated(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    layout: Layout | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: SDPA's, unless the model was called with a ``layout``.

    Args:
        module: the attention module.
        query: [1, heads, tokens, head size].
        key: [1, key heads, tokens, head size]; the number of heads is a multiple of that of key
            heads.
        value: as ``key``.
        attention_mask: only for SDPA.
        scaling: what the scores are multiplied by.
        dropout: must be 0 with a layout.
        layout: who attends to whom.
        arguments: others that transformers passes.

    Returns:
        [1, tokens, heads, head size], and no attention weights.
    """
    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **arguments
        )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    out: Tensor = _attend(query, key, value, layout, scaling)
    return out.transpose(1, 2), None


def can_pack(model: PreTrainedModel) -> bool:
    """Whether positions tell the model where a sequence in a row ends and the next one begins.

    Attention can be cut where positions begin anew. Linear attention, state spaces and convolutions
    carry what they have seen into the next sequence, attention in chunks counts its chunks from the
    row's start, and a decoder that takes no positions makes its own. Attention of a model's own
    (Falcon, StableLM) is not relied on.
    """
    takes_positions = "position_ids" in inspect.signature(model.get_decoder().forward).parameters
    only_attends = not model._is_stateful and _layer_kinds(model) <= {_FULL, _SLIDING}
    return takes_positions and only_attends and model._supports_attention_backend


def can_share_prompts(model: PreTrainedModel, device: torch.device) -> bool:
    """Whether ``PACKED_ATTENTION`` may replace the model's own: full, causal, softmax and on a CPU.

    ``attends_as_laid_out`` measures whether it really does.
    """
    config = model.config
    if device.type != "cpu" or config._attn_implementation != "sdpa":
        return False
    if getattr(config, "attention_dropout", 0.0) or getattr(config, "attn_logit_softcapping", None):
        return False
    if hasattr(config, "qk_rope_head_dim"):
        return False  # keys and values differ in size, and there is no kernel for that
    return not _is_windowed(model) and can_pack(model)


def _is_windowed(model: PreTrainedModel) -> bool:
    kinds = _layer_kinds(model)
    if kinds:
        return _SLIDING in kinds
    return bool(getattr(model.config, "sliding_window", None))


@torch.no_grad()
def attends_as_laid_out(model: PreTrainedModel) -> bool:
    """Whether a sequence behind another one in a row gives the same as by itself.

    Some decoders drop the layout (Nemotron).

    Args:
        model: with its weights, float32, under ``PACKED_ATTENTION``.
    """
    length = 4
    tokens = torch.arange(1, 2 * length + 1).unsqueeze(0)
    positions = torch.arange(length).repeat(2).unsqueeze(0)
    layout = Layout(((0, length), (length, length)), ())
    decoder = model.get_decoder()
    training = model.training
    model.eval()  # the dropout of an adapter would make the two differ
    together = decoder(
        input_ids=tokens, position_ids=positions, use_cache=False, layout=layout
    ).last_hidden_state
    alone = decoder(input_ids=tokens[:, length:], use_cache=False).last_hidden_state
    model.train(training)
    difference = together[:, length:] - alone
    return bool(difference.norm() <= _EXACT * alone.norm())


def _layer_kinds(model: PreTrainedModel) -> set[str]:
    """What mixes the tokens in each layer, in transformers' words; empty: the config names none."""
    return set(getattr(model.config.get_text_config(), "layer_types", None) or ())


ALL_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, packed_attention)
