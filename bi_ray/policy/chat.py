"""From a question to prompt tokens, and how a response ends, by the checkpoint's chat template."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from jinja2 import TemplateError
from transformers import AutoConfig, PreTrainedTokenizerBase

from bi_ray.config.run import ModelConfig

_ANSWER = "ANSWER"  # stands for a response when a template is asked what it writes behind one


class ChatError(ValueError):
    """A chat template or tokenizer does not fit its model; the message says what to change."""


def messages(system_prompt: str, question: str) -> list[dict[str, str]]:
    """The conversation that asks ``question``."""
    return [{"role": "system", "content": system_prompt}, {"role": "user", "content": question}]


def conversation(
    tokenizer: PreTrainedTokenizerBase, system_prompt: str, question: str
) -> list[dict[str, str]]:
    """``messages`` as the template takes them.

    Templates that refuse a system message (Gemma 2, Mistral), or leave it out, get its text at the
    start of the user's message, which is what Gemma 3's own template does.

    Raises:
        ChatError: there is no template, or it takes neither.
    """
    turns = messages(system_prompt, question)
    try:
        if _without_spaces(system_prompt) in _without_spaces(_render(tokenizer, turns)):
            return turns
    except TemplateError:
        pass  # it refuses the system message; if it is something else, the next attempt fails too
    text = f"{system_prompt}\n\n{question}" if system_prompt else question
    folded = [{"role": "user", "content": text}]
    try:
        _render(tokenizer, folded)
    except TemplateError as error:
        raise ChatError(
            f"{_name(tokenizer)}: its chat template refuses a question: {error}"
        ) from error
    return folded


def _without_spaces(text: str) -> str:
    """A text to compare: templates may join or indent the lines of a message."""
    return "".join(text.split())


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, system_prompt: str, question: str
) -> list[int]:
    """Token ids of the prompt, up to the start of the response.

    Raises:
        ChatError: see ``conversation``; or the prompt has tokens that the model has no embedding
            for.
    """
    text = _render(tokenizer, conversation(tokenizer, system_prompt, question))
    tokens = tokenizer.encode(text, add_special_tokens=False)
    check_tokens(tokenizer, tokens)
    return tokens


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token by which the template ends a response: SFT teaches it, and engines stop at it.

    It may differ from the tokenizer's EOS (Gemma, Llama 3, Phi). If the template ends a response
    without a special token, it is the tokenizer's EOS.

    Raises:
        ChatError: there is neither, or the model has no embedding for it.
    """
    turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = _render(tokenizer, turns, add_generation_prompt=False)
    except TemplateError as error:
        raise ChatError(
            f"{_name(tokenizer)}: its chat template refuses a response: {error}"
        ) from error
    special = _special_tokens(tokenizer)
    behind = tokenizer.encode(text.rpartition(_ANSWER)[2], add_special_tokens=False)
    end = next((token for token in behind if token in special), tokenizer.eos_token_id)
    if end is None:
        raise ChatError(
            f"{_name(tokenizer)}: no token ends a response: its chat template writes none, and the "
            "tokenizer has no EOS; set eos_token in tokenizer_config.json"
        )
    check_tokens(tokenizer, [end])
    return end


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    special = set(tokenizer.all_special_ids)
    special |= _declared_ends(tokenizer.name_or_path)
    for token, added in tokenizer.added_tokens_decoder.items():
        if added.special:
            special.add(token)
    return special


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every token that ends a response, in ascending order.

    They are the template's (``end_of_turn``), the tokenizer's EOS, and those named in the
    checkpoint's generation config and config.

    Raises:
        ChatError: see ``end_of_turn``.
    """
    ends = {end_of_turn(tokenizer), *_declared_ends(tokenizer.name_or_path)}
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    return tuple(sorted(ends))


def check_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[int]) -> None:
    """Check token ids against the vocabulary of the tokenizer's checkpoint.

    A tokenizer that was not read from a checkpoint passes.

    Raises:
        ChatError: the model has no embedding for one of them.
    """
    config = _config(tokenizer.name_or_path)
    largest = max(tokens, default=0)
    if config is not None and largest >= config.vocab_size:
        text = tokenizer.decode([largest])
        raise ChatError(
            f"{_name(tokenizer)}: token {largest} ({text!r}) is beyond the model's vocabulary "
            f"(vocab_size {config.vocab_size} in config.json); use the tokenizer and chat template "
            "that belong to the model, or resize its embedding"
        )


def check_chat(tokenizer: PreTrainedTokenizerBase, model: ModelConfig) -> None:
    """Refuse a checkpoint that does not fit its own template or the limits of a run.

    Args:
        tokenizer: of the checkpoint ``model.path``.
        model: the limits.

    Raises:
        ChatError: the template does not render, no token ends a response, tokens have no embedding,
            or prompt and response together are longer than the model's context.
    """
    encode_prompt(tokenizer, "1", "1")
    end_tokens(tokenizer)
    config = _config(tokenizer.name_or_path)
    longest = _context_tokens(config)
    if longest is not None and model.max_model_tokens > longest:
        raise ChatError(
            f"{_name(tokenizer)} takes {longest} tokens (max_position_embeddings); "
            f"model.max_prompt_tokens ({model.max_prompt_tokens}) and model.max_response_tokens "
            f"({model.max_response_tokens}) add up to {model.max_model_tokens}; lower one of them"
        )


def _render(
    tokenizer: PreTrainedTokenizerBase,
    turns: list[dict[str, str]],
    add_generation_prompt: bool = True,
) -> str:
    if tokenizer.chat_template is None:
        raise ChatError(
            f"{_name(tokenizer)} has no chat template; add chat_template.jinja to the checkpoint"
        )
    text = tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    return cast(str, text)


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or type(tokenizer).__name__


def _declared_ends(directory: str) -> set[int]:
    """The EOS tokens in the generation config and the config of a checkpoint."""
    ends: set[int] = set()
    file = Path(directory, "generation_config.json")
    if directory and file.is_file():
        ends |= _as_set(json.loads(file.read_text()).get("eos_token_id"))
    config = _config(directory)
    if config is not None:
        ends |= _as_set(config.eos_token_id)
    return ends


def _as_set(tokens: int | list[int] | None) -> set[int]:
    if tokens is None:
        return set()
    if isinstance(tokens, int):
        return {tokens}
    return set(tokens)


def _config(directory: str) -> Any:
    """The text model's config; None for a tokenizer that was not read from a checkpoint."""
    file = Path(directory, "config.json")
    if not directory or not file.is_file():
        return None
    return _read_config(directory, file.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _read_config(directory: str, _modified_ns: int) -> Any:
    return AutoConfig.from_pretrained(directory, trust_remote_code=False).get_text_config()


def _context_tokens(config: Any) -> int | None:
    """Largest number of tokens, counting a rotary embedding's scaling factor; None: no limit."""
    longest = getattr(config, "max_position_embeddings", None)
    if longest is None:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    return int(longest * max(1.0, rope.get("factor") or 1.0))
