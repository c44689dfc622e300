"""Weights swapped while a real engine generates: log-probabilities before and after the swap."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM

from actors.rollout.worker import RayWorker
from actors.weights.shared_memory import announce
from bi_ray.batches.rollout import Group, GroupRequest, Sample, SamplingConfig
from bi_ray.config.rollout import RolloutConfig
from bi_ray.config.run import ModelConfig
from bi_ray.policy.checkpoint import load_model, load_tokenizer, save_weights
from bi_ray.policy.published import WeightOwner, make_weights_directory, weights_directory
from bi_ray.policy.version import PolicyVersion

RUN = f"test-swap-{os.getpid()}"
TOLERANCE = 1e-4
TEMPERATURE = 0.8
PROMPT = tuple(6 + i * 7 % 150 for i in range(60))  # longer than a block of the prefix cache
NEW = PolicyVersion(1, 1)


@pytest.fixture
def directory():
    make_weights_directory(weights_directory(RUN))
    yield weights_directory(RUN)
    WeightOwner(weights_directory(RUN)).clear()


def request(
    seed: int, samples: int = 16, max_tokens: int = 700, stop: tuple[str, ...] = ()
) -> GroupRequest:
    return GroupRequest(
        str(seed), PROMPT, SamplingConfig(samples, TEMPERATURE, 1.0, max_tokens, stop), seed
    )


def changed(model: LlamaForCausalLM, path: Path) -> LlamaForCausalLM:
    """Another model, far from this one, and a file with its weights."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    save_weights(
        {name: tensor.clone() for name, tensor in model.state_dict().items()}, path, tied={}
    )
    return model


@torch.no_grad()
def logprobs(
    model: LlamaForCausalLM, sample: Sample, before: LlamaForCausalLM | None = None
) -> torch.Tensor:
    """Log-probabilities of a response; with ``before``, that model's keys and values are kept."""
    tokens = torch.tensor([[*PROMPT, *sample.tokens]])
    cache, seen = DynamicCache(), 0
    if before is not None:
        # The last of these tokens went through the new weights.
        seen = len(PROMPT) + sample.spans[0].tokens - 1
        before(input_ids=tokens[:, :seen], past_key_values=cache, use_cache=True)
    logits = model(input_ids=tokens[:, seen:], past_key_values=cache, use_cache=True).logits[0]
    rows = (logits / TEMPERATURE).log_softmax(-1)
    first = max(0, len(PROMPT) - seen) - 1 if not seen else 0
    chosen = tokens[0, seen + first + 1 :]
    return rows[first:-1][range(len(chosen)), chosen]


def difference(expected: torch.Tensor, sample: Sample, first: int, last: int) -> float:
    """Largest difference over the tokens ``[first, last)``; ``expected`` ends with the response."""
    if first == last:
        return 0.0
    ours = torch.tensor(sample.logprobs)[first:last]
    shift = len(sample.tokens) - len(expected)
    return float((ours - expected[first - shift : last - shift]).abs().max())


async def swap(worker: RayWorker, file: Path) -> Group:
    """A group during which the weights changed."""
    running = asyncio.ensure_future(worker.generate(request(1)))
    async with asyncio.timeout(60):
        while not (await worker.ping()).running:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    await worker.sync(announce(NEW, file), in_flight=True)
    return await running


@pytest.mark.parametrize("keep_cache", [False, True])
def test_tokens_after_a_swap_are_those_of_the_new_policy(
    keep_cache, ray_local, tiny_model, directory
):
    path = tiny_model(False)
    old, new = (
        load_model(path).eval(),
        changed(load_model(path).eval(), directory / f"{NEW}.safetensors"),
    )
    rollout = RolloutConfig(
        kv_cache_mib=64, max_sequences=32, cpus_per_worker=0.5, keep_cache_in_flight=keep_cache
    )

    async def scenario() -> None:
        worker = RayWorker(
            ModelConfig(path=str(path), max_prompt_tokens=64, max_response_tokens=700),
            rollout,
            directory / "copies",
        )
        await worker.start()
        group = await swap(worker, directory / f"{NEW}.safetensors")
        mixed = [sample for sample in group.samples if len(sample.spans) == 2]
        print(
            f"{len(mixed)} of {len(group.samples)} samples are of both versions: "
            f"{[sample.spans for sample in mixed][:4]}"
        )
        assert mixed
        for sample in group.samples:
            assert (
                sum(span.tokens for span in sample.spans)
                == len(sample.tokens)
                == len(sample.logprobs)
            )
            assert sample.version == PolicyVersion(0, 0)
            first = sample.spans[0].tokens
            assert difference(logprobs(old, sample), sample, 0, first) <= TOLERANCE
        for sample in mixed:
            assert [span.version for span in sample.spans] == [PolicyVersion(0, 0), NEW]
            first, last = sample.spans[0].tokens, len(sample.tokens)
            recomputed = difference(logprobs(new, sample), sample, first, last)
            kept = difference(logprobs(new, sample, before=old), sample, first, last)
            print(
                f"from {first} of {last}: {recomputed:.1e} with its own cache, "
                f"{kept:.1e} with the old one's"
            )
            assert (kept if keep_cache else recomputed) <= TOLERANCE
        # A later request sees nothing of the old weights, nor of their prefix cache.
        fresh = await worker.generate(request(2, samples=2, max_tokens=40))
        for sample in fresh.samples:
            assert {span.version for span in sample.spans} == {NEW}
            assert difference(logprobs(new, sample), sample, 0, len(sample.tokens)) <= TOLERANCE
        if not keep_cache:
            await check_stop_strings(worker, path, fresh)
        await worker.close()

    asyncio.run(scenario())


async def check_stop_strings(worker: RayWorker, path: Path, whole: Group) -> None:
    """A response ends with its stop string; random numbers are those of a run without one."""
    tokenizer = load_tokenizer(path)
    long = whole.samples[0]
    stop = tokenizer.decode(long.tokens[10:12])
    (sample,) = (await worker.generate(request(2, samples=1, max_tokens=40, stop=(stop,)))).samples
    assert sample.text.endswith(stop)
    assert sample.text.count(stop) == 1
    assert not sample.truncated
    assert sample.tokens == long.tokens[: len(sample.tokens)]
    assert len(sample.tokens) == len(sample.logprobs) <= 12
    (cut,) = (await worker.generate(request(2, samples=1, max_tokens=5, stop=(stop,)))).samples
    assert cut.truncated
