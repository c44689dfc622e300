"""Which policies a run has to offer, and which version each is.

Their names are ``<arm>-sft``, ``<arm>-rl`` and ``base``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bi_ray.config.files import load_config
from bi_ray.config.run import RunConfig
from bi_ray.policy.checkpoint import WEIGHTS, check_directory, digest
from bi_ray.policy.files import CheckpointError
from bi_ray.runs.checkpoints import checkpoint_damage
from bi_ray.runs.layout import (
    CONFIG_FILE,
    POLICY,
    RL,
    SFT,
    stage_of,
    step_name,
    step_of,
    steps_in,
    work_of,
)
from bi_ray.runs.stages import is_finished, require_sizes, stage_damage
from bi_ray.runs.validation import read_outcome

Kind = Literal["sft", "rl"]
KINDS: tuple[Kind, ...] = ("sft", "rl")
BASE = "base"
_DIGEST_CHARACTERS = 8
MAKE_AGAIN = "run `bi-ray run` with --from and the stage's name to make it again"
_RESUME = "continue training with `bi-ray run`, which resumes from the newest undamaged checkpoint"


class ServeError(RuntimeError):
    """A run cannot be served as asked; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A checkpoint that can be served.

    Attributes:
        name: the model's name in requests.
        label: the training that it has had: ``base``, ``sft``, or ``rl-N`` for N steps of RL.
        directory: the checkpoint.
        modified_ns: when its weights were written, in ns since 1970; tells it from a policy that
            was made again under the same name.
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
        ServeError: there is no such run, or it has no configuration.
        ConfigError: its configuration does not fit this version of the code.
    """
    path = Path(run)
    if not path.is_dir():
        raise ServeError(
            f"no run at {path}: make one with `bi-ray run configs/quickstart.yaml --run {path}`"
        )
    if not (path / CONFIG_FILE).exists():
        raise ServeError(
            f"{path} has no {CONFIG_FILE}: run `bi-ray run CONFIG --run {path}` (again); "
            "it writes the file, and what is finished stays"
        )
    return load_config(path / CONFIG_FILE, RunConfig)


def newest_policy(run: Path, name: str, base: Path) -> Policy | None:
    """The newest policy called ``name``; None if the run has none (yet).

    While RL runs, that is its newest checkpoint; before the first one, step 0, which is the SFT
    policy.

    Args:
        run: the run directory.
        name: of the policy.
        base: the directory that is served as ``base``.

    Raises:
        ServeError: a finished stage has no weights.
    """
    if name == BASE:
        return _policy(name, BASE, base)
    arm, _, kind = name.rpartition("-")
    if kind == "sft":
        return _newest_sft(run, name, arm)
    return _newest_rl(run, name, arm)


def _newest_sft(run: Path, name: str, arm: str) -> Policy | None:
    stage = run / stage_of(SFT, arm)
    if is_finished(stage):
        return _finished_policy(name, "sft", stage)
    return _policy(name, "sft", stage / POLICY)


def _newest_rl(run: Path, name: str, arm: str) -> Policy | None:
    finished = run / stage_of(RL, arm)
    if is_finished(finished):
        return _finished_policy(name, f"rl-{read_outcome(finished).step}", finished)
    work = run / work_of(stage_of(RL, arm))
    if not work.is_dir():
        return None
    newest = max(steps_in(work), default=0)
    checkpoint = work / step_name(newest) if newest else run / stage_of(SFT, arm)
    return _policy(name, f"rl-{newest}", checkpoint / POLICY)


def _finished_policy(name: str, label: str, stage: Path) -> Policy:
    policy = _policy(name, label, stage / POLICY)
    if policy is None:
        raise ServeError(
            f"{stage / POLICY} has no {WEIGHTS}, though the stage is finished; {MAKE_AGAIN}"
        )
    return policy


def _policy(name: str, label: str, directory: Path) -> Policy | None:
    try:
        modified = (directory / WEIGHTS).stat().st_mtime_ns
    except FileNotFoundError:
        return None
    return Policy(name, label, directory, modified)


def version_of(policy: Policy) -> str:
    """The stamp of this policy's answers, such as ``rl-20-1a2b3c4d``. Reads the whole checkpoint.

    The digest at its end tells apart what two trainings made at the same step.

    Raises:
        CheckpointError: the checkpoint is not complete, or not what was written.
        OSError: it was removed meanwhile.
    """
    require_whole(policy)
    return f"{policy.label}-{digest(policy.directory)[:_DIGEST_CHARACTERS]}"


def require_whole(policy: Policy) -> None:
    """Check that the files of a policy are what its training wrote. Reads all of them.

    There is no record of the files of a base, or of what did not come from a training.

    Raises:
        CheckpointError: they are not.
    """
    folder = policy.directory.parent
    if policy.label == BASE:
        return
    if step_of(folder.name) is not None:
        damage, remedy = checkpoint_damage(folder), _RESUME
    elif is_finished(folder):
        damage, remedy = stage_damage(folder), MAKE_AGAIN
    else:
        return
    if damage is not None:
        raise CheckpointError(f"{folder} is damaged: {damage}; {remedy}")


def choose_policies(run: Path, config: RunConfig, names: list[str] | None = None) -> list[Policy]:
    """The policies to serve.

    Args:
        run: the run directory.
        config: of the run.
        names: of the wanted ones; none: every one that the run trained, or its base if it trained
            none.

    Raises:
        ServeError: the run has no such policy, or none at all.
        CheckpointError: a chosen one is not complete.
        RunError: files of its stage are damaged.
    """
    known = [BASE]
    for arm in config.arms:
        known += [f"{arm}-{kind}" for kind in KINDS]
    base = Path(config.model.path).absolute()
    policies: dict[str, Policy] = {}
    for name in known:
        policy = newest_policy(run, name, base)
        if policy is not None:
            policies[name] = policy
    for name in names or []:
        _require_policy(name, known, policies)
    if not policies:
        raise ServeError(
            f"{run} has no trained policy yet, and no base at {base} (model.path): continue with "
            "`bi-ray run`, or start where that path exists"
        )
    trained = [name for name in policies if name != BASE]
    chosen = [policies[name] for name in dict.fromkeys(names or trained or [BASE])]
    for policy in chosen:
        if is_finished(policy.directory.parent):
            require_sizes(policy.directory.parent)
        check_directory(policy.directory)
    return chosen


def _require_policy(name: str, known: list[str], policies: dict[str, Policy]) -> None:
    if name not in known:
        raise ServeError(f"--models {name}: the run has no such model; it has {', '.join(known)}")
    if name not in policies:
        others = f"; there is {', '.join(policies)}" if policies else ""
        raise ServeError(
            f"--models {name}: this policy is not trained yet{others}; continue with `bi-ray run`"
        )
