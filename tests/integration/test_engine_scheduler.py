"""Responses held back until complete: bit-identical, stamped right, stopped in time, none left."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from actors.rollout.engine import engine_arguments, engine_environment
from actors.weights.shared_memory import SharedMemorySync
from bi_ray.config.rollout import RolloutConfig
from bi_ray.config.run import ModelConfig

PROMPT = [6 + i * 7 % 150 for i in range(70)]
LONG = 400
ROLLOUT = RolloutConfig(kv_cache_mib=64, max_sequences=16)


def count_messages(engine: Any) -> list[int]:
    """Count the tokens of each message that the engine's process sends from now on."""
    sizes: list[int] = []
    original = engine.output_processor.process_outputs

    def process(outputs: list, *args: Any, **kwargs: Any) -> Any:
        sizes.extend(len(output.new_token_ids) for output in outputs)
        return original(outputs, *args, **kwargs)

    engine.output_processor.process_outputs = process
    return sizes


def params(**options: Any) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    kind = RequestOutputKind[options.pop("kind", "FINAL_ONLY")]
    return SamplingParams(
        **{"seed": 5, "logprobs": 0, "flat_logprobs": True, "output_kind": kind} | options
    )


async def answer(engine: Any, name: str, **options: Any) -> Any:
    return [
        part
        async for part in engine.generate({"prompt_token_ids": PROMPT}, params(**options), name)
    ][-1]


async def check_same(engine: Any, messages: list[int]) -> None:
    """Samples sent whole equal those sent token by token; one message each, or one per token."""
    prompt: Any = {"prompt_token_ids": PROMPT}
    ends: dict[str, Any] = {"n": 8, "max_tokens": 60, "stop_token_ids": list(range(6, 12))}
    whole = await answer(engine, "whole", **ends)
    assert len(messages) == 8
    assert sum(messages) == sum(len(sample.token_ids) for sample in whole.outputs)
    messages.clear()
    parts = [
        part
        async for part in engine.generate(prompt, params(**ends, kind="CUMULATIVE"), "streamed")
    ]
    assert set(messages) == {1}
    streamed = {sample.index: sample for part in parts for sample in part.outputs}
    for sample in whole.outputs:
        other = streamed[sample.index]
        assert (sample.text, list(sample.token_ids)) == (other.text, list(other.token_ids))
        assert sample.logprobs.logprobs == other.logprobs.logprobs
        assert sample.finish_reason == other.finish_reason
    assert {sample.finish_reason for sample in whole.outputs} == {"stop", "length"}


async def check_neighbors(engine: Any, messages: list[int]) -> None:
    """Neighbors that come and go, and ask for other log-probabilities, do not change an answer."""
    wishes: list[dict[str, Any]] = [
        {"logprobs": 0},
        {"logprobs": 3, "flat_logprobs": False},
        {"logprobs": 2, "prompt_logprobs": 2, "flat_logprobs": False},
        {"logprobs": None},
    ]
    alone = [
        await answer(engine, f"alone-{number}", max_tokens=60, **wish)
        for number, wish in enumerate(wishes)
    ]
    lengths = enumerate((5, 60, 20, 40, 10, 30, 50))
    neighbors = [
        answer(engine, f"n-{number}", max_tokens=length, logprobs=5 + number)
        for number, length in lengths
    ]
    among = [
        answer(engine, f"among-{number}", max_tokens=60, **wish)
        for number, wish in enumerate(wishes)
    ]
    answers = await asyncio.gather(*among, *neighbors)
    for other, one in zip(answers, alone, strict=False):
        assert other.outputs[0].text == one.outputs[0].text
        assert values(other.outputs[0].logprobs) == values(one.outputs[0].logprobs)
        assert values(other.prompt_logprobs) == values(one.prompt_logprobs)
    assert alone[2].prompt_logprobs is not None
    assert [len(position) for position in answers[1].outputs[0].logprobs if len(position) < 3] == []


def values(logprobs: Any) -> Any:
    """Log-probabilities by position and token, rounded to four digits."""
    if logprobs is None:
        return None
    positions = [position or {} for position in logprobs]
    return [
        {token: round(entry.logprob, 4) for token, entry in position.items()}
        for position in positions
    ]


async def check_pause(engine: Any, messages: list[int]) -> None:
    """Tokens generated before a pause are stamped with the weights that generated them."""
    undisturbed = await answer(engine, "undisturbed", max_tokens=LONG, ignore_eos=True)
    messages.clear()
    task = asyncio.create_task(answer(engine, "paused", max_tokens=LONG, ignore_eos=True))
    await asyncio.sleep(0.2)
    await engine.pause_generation(mode="keep", clear_cache=False)
    await engine.update_weight_version("new")
    before = sum(messages)
    assert 0 < before < LONG
    assert len(messages) == 1
    await engine.resume_generation()
    output = (await task).outputs[0]
    assert [(span.version, span.start, span.end) for span in output.weight_versions] == [
        ("old", 0, before),
        ("new", before, LONG),
    ]
    assert list(output.token_ids) == list(undisturbed.outputs[0].token_ids)
    assert output.logprobs.logprobs == undisturbed.outputs[0].logprobs.logprobs


async def check_stop(engine: Any, messages: list[int]) -> None:
    """A stop string ends a request as soon as it appears, not with the rest of the response."""
    text = (await answer(engine, "free", max_tokens=LONG, ignore_eos=True)).outputs[0].text
    messages.clear()
    output = (
        await answer(engine, "stopped", max_tokens=LONG, ignore_eos=True, stop=[text[40:50]])
    ).outputs[0]
    assert output.finish_reason == "stop"
    assert output.text == text[: text.index(text[40:50])]
    assert len(messages) < LONG / 2


async def check_abort(engine: Any, messages: list[int]) -> None:
    """An aborted request leaves nothing that a later pause would wait for or send."""
    task = asyncio.create_task(answer(engine, "given up", max_tokens=LONG, ignore_eos=True))
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    messages.clear()
    async with asyncio.timeout(20):
        await engine.pause_generation(mode="keep", clear_cache=False)
    assert messages == []
    await engine.resume_generation()


@pytest.mark.timeout(300)
def test_whole_responses(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in engine_environment(ROLLOUT).items():
        monkeypatch.setenv(name, value)
    path = tiny_model(True)

    async def scenario() -> None:
        from vllm.v1.engine.async_llm import AsyncLLM

        model = ModelConfig(path=str(path), max_prompt_tokens=128, max_response_tokens=LONG)
        options = SharedMemorySync(Path(os.devnull)).engine_options()
        engine = AsyncLLM.from_engine_args(engine_arguments(path, model, ROLLOUT, options))
        try:
            await engine.update_weight_version("old")
            await answer(engine, "warm-up", max_tokens=4)
            messages = count_messages(engine)
            for check in (check_same, check_neighbors, check_pause, check_stop, check_abort):
                messages.clear()
                await check(engine, messages)
        finally:
            engine.shutdown()

    asyncio.run(scenario())
