"""What readiness does when the analyzer's process ends over its work."""

from __future__ import annotations

import asyncio
import concurrent.futures
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from actors.driver import readiness
from actors.driver.progress import Progress
from actors.driver.readiness import ReadinessError, ReadinessMeter
from bi_ray.config.run import RunConfig
from bi_ray.config.tasks import DifficultyConfig, PromptBenchConfig


class Method:
    """Of an actor: answers by what ``replies`` gives next, an error or a value."""

    def __init__(self, replies):
        self.replies = iter(replies)
        self.calls = 0

    def remote(self, *_):
        self.calls += 1
        reply = Reply()
        answer = next(self.replies)
        if isinstance(answer, Exception):
            reply.answer.set_exception(answer)
        else:
            reply.answer.set_result(answer)
        return reply


class Reply:
    def __init__(self):
        self.answer = concurrent.futures.Future()

    def future(self):
        return self.answer

    def __await__(self):
        return asyncio.wrap_future(self.answer).__await__()


def meter(monkeypatch, **methods) -> ReadinessMeter:
    monkeypatch.setattr(readiness, "_POLL_S", 0.001)
    sets = {name: DifficultyConfig() for name in ("sft", "rl", "test_id", "test_ood")}
    config = RunConfig(name="x", task=PromptBenchConfig(sets=sets), arms=["vanilla"])
    made = ReadinessMeter(config, None, None, None, Progress())
    made._analyzer = type("Handle", (), methods)()
    return made


@pytest.mark.parametrize("deaths", [1, 2])
def test_an_analysis_that_killed_the_analyzer_is_asked_for_again_once_it_is_back(
    deaths, monkeypatch
):
    calls = Method([ActorDiedError()] * deaths + [None])
    phases = Method(([ActorUnavailableError("restarting", b"1" * 16)] * 2 + ["starting"] * 2) * 9)
    made = meter(monkeypatch, begin_watch=calls, phase=phases)
    asyncio.run(made.begin_watch())
    assert calls.calls == deaths + 1


def test_an_analyzer_that_dies_again_and_again_is_one_clear_line(monkeypatch):
    calls = Method([ActorDiedError()] * 9)
    made = meter(monkeypatch, begin_watch=calls, phase=Method(["starting"] * 99))
    with pytest.raises(
        ReadinessError, match=r"the influence analyzer died .* run the same command again"
    ) as caught:
        asyncio.run(made.begin_watch())
    assert len(str(caught.value).splitlines()) == 1
    assert calls.calls == 3


def test_a_single_step_is_not_repeated_since_the_analyzer_forgot_its_target(monkeypatch, tmp_path):
    rollouts = tmp_path / "rollouts.jsonl"
    rollouts.write_text("")
    calls = Method([ActorDiedError()])
    made = meter(monkeypatch, aim=Method([None]), step=calls, phase=Method(["step"] * 99))

    async def nothing(*_):
        return {}

    made._rewards = nothing
    with pytest.raises(ReadinessError, match="the influence analyzer died"):
        asyncio.run(made.realize(Path("policy"), tmp_path, [], tmp_path))
    assert calls.calls == 1
