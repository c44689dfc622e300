"""RL with real engines and learners: at staleness 0, a session equals a plain loop bit for bit."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from actors.driver.batch_maker import BatchMaker
from actors.driver.driver import Driver
from actors.weights.shared_memory import announce
from bi_ray.batches.batch import LearnerBatch
from bi_ray.batches.rollout import GroupRequest, SamplingConfig
from bi_ray.config.run import RunConfig
from bi_ray.config.training import OptimizerConfig
from bi_ray.data.problems import read_problems, write_problems
from bi_ray.learning.rl import RLJob, train
from bi_ray.policy.checkpoint import WEIGHTS, load_tokenizer
from bi_ray.policy.published import weights_directory
from bi_ray.policy.version import PolicyVersion
from bi_ray.runs.metrics import read_metrics
from bi_ray.tasks.registry import build_task

RUN = f"test-staleness-{os.getpid()}"
STEPS = 4


def config_of(model: Path, **rl: Any) -> RunConfig:
    easy = {"problems": 8, "depth": 2, "redundant_nodes": [1, 4]}
    learning = {
        "steps": STEPS,
        "prompts_per_step": 4,
        "samples_per_prompt": 4,
        "checkpoint_every_steps": STEPS,
    }
    return RunConfig.model_validate(
        {
            "name": "tiny",
            "task": {
                "name_pool": 48,
                "sets": dict.fromkeys(("sft", "rl", "test_id", "test_ood"), easy),
            },
            "arms": ["vanilla"],
            "model": {"path": str(model), "max_prompt_tokens": 128, "max_response_tokens": 300},
            "rollout": {
                "cpus_per_worker": 0.5,
                "kv_cache_mib": 64,
                "max_sequences": 8,
                "redispatch_least_s": 3,
                "heartbeat_s": 1,
            },
            "verifier": {"reward_function": "tests.integration.reward_functions:even"},
            "rl": learning | {"optimizer": OptimizerConfig(learning_rate=1e-3).model_dump()} | rl,
        }
    )


class Blocking:
    """The learners' side of a driver, for a thread: calls into the event loop of the engines."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.loop = loop

    def _wait(self, call: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(call, self.loop).result(200)


class Session(Blocking):
    """The driver as it is."""

    def __init__(self, driver: Driver, loop: asyncio.AbstractEventLoop):
        super().__init__(loop)
        self.driver = driver

    def join(self, step: int) -> int:
        return self._wait(self.driver.join(step))

    def lease(self, step: int, incarnation: int) -> LearnerBatch:
        return self._wait(self.driver.lease(step, incarnation))

    def publish(self, incarnation: int, step: int, path: Path, metrics: dict[str, Any]) -> None:
        self._wait(self.driver.publish(incarnation, step, path, metrics))

    def checkpointed(self, step: int) -> None:
        self._wait(self.driver.checkpointed(step))


class PlainLoop(Blocking):
    """Everything in turn: sync the engines, generate, train."""

    def __init__(
        self, driver: Driver, maker: BatchMaker, base: Path, loop: asyncio.AbstractEventLoop
    ):
        super().__init__(loop)
        self.pool, self.maker, self.base = driver.pool, maker, base

    def join(self, step: int) -> int:
        self._wait(self.pool.sync(announce(PolicyVersion(50, step), self.base / WEIGHTS)))
        return 50

    def lease(self, step: int, incarnation: int) -> LearnerBatch:
        return self._wait(self.maker.make(step)).batch

    def publish(self, incarnation: int, step: int, path: Path, metrics: dict[str, Any]) -> None:
        self._wait(self.pool.sync(announce(PolicyVersion(incarnation, step), path)))

    def checkpointed(self, step: int) -> None:
        pass


@pytest.fixture
def alone(tmp_path):
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


async def learn(config: RunConfig, base: Path, out: Path, driver: Any) -> dict[str, torch.Tensor]:
    """The weights after training in a separate thread."""
    torch.manual_seed(0)
    job = RLJob(
        base=base,
        output=out,
        weights=weights_directory(RUN),
        config=config.rl,
        model=config.model,
        learner=config.learner,
    )
    await asyncio.to_thread(train, job, driver, torch.device("cpu"))
    return load_file(out / f"step_{STEPS}" / "policy" / WEIGHTS)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


async def stopped_in_the_middle(driver: Driver) -> None:
    """Stop an engine's process: its groups soon come from the other engine, and are the same."""
    sampling = SamplingConfig(samples=2, max_tokens=300)
    requests = [
        GroupRequest(f"q{i}", tuple(range(6, 16 + i)), sampling, 100 * i) for i in range(24)
    ]
    began = time.monotonic()
    undisturbed = await driver.pool.generate(requests)
    took_s = time.monotonic() - began
    pid = driver.pool.status()["workers"][0]["engine_pid"]
    done = 0

    def stop(group: Any) -> None:
        nonlocal done
        done += 1
        if done == 6:
            os.kill(pid, signal.SIGSTOP)

    began = time.monotonic()
    try:
        answers = await driver.pool.generate(requests, stop)
        late_s = time.monotonic() - began
        assert answers == undisturbed
        assert driver.pool.redispatched >= 1
        print(f"{took_s:.1f} s undisturbed, {late_s:.1f} s with a stopped engine")
        assert late_s < 60
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_staleness_zero_is_the_plain_loop_and_staleness_one_keeps_its_bound(
    ray_local, tiny_model, tmp_path, alone
):
    base = tiny_model(True)
    config = config_of(base)
    write_problems(
        build_task(config.task, 0),
        "rl",
        8,
        load_tokenizer(base),
        config.model,
        tmp_path / "data/rl",
    )

    async def scenario() -> None:
        driver = Driver(config, RUN, base)
        await driver.start()
        loop = asyncio.get_running_loop()
        maker = BatchMaker(
            config, "arm", read_problems(tmp_path / "data/rl"), driver.pool, driver.verifier
        )
        plain = await learn(config, base, tmp_path / "plain", PlainLoop(driver, maker, base, loop))
        assert not same(plain, load_file(base / WEIGHTS))

        async def session(name: str, **rl: Any) -> dict[str, torch.Tensor]:
            driver.config = config_of(base, **rl)
            await driver.begin_rl("arm", base, tmp_path / name, tmp_path / "data", None, None)
            weights = await learn(driver.config, base, tmp_path / name, Session(driver, loop))
            await driver.end_rl()
            return weights

        assert same(await session("zero"), plain)
        rows = read_metrics(tmp_path / "zero/metrics.jsonl")
        assert [row["staleness_max"] for row in rows] == [0] * STEPS
        ahead = await session("one", max_staleness=1)
        rows = read_metrics(tmp_path / "one/metrics.jsonl")
        print(
            [
                {k: v for k, v in row.items() if "stale" in k or "idle" in k or "mixed" in k}
                for row in rows
            ]
        )
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
        assert max(row["staleness_max"] for row in rows) == 1
        assert not same(ahead, plain)
        await stopped_in_the_middle(driver)
        await driver.close()

    asyncio.run(scenario())
