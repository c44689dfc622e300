"""The calls that turn rows of free text into graphs: concurrent, retried, cached on disk.

They may be killed at any time. ``extract`` is the entry point; ``extract_rows`` is the same inside
a running event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import openai
from openai import AsyncOpenAI

from bi_ray.config.extraction import ExtractConfig
from bi_ray.files.atomic import write_text
from bi_ray.reasoning.extract import (
    PROMPT,
    SCHEMA,
    ExtractedRow,
    Extraction,
    ExtractionFault,
    Reject,
    SourceRow,
    prove,
    request_text,
    source_row,
)

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
_HOPELESS = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
_RETRIED = (408, 409, 429)  # statuses that the client retries, besides 5xx
_LONGEST_WAIT_S = 8.0
_LONGEST_RETRY_AFTER_S = 60.0  # that the openai client obeys
_RESPONSE_FORMAT: Any = {
    "type": "json_schema",
    "json_schema": {"name": "graph", "strict": True, "schema": SCHEMA},
}


class ExtractError(RuntimeError):
    """The endpoint cannot be used as configured, or has stopped answering.

    Its earlier answers are in the cache.
    """


class ExtractionResult(NamedTuple):
    """Rows with proven graphs, and the others with reasons, both in the order of the input."""

    rows: list[ExtractedRow]
    rejects: list[Reject]


def extract(
    rows: Iterable[Mapping[str, str]],
    options: ExtractConfig,
    cache_dir: Path,
    on_progress: Progress | None = None,
) -> ExtractionResult:
    """Read a graph out of every row with a language model, and keep those that are proven right.

    Args:
        rows: mappings with ``question``, ``chain_of_thought`` and ``answer``; without a chain of
            thought the answer holds it, and the final answer behind "####".
        options: the endpoint and its limits.
        cache_dir: where the model's answers are kept, one file each. The same call resumes where a
            killed one stopped; processes may share it. It may be deleted at any time.
        on_progress: called after each row with the number of rows done and the number of all.

    Raises:
        ExtractError: the endpoint refuses the key or the model, or fails for row after row.
    """
    return asyncio.run(extract_rows(rows, options, cache_dir, on_progress))


async def extract_rows(
    rows: Iterable[Mapping[str, str]],
    options: ExtractConfig,
    cache_dir: Path,
    on_progress: Progress | None = None,
) -> ExtractionResult:
    """As ``extract``, inside a running event loop."""
    numbered = list(enumerate(rows))
    outcomes: dict[int, ExtractedRow | Reject] = {}
    waiting = iter(numbered)
    async with _client(options) as client:
        extractor = _Extractor(client, options, cache_dir)

        async def work() -> None:
            for number, row in waiting:
                outcomes[number] = await extractor.outcome(number, row)
                if on_progress:
                    on_progress(len(outcomes), len(numbered))

        await _all(work() for _ in range(min(options.concurrency, len(numbered))))
    result = ExtractionResult([], [])
    for number, _ in numbered:
        outcome = outcomes[number]
        if isinstance(outcome, ExtractedRow):
            result.rows.append(outcome)
        else:
            result.rejects.append(outcome)
    return result


async def _all(jobs: Iterator[Coroutine[Any, Any, None]]) -> None:
    """Run jobs concurrently; the first that fails ends the others, and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(job)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors


def _client(options: ExtractConfig) -> AsyncOpenAI:
    key: str | None = "none"
    if options.api_key_env:
        key = os.environ.get(options.api_key_env)
    if not key:
        raise ExtractError(
            f"the environment variable {options.api_key_env} is not set: put the endpoint's key "
            'there, or set api_key_env to "" for an endpoint that needs none'
        )
    # the client itself retries after 408, 409, 429, 5xx, timeouts and lost connections; it waits
    # twice as long each time up to 8 s, or as long as the server's Retry-After says
    return AsyncOpenAI(
        base_url=options.endpoint,
        api_key=key,
        max_retries=options.retries,
        timeout=options.timeout_s,
    )


class _Answer(NamedTuple):
    """The model's answer, as it is cached."""

    content: str
    finish_reason: str

    @property
    def is_cut_off(self) -> bool:
        return self.finish_reason == "length"

    @property
    def is_final(self) -> bool:
        """Whether the answer is worth caching: asking again would not give a better one."""
        return self.is_cut_off or _is_extraction(self.content)


class _Extractor:
    def __init__(self, client: AsyncOpenAI, options: ExtractConfig, cache_dir: Path) -> None:
        self.client = client
        self.options = options
        self.cache_dir = cache_dir
        self.attempts = 1 + options.retries
        self.failures = 0  # of the endpoint, since it last answered

    async def outcome(self, number: int, content: Mapping[str, str]) -> ExtractedRow | Reject:
        """The result for a row.

        Raises:
            ExtractError: the endpoint cannot be used.
        """
        try:
            row = source_row(number, content)
            return prove(row, await self._answer(row))
        except ExtractionFault as fault:
            return Reject(number, str(fault))

    async def _answer(self, row: SourceRow) -> str:
        """The model's JSON for a row, from the cache or from the endpoint."""
        request = self._request(row)
        path = self._path(request)
        answer = _cached(path)
        if answer is None:
            answer = await self._ask(request)
            if answer.is_final:
                path.parent.mkdir(parents=True, exist_ok=True)
                # whole or not there, even if another process writes the same file
                write_text(path, json.dumps(answer._asdict()))
        if answer.is_cut_off:
            raise ExtractionFault(
                f"the model's answer was cut off at {self.options.max_tokens} tokens (max_tokens)"
            )
        return answer.content

    def _request(self, row: SourceRow) -> dict[str, Any]:
        request = {
            "model": self.options.model,
            "messages": [
                {"role": "system", "content": PROMPT},
                {"role": "user", "content": request_text(row)},
            ],
            "response_format": _RESPONSE_FORMAT,
            self.options.token_limit_field: self.options.max_tokens,
        }
        if self.options.temperature is not None:
            request["temperature"] = self.options.temperature
        return request

    def _path(self, request: Mapping[str, Any]) -> Path:
        """The cached answer's file, named by all that it depends on, prompt and schema included."""
        text = json.dumps(request, sort_keys=True)
        key = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        return self.cache_dir / key[:2] / f"{key}.json"

    async def _ask(self, request: Mapping[str, Any]) -> _Answer:
        """The endpoint's answer; asked again if it is not an extraction."""
        answer = _Answer("", "")
        for attempt in range(self.attempts):
            if attempt:
                await asyncio.sleep(min(_LONGEST_WAIT_S, 0.5 * 2**attempt))
            reply = await self._call(request)
            if reply is None:
                continue
            self.failures = 0
            choices = getattr(reply, "choices", None)
            if choices:
                content = choices[0].message.content or ""
                answer = _Answer(content, choices[0].finish_reason or "")
                if answer.is_final:
                    break
        return answer

    async def _call(self, request: Mapping[str, Any]) -> Any:
        """One call of the endpoint; None where its reply is not JSON of the protocol."""
        # the client's timeout starts again with every byte received; this one does not
        limit_s = self.attempts * (self.options.timeout_s + _LONGEST_RETRY_AFTER_S)
        try:
            async with asyncio.timeout(limit_s):
                return await self.client.chat.completions.create(**request)
        except _HOPELESS as error:
            raise ExtractError(
                f"{self.options.endpoint} refuses model {self.options.model!r}: "
                f"{_one_line(error)}; see endpoint, model and api_key_env"
            ) from error
        except openai.APIStatusError as error:
            if error.status_code >= 500 or error.status_code in _RETRIED:
                raise self._failure(error) from error
            raise ExtractionFault(
                f"the endpoint refuses the request: {_one_line(error)}"
            ) from error
        except (openai.OpenAIError, TimeoutError) as error:
            raise self._failure(error) from error
        except ValueError:
            log.debug("%s: not a reply of the protocol", self.options.endpoint, exc_info=True)
            return None

    def _failure(self, error: Exception) -> Exception:
        """The fault after the last retry: the row's at first, the endpoint's if it persists."""
        self.failures += 1
        if self.failures > self.options.concurrency:
            return ExtractError(
                f"{self.options.endpoint} failed for {self.failures} rows in a row, each tried "
                f"{self.attempts} times: {_one_line(error)}; the same command resumes from here"
            )
        times = "once" if self.attempts == 1 else f"{self.attempts} times"
        return ExtractionFault(
            f"the endpoint failed {times}: {_one_line(error)} ({self.options.endpoint})"
        )


def _is_extraction(content: str) -> bool:
    try:
        Extraction.model_validate_json(content)
    except ValueError:
        return False
    return True


def _cached(path: Path) -> _Answer | None:
    """A cached answer; None where there is no such file, or a damaged one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return _Answer(content["content"] + "", content["finish_reason"] + "")
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
