"""Where the figures of a training go besides ``metrics.jsonl``: TensorBoard, W&B, MLflow, trackio, or a user's tracker.

Trackers follow the metrics file from a thread of the command. So they see what is on disk and nothing else, a slow one
holds nobody up, and one that fails is left out with a warning: no tracker stops a run. Each figure goes out once, also
when the run was killed and goes on. Packages of trackers are imported only where one is named (extra ``track``).
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from bi_ray.config import RunConfig
from bi_ray.files import write_text
from bi_ray.importing import load_object
from bi_ray.metrics import read_steps

log = logging.getLogger(__name__)
_FOLLOW_S = 0.5
_END_S = 60.0  # for what is still to be sent when a training ends
FOLDER = "trackers"  # in the run directory
MARK = "tracked"  # beside metrics.jsonl: the last step that went out


@dataclass(frozen=True, slots=True)
class Tracked:
    """The training whose figures are sent.

    Attributes:
        run: ``name`` of the configuration.
        run_id: tells runs of the same name apart.
        stage: sft, sft_double or rl.
        arm: of the run.
        folder: for what a tracker keeps in files, in the run directory; shared by all trainings of the run.
        config: the whole configuration, as plain data.
    """

    run: str
    run_id: str
    stage: str
    arm: str
    folder: Path
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """What a person reads."""
        return f"{self.run}/{self.stage}/{self.arm}"

    @property
    def key(self) -> str:
        """The same for the same training of the same run, whatever process goes on with it."""
        return f"{self.run_id}-{self.stage}-{self.arm}"


class Tracker(Protocol):
    """What a tracker does. The options of the configuration are the keyword arguments of its class."""

    def begin(self, training: Tracked) -> None:
        """A training begins, or goes on."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """The figures of a step; steps come in order."""

    def end(self) -> None:
        """The training is over or was broken off; ``begin`` may follow with the next one."""


class TensorBoard:
    """Event files.

    Args:
        folder: for all runs; default: in the run directory.
    """

    def __init__(self, folder: str | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._make, self._folder = SummaryWriter, folder

    def begin(self, training: Tracked) -> None:
        """See ``Tracker``."""
        root = Path(self._folder) / training.run if self._folder else training.folder / "tensorboard"
        self._writer = self._make(str(root / training.stage / training.arm))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See ``Tracker``."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self) -> None:
        """See ``Tracker``."""
        self._writer.close()


class WandB:
    """Weights & Biases.

    Args:
        options: of ``wandb.init``, such as ``project``, ``entity`` or ``mode`` (offline).
    """

    def __init__(self, **options: Any) -> None:
        import wandb

        self._wandb, self._options = wandb, options

    def begin(self, training: Tracked) -> None:
        """See ``Tracker``."""
        training.folder.mkdir(parents=True, exist_ok=True)
        usual: dict[str, Any] = {
            "project": "bi_ray",
            "name": training.name,
            "group": training.run,
            "id": training.key,
            "resume": "allow",
            "dir": str(training.folder),
            "config": training.config,
            "settings": self._wandb.Settings(silent=True),
        }
        self._run = self._wandb.init(**usual | self._options)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See ``Tracker``."""
        self._run.log(dict(figures), step=step)

    def end(self) -> None:
        """See ``Tracker``."""
        self._run.finish()


class MLflow:
    """MLflow's tracking, by its client: nothing global is set.

    Args:
        tracking_uri: default: ``MLFLOW_TRACKING_URI``, else a database in the run directory.
        experiment: default: ``bi_ray``.
    """

    def __init__(self, tracking_uri: str | None = None, experiment: str = "bi_ray") -> None:
        from mlflow import MlflowClient

        self._make, self._experiment = MlflowClient, experiment
        self._uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")

    def begin(self, training: Tracked) -> None:
        """See ``Tracker``."""
        training.folder.mkdir(parents=True, exist_ok=True)
        self._client = self._make(self._uri or f"sqlite:///{training.folder / 'mlflow.db'}")
        known = self._client.get_experiment_by_name(self._experiment)
        experiment = known.experiment_id if known else self._client.create_experiment(self._experiment)
        runs = self._client.search_runs([experiment], f"tags.bi_ray_key = '{training.key}'")
        if runs:
            self._run = runs[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        tags = {"bi_ray_key": training.key, "run": training.run, "stage": training.stage, "arm": training.arm}
        self._run = self._client.create_run(experiment, run_name=training.name, tags=tags).info.run_id

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See ``Tracker``."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._run, [Metric(name, value, now, step) for name, value in figures.items()])

    def end(self) -> None:
        """See ``Tracker``."""
        self._client.set_terminated(self._run)


class Trackio:
    """trackio, which keeps a database under ``TRACKIO_DIR``.

    Args:
        options: of ``trackio.init``, such as ``project`` or ``space_id``.
    """

    def __init__(self, **options: Any) -> None:
        import trackio

        self._trackio, self._options = trackio, options

    def begin(self, training: Tracked) -> None:
        """See ``Tracker``."""
        usual: dict[str, Any] = {
            "project": "bi_ray",
            "name": f"{training.name}-{training.run_id}",
            "group": training.run,
            "resume": "allow",
            "config": training.config,
            "auto_log_gpu": False,
            "auto_log_cpu": False,
        }
        self._run = self._trackio.init(**usual | self._options)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See ``Tracker``."""
        self._run.log(dict(figures), step=step)

    def end(self) -> None:
        """See ``Tracker``."""
        self._run.finish()


KNOWN: dict[str, str] = {
    "tensorboard": "bi_ray.tracking:TensorBoard",
    "wandb": "bi_ray.tracking:WandB",
    "mlflow": "bi_ray.tracking:MLflow",
    "trackio": "bi_ray.tracking:Trackio",
    "prometheus": "actors.prometheus:RayMetrics",
}


def make_trackers(config: RunConfig, warn: Callable[[str], None]) -> dict[str, Tracker]:
    """The trackers that a configuration names; one that cannot be made is left out with a warning."""
    made: dict[str, Tracker] = {}
    for name, options in config.trackers.items():
        try:
            made[name] = load_object(KNOWN.get(name, name), f"trackers.{name}", "class")(**options)
        except ImportError as error:
            warn(f"tracker {name} is left out: {error}; pip install 'bi-ray[track]' has what it needs")
        except Exception as error:
            warn(f"tracker {name} is left out: {type(error).__name__}: {error}")
    return made


@dataclass
class Tracking:
    """Follows the metrics file of a training while the block runs, and hands every new row to every tracker.

    Attributes:
        trackers: by name. One that raises is taken out of them.
        training: whose figures they are.
        metrics: the file.
        warn: told why a tracker is left out, in one line.
    """

    trackers: dict[str, Tracker]
    training: Tracked
    metrics: Path
    warn: Callable[[str], None]
    _stop: threading.Event = field(default_factory=threading.Event)
    _sent: int = -1
    _trouble: str = ""

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._follow, daemon=True)
        if self.trackers:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self.trackers:
            self._thread.join(_END_S)
            if self._thread.is_alive():
                self.warn(f"trackers did not take the last figures within {_END_S:g} s; the run goes on without them")

    def _follow(self) -> None:
        self._each("begin", self.training)
        self._sent = self._read_mark()
        while not self._stop.wait(_FOLLOW_S):
            self._send()
        self._send()
        self._each("end")

    def _read_mark(self) -> int:
        """The last step that went out, -1 before the first one."""
        mark = self.metrics.with_name(MARK)
        try:
            return int(mark.read_text())
        except FileNotFoundError:
            return -1
        except (OSError, ValueError) as error:
            log.warning("%s is damaged", mark, exc_info=error)
            self.warn(f"{mark} is damaged: trackers get every step of {self.training.name} again")
            return -1

    def _send(self) -> None:
        """Send what is new. Whatever is wrong with the files, the run and later figures are not disturbed."""
        try:
            for row in read_steps(self.metrics):
                if row["step"] > self._sent:
                    self._each("log", row["step"], figures_of(row))
                    self._sent = row["step"]
                    # After a power cut figures may go out twice: a sync takes longer than some steps.
                    write_text(self.metrics.with_name(MARK), str(self._sent), durable=False)
            self._trouble = ""
        except Exception as error:
            trouble = f"{type(error).__name__}: {error}"
            if trouble != self._trouble:  # it is tried again all the time
                log.warning("trackers of %s wait", self.training.name, exc_info=error)
                self.warn(f"trackers of {self.training.name} get no new figures for now: {error}")
            self._trouble = trouble

    def _each(self, method: str, *arguments: Any) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:  # whatever a tracker does, the run goes on
                log.warning("tracker %s fails", name, exc_info=error)
                del self.trackers[name]
                self.warn(f"tracker {name} is left out from here on: {type(error).__name__}: {error}")


def figures_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a metrics row, without its step."""
    numbers = {name: value for name, value in row.items() if isinstance(value, (int, float)) and name != "step"}
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}
