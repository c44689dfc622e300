"""Validation while RL trains: the policy that the engines hold, on sets that it is not trained on."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from bi_ray.config import EvaluationConfig, RLConfig
from bi_ray.data.problems import ProblemRow, read_problems
from bi_ray.files.atomic import write_text
from bi_ray.runs.layout import METRICS_FILE, VALIDATION
from bi_ray.runs.metrics import read_steps
from bi_ray.runs.validation import scores_of, stops_after, summarize

Evaluate = Callable[[Sequence[ProblemRow], EvaluationConfig], Awaitable[list[dict[str, Any]]]]


class Validator:
    """The validations of one arm's RL.

    Args:
        config: of RL; ``validation`` says what and how often.
        data: folder of the sets of problems.
        out: the work folder of the stage; gets ``validation/STEP.jsonl``, a row per sample.
        evaluate: samples and verifies with the current policy.
    """

    def __init__(self, config: RLConfig, data: Path, out: Path, evaluate: Evaluate) -> None:
        self._config = config
        self._out = out
        self._evaluate = evaluate
        chosen = config.validation
        self._sets = (
            {name: read_problems(data / name)[: chosen.problems] for name in chosen.sets}
            if chosen
            else {}
        )

    async def validate(self, step: int) -> dict[str, Any]:
        """The figures of the policy after ``step``; none where no validation is due."""
        chosen = self._config.validation
        if chosen is None or not chosen.is_due(step, self._config.steps):
            return {}
        rows: list[dict[str, Any]] = []
        figures: dict[str, Any] = {}
        for name, problems in self._sets.items():
            asked = EvaluationConfig(
                samples_per_prompt=chosen.samples_per_prompt,
                sampled_problems=max(1, len(problems)),
                temperature=chosen.temperature,
            )
            found = await self._evaluate(problems, asked)
            rows += [{"set": name} | row for row in found]
            figures |= summarize(name, found, chosen)
        self._keep(step, rows)
        return figures

    def _keep(self, step: int, rows: list[dict[str, Any]]) -> None:
        file = self._out / VALIDATION / f"{step}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, "".join(json.dumps(row) + "\n" for row in rows))

    def is_over(self, step: int) -> bool:
        """Whether RL ends with ``step``, before its last one: the patience is at its end."""
        if self._config.validation is None or self._config.validation.patience is None:
            return False
        rows = read_steps(self._out / METRICS_FILE)
        last = stops_after(scores_of(rows, self._config.validation), self._config.validation)
        return last is not None and step >= last
