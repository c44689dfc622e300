"""vLLM's engine, with checks of its prompts and its outputs. Imports vLLM."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.outputs import RequestOutput
from vllm.tokenizers import TokenizerLike
from vllm.v1.engine.async_llm import AsyncLLM

from serve.error_statuses import keeping_own_errors
from serve.versions import MixedVersions, announced_version

# With more of these, vLLM's worker for GPUs raises in the middle of a step, which ends the engine
# (vllm/v1/worker/gpu/sample/logit_bias.py). 28 of its 128 stop tokens are left to the checkpoint's
# own end tokens.
_MOST_TOKENS = {"allowed_token_ids": 1024, "logit_bias": 1024, "stop_token_ids": 100}


class StampedEngine(AsyncLLM):
    """``AsyncLLM`` that checks prompts before and outputs after they were in the engine."""

    async def generate(
        self, prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """See ``AsyncLLM.generate``.

        Raises:
            MixedVersions: tokens are not of the version that the answer has announced.
            VLLMValidationError: a token of the prompt is unknown to the model, a list of tokens is
                too long, or a grammar cannot be compiled.
        """
        with keeping_own_errors(VLLMValidationError):
            require_known_tokens(prompt, self.model_config.get_vocab_size())
            require_short_lists(sampling_params)
            async with aclosing(
                super().generate(prompt, sampling_params, *args, **kwargs)
            ) as outputs:
                async for output in outputs:
                    require_one_version(output, announced_version.get())
                    require_grammar(output, sampling_params)
                    drop_end_tokens(output, sampling_params, self.get_tokenizer())
                    yield output


def require_known_tokens(prompt: object, vocabulary_size: int) -> None:
    """Refuse tokens that have no embedding: one of them would end the engine.

    vLLM itself allows whatever the tokenizer knows.

    Args:
        prompt: one that has been tokenized, a mapping with ``prompt_token_ids``.
        vocabulary_size: rows of the model's embedding.

    Raises:
        VLLMValidationError: there is such a token.
    """
    if not isinstance(prompt, Mapping):
        return
    tokens = prompt.get("prompt_token_ids")
    if not tokens:
        return
    for token in (min(tokens), max(tokens)):
        if not 0 <= token < vocabulary_size:
            message = (
                f"token id {token} is not in the model's vocabulary of {vocabulary_size} tokens"
            )
            raise VLLMValidationError(message, parameter="prompt")


def require_short_lists(sampling_params: Any) -> None:
    """Refuse lists of tokens that a worker has no room for.

    Raises:
        VLLMValidationError: there is one.
    """
    for name, most in _MOST_TOKENS.items():
        tokens = getattr(sampling_params, name, None) or ()
        if len(tokens) > most:
            raise VLLMValidationError(f"{name} has more than {most} tokens", parameter=name)


def require_grammar(output: RequestOutput, sampling_params: Any) -> None:
    """Blame the request for a grammar that the engine could not compile.

    vLLM would call it an internal error.

    Raises:
        VLLMValidationError: the engine gave up a request that has ``structured_outputs``.
    """
    if getattr(sampling_params, "structured_outputs", None) is None:
        return
    if any(sequence.finish_reason == "error" for sequence in output.outputs):
        message = (
            "structured_outputs or response_format describes text that cannot be generated; "
            "simplify it"
        )
        raise VLLMValidationError(message, parameter="structured_outputs")


def drop_end_tokens(output: RequestOutput, sampling_params: Any, tokenizer: TokenizerLike) -> None:
    """Remove end tokens from texts that keep their stop strings, as evaluations do.

    vLLM itself writes out both or neither.

    Args:
        output: the texts of its sequences are shortened in place.
        sampling_params: of the request.
        tokenizer: of the model.
    """
    if not sampling_params.include_stop_str_in_output or sampling_params.skip_special_tokens:
        return
    for sequence in output.outputs:
        if sequence.finish_reason != "stop" or not sequence.token_ids:
            continue
        at_stop_string = isinstance(sequence.stop_reason, str)
        if not at_stop_string:
            end = tokenizer.decode([sequence.token_ids[-1]], skip_special_tokens=False)
            sequence.text = sequence.text.removesuffix(end)


def require_one_version(output: RequestOutput, announced: str | None) -> None:
    """Check every finished sequence of an output.

    Args:
        output: ``weight_versions`` of a sequence are set when it has ended.
        announced: version that the answer has announced, None for a request of our own.

    Raises:
        MixedVersions: a span of tokens carries another stamp.
    """
    if announced is None:
        return
    others: set[str] = set()
    for sequence in output.outputs:
        for span in sequence.weight_versions or []:
            others.add(span.version)
    others.discard(announced)
    if others:
        raise MixedVersions(
            f"an answer of version {announced} has tokens of {', '.join(sorted(others))}"
        )
