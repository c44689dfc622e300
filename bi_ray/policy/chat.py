"""From a question to prompt tokens, by the checkpoint's own chat template."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


def messages(system_prompt: str, question: str) -> list[dict[str, str]]:
    """The conversation that asks ``question``."""
    return [{"role": "system", "content": system_prompt}, {"role": "user", "content": question}]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, system_prompt: str, question: str) -> list[int]:
    """Token ids of the prompt, up to where the response starts.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise ValueError(f"{tokenizer.name_or_path} has no chat template; add chat_template.jinja to the checkpoint")
    text = tokenizer.apply_chat_template(messages(system_prompt, question), tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False)
