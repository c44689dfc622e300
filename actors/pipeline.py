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
from bi_ray.config.recipes import VANILLA, RecipeConfig
from bi_ray.config.run import RunConfig
from bi_ray.config.tasks import TaskConfig, UserDataConfig
from bi_ray.data.problems import read_problems, write_problems
from bi_ray.files.atomic import write_text
from bi_ray.files.errors import RunError
from bi_ray.injection.demonstrations import (
    DemonstrationsManifest,
    demonstrate,
    write_demonstrations,
)
from bi_ray.policy.checkpoint import copy_policy, load_tokenizer
from bi_ray.policy.published import weights_directory
from bi_ray.readiness.measure import Demonstrations
from bi_ray.rows.fields import MANIFEST
from bi_ray.rows.rejects import REJECTS, Rejects
from bi_ray.runs.checkpoints import StepDirectories
from bi_ray.runs.directory import RunDirectory
from bi_ray.runs.display import Display
from bi_ray.runs.layout import (
    DATA,
    EVAL_BASE,
    INFLUENCE_FILE,
    METRICS_FILE,
    OUTCOME_FILE,
    POLICY,
    QUERIES,
    READINESS,
    REALIZED,
    RL,
    SFT,
    SFT_CHECKPOINTS,
    SFT_DATA,
    STAGES,
    TARGET,
    TRACKERS,
    VALIDATION,
    samples_file,
    stage_of,
    step_name,
)
from bi_ray.runs.metrics import read_steps
from bi_ray.runs.records import read_record
from bi_ray.runs.stage_key import StageKey
from bi_ray.runs.validation import Outcome, outcome_of
from bi_ray.tasks.base import FiniteTask, Task
from bi_ray.tasks.registry import build_task
from bi_ray.tracking.base import Tracked
from bi_ray.tracking.following import Tracking, make_trackers


class Pipeline:
    """One run of the stages.

    Args:
        config: of the run.
        run_directory: of the run; whoever calls a method holds its lock.
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
        if self._skip(DATA, key):
            return key
        task, tokenizer = self._task(config.task), load_tokenizer(config.model.path)
        with (
            self.run_directory.commit(DATA, key) as folder,
            self.display.task("problems", len(config.task.sets)),
        ):
            for name, difficulty in config.task.sets.items():
                manifest = write_problems(
                    task, name, difficulty.problems, tokenizer, config.model, folder / name
                )
                self.display.advance()
                self.display.note(
                    f"{name}: {manifest['problems']:,} problems; the best constant answer, "
                    f"{manifest['best_constant_answer']!r}, scores "
                    f"{manifest['best_constant_accuracy']:.1%}"
                )
            if isinstance(task, FiniteTask) and task.rejects.rows:
                task.rejects.write(folder / REJECTS)
                for line in task.rejects.summary():
                    self.display.note(line)
                self.display.note(f"every row left out: {self._path(DATA) / REJECTS}")
        return key

    def sft_data(self, arm: str, data: StageKey) -> StageKey:
        """Demonstrations of an arm: the same problems for every arm, its own behaviors."""
        key = self.keys.sft_data(arm, data)
        stage = stage_of(SFT_DATA, arm)
        if self._skip(stage, key):
            return key
        self.run_directory.require_whole(DATA)
        task, tokenizer = self._task(self.config.task), load_tokenizer(self.config.model.path)
        problems = self._path(DATA) / SFT
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
            f"{arm}: {manifest['demonstrations']} demonstrations; behaviors in each: "
            f"{rates or 'none'}"
        )
        for line in manifest["rejected"]:
            self.display.note(line)
        return key

    def no_sft(self, arm: str, data: StageKey) -> StageKey:
        """The policy of an arm without SFT: a copy of the base."""
        key, stage = self.keys.no_sft(data), stage_of(SFT, arm)
        if not self._skip(stage, key):
            with self.run_directory.commit(stage, key) as folder:
                copy_policy(self.config.model.path, folder / POLICY)
            self.display.note(f"{arm}: no SFT, RL starts from {self.config.model.path}")
        return key

    def sft(self, arm: str, sft_data: StageKey, kind: SFTKind) -> StageKey:
        """Supervised fine-tuning of the base on an arm's demonstrations."""
        config, sft = self.config, self.keys.sft_config(kind)
        key, stage = self.keys.sft(sft_data, kind), stage_of(kind, arm)
        if self._skip(stage, key):
            return key
        self.run_directory.require_whole(stage_of(SFT_DATA, arm))
        self._driver.connect()
        began = time.monotonic()
        demonstrations = self._path(stage_of(SFT_DATA, arm))
        manifest = read_record(demonstrations / MANIFEST, DemonstrationsManifest)
        steps = -(-manifest.demonstrations // sft.batch_examples) * sft.epochs
        title = f"SFT of {arm}" + (", twice the budget" if kind == "sft_double" else "")
        work = self.run_directory.work(stage, key)
        StepDirectories(work / SFT_CHECKPOINTS).recover(steps, self.display.note)
        base = Path(config.model.path)
        with self._training(stage, title, steps, work):
            self._learners().run_sft(base, demonstrations, work, sft, config.seeds.training)
        self._keep(stage, key, work / POLICY, work / METRICS_FILE, began)
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
        if self._skip(TARGET, key):
            return key
        task, tokenizer = self._task(self.keys.target_task()), load_tokenizer(config.model.path)
        count = config.readiness.target_queries
        with self.run_directory.commit(TARGET, key) as folder:
            write_problems(
                task, "influence_target", count, tokenizer, config.model, folder, exactly=False
            )
        return key

    def readiness(self, arm: str, tuned: StageKey, target: StageKey) -> StageKey:
        """Rollout accuracy and influence of an arm's policy before RL."""
        recipe = self.config.arms[arm]
        # without SFT the same as readiness_of_base measures
        made_by = {"sft": tuned.digest} if recipe.sft else self.keys.base()
        policy = self._path(stage_of(SFT, arm)) / POLICY
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
        key, stage = self.keys.readiness(made_by, recipes, target), stage_of(READINESS, name)
        if self._skip(stage, key):
            return key
        self.run_directory.require_whole(DATA, TARGET, *self._stages_of(policy))
        driver = self._driver.actor()
        with self.run_directory.commit(stage, key) as folder:
            held_out = self._held_out_demonstrations(recipes)
            reference = driver.measure.remote(
                policy, self._path(DATA) / RL, self._path(TARGET), held_out, folder
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
        problems = [row for row in read_problems(self._path(TARGET)) if row.graph or row.response]
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
        key, stage = self.keys.realized(readiness), stage_of(REALIZED, arm)
        if self._skip(stage, key):
            return
        self.run_directory.require_whole(TARGET, stage_of(SFT, arm), stage_of(READINESS, arm))
        driver, policy = self._driver.actor(), self._path(stage_of(SFT, arm)) / POLICY
        with self.run_directory.commit(stage, key) as folder:
            reference = driver.realize.remote(
                policy, self._path(stage_of(READINESS, arm)), self._path(TARGET), folder
            )
            with self.display.task(f"steps on single queries of {arm}", settings.realized_queries):
                self._driver.call_with_progress(reference, settings.timeout_s)

    def queries(self, arm: str, tuned: StageKey) -> StageKey:
        """Rejection of RL queries by the SFT policy's own rollouts (``rl.query_filter``)."""
        settings = self.config.rl.query_filter
        assert settings is not None
        key, stage = self.keys.queries(tuned), stage_of(QUERIES, arm)
        if self._skip(stage, key):
            return key
        self.run_directory.require_whole(DATA, stage_of(SFT, arm))
        driver, policy = self._driver.actor(), self._path(stage_of(SFT, arm)) / POLICY
        with (
            self.run_directory.commit(stage, key) as folder,
            self.display.task(f"RL queries of {arm}", None),
        ):
            reference = driver.select_queries.remote(policy, self._path(DATA) / RL, folder)
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
        key, stage = self.keys.rl(tuned, queries), stage_of(RL, arm)
        if self._skip(stage, key):
            return key
        self.run_directory.require_whole(DATA, stage_of(SFT, arm))
        if queries:
            self.run_directory.require_whole(stage_of(QUERIES, arm))
        began = time.monotonic()
        driver, base = self._driver.actor(), self._path(stage_of(SFT, arm)) / POLICY
        work = self.run_directory.work(stage, key)
        self._begin_rl(arm, base, work)
        checkpoints = StepDirectories(work)
        checkpoints.recover(self.config.rl.steps, self.display.note)
        with self._training(stage, f"RL of {arm}", self.config.rl.steps, work):
            weights = weights_directory(self.run_directory.run_id)
            self._learners().run_rl(base, work, weights, self.config.rl, driver)
        self._end_rl()
        outcome = self._outcome(arm, work, checkpoints)
        write_text(work / OUTCOME_FILE, json.dumps(asdict(outcome)))
        policy = work / step_name(outcome.step) / POLICY if outcome.step else base
        self._keep(stage, key, policy, work / METRICS_FILE, began)
        return key

    def _begin_rl(self, arm: str, base: Path, work: Path) -> None:
        config, driver = self.config, self._driver.actor()
        watches = config.readiness.queries and config.readiness.every_rl_steps
        target = self._path(TARGET) if watches else None
        selection = self._path(stage_of(QUERIES, arm)) if config.rl.query_filter else None
        begun = driver.begin_rl.remote(arm, base, work, self._path(DATA), target, selection)
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
        outcome = outcome_of(read_steps(work / METRICS_FILE), self.config.rl, whole | {0})
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
            stage_of(f"eval_{trained_by}", arm),
            self._path(stage_of(trained_by, arm)) / POLICY,
            {trained_by: policy.digest},
            f"{arm} after {trained_by}",
        )

    def evaluate_base(self, data: StageKey) -> None:
        """Greedy and sampled responses of the model that SFT starts from."""
        policy = Path(self.config.model.path).absolute()
        made_by = {**self.keys.base(), "data": data.digest}
        self._evaluate(EVAL_BASE, policy, made_by, "the base")

    def _evaluate(self, stage: str, policy: Path, made_by: Mapping[str, str], title: str) -> None:
        evaluation, key = self.config.evaluation, self.keys.evaluation(made_by)
        if self._skip(stage, key):
            return
        self.run_directory.require_whole(DATA, *self._stages_of(policy))
        driver = self._driver.actor()
        with self.run_directory.commit(stage, key) as folder:
            for name in evaluation.sets:
                reference = driver.evaluate.remote(
                    policy, self._path(DATA) / name, folder / samples_file(name)
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
            shutil.copytree(policy, folder / POLICY)
            shutil.copy(metrics, folder / METRICS_FILE)
            for name in (INFLUENCE_FILE, OUTCOME_FILE):
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
        metrics = work / METRICS_FILE
        tracked = Tracked(
            self.config.name,
            self.run_directory.run_id,
            kind,
            arm,
            self._path(TRACKERS),
            self.config.model_dump(mode="json"),
        )
        with (
            self.run_directory.keeping_work(stage, self.display.note),
            Tracking(make_trackers(self.config, self._warn), tracked, metrics, self._warn),
            self.display.training(title, steps, metrics),
        ):
            yield
