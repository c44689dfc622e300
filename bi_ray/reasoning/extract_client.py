"""The calls that turn rows of free text into graphs: concurrent, retried, cached on disk, safe to
kill at any time.

``extract`` is the whole of it; ``extract_rows`` is the same inside a running event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import openai
from openai import AsyncOpenAI

from bi_ray.config import ExtractConfig
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

Progress = Callable[[int, int], None]
_HOPELESS = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
_LONGEST_WAIT_S = 8.0
_LONGEST_RETRY_AFTER_S = 60.0  # that the openai client obeys
_RESPONSE_FORMAT: Any = {
    "type": "json_schema",
    "json_schema": {"name": "graph", "strict": True, "schema": SCHEMA},
}


class ExtractError(RuntimeError):
    """The endpoint cannot be used as configured, or has stopped to answer; what it said before is
    in the cache.
    """


class ExtractionResult(NamedTuple):
    """Rows with proven graphs, and the others with their reasons; both in the order of the input."""

    rows: list[ExtractedRow]
    rejects: list[Reject]


def extract(
    rows: Iterable[Mapping[str, str]],
    options: ExtractConfig,
    cache_dir: Path,
    on_progress: Progress | None = None,
) -> ExtractionResult:
    """Read a graph out of every row by a language model, and keep those that are proven right.

    Args:
        rows: mappings with ``question``, ``chain_of_thought`` and ``answer``; without a chain of
            thought the answer holds it, and the final answer behind "####".
        options: the endpoint and its limits.
        cache_dir: where the model's answers are kept, one file each. The same call goes on where a
            killed one stopped; processes may share it. It may be deleted at any time.
        on_progress: called with the number of rows that are done and the number of all, after each
            row.

    Raises:
        ExtractError: the endpoint refuses key or model, or fails for row after row.
    """
    return asyncio.run(extract_rows(rows, options, cache_dir, on_progress))


async def extract_rows(
    rows: Iterable[Mapping[str, str]],
    options: ExtractConfig,
    cache_dir: Path,
    on_progress: Progress | None = None,
) -> ExtractionResult:
    """``extract``, for those who run an event loop already."""
    waiting = list(enumerate(rows))
    found: dict[int, ExtractedRow | Reject] = {}
    todo = iter(waiting)
    async with _client(options) as client:
        extractor = _Extractor(client, options, cache_dir)

        async def work() -> None:
            for number, row in todo:
                found[number] = await extractor.outcome(number, row)
                if on_progress:
                    on_progress(len(found), len(waiting))

        await _all(work() for _ in range(min(options.concurrency, len(waiting))))
    ordered = [found[number] for number, _ in waiting]
    return ExtractionResult(
        [outcome for outcome in ordered if isinstance(outcome, ExtractedRow)],
        [outcome for outcome in ordered if isinstance(outcome, Reject)],
    )


async def _all(jobs: Iterator[Coroutine[Any, Any, None]]) -> None:
    """Run jobs side by side; the first that fails ends the others, and its error is raised as it
    is.
    """
    try:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(job)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _client(options: ExtractConfig) -> AsyncOpenAI:
    key = os.environ.get(options.api_key_env) if options.api_key_env else "none"
    if not key:
        raise ExtractError(
            f"the environment variable {options.api_key_env} is not set: put the endpoint's key there, "
            'or set api_key_env to "" for an endpoint that asks for none'
        )
    # the client itself waits and tries again after 408, 409, 429, 5xx, timeouts and lost
    # connections, twice as long each time up to 8 s, or as long as the server's Retry-After says
    return AsyncOpenAI(
        base_url=options.endpoint,
        api_key=key,
        max_retries=options.retries,
        timeout=options.timeout_s,
    )


class _Extractor:
    def __init__(self, client: AsyncOpenAI, options: ExtractConfig, cache_dir: Path) -> None:
        self.client = client
        self.options = options
        self.cache_dir = cache_dir
        self.failures = 0  # of the endpoint, since it last answered

    async def outcome(self, number: int, content: Mapping[str, str]) -> ExtractedRow | Reject:
        """What becomes of a row.

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
        kept = _kept(path)
        if kept is None:
            kept = await self._ask(request)
            if kept["finish_reason"] == "length" or _is_extraction(kept["content"]):
                _write(path, json.dumps(kept))
        if kept["finish_reason"] == "length":
            raise ExtractionFault(
                f"the model's answer was cut off at {self.options.max_tokens} tokens (max_tokens)"
            )
        return str(kept["content"])

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
        return (
            request
            if self.options.temperature is None
            else request | {"temperature": self.options.temperature}
        )

    def _path(self, request: Mapping[str, Any]) -> Path:
        """Of the kept answer: named by all that the answer depends on, prompt and schema included."""
        asked = json.dumps(request, sort_keys=True)
        key = hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()
        return self.cache_dir / key[:2] / f"{key}.json"

    async def _ask(self, request: dict[str, Any]) -> dict[str, str]:
        """What the endpoint answers; asked again where that is no extraction, as a broken server
        sends it.
        """
        kept = {"content": "", "finish_reason": ""}
        tries = 1 + self.options.retries
        for attempt in range(tries):
            if attempt:
                await asyncio.sleep(min(_LONGEST_WAIT_S, 0.5 * 2**attempt))
            try:
                # the client's timeout begins again with every byte that comes; this one does not
                async with asyncio.timeout(
                    tries * (self.options.timeout_s + _LONGEST_RETRY_AFTER_S)
                ):
                    reply = await self.client.chat.completions.create(**request)
            except _HOPELESS as error:
                raise ExtractError(
                    f"{self.options.endpoint} refuses model {self.options.model!r}: {_one_line(error)}; "
                    "see endpoint, model and api_key_env"
                ) from error
            except openai.APIStatusError as error:
                if error.status_code < 500 and error.status_code not in (408, 409, 429):
                    raise ExtractionFault(
                        f"the endpoint refuses the request: {_one_line(error)}"
                    ) from error
                raise self._failure(error) from error
            except (openai.OpenAIError, TimeoutError) as error:
                raise self._failure(error) from error
            except ValueError:  # what came is no JSON of the protocol
                continue
            self.failures = 0
            choice = reply.choices[0] if getattr(reply, "choices", None) else None
            if choice is not None:
                kept = {
                    "content": choice.message.content or "",
                    "finish_reason": choice.finish_reason or "",
                }
                if kept["finish_reason"] == "length" or _is_extraction(kept["content"]):
                    break
        return kept

    def _failure(self, error: Exception) -> Exception:
        """After the last retry: the row's fault at first, the endpoint's when it goes on like that."""
        self.failures += 1
        if self.failures > self.options.concurrency:
            return ExtractError(
                f"{self.options.endpoint} failed for {self.failures} rows in a row, each tried "
                f"{1 + self.options.retries} times: {_one_line(error)}; the same command goes on from here"
            )
        times = f"{1 + self.options.retries} times" if self.options.retries else "once"
        return ExtractionFault(
            f"the endpoint failed {times}: {_one_line(error)} ({self.options.endpoint})"
        )


def _is_extraction(content: str) -> bool:
    try:
        Extraction.model_validate_json(content)
    except ValueError:
        return False
    return True


def _kept(path: Path) -> dict[str, str] | None:
    """What ``_write`` wrote; None where there is no such file, or one that somebody else damaged."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return {"content": kept["content"] + "", "finish_reason": kept["finish_reason"] + ""}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, content: str) -> None:
    """A file that is whole or not there, whoever else writes it at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, content)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
