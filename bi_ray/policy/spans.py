"""Which tokens of a response a behavior wrote: from spans of characters to spans of tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from bi_ray.reasoning.trace import Span


def encode_with_ends(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> tuple[list[int], list[int] | None]:
    """Tokens of a text, and the number of characters up to the end of each.

    Returns:
        Token ids, and the ends; None for a tokenizer that gives no offsets.
    """
    if not tokenizer.is_fast:
        return tokenizer.encode(text, add_special_tokens=False), None
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(encoding["input_ids"]), [end for _, end in encoding["offset_mapping"]]


def token_spans(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], text: str, spans: Sequence[Span]
) -> list[Span]:
    """The tokens of each span of characters, as spans of tokens without overlaps.

    A token that begins before a span (a phrase may be one token) or ends behind it counts for the
    span; a token in two spans counts for the later one. A span without any token is left out.

    Args:
        tokenizer: that of the policy.
        tokens: the response, as a tokenizer or a policy wrote it; its special tokens have no
            characters.
        text: the response as text.
        spans: characters of ``text``, in order, without overlaps.
    """
    if not spans:
        return []
    count_characters = _character_counter(tokenizer, tokens, text)
    result: list[Span] = []
    for span in spans:
        first = _token_of(span.start + 1, len(tokens), count_characters)
        last = _token_of(span.end, len(tokens), count_characters)
        if result and result[-1].end > first:
            result[-1] = result[-1]._replace(end=first)
        result.append(Span(first, min(last + 1, len(tokens)), span.behavior))
    return [span for span in result if span.start < span.end]


def _character_counter(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], text: str
) -> Callable[[int], int]:
    """A function from a number of first tokens to the number of their characters."""

    def decode_and_count(count: int) -> int:
        first_tokens = list(tokens[:count])
        return len(
            tokenizer.decode(
                first_tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    encoded, ends = encode_with_ends(tokenizer, text)
    # A policy may write a text in other tokens than the tokenizer would.
    if ends is None or encoded != list(tokens[: len(encoded)]):
        return decode_and_count
    counts = [0, *ends]

    def look_up(count: int) -> int:
        return counts[min(count, len(counts) - 1)]

    return look_up


def _token_of(character: int, tokens: int, count_characters: Callable[[int], int]) -> int:
    """Index of the token that ends at or behind a character, the first of which has number 1."""
    return bisect_left(range(1, tokens), character, key=count_characters)
