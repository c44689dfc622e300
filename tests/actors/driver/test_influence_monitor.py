"""The monitor's promises that a real run shows only by chance: nobody waits for it, and nothing it
meets is fatal.
"""

import asyncio
import concurrent.futures
from pathlib import Path

import pytest

from actors.driver.influence_monitor import InfluenceMonitor
from bi_ray.config.readiness import ReadinessConfig
from bi_ray.config.run import RunConfig
from bi_ray.config.tasks import DifficultyConfig, PromptBenchConfig
from bi_ray.data.problems import ProblemRow
from bi_ray.policy.version import PolicyVersion
from bi_ray.runs.metrics import read_metrics

TARGET = [ProblemRow(name, "question", "1", "{}", (1, 2)) for name in "abcd"]
VERSION = PolicyVersion(3, 10)


class Analyzer:
    """Answers as a Ray handle does; ``gate`` holds the answer back."""

    def __init__(self, error=None):
        self.calls = []
        self.error = error
        self.gate = concurrent.futures.Future()
        self.watch = self

    def remote(self, policy, step, weights, queries, target):
        self.calls.append((step, [row["id"] for row in target]))
        assert weights.read_text() == "weights"
        if self.error:
            self.gate.set_exception(self.error)
        return self

    def future(self):
        return self.gate

    def answer(self, step):
        self.gate.set_result({"step": step})
        self.gate = concurrent.futures.Future()


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "3.10.safetensors"
    path.write_text("weights")
    return path


def monitor(analyzer, tmp_path):
    sets = {name: DifficultyConfig() for name in ("sft", "rl", "test_id", "test_ood")}
    readiness = ReadinessConfig(every_rl_steps=5)
    config = RunConfig(
        name="x", task=PromptBenchConfig(sets=sets), arms=["vanilla"], readiness=readiness
    )
    return InfluenceMonitor(config, analyzer, TARGET, Path("p"), tmp_path / "influence.jsonl")


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


def test_an_analysis_goes_on_beside_training_with_weights_of_its_own(tmp_path, weights):
    async def scenario():
        analyzer = Analyzer()
        watch = monitor(analyzer, tmp_path)
        watch.begin(VERSION, weights, [], [{"id": "a"}])
        weights.unlink()  # the owner removes it as soon as the engines hold the next version
        await until(lambda: analyzer.calls)
        assert analyzer.calls == [(10, ["a"])]
        assert read_metrics(watch.out) == []
        analyzer.answer(10)
        await watch.finish()
        assert read_metrics(watch.out) == [{"step": 10}]
        assert not list(tmp_path.glob("*.held"))

    asyncio.run(scenario())


def test_only_every_few_steps_and_one_at_a_time(tmp_path, weights, caplog):
    async def scenario():
        analyzer = Analyzer()
        watch = monitor(analyzer, tmp_path)
        assert watch.requests(9) == []
        assert [request.key for request in watch.requests(10)] == ["a", "b", "c", "d"]
        assert watch.requests(10) == watch.requests(15)  # the same random numbers at every step
        watch.begin(VERSION, weights, [], [])
        assert watch.requests(15) == []
        assert "step 15 is left out, the analysis before it still runs" in caplog.text
        await until(lambda: analyzer.calls)
        analyzer.answer(10)
        await watch.finish()
        assert len(watch.requests(20)) == 4

    asyncio.run(scenario())


def test_an_analysis_that_fails_leaves_rl_alone(tmp_path, weights, caplog):
    async def scenario():
        watch = monitor(Analyzer(error=RuntimeError("out of memory")), tmp_path)
        watch.begin(VERSION, weights, [], [])
        await watch.finish()
        assert read_metrics(watch.out) == []
        assert not list(tmp_path.glob("*.held"))

    asyncio.run(scenario())
    assert "out of memory" in caplog.text


def test_an_analysis_that_cannot_clean_up_is_in_the_log_and_leaves_rl_alone(
    tmp_path, weights, caplog, monkeypatch
):
    async def scenario():
        analyzer = Analyzer()
        watch = monitor(analyzer, tmp_path)
        watch.begin(VERSION, weights, [], [])
        await until(lambda: analyzer.calls)
        monkeypatch.setattr(Path, "unlink", refuse)
        analyzer.answer(10)
        await watch.finish()

    def refuse(self, missing_ok=False):
        raise PermissionError("not permitted")

    asyncio.run(scenario())
    [record] = [record for record in caplog.records if "analysis of step 10" in record.message]
    assert record.levelname == "ERROR"
    assert isinstance(record.exc_info[1], PermissionError)


def test_going_back_takes_later_rows_back(tmp_path, weights):
    async def scenario():
        analyzer = Analyzer()
        watch = monitor(analyzer, tmp_path)
        for step in (5, 10, 10):
            watch.begin(PolicyVersion(3, step), weights, [], [])
            calls = len(analyzer.calls)
            await until(lambda calls=calls: len(analyzer.calls) > calls)
            analyzer.answer(step)
            await watch.finish()
        assert [row["step"] for row in read_metrics(watch.out)] == [5, 10]
        watch.go_back(5)
        assert [row["step"] for row in read_metrics(watch.out)] == [5]

    asyncio.run(scenario())


def test_weights_that_cannot_be_held_are_no_reason_for_rl_to_stop(tmp_path, caplog):
    watch = monitor(Analyzer(), tmp_path)
    watch.begin(VERSION, tmp_path / "absent.safetensors", [], [])
    assert "the weights of step 10 cannot be kept" in caplog.text
    asyncio.run(watch.finish())
