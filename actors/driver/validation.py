"""Validation while RL trains: the policy of the engines, on sets that it is not trained on."""

from __future__ import annotations

import json
from pathlib import Path

from actors.driver.sampling import Evaluator, JsonRow
from bi_ray.config.evaluation import EvaluationConfig
from bi_ray.config.training import RLConfig
from bi_ray.data.problems import ProblemRow, read_problems
from bi_ray.files.atomic import write_text
from bi_ray.runs.layout import METRICS_FILE, VALIDATION
from bi_ray.runs.metrics import read_steps
from bi_ray.runs.validation import scores_of, stops_after, summarize


class Validator:
    """The validations of one arm's RL.

    Args:
        config: of RL; ``validation`` sets what is validated and how often.
        data: folder of the sets of problems.
        out: the work folder of the stage; gets ``validation/STEP.jsonl``, a row per sample.
        evaluator: samples and verifies with the current policy.
    """

    def __init__(self, config: RLConfig, data: Path, out: Path, evaluator: Evaluator) -> None:
        self._config = config
        self._out = out
        self._evaluator = evaluator
        self._sets: dict[str, list[ProblemRow]] = {}
        if config.validation:
            for name in config.validation.sets:
                self._sets[name] = read_problems(data / name)[: config.validation.problems]

    async def validate(self, step: int) -> dict[str, float]:
        """The figures of the policy after ``step``; empty where no validation is due.

        Waits for the engines and the verifier.

        Raises:
            VerdictError: see ``actors.driver.sampling.evaluate``.
        """
        config = self._config.validation
        if config is None or not config.is_due(step, self._config.steps):
            return {}
        rows: list[JsonRow] = []
        figures: dict[str, float] = {}
        for name, problems in self._sets.items():
            evaluation = EvaluationConfig(
                samples_per_prompt=config.samples_per_prompt,
                sampled_problems=max(1, len(problems)),
                temperature=config.temperature,
            )
            samples = await self._evaluator.evaluate(problems, evaluation)
            rows += [{"set": name} | sample for sample in samples]
            figures |= summarize(name, samples, config)
        self._write(step, rows)
        return figures

    def _write(self, step: int, rows: list[JsonRow]) -> None:
        file = self._out / VALIDATION / f"{step}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, "".join(json.dumps(row) + "\n" for row in rows))

    def last_step(self) -> int | None:
        """The step with which the patience is at its end, by the rows of metrics so far.

        Reads all of the metrics file; None while the patience is not at its end.
        """
        config = self._config.validation
        if config is None or config.patience is None:
            return None
        rows = read_steps(self._out / METRICS_FILE)
        return stops_after(scores_of(rows, config), config)
