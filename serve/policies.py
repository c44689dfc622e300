"""Which policies a run has to offer, by name (``<arm>-sft``, ``<arm>-rl``, ``base``), and which version each is."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bi_ray.config import RUN_CONFIG_FILE, RunConfig, load_config
from bi_ray.policy.checkpoint import WEIGHTS, check_directory, digest
from bi_ray.problems import ProblemRow, read_problems
from bi_ray.store import STAGE_FILE
from bi_ray.validation import OUTCOME

Kind = Literal["sft", "rl"]
KINDS: tuple[Kind, ...] = ("sft", "rl")
BASE = "base"
_STEP = re.compile(r"step_(\d+)")
_DIGEST_CHARACTERS = 8
_AGAIN = "run `bi-ray run` with --from and the stage's name to make it again"


class ServeError(RuntimeError):
    """A run cannot be served as asked; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A checkpoint that can be served.

    Attributes:
        name: the model's name in requests.
        label: where the run stands with it: ``base``, ``sft``, or ``rl-N`` after N steps of RL.
        directory: the checkpoint.
        modified_ns: when its weights were written; tells a policy that was made again under the same name.
    """

    name: str
    label: str
    directory: Path
    modified_ns: int

    @property
    def weights(self) -> Path:
        """The safetensors file."""
        return self.directory / WEIGHTS


def read_run(run: str | Path) -> RunConfig:
    """The configuration that a run directory keeps.

    Raises:
        ServeError: there is no such run, or it was made before runs kept their configuration.
        ConfigError: its configuration does not fit this version of the code.
    """
    path = Path(run)
    if not path.is_dir():
        raise ServeError(f"no run at {path}: make one with `bi-ray run configs/quickstart.yaml --run {path}`")
    if not (path / RUN_CONFIG_FILE).exists():
        raise ServeError(
            f"{path} has no {RUN_CONFIG_FILE}: run `bi-ray run CONFIG --run {path}` (again); it writes the file, "
            f"and what is finished stays"
        )
    return load_config(path / RUN_CONFIG_FILE, RunConfig)


def newest_policy(run: Path, name: str, base: Path) -> Policy | None:
    """The newest policy called ``name``, None if the run has none (yet).

    While RL goes on, that is its newest checkpoint; before the first one, step 0, which is the SFT policy. The
    name ``base`` is that of the directory at the run's ``model.path``.

    Raises:
        ServeError: a file that says what a finished stage holds is damaged.
    """
    if name == BASE:
        return _policy(name, BASE, base)
    arm, _, kind = name.rpartition("-")
    if kind == "sft":
        policy = _policy(name, "sft", run / "sft" / arm / "policy")
        _require_stage(run / "sft" / arm, policy)
        return policy
    if (finished := run / "rl" / arm / STAGE_FILE).exists():
        policy = _policy(name, f"rl-{_kept_step(finished.parent)}", finished.parent / "policy")
        _require_stage(finished.parent, policy)
        return policy
    work = run / "work" / "rl" / arm
    if not work.is_dir():
        return None
    steps = max((int(match[1]) for path in work.iterdir() if (match := _STEP.fullmatch(path.name))), default=0)
    return _policy(name, f"rl-{steps}", (work / f"step_{steps}" if steps else run / "sft" / arm) / "policy")


def _kept_step(finished: Path) -> int:
    """The RL step whose policy a finished stage has: with ``rl.validation.use_best`` or an early stop not the last."""
    if (outcome := finished / OUTCOME).exists():
        return _step_in(outcome, ["step"])
    return _step_in(finished / STAGE_FILE, ["config", "rl", "steps"])


def _step_in(file: Path, names: list[str]) -> int:
    """The number at a place in a JSON file.

    Raises:
        ServeError: the file is damaged.
    """
    value = _read_json(file)
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    if type(value) is not int or value < 0:
        raise ServeError(f"{file} is damaged: {'.'.join(names)} is not a number of steps; {_AGAIN}")
    return value


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ServeError(f"{file} is damaged: {error}; {_AGAIN}") from error


def _require_stage(stage: Path, policy: Policy | None) -> None:
    """Refuse a finished stage that is damaged.

    Args:
        stage: its folder; one without a description is not finished.
        policy: what it holds.

    Raises:
        ServeError: its description is not one, or it has no policy.
    """
    file = stage / STAGE_FILE
    if not file.exists():
        return
    description = _read_json(file)
    if not isinstance(description, dict) or not isinstance(description.get("config"), dict):
        raise ServeError(f"{file} is damaged: it has no configuration; {_AGAIN}")
    if policy is None:
        raise ServeError(f"{stage / 'policy'} has no {WEIGHTS}, though the stage is finished; {_AGAIN}")


def _policy(name: str, label: str, directory: Path) -> Policy | None:
    try:
        modified = (directory / WEIGHTS).stat().st_mtime_ns
    except FileNotFoundError:
        return None
    return Policy(name, label, directory, modified)


def version_of(policy: Policy) -> str:
    """What an answer of this policy is stamped with: ``rl-20-1a2b3c4d``.

    The digest at its end tells apart what two trainings made at the same step. Reads the whole checkpoint.

    Raises:
        CheckpointError: the checkpoint is not complete.
        OSError: it was removed meanwhile.
    """
    return f"{policy.label}-{digest(policy.directory)[:_DIGEST_CHARACTERS]}"


def first_problem(run: Path, config: RunConfig) -> ProblemRow:
    """A problem of the run's first test set.

    Raises:
        ServeError: the set is damaged or absent.
    """
    folder = run / "data" / config.evaluation.sets[0]
    try:
        return read_problems(folder)[0]
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ServeError(f"{folder} cannot be read: {reason or type(error).__name__}; {_AGAIN}") from error


def choose_policies(run: Path, config: RunConfig, names: list[str] | None = None) -> list[Policy]:
    """The policies to serve: those of ``names``, or every one that the run trained, or its base if it trained none.

    Raises:
        ServeError: the run has no such policy, or none at all; or a file of the run is damaged.
        CheckpointError: a chosen one is not complete.
    """
    known = [BASE, *(f"{arm}-{kind}" for arm in config.arms for kind in KINDS)]
    base = Path(config.model.path).absolute()
    found = {name: policy for name in known if (policy := newest_policy(run, name, base))}
    for name in names or []:
        if name not in known:
            raise ServeError(f"--models {name}: the run has no such model; it has {', '.join(known)}")
        if name not in found:
            there = f"; there is {', '.join(found)}" if found else ""
            raise ServeError(f"--models {name}: this policy is not trained yet{there}; go on with `bi-ray run`")
    if not found:
        raise ServeError(
            f"{run} has no trained policy yet, and no base at {base} (model.path): go on with `bi-ray run`, or start "
            f"where that path holds"
        )
    trained = [name for name in found if name != BASE]
    chosen = [found[name] for name in dict.fromkeys(names or trained or [BASE])]
    for policy in chosen:
        check_directory(policy.directory)
    return chosen
