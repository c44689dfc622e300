"""The commands about a cluster: submit a run as a Ray job, look after jobs, scale a run, see how
far one is.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bi_ray.config import ConfigError, RunConfig, load_config
from bi_ray.files.errors import RunError
from bi_ray.files.uri import credentials_of, hide_credentials, public_name
from bi_ray.runs.foreign_folders import refuse_foreign
from bi_ray.runs.lock import lock_holder
from bi_ray.runs.place import RunPlace
from bi_ray.runs.process import refuse_relative
from bi_ray.runs.status import describe_status

console = Console()
jobs_app = typer.Typer(
    help="Jobs on a Ray cluster: logs, status, stop, list.", no_args_is_help=True
)
DETACHED = 130  # exit code after Ctrl-C, as shells have it


class AuthMode(StrEnum):
    """How Ray's calls prove who they are."""

    TOKEN = "token"
    DISABLED = "disabled"


RunText = Annotated[
    str,
    typer.Option(
        "--run", help="Run directory, a path or a URI; the same command goes on where it stopped"
    ),
]
Local = Annotated[
    Path | None,
    typer.Option(
        envvar="BI_RAY_LOCAL",
        help="Where the working copy of a URI is kept; every node has to see it",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="Job server of the head node; RAY_API_SERVER_ADDRESS or RAY_ADDRESS, else http://127.0.0.1:8265"
    ),
]
Auth = Annotated[
    AuthMode | None,
    typer.Option(
        "--auth-mode", help="As the cluster was started; without it, RAY_AUTH_MODE decides"
    ),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The id that `submit` printed")]


def submit(
    config_file: Annotated[
        Path, typer.Argument(help="YAML file of the experiment, inside the working directory")
    ],
    run: RunText,
    address: Address = None,
    auth_mode: Auth = None,
    from_stage: Annotated[str | None, typer.Option("--from", help="As in `bi-ray run`")] = None,
    local: Local = None,
    working_dir: Annotated[
        Path, typer.Option(help="What the job gets a copy of: the code and the model")
    ] = Path("."),
    job_id: Annotated[
        str | None, typer.Option(help="A name for the job; Ray chooses one otherwise")
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not follow the log")] = False,
) -> None:
    """Run `bi-ray run` as a job on a Ray cluster, and follow its log to the end. Submit again to go
    on.
    """
    command = job_command(config_file, run, from_stage, local, working_dir)
    jobs = _jobs(address, auth_mode)
    job = jobs.submit(command, working_dir.absolute(), job_id)
    _say(f"Submitted job {job} to {jobs.address}")
    if no_wait:
        _say(_next_steps(job, address))
        return
    _follow(jobs, job, address)


def job_command(
    config_file: Path, run: str, from_stage: str | None, local: Path | None, working_dir: Path
) -> list[str]:
    """The command of a job, after a look at what could not work there.

    Raises:
        ConfigError: the configuration is faulty, or it or its model is not inside the working
            directory.
        RunError: the run directory is relative: the job's copy of the working directory is thrown
            away. Or it is a URI with credentials. Or it is here too, and is not a run directory.
    """
    if credentials_of(run):
        raise RunError(
            f"--run {public_name(run)} has credentials, which everyone on the cluster could read in the job's "
            "command: leave them out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY where Ray is started"
        )
    config, root = load_config(config_file, RunConfig), working_dir.resolve()
    if not config_file.resolve().is_relative_to(root):
        raise ConfigError(
            f"{config_file} is not inside {root}: the job sees a copy of that; see --working-dir"
        )
    model = Path(config.model.path)
    if not model.is_absolute() and not (
        (root / model).resolve().is_relative_to(root) and (root / model).is_dir()
    ):
        raise ConfigError(
            f"model.path: no {model} inside {root}, of which the job gets a copy; put it there, or give an absolute "
            "path that every node sees"
        )
    if "://" not in run:
        refuse_relative("--run", run)
        refuse_foreign(Path(run))
    if local:
        refuse_relative("--local", local)
    command = ["bi-ray", "run", config_file.resolve().relative_to(root).as_posix(), "--run", run]
    command += ["--from", from_stage] if from_stage else []
    return command + (["--local", str(local)] if local else [])


@jobs_app.command()
def logs(
    job: JobId,
    address: Address = None,
    auth_mode: Auth = None,
) -> None:
    """Follow the log of a job from its beginning, until the job ends."""
    _follow(_jobs(address, auth_mode), job, address)


@jobs_app.command("status")
def job_status(
    job: JobId,
    address: Address = None,
    auth_mode: Auth = None,
) -> None:
    """Print how a job is; exit code 0 unless it failed or was stopped."""
    details = _jobs(address, auth_mode).details(job)
    _say(f"{job}: {details.status}")
    _say(f"  {hide_credentials(details.entrypoint)}")
    if details.status == "FAILED":
        _say(details.message or "")
    if details.status in ("FAILED", "STOPPED"):
        raise typer.Exit(1)


@jobs_app.command()
def stop(
    job: JobId,
    address: Address = None,
    auth_mode: Auth = None,
) -> None:
    """Stop a job and wait for its end. Its run directory stays; submit again to go on."""
    _say(f"{job}: {_jobs(address, auth_mode).stop(job)}")


@jobs_app.command("list")
def list_jobs(
    address: Address = None,
    auth_mode: Auth = None,
) -> None:
    """Print every job of the cluster, the oldest first."""
    for details in _jobs(address, auth_mode).all():
        _say(
            f"{details.submission_id}  {details.status:<9}  {hide_credentials(details.entrypoint)}"
        )


def scale(
    run: RunText,
    workers: Annotated[int, typer.Option(min=1, help="How many rollout workers from now on")],
    address: Annotated[
        str | None, typer.Option(help="Ray's own address, HOST:6379; without it, the run's")
    ] = None,
    auth_mode: Auth = None,
    local: Local = None,
) -> None:
    """Add or remove rollout workers of a run that is going on. Call it on a machine of the cluster."""
    _set_auth_mode(auth_mode)
    from actors.cluster import scale as scale_driver

    place = RunPlace.of(run, local)
    if address is None and place.path.exists() and lock_holder(place.path) is None:
        raise RunError(
            f"no run is going on in {place.name}; start it, or give the --address of the cluster it is on"
        )
    status = scale_driver(place.directory(), workers, address)
    states = ", ".join(f"{row['worker']} {row['state']}" for row in status["workers"])
    _say(f"{workers} rollout workers from now on; they are: {states}")


def status(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run directory, a path or a URI")],
    local: Local = None,
) -> None:
    """Print which stages of a run are done and which are in work. Reads files; needs no cluster."""
    for line in describe_status(RunPlace.of(run, local)):
        _say(line)


def add_commands(app: typer.Typer) -> None:
    """Give the front door the commands of this file."""
    for command in (submit, status, scale):
        app.command()(command)
    app.add_typer(jobs_app, name="job")


def _jobs(address: str | None, auth_mode: AuthMode | None) -> Any:
    _set_auth_mode(auth_mode)
    from actors.jobs import Jobs

    return Jobs(address)


def _set_auth_mode(auth_mode: AuthMode | None) -> None:
    """Ray reads the mode when it is imported."""
    if auth_mode is not None:
        os.environ["RAY_AUTH_MODE"] = auth_mode.value


def _follow(jobs: Any, job: str, address: str | None) -> None:
    try:
        ended = jobs.follow(job, sys.stdout.write)
    except KeyboardInterrupt:
        _say(f"\nDetached; {job} goes on.\n{_next_steps(job, address)}")
        raise typer.Exit(DETACHED) from None
    _say(f"{job}: {ended}")
    if ended != "SUCCEEDED":
        _say("The log says why. Submit again with the same --run, and it goes on where it stopped.")
        raise typer.Exit(1)


def _next_steps(job: str, address: str | None) -> str:
    where = f" --address {address}" if address else ""
    return "\n".join(
        f"  {what:<13} bi-ray job {verb} {job}{where}"
        for what, verb in (
            ("follow it:", "logs"),
            ("ask after it:", "status"),
            ("stop it:", "stop"),
        )
    )


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
