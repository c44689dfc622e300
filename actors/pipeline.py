"""The stages of a run, from top to bottom; a stage is skipped if its artifact has the same key."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from actors.driver_handle import DriverHandle
from actors.learners.group import LearnerGroup
from actors.stage_keys import SFTKind, StageKeys
from bi_ray.config import VANILLA, RecipeConfig, RunConfig, TaskConfig, UserDataConfig
from bi_ray.data.problems import read_problems, write_problems
from bi_ray.files.atomic import write_text
from bi_ray.files.errors import RunError
from bi_ray.files.names import STAGES
from bi_ray.files.records import read_record
from bi_ray.injection.demonstrations import (
    DemonstrationsManifest,
    demonstrate,
    write_demonstrations,
)
from bi_ray.learning.sft import CHECKPOINTS
from bi_ray.policy.checkpoint import copy_policy, load_tokenizer
from bi_ray.policy.published import weights_directory
from bi_ray.readiness.measure import Demonstrations
from bi_ray.rows.fields import MANIFEST
from bi_ray.rows.rejects import REJECTS, Rejects
from bi_ray.runs.checkpoints import StepDirectories
from bi_ray.runs.directory import RunDirectory, StageKey
from bi_ray.runs.display import Display
from bi_ray.runs.metrics import read_steps
from bi_ray.runs.validation import FOLDER as VALIDATION
from bi_ray.runs.validation import OUTCOME, Outcome, outcome_of
from bi_ray.tasks.base import FiniteTask, Task
from bi_ray.tasks.registry import build_task
from bi_ray.tracking.base import Tracked
from bi_ray.tracking.following import Tracking, make_trackers
from bi_ray.tracking.trackers import FOLDER as TRACKERS_FOLDER


class Pipeline:
    """One run of the stages.

    Args:
        config: of the run.
        run_directory: of the run; the caller of ``run`` holds its lock.
        display: shows what goes on.
    """

    def __init__(self, config: RunConfig, run_directory: RunDirectory, display: Display) -> None:
        self.config = config
        self.run_directory = run_directory
        self.display = display
        self.keys = StageKeys(config)
        self._driver = DriverHandle(config, run_directory, display)
        self._warned: set[str] = set()

    def run(self, until: str | None = None) -> None:
        """Every stage that the run directory does not have yet.

        Args:
            until: ``readiness`` ends the run before RL; None: it goes on to the end.

        Raises:
            RunError: the run directory does not fit the configuration.
            LearnerError, DriverError, CheckpointError, DataError: a stage failed; what is finished
                stays.
        """
        try:
            data = self.data()
            if self.config.evaluation.base_model:
                self.evaluate_base(data)
            demonstrations: dict[str, StageKey] = {}
            for arm, recipe in self.config.arms.items():
                if recipe.sft:
                    demonstrations[arm] = self.sft_data(arm, data)
            self._tune(data, demonstrations)
            if self.config.readiness.queries:
                self.readiness_stages(data, demonstrations)
            if until == "readiness":
                return
            if self.config.sft.report_twice_the_budget:
                self._tune_twice(demonstrations)
            for arm in self.config.arms:
                tuned = self.keys.policy(data, demonstrations.get(arm))
                self.evaluate(arm, "rl", self.rl(arm, tuned))
        finally:
            self._driver.close()

    def _tune(self, data: StageKey, demonstrations: Mapping[str, StageKey]) -> None:
        """The policy of every arm before RL, then their evaluations, so that engines start once."""
        tuned = {arm: self.sft(arm, key, "sft") for arm, key in demonstrations.items()}
        for arm in self.config.arms:
            if arm not in tuned:
                tuned[arm] = self.no_sft(arm, data)
        for arm, key in tuned.items():
            self.evaluate(arm, "sft", key)

    def _tune_twice(self, demonstrations: Mapping[str, StageKey]) -> None:
        """SFT with twice the epochs for every arm that has SFT, then the evaluations."""
        tuned = {arm: self.sft(arm, key, "sft_double") for arm, key in demonstrations.items()}
        for arm, key in tuned.items():
            self.evaluate(arm, "sft_double", key)

    def data(self) -> StageKey:
        """Problems of every set, with their manifests, and the bad rows of a user's files."""
        config = self.config
        key = self.keys.data()
        if self._skip("data", key):
            return key
        task, tokenizer = self._task(config.task), load_tokenizer(config.model.path)
        with (
            self.run_directory.commit("data", key) as folder,
            self.display.task("problems", len(config.task.sets)),
        ):
            for name, difficulty in config.task.sets.items():
                manifest = write_problems(
                    task, name, difficulty.problems, tokenizer, config.model, folder / name
                )
                self.display.advance()
                self.display.note(
                    f"{name}: {manifest['problems']} problems, best constant answer "
                    f"{manifest['best_constant_answer']!r} scores "
                    f"{manifest['best_constant_accuracy']:.1%}"
                )
            if isinstance(task, FiniteTask) and task.rejects.rows:
                task.rejects.write(folder / REJECTS)
                for line in task.rejects.summary():
                    self.display.note(line)
                self.display.note(f"every row left out: {self._path('data') / REJECTS}")
        return key

    def sft_data(self, arm: str, data: StageKey) -> StageKey:
        """Demonstrations of an arm: the same problems for every arm, its own behaviors."""
        key = self.keys.sft_data(arm, data)
        stage = f"sft_data/{arm}"
        if self._skip(stage, key):
            return key
        self.run_directory.require_whole("data")
        task, tokenizer = self._task(self.config.task), load_tokenizer(self.config.model.path)
        problems = self._path("data") / "sft"
        with (
            self.run_directory.commit(stage, key) as folder,
            self.display.task(f"demonstrations of {arm}", None),
        ):
            manifest = write_demonstrations(
                task, self.config.arms[arm], self.config, problems, tokenizer, folder
            )
        rates = ", ".join(
            f"{rate:.2f} {behavior}"
            for behavior, rate in manifest["behaviors_per_demonstration"].items()
        )
        self.display.note(
            f"{arm}: {manifest['demonstrations']} demonstrations, each with "
            f"{rates or 'no behaviors'}"
        )
        for line in manifest["rejected"]:
            self.display.note(line)
        return key

    def no_sft(self, arm: str, data: StageKey) -> StageKey:
        """The policy of an arm without SFT: a copy of the base."""
        key, stage = self.keys.no_sft(data), f"sft/{arm}"
        if not self._skip(stage, key):
            with self.run_directory.commit(stage, key) as folder:
                copy_policy(self.config.model.path, folder / "policy")
            self.display.note(f"{arm}: no SFT, RL starts from {self.config.model.path}")
        return key

    def sft(self, arm: str, sft_data: StageKey, kind: SFTKind) -> StageKey:
        """Supervised fine-tuning of the base on an arm's demonstrations."""
        config, sft = self.config, self.keys.sft_config(kind)
        key, stage = self.keys.sft(sft_data, kind), f"{kind}/{arm}"
        if self._skip(stage, key):
            return key
        self.run_directory.require_whole(f"sft_data/{arm}")
        self._driver.connect()
        began = time.monotonic()
        demonstrations = self._path(f"sft_data/{arm}")
        manifest = read_record(demonstrations / MANIFEST, DemonstrationsManifest)
        steps = -(-manifest.demonstrations // sft.batch_examples) * sft.epochs
        title = f"SFT of {arm}" + (", twice the budget" if kind == "sft_double" else "")
        work = self.run_directory.work(stage, key)
        StepDirectories(work / CHECKPOINTS).recover(steps, self.display.note)
        base = Path(config.model.path)
        with self._training(stage, title, steps, work):
            self._learners().run_sft(base, demonstrations, work, sft, config.seeds.training)
        self._keep(stage, key, work / "policy", work / "metrics.jsonl", began)
        return key

    def readiness_stages(self, data: StageKey, demonstrations: Mapping[str, StageKey]) -> None:
        """Problems of the target, then the readiness of every arm's policy before RL."""
        target = self.target(data)
        for arm in self.config.arms:
            tuned = self.keys.policy(data, demonstrations.get(arm))
            measured = self.readiness(arm, tuned, target)
            if self.config.readiness.realized_queries:
                self.realized(arm, measured)

    def target(self, data: StageKey) -> StageKey:
        """Problems of ``influence_target``: no other set has any of them."""
        config, key = self.config, self.keys.target(data)
        if self._skip("target", key):
            return key
        task, tokenizer = self._task(self.keys.target_task()), load_tokenizer(config.model.path)
        count = config.readiness.target_queries
        with self.run_directory.commit("target", key) as folder:
            write_problems(
                task, "influence_target", count, tokenizer, config.model, folder, exactly=False
            )
        return key

    def readiness(self, arm: str, tuned: StageKey, target: StageKey) -> StageKey:
        """Rollout accuracy and influence of an arm's policy before RL."""
        recipe = self.config.arms[arm]
        # without SFT the same as readiness_of_base measures
        made_by = {"sft": tuned.digest} if recipe.sft else self.keys.base()
        policy = self._path(f"sft/{arm}/policy")
        return self._readiness(arm, policy, made_by, self._held_out_recipes(recipe), target)

    def readiness_of_base(self) -> None:
        """Rollout accuracy and influence of the checkpoint at ``model.path``, as it is."""
        policy = Path(self.config.model.path).absolute()
        try:
            target = self.target(self.data())
            self._readiness("base", policy, self.keys.base(), self._held_out_recipes(None), target)
        finally:
            self._driver.close()

    def _held_out_recipes(self, own: RecipeConfig | None) -> dict[str, RecipeConfig]:
        """The recipes on whose demonstrations of the target's problems perplexity is measured.

        Free text has one kind of demonstrations only.
        """
        if isinstance(self.config.task, UserDataConfig):
            return {"held-out demonstrations": VANILLA}
        recipes: dict[str, RecipeConfig] = {}
        if own and own.sft and not own.demonstrations:
            recipes["own demonstrations"] = own
        recipes["vanilla demonstrations"] = VANILLA
        return recipes

    def _readiness(
        self,
        name: str,
        policy: Path,
        made_by: Mapping[str, str],
        recipes: dict[str, RecipeConfig],
        target: StageKey,
    ) -> StageKey:
        """Measure a policy; ``made_by`` has the digest of what made it, by stage."""
        settings = self.config.readiness
        key, stage = self.keys.readiness(made_by, recipes, target), f"readiness/{name}"
        if self._skip(stage, key):
            return key
        self.run_directory.require_whole("data", "target", *self._stages_of(policy))
        driver = self._driver.actor()
        with self.run_directory.commit(stage, key) as folder:
            held_out = self._held_out_demonstrations(recipes)
            reference = driver.measure.remote(
                policy, self._path("data/rl"), self._path("target"), held_out, folder
            )
            limit_s = settings.timeout_s + settings.start_timeout_s
            with self.display.task(f"readiness of {name}", None):
                self._driver.call_with_progress(reference, limit_s)
        return key

    def _held_out_demonstrations(
        self, recipes: Mapping[str, RecipeConfig]
    ) -> dict[str, Demonstrations]:
        """Demonstrations of the target's problems by every recipe: tokens of (prompt, response)."""
        config = self.config
        task, tokenizer = self._task(config.task), load_tokenizer(config.model.path)
        problems = [row for row in read_problems(self._path("target")) if row.graph or row.response]
        if not problems:
            return {}
        held_out: dict[str, Demonstrations] = {}
        for name, recipe in recipes.items():
            rows = demonstrate(task, recipe, config, problems, tokenizer, Rejects())
            held_out[name] = [(row["prompt_tokens"], row["response_tokens"]) for row in rows]
        return held_out

    def realized(self, arm: str, readiness: StageKey) -> None:
        """What single SGD steps really change, against what influence predicted."""
        settings = self.config.readiness
        key, stage = self.keys.realized(readiness), f"realized/{arm}"
        if self._skip(stage, key):
            return
        self.run_directory.require_whole("target", f"sft/{arm}", f"readiness/{arm}")
        driver, policy = self._driver.actor(), self._path(f"sft/{arm}/policy")
        with self.run_directory.commit(stage, key) as folder:
            reference = driver.realize.remote(
                policy, self._path(f"readiness/{arm}"), self._path("target"), folder
            )
            with self.display.task(f"steps on single queries of {arm}", settings.realized_queries):
                self._driver.call_with_progress(reference, settings.timeout_s)

    def queries(self, arm: str, tuned: StageKey) -> StageKey:
        """Rejection of RL queries by the SFT policy's own rollouts (``rl.query_filter``)."""
        settings = self.config.rl.query_filter
        assert settings is not None
        key, stage = self.keys.queries(tuned), f"queries/{arm}"
        if self._skip(stage, key):
            return key
        self.run_directory.require_whole("data", f"sft/{arm}")
        driver, policy = self._driver.actor(), self._path(f"sft/{arm}/policy")
        with (
            self.run_directory.commit(stage, key) as folder,
            self.display.task(f"RL queries of {arm}", None),
        ):
            reference = driver.select_queries.remote(policy, self._path("data/rl"), folder)
            summary = self._driver.call_with_progress(reference, settings.timeout_s)
            (folder / MANIFEST).write_text(json.dumps(summary))
        self.display.note(
            f"{arm}: {summary['kept']} of {summary['queries']} RL queries kept; right of "
            f"{settings.samples_per_prompt} samples: {summary['right']}, failed: "
            f"{summary['failed']}"
        )
        return key

    def rl(self, arm: str, tuned: StageKey) -> StageKey:
        """RL from the policy of an arm: the learners pull batches, the driver serves them."""
        queries = self.queries(arm, tuned) if self.config.rl.query_filter else None
        key, stage = self.keys.rl(tuned, queries), f"rl/{arm}"
        if self._skip(stage, key):
            return key
        self.run_directory.require_whole("data", f"sft/{arm}")
        if queries:
            self.run_directory.require_whole(f"queries/{arm}")
        began = time.monotonic()
        driver, base = self._driver.actor(), self._path(f"sft/{arm}/policy")
        work = self.run_directory.work(stage, key)
        self._begin_rl(arm, base, work)
        checkpoints = StepDirectories(work)
        checkpoints.recover(self.config.rl.steps, self.display.note)
        with self._training(stage, f"RL of {arm}", self.config.rl.steps, work):
            weights = weights_directory(self.run_directory.run_id)
            self._learners().run_rl(base, work, weights, self.config.rl, driver)
        self._end_rl()
        outcome = self._outcome(arm, work, checkpoints)
        write_text(work / OUTCOME, json.dumps(asdict(outcome)))
        policy = work / f"step_{outcome.step}" / "policy" if outcome.step else base
        self._keep(stage, key, policy, work / "metrics.jsonl", began)
        return key

    def _begin_rl(self, arm: str, base: Path, work: Path) -> None:
        config, driver = self.config, self._driver.actor()
        watches = config.readiness.queries and config.readiness.every_rl_steps
        target = self._path("target") if watches else None
        selection = self._path(f"queries/{arm}") if config.rl.query_filter else None
        begun = driver.begin_rl.remote(arm, base, work, self._path("data"), target, selection)
        limit_s = config.ray.call_timeout_s + config.readiness.start_timeout_s
        self._driver.call(begun, limit_s)

    def _end_rl(self) -> None:
        """Wait for the analysis of a late step, which may still run although RL is over."""
        limit_s = self.config.ray.call_timeout_s + self.config.readiness.timeout_s
        self._driver.call(self._driver.actor().end_rl.remote(), limit_s)

    def _outcome(self, arm: str, work: Path, checkpoints: StepDirectories) -> Outcome:
        """Which step's policy is the result of RL.

        Raises:
            RunError: the checkpoint of that step is damaged.
        """
        whole = checkpoints.whole_steps(self.display.note)
        outcome = outcome_of(read_steps(work / "metrics.jsonl"), self.config.rl, whole | {0})
        if outcome.step and outcome.step not in whole:
            raise RunError(
                f"rl/{arm}: the checkpoint of step {outcome.step}, which is the result, is "
                "damaged; run the same command again to resume from the newest intact one"
            )
        if outcome.stopped:
            self.display.note(f"RL of {arm}: {outcome.stopped}")
        if outcome.step != outcome.last_step:
            self.display.note(
                f"RL of {arm}: the policy after step {outcome.step}, the best one, is kept"
            )
        return outcome

    def evaluate(self, arm: str, trained_by: str, policy: StageKey) -> None:
        """Greedy and sampled responses of a policy on the test sets, every one kept."""
        self._evaluate(
            f"eval_{trained_by}/{arm}",
            self._path(f"{trained_by}/{arm}/policy"),
            {trained_by: policy.digest},
            f"{arm} after {trained_by}",
        )

    def evaluate_base(self, data: StageKey) -> None:
        """Greedy and sampled responses of the model that SFT starts from."""
        policy = Path(self.config.model.path).absolute()
        made_by = {**self.keys.base(), "data": data.digest}
        self._evaluate("eval_base", policy, made_by, "the base")

    def _evaluate(self, stage: str, policy: Path, made_by: Mapping[str, str], title: str) -> None:
        evaluation, key = self.config.evaluation, self.keys.evaluation(made_by)
        if self._skip(stage, key):
            return
        self.run_directory.require_whole("data", *self._stages_of(policy))
        driver = self._driver.actor()
        with self.run_directory.commit(stage, key) as folder:
            for name in evaluation.sets:
                reference = driver.evaluate.remote(
                    policy, self._path(f"data/{name}"), folder / f"{name}.jsonl"
                )
                with self.display.task(f"evaluation of {title}, {name}", None):
                    failures = self._driver.call_with_progress(reference, evaluation.timeout_s)
                if failures:
                    self.display.note(f"{title}, {name}: {failures}")

    # What the stages share

    def _task(self, task: TaskConfig) -> Task:
        return build_task(task, self.config.seeds.data, self.config.verifier)

    def _learners(self) -> LearnerGroup:
        config = self.config
        return LearnerGroup(self.run_directory.path, config.learner, config.model, config.ray)

    def _path(self, artifact: str) -> Path:
        return self.run_directory.path / artifact

    def _stages_of(self, policy: Path) -> list[str]:
        """The stage of this run that made a policy; empty for a base, even one in the directory."""
        stage, run = policy.parent, self.run_directory.path
        if not stage.is_relative_to(run):
            return []
        name = stage.relative_to(run)
        return [name.as_posix()] if name.parts and name.parts[0] in STAGES else []

    def _skip(self, stage: str, key: StageKey) -> bool:
        done = self.run_directory.is_done(stage, key)
        if done:
            self.display.note(f"{stage}: already done")
        return done

    def _keep(self, stage: str, key: StageKey, policy: Path, metrics: Path, began: float) -> None:
        with self.run_directory.commit(stage, key, began) as folder:
            shutil.copytree(policy, folder / "policy")
            shutil.copy(metrics, folder / "metrics.jsonl")
            for name in ("influence.jsonl", OUTCOME):
                if (file := metrics.with_name(name)).exists():
                    shutil.copy(file, folder)
            if (validation := metrics.with_name(VALIDATION)).exists():
                shutil.copytree(validation, folder / VALIDATION)

    def _warn(self, text: str) -> None:
        """Show a note once, although every training repeats it."""
        if text not in self._warned:
            self._warned.add(text)
            self.display.note(text)

    @contextmanager
    def _training(self, stage: str, title: str, steps: int, work: Path) -> Iterator[None]:
        """Show and track the figures of a training, and keep its checkpoints where the run is."""
        kind, _, arm = stage.partition("/")
        metrics = work / "metrics.jsonl"
        tracked = Tracked(
            self.config.name,
            self.run_directory.run_id,
            kind,
            arm,
            self._path(TRACKERS_FOLDER),
            self.config.model_dump(mode="json"),
        )
        with (
            self.run_directory.keeping_work(stage, self.display.note),
            Tracking(make_trackers(self.config, self._warn), tracked, metrics, self._warn),
            self.display.training(title, steps, metrics),
        ):
            yield
