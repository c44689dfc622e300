"""Our side of the race: real driver, engines, learners and verifier, one step per call."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import ray
from common import Metrics

from actors.cluster import connect
from actors.driver.driver import Driver
from actors.learners.group import LearnerGroup
from bi_ray.config.run import RunConfig
from bi_ray.data.problems import read_problems, write_problems
from bi_ray.policy.chat import messages
from bi_ray.policy.checkpoint import load_tokenizer
from bi_ray.policy.published import weights_directory
from bi_ray.tasks.registry import build_task
from bi_ray.verification.verdicts import Verdict, VerificationItem

DEADLINE_S = 900


class DrawnVerdicts:
    """Replaces the verifier where no response ends: the reward, 0 or 1, is a hash of it."""

    async def score(self, items: Sequence[VerificationItem]) -> list[Verdict]:
        """A verdict for each item."""
        verdicts = []
        for item in items:
            reward = float(crc32(item.response.encode()) % 2)
            verdicts.append(Verdict(reward, False, False, False, None))
        return verdicts

    def close(self) -> None:
        """Do nothing; there are no processes."""


class GatedDriver(Driver):
    """A driver that generates a step's batch only when the benchmark asks for it."""

    def __init__(self, config: RunConfig, run_id: str, base: Path, drawn_rewards: bool) -> None:
        super().__init__(config, run_id, base)
        if drawn_rewards:
            self.verifier: Any = DrawnVerdicts()
        self._allowed = self._waited_for = self._published = 0
        self._changed = asyncio.Condition()

    async def lease(self, step: int, incarnation: int) -> Any:
        """Note that the learners wait for the step; see ``Driver.lease``."""
        async with self._changed:
            self._waited_for = max(self._waited_for, step)
            self._changed.notify_all()
        return await super().lease(step, incarnation)

    async def begin_rl(self, *arguments: Any) -> None:
        """See ``Driver``; the engines rest until ``make_step``: the other side has the machine."""
        await super().begin_rl(*arguments)
        backend: Any = self.backend
        make_batch = backend.make_batch

        async def make_when_allowed(step: int) -> Any:
            async with self._changed:
                await self._changed.wait_for(lambda: step <= self._allowed)
            return await make_batch(step)

        backend.make_batch = make_when_allowed

    async def publish(
        self, incarnation: int, step: int, path: Path, metrics: dict[str, float]
    ) -> None:
        """See ``Driver.publish``: with it a step is over, and the engines have its weights."""
        await super().publish(incarnation, step, path, metrics)
        async with self._changed:
            self._published = step
            self._changed.notify_all()

    async def make_step(self, step: int) -> tuple[float, Metrics]:
        """Wait until the learners ask for the step, and take it; returns seconds and metrics."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._waited_for >= step)
            began = time.perf_counter()
            self._allowed = step
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._published >= step)
        assert self.session is not None
        return time.perf_counter() - began, self.session.last_metrics


@dataclass
class OwnSide:
    """A run of this project, between ``start`` and ``close``.

    Attributes:
        config: of the run; RL starts from its model.
        folder: for data, checkpoints and metrics; emptied first.
        drawn_rewards: see ``DrawnVerdicts``.
        step: the last step taken.
    """

    config: RunConfig
    folder: Path
    drawn_rewards: bool
    step: int = 0

    def write_prompts(self) -> Path:
        """Make the problems, and a file with the same ones for TRL, in the same order.

        Returns:
            The file: JSON lines with a conversation and its answer.
        """
        config = self.config
        shutil.rmtree(self.folder, ignore_errors=True)
        task = build_task(config.task, config.seeds.data)
        tokenizer = load_tokenizer(config.model.path)
        data = self.folder / "data" / "rl"
        count = config.rl.prompts_per_step * config.rl.steps
        write_problems(task, "rl", count, tokenizer, config.model, data)
        lines = []
        for problem in read_problems(data):
            prompt = messages(task.system_prompt, problem.question)
            lines.append(json.dumps({"prompt": prompt, "answer": problem.answer}) + "\n")
        file = self.folder / "prompts.jsonl"
        file.write_text("".join(lines))
        return file

    def start(self) -> None:
        """Start engines and learners."""
        connect(self.config.ray)
        base = Path(self.config.model.path).absolute()
        run_id = f"bench-{self.folder.name}"
        driver = ray.remote(GatedDriver).options(num_cpus=0, max_concurrency=64)
        self._driver: Any = driver.remote(self.config, run_id, base, self.drawn_rewards)
        ray.get(self._driver.start.remote(), timeout=self.config.rollout.start_timeout_s)
        work = self.folder / "rl"
        ray.get(
            self._driver.begin_rl.remote("bench", base, work, self.folder / "data", None, None),
            timeout=60,
        )
        learners = LearnerGroup(
            self.folder, self.config.learner, self.config.model, self.config.ray
        )
        job = (base, work, weights_directory(run_id), self.config.rl, self._driver)
        self._learners = threading.Thread(target=learners.run_rl, args=job)
        self._learners.start()

    def make_step(self) -> tuple[float, Metrics]:
        """Take the next step; returns its seconds and metrics."""
        self.step += 1
        return ray.get(self._driver.make_step.remote(self.step), timeout=DEADLINE_S)

    def close(self) -> None:
        """Take the remaining steps, and stop everything."""
        while self.step < self.config.rl.steps:
            self.make_step()
        self._learners.join()
        ray.get(self._driver.close.remote(), timeout=60)
        ray.shutdown()
