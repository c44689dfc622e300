"""Ten thousand requests that no client should send, to a served policy: the server never fails."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice

import httpx
import pytest

from bi_ray.policy.checkpoint import load_tokenizer
from tests.fuzzing import CHAT, COMPLETIONS, Fuzzer, Request
from tests.serving import KEY, put_policy, serving, write_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
MODEL, REQUESTS, AT_A_TIME, SEED = "bridge-sft", 10_000, 16, 11
LIMIT_S = 900
UNKNOWN = [f"<unknown{number}>" for number in range(200)]
ANSWER_S = 60.0


@dataclass
class Findings:
    """What came back.

    Attributes:
        statuses: number of answers by status.
        faults: requests that caused an error of the server, with the answer.
        slowest_s: seconds of the slowest answer.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[tuple[Request, int, str]] = field(default_factory=list)
    slowest_s: float = 0.0


@pytest.fixture(scope="module")
def served(tmp_path_factory, tiny_model):
    """A policy whose tokenizer has more tokens than its model, like some published ones."""
    run = tmp_path_factory.mktemp("fuzzed") / "run"
    write_run(run, tiny_model(True))
    put_policy(run / "sft/bridge", tiny_model(True))
    tokenizer = load_tokenizer(tiny_model(True))
    tokenizer.add_tokens(UNKNOWN)
    tokenizer.save_pretrained(run / "sft/bridge/policy")
    with serving(run, "--api-key", KEY) as served:
        yield served


def fields_of_vllm():
    """Names of all fields of both kinds of requests."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    return list(CompletionRequest.model_fields), list(ChatCompletionRequest.model_fields)


async def send_all(url, requests):
    """Send the requests, several at a time, until the time is over."""
    findings, deadline = Findings(), time.monotonic() + LIMIT_S
    source = iter(requests)

    async def work(client):
        for request in source:
            if time.monotonic() > deadline:
                return
            await send(client, request, findings)

    limits = httpx.Limits(max_connections=AT_A_TIME)
    async with httpx.AsyncClient(
        base_url=url, timeout=ANSWER_S, limits=limits, trust_env=False
    ) as client:
        await asyncio.gather(*(work(client) for _ in range(AT_A_TIME)))
    return findings


async def send(client, request, findings):
    headers = {
        "authorization": f"Bearer {KEY}",
        "content-type": "application/json",
    } | request.headers
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    began = time.monotonic()
    try:
        answer = await client.request(
            request.method, request.path, content=request.body, headers=encoded
        )
    except httpx.HTTPError as error:
        if not is_refused_by_headers(request):
            findings.faults.append((request, 0, repr(error)))
        return
    findings.slowest_s = max(findings.slowest_s, time.monotonic() - began)
    findings.statuses[answer.status_code] += 1
    if answer.status_code >= 500 or is_broken_stream(answer):
        findings.faults.append((request, answer.status_code, answer.text[-500:]))


def is_refused_by_headers(request):
    """Whether the connection may end without an answer: the server skips a body it has refused."""
    return bool(request.headers)


def is_broken_stream(answer):
    """Whether an event of a stream is an internal error, or its end is missing."""
    if not answer.headers.get("content-type", "").startswith("text/event-stream"):
        return False
    return '"code": 5' in answer.text or not answer.text.endswith("data: [DONE]\n\n")


def test_no_request_is_a_fault_of_the_server(served):
    fuzzer = Fuzzer(MODEL, *fields_of_vllm(), SEED)
    plain = {"model": MODEL, "prompt": [6, 7, 8], "max_tokens": 8, "temperature": 0}
    before = served.client().completions.create(**plain)
    engines = served.engines()
    findings = asyncio.run(send_all(served.url.removesuffix("/v1"), islice(fuzzer, REQUESTS)))
    print(dict(findings.statuses), f"slowest {findings.slowest_s:.1f} s")
    for request, status, text in findings.faults[:20]:
        print(status, request.method, request.path, request.headers, request.body[:300], "->", text)
    assert not findings.faults
    assert sum(findings.statuses.values()) > 0.95 * REQUESTS  # otherwise the time was over
    assert findings.statuses[200] > 0.1 * REQUESTS  # otherwise requests did not reach the engine
    assert served.engines() == engines  # none was replaced
    assert served.client().completions.create(**plain).choices[0].text == before.choices[0].text


def ask(served, path, **content):
    """The answer to a plain request with these fields."""
    plain = {"messages": [{"role": "user", "content": "hi"}]} if path == CHAT else {"prompt": "ab"}
    headers = {"authorization": f"Bearer {KEY}"}
    url = served.url.removesuffix("/v1") + path
    return httpx.post(
        url, json={"model": MODEL, "max_tokens": 3} | plain | content, headers=headers, timeout=60
    )


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        (COMPLETIONS, "prompt", [5, 10**6]),
        (COMPLETIONS, "prompt", [[5], [10**6]]),
        (COMPLETIONS, "prompt", UNKNOWN[-1]),
        (CHAT, "messages", [{"role": "user", "content": UNKNOWN[-1]}]),
        (CHAT, "stop_token_ids", [10**6]),
        (COMPLETIONS, "allowed_token_ids", [10**6]),
    ],
)
def test_tokens_that_the_model_does_not_have_are_the_requests_fault(served, path, field, value):
    engines = served.engines()
    answer = ask(served, path, **{field: value})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] in (field, "prompt")
    assert served.engines() == engines


@pytest.mark.parametrize("value", [1.5, "", [], {"grammar": "root ::= root"}])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_unusable_structured_outputs_name_the_field(served, path, stream, value):
    answer = ask(served, path, structured_outputs=value, stream=stream)
    assert answer.status_code == 400, answer.text
    assert "structured_outputs" in answer.text
