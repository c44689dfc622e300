"""Weights into a real vLLM engine in a real Ray actor, against transformers."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from actors.rollout.handle import RequestError
from actors.rollout.worker import RayWorker
from actors.weights.base import WeightSyncError
from actors.weights.shared_memory import RunWeightFiles, announce, owner_on
from bi_ray.batches.rollout import Group, GroupRequest, SamplingConfig
from bi_ray.config.rollout import RolloutConfig
from bi_ray.config.run import ModelConfig
from bi_ray.policy import published
from bi_ray.policy.checkpoint import load_model, load_tokenizer, save_weights
from bi_ray.policy.published import SPARE, WeightOwner, make_weights_directory, weights_directory
from bi_ray.policy.version import PolicyVersion

RUN = f"test-{os.getpid()}"
STALE_DIFFERENCE = 0.1
TOLERANCE = 1e-4
TEMPERATURE = 0.8
# Longer than a block of the prefix cache, so that a cache that survives a sync would show.
PROMPT = tuple(6 + i * 7 % 150 for i in range(200))
ROLLOUT = RolloutConfig(kv_cache_mib=64, max_sequences=32, cpus_per_worker=0.5)


@pytest.fixture
def directory():
    make_weights_directory(weights_directory(RUN))
    yield weights_directory(RUN)
    WeightOwner(weights_directory(RUN)).clear()


def request(
    key: str = "a", seed: int = 7, samples: int = 3, prompt: tuple[int, ...] = PROMPT
) -> GroupRequest:
    return GroupRequest(key, prompt, SamplingConfig(samples, TEMPERATURE, 1.0, 24), seed)


def publish(
    state: dict[str, torch.Tensor], directory: Path, version: PolicyVersion, tied: bool
) -> Path:
    """Publish like rank 0 of the learners."""
    path = directory / f"{version}.safetensors"
    save_weights(state, path, {"lm_head.weight": "model.embed_tokens.weight"} if tied else {})
    return path


def model_config(path: Path) -> ModelConfig:
    return ModelConfig(path=str(path), max_prompt_tokens=256, max_response_tokens=64)


def changed_state(model: LlamaForCausalLM, seed: int) -> dict[str, torch.Tensor]:
    """Weights far from the model's, also put into it; without the tied head, like a learner's."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state


def difference(model: LlamaForCausalLM, group: Group) -> float:
    """Largest difference between log-probabilities of the engine and of transformers."""
    worst = 0.0
    for sample in group.samples:
        tokens = torch.tensor([[*group.prompt_tokens, *sample.tokens]])
        with torch.no_grad():
            logits = model(input_ids=tokens).logits[0, len(group.prompt_tokens) - 1 : -1]
        expected = (logits / TEMPERATURE).log_softmax(-1)[range(len(sample.tokens)), sample.tokens]
        worst = max(worst, float((expected - torch.tensor(sample.logprobs)).abs().max()))
    return worst


@pytest.mark.parametrize("tied", [True, False])
def test_engine_equals_transformers_after_each_sync_and_only_then(
    tied, ray_local, tiny_model, directory
):
    path = tiny_model(tied)
    model = load_model(path).eval()

    async def scenario() -> None:
        worker = RayWorker(model_config(path), ROLLOUT, directory / "copies")
        began = time.monotonic()
        await worker.start()
        print(f"engine start {time.monotonic() - began:.1f} s")
        first = await worker.generate(request())
        assert difference(model, first) <= TOLERANCE
        assert {sample.version for sample in first.samples} == {PolicyVersion(0, 0)}
        for step in (1, 2):
            version = PolicyVersion(1, step)
            file = publish(changed_state(model, step), directory, version, tied)
            assert difference(model, await worker.generate(request())) > STALE_DIFFERENCE
            began = time.monotonic()
            await worker.sync(announce(version, file))
            print(f"sync {time.monotonic() - began:.3f} s")
            fresh = await worker.generate(request())
            assert difference(model, fresh) <= TOLERANCE
            assert {sample.version for sample in fresh.samples} == {version}
            assert (await worker.ping()).version == version
        await check_requests(worker, path)
        await check_files(worker, model, directory, tied)
        await worker.close()

    asyncio.run(scenario())


async def check_requests(worker: RayWorker, path: Path) -> None:
    """Samples do not depend on other requests; lengths, texts and errors are as promised."""
    alone = await worker.generate(request())
    others = [worker.generate(request(str(i), seed=100 + i, prompt=PROMPT[i:])) for i in range(9)]
    together = (await asyncio.gather(worker.generate(request()), *others))[0]
    assert together == alone
    # More prompt tokens at once than a step of the engine has room for.
    long = [
        worker.generate(
            request(str(i), 100 + i, 1, tuple(6 + (i + j * 11) % 150 for j in range(250)))
        )
        for i in range(60)
    ]
    assert (await asyncio.gather(*long, worker.generate(request())))[-1] == alone
    assert len({tuple(sample.tokens) for sample in alone.samples}) > 1
    # Sample j of a group is what a group of one draws with seed + j.
    single = await worker.generate(request(seed=9, samples=1))
    assert single.samples[0].tokens == alone.samples[2].tokens
    tokenizer = load_tokenizer(path)
    for sample in (*alone.samples, *(await worker.generate(request(seed=50, samples=16))).samples):
        ended = sample.tokens[-1] == tokenizer.eos_token_id
        assert sample.truncated == (not ended)
        assert (
            len(sample.tokens)
            == len(sample.logprobs)
            == (24 if sample.truncated else len(sample.tokens))
        )
        assert sample.text == tokenizer.decode(sample.tokens[:-1] if ended else sample.tokens)
    with pytest.raises(RequestError, match="has 257 tokens"):
        await worker.generate(request(prompt=tuple([6] * 257)))
    with pytest.raises(RequestError, match="empty"):
        await worker.generate(request(prompt=()))
    with pytest.raises(RequestError, match="vocabulary"):
        await worker.generate(request(prompt=(100_000,)))
    assert (await worker.ping()).running == 0


async def check_files(
    worker: RayWorker, model: LlamaForCausalLM, directory: Path, tied: bool
) -> None:
    """A tied head may be missing; any other gap is an error, not a line in a log."""
    state = changed_state(model, 3)
    if tied:
        save_file(state, directory / "1.3.safetensors")
        await worker.sync(announce(PolicyVersion(1, 3), directory / "1.3.safetensors"))
        assert difference(model, await worker.generate(request())) <= TOLERANCE
    else:
        del state["lm_head.weight"]
    state.pop("model.layers.1.mlp.up_proj.weight")
    save_file(state, directory / "1.4.safetensors")
    with pytest.raises(WeightSyncError, match=f"lacks {1 if tied else 2} parameters of the model"):
        await worker.sync(announce(PolicyVersion(1, 4), directory / "1.4.safetensors"))


def test_old_files_are_released_and_crashed_runs_cleared(directory):
    state = {"model.embed_tokens.weight": torch.ones(4, 2)}
    versions = [PolicyVersion(1, 9), PolicyVersion(1, 10), PolicyVersion(2, 3)]
    for version in versions:
        publish(state, directory, version, tied=True)
    files = RunWeightFiles(RUN, "here", 10)
    announcement = announce(PolicyVersion(1, 10), directory / "1.10.safetensors", node_id="here")
    asyncio.run(files.release(announcement))
    assert sorted(file.name for file in directory.iterdir()) == [
        "1.10.safetensors",
        "2.3.safetensors",
        SPARE,
    ]
    (directory / "held").hardlink_to(directory / "1.10.safetensors")
    asyncio.run(
        files.release(announce(PolicyVersion(2, 3), directory / "2.3.safetensors", node_id="here"))
    )
    assert load_file(directory / "held").keys() == state.keys() | {"lm_head.weight"}
    assert (directory / "held").stat().st_nlink == 1  # not kept for reuse
    (directory / "held").unlink()
    assert sorted(file.name for file in directory.iterdir()) == ["2.3.safetensors", SPARE]
    assert set(load_file(directory / "2.3.safetensors")) == {
        "model.embed_tokens.weight",
        "lm_head.weight",
    }
    asyncio.run(files.clear())
    assert not directory.exists()


@pytest.mark.slow
def test_weights_reach_another_node_and_are_cleared_there(tiny_model, directory, monkeypatch):
    """A second raylet simulates a second machine, which fetches the file from the first."""
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()  # earlier tests may have started one by asking for this node's id
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    path = tiny_model(True)
    model = load_model(path).eval()
    version = PolicyVersion(1, 1)

    async def scenario() -> None:
        worker = RayWorker(model_config(path), ROLLOUT, directory / "copies")
        info = await worker.start()
        here = ray.get_runtime_context().get_node_id()
        assert info.node_id != here
        file = publish(changed_state(model, 1), directory, version, tied=True)
        await worker.sync(announce(version, file))
        assert (directory / "copies" / "1.1.safetensors").exists()
        assert difference(model, await worker.generate(request())) <= TOLERANCE
        await owner_on(here, directory).release.remote(PolicyVersion(1, 2))
        assert not file.exists()
        await worker.close()
        # Both nodes share one memory here. This process cannot delete, so the other owner must.
        monkeypatch.setattr(published, "shutil", SimpleNamespace(rmtree=lambda *_, **__: None))
        await RunWeightFiles(RUN, here, 60).clear()
        assert not directory.exists()

    try:
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        asyncio.run(scenario())
    finally:
        ray.shutdown()
        cluster.shutdown()
