"""A pool of two real engines: a worker is killed during generation, and no answer changes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path

import psutil
import pytest
from transformers import AutoTokenizer

from actors.rollout import worker as rollout_worker
from actors.rollout.generation import FailedGroup
from actors.rollout.pool import RolloutPool, make_ray_pool
from actors.weights.shared_memory import announce
from bi_ray.batches.rollout import GroupRequest, SamplingConfig
from bi_ray.config.rollout import RolloutConfig
from bi_ray.config.run import ModelConfig, RunConfig
from bi_ray.config.tasks import DifficultyConfig, PromptBenchConfig
from bi_ray.policy.checkpoint import WEIGHTS
from bi_ray.policy.published import weights_directory
from bi_ray.policy.version import PolicyVersion

RUN = f"test-pool-{os.getpid()}"
GROUPS = 40
VERSION = PolicyVersion(1, 1)


def config() -> RunConfig:
    return RunConfig(
        name="test",
        task=PromptBenchConfig(
            sets={name: DifficultyConfig() for name in ("sft", "rl", "test_id", "test_ood")}
        ),
        arms={"vanilla": {}},
        model=ModelConfig(max_prompt_tokens=64, max_response_tokens=200),
        rollout=RolloutConfig(
            workers=2, kv_cache_mib=64, max_sequences=8, start_timeout_s=300, heartbeat_s=1
        ),
    )


def requests() -> list[GroupRequest]:
    sampling = SamplingConfig(samples=2, max_tokens=200)
    return [
        GroupRequest(f"q{i}", tuple(range(6, 16 + i)), sampling, 100 * i) for i in range(GROUPS)
    ]


async def until(condition, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.1)


@pytest.fixture
def unchecked(monkeypatch) -> None:
    """Rollout workers that do not check prompts, so that a request can crash a real engine."""

    class UncheckedWorker(rollout_worker.RolloutWorker):
        def _check_prompt(self, request: GroupRequest) -> None:
            pass

    monkeypatch.setattr(rollout_worker, "RolloutWorker", UncheckedWorker)


@pytest.mark.timeout(900)  # six engine starts
def test_a_killed_worker_does_not_show_in_the_answers(ray_local, tiny_model, tmp_path, unchecked):
    first, trained = tmp_path / "first", tiny_model(False, seed=1)
    shutil.copytree(tiny_model(False), first)
    no_embedding = add_token_without_embedding(first)

    async def scenario() -> None:
        pool = make_ray_pool(config(), RUN, first)
        await pool.start(2)
        await pool.sync(announce(VERSION, trained / WEIGHTS))
        undisturbed = await pool.generate(requests())
        before = pool.status()["workers"]
        disturbed = await kill_in_the_middle(pool, before[0]["pid"])
        assert disturbed == undisturbed
        assert {sample.version for group in disturbed for sample in group.samples} == {VERSION}
        assert not any(isinstance(group, FailedGroup) for group in disturbed)
        await until(lambda: pool.status()["workers"][0]["state"] == "healthy", 300)
        after = pool.status()["workers"]
        assert (after[0]["restarts"], after[1]["restarts"]) == (1, 0)
        assert after[0]["version"] == str(VERSION)
        assert after[0]["pid"] != before[0]["pid"]
        # Both engines, the new one included, give the same answers.
        assert await pool.generate(requests()) == undisturbed
        assert pool.status()["workers"][0]["generated_tokens"] > before[0]["generated_tokens"]
        await until(lambda: not psutil.pid_exists(before[0]["engine_pid"]), 10)
        await kill_engine(pool, undisturbed)
        await until(lambda: pool.status()["workers"][1]["state"] == "healthy", 300)
        await poison(pool, undisturbed, no_embedding)
        pids = [row["engine_pid"] for row in pool.status()["workers"]]
        await pool.close()
        await until(lambda: not any(pid and psutil.pid_exists(pid) for pid in pids), 10)
        assert not weights_directory(RUN).exists()

    asyncio.run(scenario())


async def kill_in_the_middle(pool: RolloutPool, pid: int) -> list:
    finished = []

    def on_group(group) -> None:
        finished.append(group.key)
        if len(finished) == GROUPS // 4:
            os.kill(pid, signal.SIGKILL)

    answers = await pool.generate(requests(), on_group)
    assert pool.failures["lost"] == 1
    return answers


async def kill_engine(pool: RolloutPool, undisturbed: list) -> None:
    """Kill only the engine's process, not its actor: the worker is lost nevertheless."""
    engine = pool.status()["workers"][1]["engine_pid"]
    os.kill(engine, signal.SIGKILL)
    assert await pool.generate(requests()) == undisturbed
    assert pool.failures["lost"] == 2


def add_token_without_embedding(policy: Path) -> int:
    """The id of a new token that the tokenizer has, so that vLLM accepts it, but not the model."""
    tokenizer = AutoTokenizer.from_pretrained(policy, trust_remote_code=False)
    tokenizer.add_tokens(["<|stray|>"])
    tokenizer.save_pretrained(policy)
    return tokenizer.convert_tokens_to_ids("<|stray|>")


async def poison(pool: RolloutPool, undisturbed: list, no_embedding: int) -> None:
    """A request that crashes engines ends two of them, and costs no other group."""
    bad = GroupRequest("bad", (6, no_embedding), SamplingConfig(samples=2, max_tokens=8), 0)
    *answers, failed = await pool.generate([*requests(), bad])
    assert answers == undisturbed
    assert isinstance(failed, FailedGroup)
    assert failed.reason.startswith("2 engines crashed on it")
    assert pool.failures["lost"] == 4
