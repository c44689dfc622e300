"""The verifier as a real actor: reward functions that raise, sleep, hang in C or end the process; kill -9."""

import asyncio
import os
import signal
import time

import pytest
import ray

from actors.verifier import VerifierClient, VerifierUnavailable
from bi_ray.config import RunConfig
from bi_ray.tasks.registry import build_task
from bi_ray.verification import DataFailure, Verdict, VerificationItem

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
                "batch_timeout_s": 30.0,
                "reward_function": function and f"{FUNCTIONS}:{function}",
                **limits,
            },
        }
    )


def items_of(config: RunConfig, count: int, guilty: int | None = None) -> list[VerificationItem]:
    """Right responses; the guilty one says so after its answer, which also breaks its format."""
    task = build_task(config.task, config.seeds.data)
    items = []
    for i in range(count):
        problem = task.problem("rl", i)
        response = f"<think>\nno lines\n</think>\n<answer> The final answer is {problem.answer} </answer>"
        response += " guilty" if i == guilty else ""
        items.append(VerificationItem(problem.question, problem.graph.to_json(), problem.answer, response, False))
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


def assert_only_guilty(outcome: list[Verdict | DataFailure], guilty: int, words: str) -> None:
    for position, verdict in enumerate(outcome):
        if position == guilty:
            assert isinstance(verdict, DataFailure), verdict
            assert words in verdict.reason
        else:
            assert isinstance(verdict, Verdict), verdict
            assert verdict.reward == 0.75  # 0.5 of the function, 0.25 for the format
            assert verdict.right


@pytest.mark.parametrize(
    ("function", "limits", "words"),
    [
        ("raises", {}, "raised ValueError: cannot score this"),
        ("sleeps", {"sample_timeout_s": 0.5}, "took longer than 0.5 s"),
        ("hangs_in_c", {"batch_timeout_s": 8.0, "sample_timeout_s": 2.0}, "hung for 4 s"),
        ("ends_the_process", {}, "died 2 times"),
    ],
)
def test_only_the_guilty_sample_becomes_a_data_failure(client_of, function, limits, words):
    config = run_config(function, **limits)
    client = client_of(config)
    items = items_of(config, 6, guilty=3)

    async def score() -> list[Verdict | DataFailure]:
        await client.ready()
        return await client.score(items)

    assert_only_guilty(asyncio.run(score()), 3, words)


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
    assert all(isinstance(verdict, Verdict) and verdict.right and verdict.reward == 1.25 for verdict in outcome)


def test_a_verifier_that_cannot_start_says_why(client_of):
    client = client_of(run_config("no_such_function"))
    began = time.monotonic()
    with pytest.raises(VerifierUnavailable, match="has no function 'no_such_function'"):
        asyncio.run(client.ready())
    assert time.monotonic() - began < 30


def test_actor_scores_in_its_main_thread(ray_local):
    """The timer of the plain function needs it."""

    @ray.remote(num_cpus=0)
    class Probe:
        def is_main(self) -> bool:
            import threading

            return threading.current_thread() is threading.main_thread()

    probe = Probe.remote()
    assert ray.get(probe.is_main.remote(), timeout=60)
    ray.kill(probe)
