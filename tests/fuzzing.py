"""Requests that no client should send, generated at random from a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests import fuzz_values as values

Fields = dict[str, Any]  # of a request's JSON
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
PARTS = ["text", "image_url", "input_audio", "video_url", "refusal", "file", "thinking", "x"]
ADDRESSES = ["http://127.0.0.1:1/x.png", "file:///etc/passwd", "data:image/png;base64,AAAA", ""]
MESSAGE_FIELDS = ["tool_calls", "name", "tool_call_id", "reasoning", "refusal", "audio", "x"]
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE"]
DEPTHS = [50, 200, 500, 900, 950, 975, 990, 1500, 20_000, 200_000]
LENGTHS = [100, 4300, 4301, 100_000]


@dataclass(frozen=True)
class Request:
    """An HTTP request.

    Attributes:
        path: with the query.
        body: raw bytes.
        method: HTTP method.
        headers: besides the API key and the content type, which is JSON unless given here.
    """

    path: str
    body: bytes
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)


class Fuzzer:
    """An endless source of requests, the same for the same seed.

    Args:
        model: the model that most requests name.
        completion_fields: names of all fields of ``/v1/completions``.
        chat_fields: names of all fields of ``/v1/chat/completions``.
        seed: random seed.
    """

    def __init__(
        self, model: str, completion_fields: list[str], chat_fields: list[str], seed: int
    ) -> None:
        self._model = model
        self._fields = {COMPLETIONS: sorted(completion_fields), CHAT: sorted(chat_fields)}
        self._random = random.Random(seed)
        self._traps = traps()

    def __iter__(self) -> Iterator[Request]:
        weights: dict[Callable[[], Request], int] = {
            self._trap: 30,
            self._wrong_fields: 35,
            self._wrong_prompt: 14,
            self._wrong_bytes: 10,
            self._wrong_route: 5,
            self._wrong_header: 3,
            self._sound: 3,
        }
        makers = list(weights)
        while True:
            make = self._random.choices(makers, list(weights.values()))[0]
            yield make()

    def _plain(self, path: str) -> Fields:
        content: Fields = {"model": self._model, "max_tokens": self._one_of([1, 2, 3])}
        if path == CHAT:
            content["messages"] = [{"role": "user", "content": "hi"}]
        else:
            content["prompt"] = "ab"
        return content

    def _one_of(self, options: list[Any]) -> Any:
        return self._random.choice(options)

    def _path(self) -> str:
        return self._one_of([COMPLETIONS, CHAT])

    def _post(self, path: str, content: Fields) -> Request:
        if self._random.random() < 0.15:
            content = {"stream": True} | content
        return Request(path, json.dumps(content).encode())

    def _value(self, depth: int = 0) -> Any:
        """Any JSON value, and some that JSON does not have."""
        kind = self._random.random()
        if kind < 0.35:
            return self._one_of(values.NUMBERS)
        if kind < 0.65:
            return self._one_of(values.TEXTS)
        if kind < 0.85 or depth > 3:
            return self._one_of(values.OTHERS)
        count = self._random.randint(0, 4)
        if kind < 0.93:
            return [self._value(depth + 1) for _ in range(count)]
        return {str(self._one_of(values.TEXTS)): self._value(depth + 1) for _ in range(count)}

    def _sound(self) -> Request:
        path = self._path()
        return self._post(path, self._plain(path))

    def _trap(self) -> Request:
        path = self._path()
        content = self._plain(path)
        for trap in self._random.sample(self._traps, self._one_of([1, 1, 1, 2])):
            content |= trap
        return self._post(path, content)

    def _wrong_fields(self) -> Request:
        path = self._path()
        content = self._plain(path)
        for name in self._random.sample(self._fields[path], self._one_of([1, 1, 1, 2, 3, 5])):
            content[name] = self._value()
        return self._post(path, content)

    def _wrong_prompt(self) -> Request:
        path = self._path()
        content = self._plain(path)
        if path == CHAT:
            content["messages"] = self._messages()
        else:
            content["prompt"] = self._one_of([self._tokens, self._tokens, self._value])()
            content["echo"] = self._one_of([True, False, False, False])
        return self._post(path, content)

    def _tokens(self) -> Any:
        """One or several prompts of token ids, some of which the model does not have."""
        prompts = []
        for _ in range(self._one_of([1, 1, 2, 20])):
            length = self._one_of([1, 2, 5, 300])
            prompts.append(self._random.choices(values.TOKENS, k=length))
        return prompts[0] if len(prompts) == 1 else prompts

    def _messages(self) -> Any:
        if self._random.random() < 0.15:
            return self._value()
        return [self._message() for _ in range(self._one_of([0, 1, 1, 1, 2, 5]))]

    def _message(self) -> Any:
        message = {"role": self._one_of(values.ROLES), "content": self._content()}
        if self._random.random() < 0.3:
            message[self._one_of(MESSAGE_FIELDS)] = self._value()
        if self._random.random() < 0.1:
            del message[self._one_of(["role", "content"])]
        return message

    def _content(self) -> Any:
        kind = self._random.random()
        if kind < 0.4:
            return self._one_of(values.TEXTS)
        if kind < 0.7:
            return [self._part() for _ in range(self._random.randint(0, 3))]
        return self._value()

    def _part(self) -> Any:
        kind, address = self._one_of(PARTS), self._one_of(ADDRESSES)
        part = {"type": kind, "text": self._one_of(values.TEXTS)}
        return part | {kind: self._one_of([{"url": address}, address, None])}

    def _wrong_bytes(self) -> Request:
        """A body that is not JSON, not UTF-8, nested too deeply, or not a request."""
        path = self._path()
        plain = json.dumps(self._plain(path))
        whole, opened = plain.encode(), plain[:-1].encode()
        depth, length = self._one_of(DEPTHS), self._one_of(LENGTHS)
        bodies = [
            b"",
            self._random.randbytes(200),
            whole[: self._random.randint(0, len(whole))],
            plain.encode("utf-16"),
            plain.encode("utf-32"),
            b"\xef\xbb\xbf" + whole,
            whole + b"x",
            whole * 2,
            whole.replace(b'"ab"', b'"\xff"'),
            whole.replace(b'"hi"', b'"\\ud83d"'),
            opened + b', "user": ' + b"9" * length + b"}",
            opened + b', "max_tokens": 1e999}',
            opened + b', "model": null}',
            opened + b', "metadata": ' + b'{"a":' * depth + b"1" + b"}" * depth + b"}",
            opened + b', "stop": ' + b"[" * depth + b"]" * depth + b"}",
            json.dumps(self._value()).encode(),
        ]
        return Request(path, self._one_of(bodies))

    def _wrong_route(self) -> Request:
        method = self._one_of(METHODS)
        body = json.dumps(self._plain(COMPLETIONS)).encode() if method == "POST" else b""
        return Request(self._one_of(values.PATHS), body, method)

    def _wrong_header(self) -> Request:
        path = self._path()
        body = json.dumps(self._plain(path)).encode()
        return Request(path, body, headers=self._one_of(values.HEADERS))


def traps() -> list[Fields]:
    """Parts of requests with the right shape, and with values that may break something."""
    parts = [*values.COMBINATIONS]
    for name, options in values.VALUES.items():
        parts += [{name: option} for option in options]
    for name in values.COUNTS:
        parts += [{name: number} for number in values.NUMBERS]
    parts += [{"logprobs": True, "top_logprobs": number} for number in values.NUMBERS]
    parts += [{"tools": [TOOL], "tool_choice": choice} for choice in values.TOOL_CHOICES]
    return parts + _constraints() + _token_traps()


def _constraints() -> list[Fields]:
    """All that constrains the text: schemas, regular expressions, grammars, tags, choices."""
    families = {
        "json": values.SCHEMAS,
        "regex": values.REGEXES,
        "grammar": values.GRAMMARS,
        "structural_tag": values.TAGS,
        "choice": values.CHOICES,
    }
    parts: list[Fields] = []
    for kind, options in families.items():
        parts += [{"structured_outputs": {kind: option}} for option in options]
    for schema in values.SCHEMAS:
        named = {"name": "x", "schema": schema}
        parts.append({"response_format": {"type": "json_schema", "json_schema": named}})
        function = {"name": "f", "parameters": schema}
        parts.append({"tools": [{"type": "function", "function": function}]})
    return parts


def _token_traps() -> list[Fields]:
    """Token ids in every field that takes them."""
    parts: list[Fields] = []
    for token in values.TOKENS:
        parts += [
            {"logit_bias": {str(token): 1}},
            {"allowed_token_ids": [token]},
            {"stop_token_ids": [token], "min_tokens": 2},
            {"logprob_token_ids": [token], "logprobs": True},
            {"prompt_logprob_token_ids": [[token]]},
            {"trace_decode_token_ids": [token]},
        ]
    return parts
