"""Trackers for TensorBoard, W&B, MLflow and trackio.

The package of a tracker is imported only where the configuration names it (extra ``track``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bi_ray.tracking.base import Tracked

Options = dict[str, Any]  # keyword arguments of a package's function


class TensorBoard:
    """Event files.

    Args:
        folder: where the event files of all runs go; default: in the run directory.
    """

    def __init__(self, folder: str | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._make, self._folder = SummaryWriter, folder

    def begin(self, training: Tracked) -> None:
        """See ``Tracker``."""
        root = training.folder / "tensorboard"
        if self._folder:
            root = Path(self._folder) / training.run
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
        usual: Options = {
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
    """MLflow, by its client: nothing global is set.

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
        if known:
            experiment = known.experiment_id
        else:
            experiment = self._client.create_experiment(self._experiment)
        runs = self._client.search_runs([experiment], f"tags.bi_ray_key = '{training.key}'")
        if runs:
            self._run = runs[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        tags = {
            "bi_ray_key": training.key,
            "run": training.run,
            "stage": training.stage,
            "arm": training.arm,
        }
        run = self._client.create_run(experiment, run_name=training.name, tags=tags)
        self._run = run.info.run_id

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See ``Tracker``."""
        from mlflow.entities import Metric

        now_ms = int(1000 * time.time())
        metrics = [Metric(name, value, now_ms, step) for name, value in figures.items()]
        self._client.log_batch(self._run, metrics)

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
        usual: Options = {
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
