"""The stages of a run, read top to bottom. Each is skipped when its artifact is there under the
same key.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import ray

from actors.cluster import NAMESPACE, check_shared, connect, free_driver_name, write_address
from actors.driver.driver import Driver, driver_concurrency
from actors.driver.notes import NoteFollower
from actors.learners.group import LearnerGroup
from actors.learners.loops import DRIVER_DIED
from bi_ray.config import VANILLA, RecipeConfig, RunConfig, SFTConfig, TaskConfig, UserDataConfig
from bi_ray.data.problems import read_problems, write_problems
from bi_ray.files.atomic import write_text
from bi_ray.files.errors import RunError
from bi_ray.files.private import private_folder
from bi_ray.injection.demonstrations import (
    DemonstrationsManifest,
    demonstrate,
    write_demonstrations,
)
from bi_ray.policy.checkpoint import copy_policy, digest, load_tokenizer
from bi_ray.policy.published import SHARED_MEMORY, weights_directory
from bi_ray.readiness.measure import Demonstrations
from bi_ray.rows.fields import MANIFEST
from bi_ray.rows.files import file_digest
from bi_ray.rows.rejects import REJECTS, Rejects
from bi_ray.runs.checkpoints import StepDirectories
from bi_ray.runs.directory import RunDirectory
from bi_ray.runs.display import Display
from bi_ray.runs.keys import StageKey, key_of
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
from bi_ray.runs.validation import outcome_of
from bi_ray.tasks.base import FiniteTask, Task
from bi_ray.tasks.registry import build_task, data_files, target_config
from bi_ray.tracking.base import Tracked
from bi_ray.tracking.following import Tracking, make_trackers

SFTKind = Literal["sft", "sft_double"]
_POLL_S = 0.5
# options on which no result depends
_CHECKPOINTS = ("checkpoint_every_steps", "keep_last", "keep_best")


class DriverError(RunError):
    """The driver actor did not answer in time, or died."""


@dataclass(slots=True)
class Pipeline:
    """One run of the stages. A stage's key covers its options and the digests of the stages that it
    reads.
    """

    config: RunConfig
    run_directory: RunDirectory
    display: Display
    _driver: Any = None
    _notes: NoteFollower | None = None
    _warned: set[str] = field(default_factory=set)

    def run(self, until: str | None = None) -> None:
        """Every stage that the run directory does not have yet, up to RL or to the end. The caller
        holds its lock.

        Args:
            until: ``readiness``: what can be known before RL, and no more.

        Raises:
            RunError: the run directory does not fit the configuration.
            LearnerError, DriverError, CheckpointError, DataError: a stage cannot go on; what is
            finished stays.
        """
        try:
            data = self.data()
            if self.config.evaluation.base_model:
                self.evaluate_base(data)
            demonstrations = {
                arm: self.sft_data(arm, data)
                for arm, recipe in self.config.arms.items()
                if recipe.sft
            }
            self._tune(data, demonstrations, "sft")
            if self.config.readiness.queries:
                self.readiness_stages(data, demonstrations)
            if until == "readiness":
                return
            if self.config.sft.report_twice_the_budget:
                self._tune(data, demonstrations, "sft_double")
            for arm in self.config.arms:
                self.evaluate(arm, "rl", self.rl(arm, self._policy_key(arm, data, demonstrations)))
        finally:
            self._stop_driver()

    def _tune(self, data: StageKey, demonstrations: dict[str, StageKey], kind: SFTKind) -> None:
        """SFT of every arm, then its evaluation: the engines start once. Without SFT the base is an
        arm's policy.
        """
        tuned = {arm: self.sft(arm, key, kind) for arm, key in demonstrations.items()}
        if kind == "sft":
            tuned |= {arm: self.no_sft(arm, data) for arm in self.config.arms if arm not in tuned}
        for arm, key in tuned.items():
            self.evaluate(arm, kind, key)

    def data(self) -> StageKey:
        """Problems of every set, with their manifests, and the bad rows of a user's files."""
        config = self.config
        key = key_of(
            {"task": config.task, "data_seed": config.seeds.data, "limits": self._limits()},
            {"base": digest(Path(config.model.path)), **data_files(config.task)},
        )
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
                    f"{name}: {manifest['problems']} problems, best constant answer "
                    f"{manifest['best_constant_answer']!r} scores {manifest['best_constant_accuracy']:.1%}"
                )
            if isinstance(task, FiniteTask) and task.rejects.rows:
                task.rejects.write(folder / REJECTS)
                for line in [
                    *task.rejects.summary(),
                    f"every row left out: {self._path('data') / REJECTS}",
                ]:
                    self.display.note(line)
        return key

    def sft_data(self, arm: str, data: StageKey) -> StageKey:
        """Demonstrations of an arm: the same problems for every arm, its own behaviors."""
        key = self._sft_data_key(arm, data)
        stage = stage_of(SFT_DATA, arm)
        if self._skip(stage, key):
            return key
        self.run_directory.require_whole(DATA)
        task, tokenizer = self._task(self.config.task), load_tokenizer(self.config.model.path)
        with (
            self.run_directory.commit(stage, key) as folder,
            self.display.task(f"demonstrations of {arm}", None),
        ):
            manifest = write_demonstrations(
                task,
                self.config.arms[arm],
                self.config,
                self._path(DATA) / SFT,
                tokenizer,
                folder,
            )
        rates = ", ".join(
            f"{v:.2f} {k}" for k, v in manifest["behaviors_per_demonstration"].items()
        )
        self.display.note(
            f"{arm}: {manifest['demonstrations']} demonstrations with {rates or 'no behaviors'} each"
        )
        for line in manifest["rejected"]:
            self.display.note(line)
        return key

    def no_sft(self, arm: str, data: StageKey) -> StageKey:
        """The policy of an arm without SFT: a copy of the base."""
        key, stage = self._no_sft_key(data), stage_of(SFT, arm)
        if not self._skip(stage, key):
            with self.run_directory.commit(stage, key) as folder:
                copy_policy(self.config.model.path, folder / POLICY)
            self.display.note(f"{arm}: no SFT, RL starts from {self.config.model.path}")
        return key

    def sft(self, arm: str, sft_data: StageKey, kind: SFTKind) -> StageKey:
        """Supervised fine-tuning of the base on an arm's demonstrations."""
        key, sft = self._sft_key(arm, sft_data, kind), self._sft_config(kind)
        stage = stage_of(kind, arm)
        if self._skip(stage, key):
            return key
        self.run_directory.require_whole(stage_of(SFT_DATA, arm))
        self._connect()
        began = time.monotonic()
        work, config = self.run_directory.work(stage, key), self.config
        learners = LearnerGroup(self.run_directory.path, config.learner, config.model, config.ray)
        manifest = read_record(
            self._path(stage_of(SFT_DATA, arm)) / MANIFEST, DemonstrationsManifest
        )
        steps = -(-manifest.demonstrations // sft.batch_examples) * sft.epochs
        title = f"SFT of {arm}" + (", twice the budget" if kind == "sft_double" else "")
        StepDirectories(work / SFT_CHECKPOINTS).recover(steps, self.display.note)
        with self._training(stage, title, steps, work):
            learners.run_sft(
                Path(config.model.path),
                self._path(stage_of(SFT_DATA, arm)),
                work,
                sft,
                config.seeds.training,
            )
        self._keep(stage, key, work / POLICY, work / METRICS_FILE, began)
        return key

    def readiness_stages(self, data: StageKey, demonstrations: dict[str, StageKey]) -> None:
        """Problems of the target, then the readiness of every arm's SFT policy."""
        target = self.target(data)
        for arm in self.config.arms:
            measured = self.readiness(arm, self._policy_key(arm, data, demonstrations), target)
            if self.config.readiness.realized_queries:
                self.realized(arm, measured)

    def target(self, data: StageKey) -> StageKey:
        """Problems of ``influence_target``: no other set has any of them."""
        config, settings = self.config, self.config.readiness
        task_config = target_config(config.task, settings.target, settings.target_queries)
        key = key_of(
            {"task": task_config, "data_seed": config.seeds.data},
            {"data": data.digest, **data_files(task_config)},
        )
        if self._skip(TARGET, key):
            return key
        task, tokenizer = self._task(task_config), load_tokenizer(config.model.path)
        with self.run_directory.commit(TARGET, key) as folder:
            count = settings.target_queries
            write_problems(
                task, "influence_target", count, tokenizer, config.model, folder, exactly=False
            )
        return key

    def readiness(self, arm: str, sft: StageKey, target: StageKey) -> StageKey:
        """Rollout accuracy and influence of an arm's SFT policy, before RL."""
        recipe = self.config.arms[arm]
        # without SFT the same as readiness_of_base measures
        inputs = (
            {"sft": sft.digest} if recipe.sft else {"base": digest(Path(self.config.model.path))}
        )
        policy = self._path(stage_of(SFT, arm)) / POLICY
        return self._readiness(arm, policy, inputs, self._held_out_recipes(recipe), target)

    def readiness_of_base(self) -> None:
        """The same of the checkpoint at ``model.path``, as it is. The caller holds the run's lock."""
        base = Path(self.config.model.path).absolute()
        try:
            target = self.target(self.data())
            self._readiness(
                "base", base, {"base": digest(base)}, self._held_out_recipes(None), target
            )
        finally:
            self._stop_driver()

    def _held_out_recipes(self, own: RecipeConfig | None) -> dict[str, RecipeConfig]:
        """Whose demonstrations of the target's problems the perplexity is of; free text has its own
        alone.
        """
        if isinstance(self.config.task, UserDataConfig):
            return {"held-out demonstrations": VANILLA}
        own_recipe = (
            {"own demonstrations": own} if own and own.sft and not own.demonstrations else {}
        )
        return own_recipe | {"vanilla demonstrations": VANILLA}

    def _readiness(
        self,
        name: str,
        policy: Path,
        inputs: dict[str, str],
        recipes: dict[str, RecipeConfig],
        target: StageKey,
    ) -> StageKey:
        config, settings = self.config, self.config.readiness
        excluded = {
            "every_rl_steps",
            "target",
            "threads",
            "cpus",
            "gpus",
            "start_timeout_s",
            "timeout_s",
        }
        excluded |= {name for name in type(settings).model_fields if name.startswith("realized_")}
        sampling = config.rl.model_dump(include={"samples_per_prompt", "temperature", "top_p"})
        parts = {
            "readiness": settings.model_dump(exclude=excluded),
            "sampling": sampling | {"seed": config.seeds.sampling},
            "limits": self._limits(),
            "verifier": self._verifier_options(),
            "recipes": recipes,
        }
        key, stage = key_of(parts, inputs | {"target": target.digest}), stage_of(READINESS, name)
        if self._skip(stage, key):
            return key
        self.run_directory.require_whole(DATA, TARGET, *self._stages_of(policy))
        driver = self._driver_actor()
        with self.run_directory.commit(stage, key) as folder:
            held_out = self._held_out_demonstrations(recipes)
            reference = driver.measure.remote(
                policy, self._path(DATA) / RL, self._path(TARGET), held_out, folder
            )
            with self.display.task(f"readiness of {name}", None):
                self._call(
                    reference, settings.timeout_s + settings.start_timeout_s, self._show_progress
                )
        return key

    def realized(self, arm: str, readiness: StageKey) -> None:
        """What single SGD steps really change, against what influence predicted."""
        settings = self.config.readiness
        parts = {
            "realized": {
                k: v for k, v in settings.model_dump().items() if k.startswith("realized_")
            }
        }
        key, stage = key_of(parts, {"readiness": readiness.digest}), stage_of(REALIZED, arm)
        if self._skip(stage, key):
            return
        self.run_directory.require_whole(TARGET, stage_of(SFT, arm), stage_of(READINESS, arm))
        driver, policy = self._driver_actor(), self._path(stage_of(SFT, arm)) / POLICY
        with self.run_directory.commit(stage, key) as folder:
            reference = driver.realize.remote(
                policy, self._path(stage_of(READINESS, arm)), self._path(TARGET), folder
            )
            with self.display.task(f"steps on single queries of {arm}", settings.realized_queries):
                self._call(reference, settings.timeout_s, self._show_progress)

    def _held_out_demonstrations(
        self, recipes: dict[str, RecipeConfig]
    ) -> dict[str, Demonstrations]:
        """Demonstrations of the target's problems by every recipe: tokens of (prompt, response)."""
        config = self.config
        task, tokenizer = self._task(config.task), load_tokenizer(config.model.path)
        problems = [row for row in read_problems(self._path(TARGET)) if row.graph or row.response]
        if not problems:
            return {}
        return {
            name: [
                (row["prompt_tokens"], row["response_tokens"])
                for row in demonstrate(task, recipe, config, problems, tokenizer, Rejects())
            ]
            for name, recipe in recipes.items()
        }

    def queries(self, arm: str, sft: StageKey) -> StageKey:
        """Rejection of RL queries by the SFT policy's own rollouts (``rl.query_filter``)."""
        config, settings = self.config, self.config.rl.query_filter
        assert settings is not None
        parts = {
            "filter": settings.model_dump(exclude={"timeout_s"}),
            "sampling": {
                "temperature": config.rl.temperature,
                "top_p": config.rl.top_p,
                "seed": config.seeds.sampling,
            },
            "verifier": self._verifier_options(),
            "limits": self._limits(),
        }
        key, stage = key_of(parts, {"sft": sft.digest}), stage_of(QUERIES, arm)
        if self._skip(stage, key):
            return key
        self.run_directory.require_whole(DATA, stage_of(SFT, arm))
        driver, policy = self._driver_actor(), self._path(stage_of(SFT, arm)) / POLICY
        with (
            self.run_directory.commit(stage, key) as folder,
            self.display.task(f"RL queries of {arm}", None),
        ):
            reference = driver.select_queries.remote(policy, self._path(DATA) / RL, folder)
            summary = self._call(reference, settings.timeout_s, self._show_progress)
            (folder / MANIFEST).write_text(json.dumps(summary))
        self.display.note(
            f"{arm}: {summary['kept']} of {summary['queries']} RL queries kept; right of "
            f"{settings.samples_per_prompt} samples: {summary['right']}, failed: {summary['failed']}"
        )
        return key

    def rl(self, arm: str, sft: StageKey) -> StageKey:
        """GRPO from the SFT policy of an arm: the learners pull, the driver serves."""
        config = self.config
        selected = self.queries(arm, sft) if config.rl.query_filter else None
        rl = config.rl.model_dump(exclude={"batch_timeout_s", "query_filter", *_CHECKPOINTS})
        parts = {
            "rl": rl,
            "verifier": self._verifier_options(),
            "seeds": config.seeds,
            "limits": self._limits(),
        }
        key = key_of(
            parts, {"sft": sft.digest} | ({"queries": selected.digest} if selected else {})
        )
        stage = stage_of(RL, arm)
        if self._skip(stage, key):
            return key
        self.run_directory.require_whole(
            DATA, stage_of(SFT, arm), *([stage_of(QUERIES, arm)] if selected else [])
        )
        began = time.monotonic()
        driver, work, base = (
            self._driver_actor(),
            self.run_directory.work(stage, key),
            self._path(stage_of(SFT, arm)) / POLICY,
        )
        learners = LearnerGroup(self.run_directory.path, config.learner, config.model, config.ray)
        target = (
            self._path(TARGET)
            if config.readiness.queries and config.readiness.every_rl_steps
            else None
        )
        selection = self._path(stage_of(QUERIES, arm)) if selected else None
        begun = driver.begin_rl.remote(arm, base, work, self._path(DATA), target, selection)
        self._call(begun, config.ray.call_timeout_s + config.readiness.start_timeout_s)
        checkpoints = StepDirectories(work)
        checkpoints.recover(config.rl.steps, self.display.note)
        with self._training(stage, f"RL of {arm}", config.rl.steps, work):
            learners.run_rl(base, work, self._weights(), config.rl, driver)
        # The analysis of a late step may still run; RL itself is over.
        self._call(driver.end_rl.remote(), config.ray.call_timeout_s + config.readiness.timeout_s)
        whole = checkpoints.whole_steps(self.display.note)
        outcome = outcome_of(read_steps(work / METRICS_FILE), config.rl, whole | {0})
        if outcome.step and outcome.step not in whole:
            raise RunError(
                f"{stage}: the checkpoint of step {outcome.step}, which is the result, is damaged; run the same "
                "command again to resume from the newest intact one"
            )
        if outcome.stopped:
            self.display.note(f"RL of {arm}: {outcome.stopped}")
        if outcome.step != outcome.last_step:
            self.display.note(
                f"RL of {arm}: the policy after step {outcome.step}, the best one, is kept"
            )
        write_text(work / OUTCOME_FILE, json.dumps(asdict(outcome)))
        policy = work / step_name(outcome.step) / POLICY if outcome.step else base
        self._keep(stage, key, policy, work / METRICS_FILE, began)
        return key

    def evaluate(self, arm: str, trained_by: str, policy: StageKey) -> None:
        """Greedy and sampled responses of a policy on the test sets, every one kept."""
        directory = self._path(stage_of(trained_by, arm)) / POLICY
        self._evaluate(
            stage_of(f"eval_{trained_by}", arm),
            directory,
            {trained_by: policy.digest},
            f"{arm} after {trained_by}",
        )

    def evaluate_base(self, data: StageKey) -> None:
        """The same of the model that SFT starts from."""
        base = Path(self.config.model.path)
        self._evaluate(
            EVAL_BASE, base.absolute(), {"base": digest(base), "data": data.digest}, "the base"
        )

    def _evaluate(self, stage: str, policy: Path, inputs: dict[str, str], title: str) -> None:
        config = self.config
        evaluation = config.evaluation.model_dump(exclude={"base_model", "timeout_s"})
        parts = {
            "evaluation": evaluation,
            "sampling_seed": config.seeds.sampling,
            "limits": self._limits(),
        }
        key = key_of(parts, inputs)
        if self._skip(stage, key):
            return
        self.run_directory.require_whole(DATA, *self._stages_of(policy))
        driver = self._driver_actor()
        with self.run_directory.commit(stage, key) as folder:
            for name in config.evaluation.sets:
                reference = driver.evaluate.remote(
                    policy, self._path(DATA) / name, folder / samples_file(name)
                )
                with self.display.task(f"evaluation of {title}, {name}", None):
                    failures = self._call(
                        reference, config.evaluation.timeout_s, self._show_progress
                    )
                if failures:
                    self.display.note(f"{title}, {name}: {failures}")

    def _sft_data_key(self, arm: str, data: StageKey) -> StageKey:
        recipe = self.config.arms[arm]
        file = (
            {"demonstrations": file_digest(recipe.demonstrations)} if recipe.demonstrations else {}
        )
        return key_of(
            {"recipe": recipe, "data_seed": self.config.seeds.data}, {"data": data.digest, **file}
        )

    def _sft_config(self, kind: SFTKind) -> SFTConfig:
        sft = self.config.sft
        return sft.model_copy(update={"epochs": 2 * sft.epochs}) if kind == "sft_double" else sft

    def _sft_key(self, arm: str, sft_data: StageKey, kind: SFTKind) -> StageKey:
        sft = self._sft_config(kind).model_dump(exclude={"report_twice_the_budget", *_CHECKPOINTS})
        parts = {
            "sft": sft,
            "training_seed": self.config.seeds.training,
            "dtype": self.config.model.dtype,
        }
        return key_of(
            parts, {"sft_data": sft_data.digest, "base": digest(Path(self.config.model.path))}
        )

    def _no_sft_key(self, data: StageKey) -> StageKey:
        """Of the base as an arm's policy; the problems are in it since the keys of RL and
        evaluation build on it.
        """
        return key_of(
            {"sft": None}, {"base": digest(Path(self.config.model.path)), "data": data.digest}
        )

    def _policy_key(
        self, arm: str, data: StageKey, demonstrations: dict[str, StageKey]
    ) -> StageKey:
        """Of what RL starts from."""
        made = demonstrations.get(arm)
        return self._sft_key(arm, made, "sft") if made else self._no_sft_key(data)

    def _task(self, task: TaskConfig) -> Task:
        return build_task(task, self.config.seeds.data, self.config.verifier)

    def _verifier_options(self) -> dict[str, Any]:
        """What decides verdicts; limits of the machine may change between two starts of a run."""
        return self.config.verifier.model_dump(
            exclude={"batch_timeout_s", "start_timeout_s", "memory_mib"}
        )

    def _limits(self) -> dict[str, Any]:
        model = self.config.model
        limits = {
            "max_prompt_tokens": model.max_prompt_tokens,
            "max_response_tokens": model.max_response_tokens,
        }
        return limits | ({"stop": list(model.stop)} if model.stop else {})

    def _path(self, artifact: str) -> Path:
        return self.run_directory.path / artifact

    def _stages_of(self, policy: Path) -> list[str]:
        """The stage of this run that made a policy; none made the base."""
        stage, run = policy.parent, self.run_directory.path
        if not stage.is_relative_to(run):
            return []
        name = stage.relative_to(run)
        # a base may be there too
        return [name.as_posix()] if name.parts and name.parts[0] in STAGES else []

    def _weights(self) -> Path:
        return weights_directory(self.run_id)

    @property
    def run_id(self) -> str:
        """See ``RunDirectory.run_id``."""
        return self.run_directory.run_id

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
        """A note that every training would repeat is shown once."""
        if text not in self._warned:
            self._warned.add(text)
            self.display.note(text)

    @contextmanager
    def _training(self, stage: str, title: str, steps: int, work: Path) -> Iterator[None]:
        """What goes on beside a training: its figures are shown and tracked, its checkpoints are
        kept at the URI.
        """
        kind, _, arm = stage.partition("/")
        metrics, note = work / METRICS_FILE, self.display.note
        tracked = Tracked(
            self.config.name,
            self.run_id,
            kind,
            arm,
            self._path(TRACKERS),
            self.config.model_dump(mode="json"),
        )
        with (
            self.run_directory.keeping_work(stage, note),
            Tracking(make_trackers(self.config, self._warn), tracked, metrics, self._warn),
            self.display.training(title, steps, metrics),
        ):
            yield

    def _connect(self) -> None:
        if not ray.is_initialized():
            private_folder(SHARED_MEMORY)  # another user's shows before anything starts
            connect(self.config.ray)
            check_shared(self.run_directory.path, self.config.ray.call_timeout_s)
            write_address(self.run_directory.path)

    def _driver_actor(self) -> Any:
        if self._driver is None:
            self._connect()
            base = Path(self.config.model.path).absolute()
            # It asks for no CPU: it waits for engines and learners nearly all the time.
            name = free_driver_name(self.run_id, self.config.ray.call_timeout_s)
            calls = driver_concurrency(self.config.learner.workers)
            options = {
                "num_cpus": 0,
                "max_concurrency": calls,
                "name": name,
                "namespace": NAMESPACE,
            }
            self._driver = (
                ray.remote(Driver).options(**options).remote(self.config, self.run_id, base)
            )
            self._notes = NoteFollower(self._driver, self.display.note)
            with self.display.task(f"starting {self.config.rollout.workers} rollout engines", None):
                self._call(self._driver.start.remote(), self.config.rollout.start_timeout_s + 30)
        return self._driver

    def _stop_driver(self) -> None:
        if self._driver is None:
            return
        try:
            self._call(self._driver.close.remote(), self.config.ray.call_timeout_s)
        except DriverError as error:
            self.display.note(f"the driver did not close: {error}")
        if self._notes is not None:
            self._notes.stop()
        ray.kill(self._driver)
        self._driver = None

    def _show_progress(self) -> None:
        progress = self._call(self._driver.progress.remote(), self.config.ray.call_timeout_s)
        self.display.set(progress.get("done", 0), progress.get("total"), progress.get("phase", ""))

    def _call(
        self, reference: Any, timeout_s: float, while_waiting: Callable[[], None] | None = None
    ) -> Any:
        """The result of a remote call, with a deadline."""
        deadline = time.monotonic() + timeout_s
        while True:
            step = min(
                _POLL_S if while_waiting else timeout_s, max(0.0, deadline - time.monotonic())
            )
            try:
                return ray.get(reference, timeout=step)
            except ray.exceptions.GetTimeoutError as error:
                if time.monotonic() >= deadline:
                    raise DriverError(
                        f"the driver did not answer within {timeout_s:g} s"
                    ) from error
            # first: it is an instance of its cause's class too
            except ray.exceptions.RayTaskError as error:
                raise DriverError(_cause(error)) from error
            except ray.exceptions.RayActorError as error:
                raise DriverError(DRIVER_DIED) from error
            if while_waiting:
                while_waiting()


def _cause(error: ray.exceptions.RayTaskError) -> str:
    """What a call of the driver ended with: an actor that died under it is not the driver."""
    if isinstance(error.cause, ray.exceptions.RayActorError):
        return f"an actor that the driver needs died: {str(error.cause).splitlines()[0]}"
    return str(error.cause)
