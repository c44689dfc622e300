"""The commands for a cluster: `submit` a run as a Ray job, manage jobs, `scale` a run."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bi_ray.cli.arguments import FromStage, Local, RunText
from bi_ray.cli.console import say
from bi_ray.config.base import ConfigError
from bi_ray.config.files import load_config
from bi_ray.config.run import RunConfig
from bi_ray.files.errors import RunError
from bi_ray.files.uri import credentials_of, hide_credentials, public_name
from bi_ray.runs.foreign_folders import refuse_foreign
from bi_ray.runs.lock import lock_holder
from bi_ray.runs.place import RunPlace
from bi_ray.runs.process import refuse_relative

if TYPE_CHECKING:
    from actors.job_client import Jobs

jobs_app = typer.Typer(
    help="Manage jobs on a Ray cluster: list, logs, status, stop.", no_args_is_help=True
)
_INTERRUPTED = 130  # exit code after Ctrl-C, as in shells


class AuthMode(StrEnum):
    """How calls to Ray authenticate."""

    TOKEN = "token"
    DISABLED = "disabled"


JobConfigFile = Annotated[
    Path,
    typer.Argument(metavar="CONFIG", help="Configuration file, inside the working directory"),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Job server of the cluster's head node",
        show_default="RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or http://127.0.0.1:8265",
    ),
]
Auth = Annotated[
    AuthMode | None,
    typer.Option(
        "--auth-mode",
        help="Authentication mode that the cluster was started with",
        show_default="RAY_AUTH_MODE",
    ),
]
WorkingDir = Annotated[
    Path,
    typer.Option(
        metavar="DIR", help="Directory copied to the job, with the code and the model in it"
    ),
]
NewJobId = Annotated[
    str | None, typer.Option(metavar="ID", help="Id for the job", show_default="chosen by Ray")
]
NoWait = Annotated[
    bool, typer.Option("--no-wait", help="Return at once instead of following the log")
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id that `submit` printed")]
ActiveRun = Annotated[
    str,
    typer.Option("--run", metavar="DIR", help="Directory of a run in progress, a path or a URI"),
]
WorkerCount = Annotated[int, typer.Option(min=1, help="New number of rollout workers")]
ClusterAddress = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Address of the Ray cluster (port 6379, not the job server's)",
        show_default="the cluster that the run is on",
    ),
]


def submit(
    config_file: JobConfigFile,
    run: RunText,
    address: Address = None,
    auth_mode: Auth = None,
    from_stage: FromStage = None,
    local: Local = None,
    working_dir: WorkingDir = Path("."),
    job_id: NewJobId = None,
    no_wait: NoWait = False,
) -> None:
    """Run `bi-ray run` as a job on a Ray cluster, and follow its log to the end.

    To resume a run that stopped, submit it again.
    """
    command = job_command(JobRun(config_file, run, from_stage, local, working_dir))
    jobs = _jobs(address, auth_mode)
    job = jobs.submit(command, working_dir.absolute(), job_id)
    say(f"Submitted job {job} to {jobs.address}")
    if no_wait:
        say(_next_steps(job, address))
        return
    _follow(jobs, job, address)


@dataclass(frozen=True, slots=True)
class JobRun:
    """The call of `bi-ray run` that a job makes.

    Attributes:
        config_file: configuration, inside the working directory.
        run: run directory, a path or a URI.
        from_stage: the stage to start from again; None: resume.
        local: working copy of a run directory that is a URI.
        working_dir: the directory that the job gets a copy of.
    """

    config_file: Path
    run: str
    from_stage: str | None = None
    local: Path | None = None
    working_dir: Path = Path(".")


def job_command(job: JobRun) -> list[str]:
    """The command line of a job, checked before anything is sent.

    Raises:
        ConfigError: the configuration is faulty, or it or its model is not inside the working
            directory.
        RunError: the run directory is relative (the job's copy of the working directory is
            deleted afterwards), is a URI with credentials, or exists here and is not a run
            directory.
    """
    if credentials_of(job.run):
        raise RunError(
            f"--run {public_name(job.run)} has credentials, which everyone on the cluster could "
            "read in the job's command: leave them out, and set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY where Ray is started"
        )
    config = load_config(job.config_file, RunConfig)
    root = job.working_dir.resolve()
    config_file = job.config_file.resolve()
    if not config_file.is_relative_to(root):
        raise ConfigError(
            f"{job.config_file} is not inside {root}, and the job gets a copy of only that "
            "directory; move the file, or change --working-dir"
        )
    _check_model(Path(config.model.path), root)
    if "://" not in job.run:
        refuse_relative("--run", job.run)
        refuse_foreign(Path(job.run))
    command = ["bi-ray", "run", config_file.relative_to(root).as_posix(), "--run", job.run]
    if job.from_stage:
        command += ["--from", job.from_stage]
    if job.local:
        refuse_relative("--local", job.local)
        command += ["--local", str(job.local)]
    return command


def _check_model(model: Path, root: Path) -> None:
    """Check that a job sees the model: it is inside ``root``, or its path is absolute."""
    if model.is_absolute():
        return
    directory = (root / model).resolve()
    if not directory.is_relative_to(root) or not directory.is_dir():
        raise ConfigError(
            f"model.path: no {model} inside {root}, which is what the job gets a copy of; put the "
            "model there, or give an absolute path that every node sees"
        )


@jobs_app.command()
def logs(job: JobId, address: Address = None, auth_mode: Auth = None) -> None:
    """Follow a job's log from its beginning until the job ends."""
    _follow(_jobs(address, auth_mode), job, address)


@jobs_app.command("status")
def job_status(job: JobId, address: Address = None, auth_mode: Auth = None) -> None:
    """Print a job's status; the exit code is 1 if it failed or was stopped, else 0."""
    details = _jobs(address, auth_mode).details(job)
    say(f"{job}: {details.status}")
    say(f"  {hide_credentials(details.entrypoint)}")
    if details.status == "FAILED":
        say(details.message or "")
    if details.status in ("FAILED", "STOPPED"):
        raise typer.Exit(1)


@jobs_app.command()
def stop(job: JobId, address: Address = None, auth_mode: Auth = None) -> None:
    """Stop a job and wait until it has ended. Its run directory stays; submit again to resume."""
    say(f"{job}: {_jobs(address, auth_mode).stop(job)}")


@jobs_app.command("list")
def list_jobs(address: Address = None, auth_mode: Auth = None) -> None:
    """Print all jobs of the cluster, oldest first."""
    for details in _jobs(address, auth_mode).all():
        command = hide_credentials(details.entrypoint)
        say(f"{details.submission_id}  {details.status:<9}  {command}")


def scale(
    run: ActiveRun,
    workers: WorkerCount,
    address: ClusterAddress = None,
    auth_mode: Auth = None,
    local: Local = None,
) -> None:
    """Add or remove rollout workers of a run in progress. Run it on a node of the cluster."""
    _set_auth_mode(auth_mode)
    from actors.cluster import scale as scale_driver

    place = RunPlace.of(run, local)
    if address is None and place.path.exists() and lock_holder(place.path) is None:
        raise RunError(
            f"no run is in progress in {place.name}; start it, or give --address of its cluster"
        )
    status = scale_driver(place.directory(), workers, address)
    states = ", ".join(f"{row['worker']} {row['state']}" for row in status["workers"])
    say(f"Scaling to {workers} rollout workers; current states: {states}")


def _jobs(address: str | None, auth_mode: AuthMode | None) -> Jobs:
    _set_auth_mode(auth_mode)
    from actors.job_client import Jobs

    return Jobs(address)


def _set_auth_mode(auth_mode: AuthMode | None) -> None:
    """Set the mode for Ray, which reads it when it is imported."""
    if auth_mode is not None:
        os.environ["RAY_AUTH_MODE"] = auth_mode.value


def _follow(jobs: Jobs, job: str, address: str | None) -> None:
    try:
        final_status = jobs.follow(job, sys.stdout.write)
    except KeyboardInterrupt:
        say(f"\nDetached; {job} continues.\n{_next_steps(job, address)}")
        raise typer.Exit(_INTERRUPTED) from None
    say(f"{job}: {final_status}")
    if final_status != "SUCCEEDED":
        say("The log above has the reason. Submit again with the same --run to resume.")
        raise typer.Exit(1)


def _next_steps(job: str, address: str | None) -> str:
    option = f" --address {address}" if address else ""
    return (
        f"  follow it:    bi-ray job logs {job}{option}\n"
        f"  check on it:  bi-ray job status {job}{option}\n"
        f"  stop it:      bi-ray job stop {job}{option}"
    )
