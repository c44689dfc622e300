"""The verifier as a real actor: reward functions that hang, crash or misbehave; kill -9."""

import asyncio
import os
import signal
import time
from collections.abc import Sequence

import psutil
import pytest

from actors.driver.verifier import VerifierClient, VerifierUnavailable
from bi_ray.config.run import RunConfig
from bi_ray.tasks.registry import build_task
from bi_ray.verification.verdicts import DataFailure, Verdict, VerificationItem
from tests.integration.reward_functions import (
    HOSTILE,
    eats_memory,
    exits_at_once,
    has_its_own_alarm,
    swallows_everything,
)

FUNCTIONS = "tests.integration.reward_functions"


def run_config(function: str | None, **limits: float) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "test",
            "task": {"sets": {name: {"depth": 3} for name in ("sft", "rl", "test_id", "test_ood")}},
            "arms": ["vanilla"],
            "rl": {"format_reward": 0.25},
            "verifier": {
                "sample_timeout_s": 1.0,
                "reward_function": function and f"{FUNCTIONS}:{function}",
                **limits,
            },
        }
    )


def items_of(config: RunConfig, count: int, words: Sequence[str] = ()) -> list[VerificationItem]:
    """Right responses; the first ones ask something of the reward function after their answer."""
    task = build_task(config.task, config.seeds.data)
    items = []
    for i in range(count):
        problem = task.problem("rl", i)
        response = (
            f"<think>\nno lines\n</think>\n<answer> The final answer is {problem.answer} </answer>"
        )
        response += f" guilty {words[i]}" if i < len(words) else ""
        items.append(
            VerificationItem(
                problem.question, problem.graph.to_json(), problem.answer, response, False
            )
        )
    return items


@pytest.fixture
def client_of(ray_local):
    clients: list[VerifierClient] = []

    def make(config: RunConfig) -> VerifierClient:
        clients.append(VerifierClient(config))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def test_hostile_functions_spoil_their_own_samples_alone(client_of):
    """In one batch, with right responses between them."""
    config = run_config("hostile", sample_timeout_s=4.0, memory_mib=320)
    client = client_of(config)
    functions = [exits_at_once, swallows_everything, has_its_own_alarm, eats_memory]
    items = items_of(config, 8, [function.__name__ for function in functions])
    guilty, innocent = items[:4], items[4:]
    mixed = [item for pair in zip(innocent, guilty, strict=True) for item in pair]

    async def score() -> list[Verdict | DataFailure]:
        await client.ready()
        return await client.score(mixed)

    outcome = asyncio.run(score())
    for verdict in outcome[::2]:
        assert isinstance(verdict, Verdict), verdict
        # 1 of the function, 0.25 for the format
        assert (verdict.reward, verdict.right) == (1.25, True)
    for function, failure in zip(functions, outcome[1::2], strict=True):
        assert isinstance(failure, DataFailure), failure
        assert HOSTILE[function] in failure.reason


def test_a_killed_actor_leaves_no_process_behind(client_of):
    config = run_config("hostile")
    client = client_of(config)

    async def pids() -> tuple[int, list[int]]:
        pid = await client.ready()
        return pid, [child.pid for child in psutil.Process(pid).children()]

    pid, children = asyncio.run(pids())
    assert children
    os.kill(pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(
        [psutil.Process(child) for child in children if psutil.pid_exists(child)], timeout=10
    )
    assert not alive


def test_scoring_goes_on_when_its_process_is_killed(client_of):
    config = run_config(None)
    client = client_of(config)
    items = items_of(config, 40)

    async def score() -> tuple[int, int, list[Verdict | DataFailure]]:
        before = await client.ready()
        os.kill(before, signal.SIGKILL)
        outcome = await client.score(items)
        return before, await client.ready(), outcome

    before, after, outcome = asyncio.run(score())
    assert before != after
    assert all(
        isinstance(verdict, Verdict) and verdict.right and verdict.reward == 1.25
        for verdict in outcome
    )


def test_a_verifier_that_cannot_start_says_why(client_of):
    client = client_of(run_config("no_such_function"))
    began = time.monotonic()
    with pytest.raises(VerifierUnavailable, match="has no function 'no_such_function'"):
        asyncio.run(client.ready())
    assert time.monotonic() - began < 30
