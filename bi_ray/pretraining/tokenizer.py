"""A compact tokenizer: phrases of a task, node names, single digits, other printable characters.

Built on ``tokenizers`` (a unigram model whose scores make the shortest segmentation win), so that
transformers and vLLM load it from a plain directory. Every printable ASCII text survives encoding
and decoding.
"""

from __future__ import annotations

import string
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = {
    "pad_token": "<|pad|>",
    "unk_token": "<|unk|>",
    "eos_token": "<|end|>",
    "additional_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>"],
}
# A multiple of 32 keeps the embedding and the output matrix aligned for the kernels.
_VOCABULARY_MULTIPLE = 32
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% if not loop.last or message.role != 'assistant' or not continue_final_message %}"
    "<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer(phrases: Iterable[str], names: Iterable[str]) -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token per phrase, name and printable character.

    Args:
        phrases: texts that become one token each, including their spaces and line ends.
        names: node names that become one token each.
    """
    specials = [
        SPECIAL_TOKENS["pad_token"],
        SPECIAL_TOKENS["unk_token"],
        SPECIAL_TOKENS["eos_token"],
        *SPECIAL_TOKENS["additional_special_tokens"],
    ]
    pieces = list(
        dict.fromkeys([*phrases, *names, *string.digits, *string.printable[:95], "\n", "\t"])
    )
    # Every token costs the same, so the shortest segmentation wins; digits remain single tokens
    # because nothing longer contains only digits. A tiny bonus per character breaks ties in favor
    # of the longer first piece.
    scored: list[tuple[str, float]] = [(str(token), 0.0) for token in specials]
    scored += [(piece, -10.0 + 0.01 * len(piece)) for piece in pieces]
    filler = -len(scored) % _VOCABULARY_MULTIPLE
    scored += [(f"<|unused_{i}|>", -1000.0) for i in range(filler)]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=1))
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **SPECIAL_TOKENS
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
