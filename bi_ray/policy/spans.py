"""Which tokens of a response a behavior wrote: from spans of characters to spans of tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from bi_ray.reasoning.trace import Span


def encode_with_ends(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> tuple[list[int], list[int] | None]:
    """Tokens of a text, and behind which character each ends; None for those of a tokenizer without
    offsets.
    """
    if not tokenizer.is_fast:
        return tokenizer.encode(text, add_special_tokens=False), None
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(encoding["input_ids"]), [end for _, end in encoding["offset_mapping"]]


def token_spans(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], text: str, spans: Sequence[Span]
) -> list[Span]:
    """The tokens that have a part in each span of characters, as spans of tokens without overlaps.

    A token may begin in the text before a span (a phrase that is one token), or end behind it; it
    counts for the span, and between two spans for the later one. A span that no token is left for
    is left out.

    Args:
        tokenizer: that of the policy.
        tokens: the response, as a tokenizer or as a policy wrote it; special tokens in it have no
            characters.
        text: the response as text.
        spans: characters of ``text``, in order, without overlaps.
    """
    if not spans:
        return []
    encoded, ends = encode_with_ends(tokenizer, text)
    known = [0, *ends] if ends is not None and encoded == list(tokens[: len(encoded)]) else None

    def written(count: int) -> int:
        """Characters of the first tokens."""
        if known:
            return known[min(count, len(known) - 1)]
        # A policy may write a text in other tokens than the tokenizer would.
        return len(
            tokenizer.decode(
                list(tokens[:count]), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    found: list[Span] = []
    for span in spans:
        first = _completes(written, len(tokens), span.start + 1)
        last = _completes(written, len(tokens), span.end)
        if found and found[-1].end > first:
            found[-1] = found[-1]._replace(end=first)
        found.append(Span(first, min(last + 1, len(tokens)), span.behavior))
    return [span for span in found if span.start < span.end]


def _completes(written: Callable[[int], int], tokens: int, characters: int) -> int:
    """Index of the token with which the first ``characters`` characters are there."""
    return bisect_left(range(1, tokens), characters, key=written)
