"""The front door. Imports the cluster inside its commands only, so that `--help` and `show` start
at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import yaml
from rich.console import Console
from rich.text import Text

from bi_ray.cli.data import ConfigFile
from bi_ray.cli.data import add_commands as add_data_commands
from bi_ray.cli.jobs import Local, RunText
from bi_ray.cli.jobs import add_commands as add_job_commands
from bi_ray.cli.plan import add_commands as add_plan_commands
from bi_ray.config import (
    ConfigError,
    PretrainConfig,
    RunConfig,
    SeedsConfig,
    load_config,
)
from bi_ray.files.errors import RunError, in_words
from bi_ray.files.uri import public_name, uri_in
from bi_ray.runs.place import RunPlace

if TYPE_CHECKING:
    from bi_ray.pretraining.pretrain import DrillScore

app = typer.Typer(
    help="Will reinforcement learning help this checkpoint, and if not, what should its SFT data look like?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()


def _refuse_uri(paths: Any) -> Any:
    """Raises RunError for a URI where a command reads a directory; its message shows no
    credentials.
    """
    for path in paths if isinstance(paths, (list, tuple)) else [paths]:
        if uri := uri_in(path):
            raise RunError(
                f"{public_name(uri)} is a URI: this command reads a directory, such as its working copy"
            )
    return paths


Until = Annotated[
    Literal["readiness"] | None,
    typer.Option(
        help="Stop there: readiness measures what can be known before RL, and trains no further"
    ),
]


@app.command()
def run(
    config_file: ConfigFile,
    run_path: RunText,
    from_stage: Annotated[
        str | None,
        typer.Option("--from", help="Forget this stage and all later ones, then go on from there"),
    ] = None,
    until: Until = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the configuration, every default included")
    ] = False,
    local: Local = None,
) -> None:
    """Inject, train with SFT and RL, evaluate, and show the table: everything that the run
    directory lacks yet.
    """
    config = load_config(config_file, RunConfig)
    if dry_run:
        console.print(
            yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), highlight=False
        )
        return
    place = RunPlace.of(run_path, local)
    _run(config, place, from_stage, until)
    _finish(config, [place], place)


@app.command()
def readiness(config_file: ConfigFile, run_path: RunText, local: Local = None) -> None:
    """Measure the checkpoint at model.path as it is: rollout accuracy and influence. Trains
    nothing.
    """
    from bi_ray.report.readiness import read_readiness, render_readiness

    config = load_config(config_file, RunConfig)
    if not config.readiness.queries:
        raise ConfigError("readiness.queries is 0; say how many queries to measure")
    place = RunPlace.of(run_path, local)
    with _pipeline(config, place) as pipeline:
        pipeline.readiness_of_base()
    found = read_readiness(["base"], [place.path], config.evaluation.bootstrap_draws)
    console.print(render_readiness(found.readiness))
    console.print(
        f"Every measured query: {place.path / 'readiness' / 'base'}",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def study(
    config_file: ConfigFile,
    run_path: RunText,
    seeds: Annotated[
        int, typer.Option(min=1, help="How many seeds; each varies data, training and sampling")
    ] = 3,
    until: Until = None,
    local: Local = None,
) -> None:
    """The same experiment under several seeds, and one table over them. Resumable; finished seeds
    are kept.
    """
    config, study_place = load_config(config_file, RunConfig), RunPlace.of(run_path, local)
    study_place.begin()
    runs: list[RunPlace] = []
    for seed in range(seeds):
        console.rule(f"seed {seed}")
        numbers = SeedsConfig(data=seed, training=seed, sampling=seed)
        runs.append(study_place / f"seed_{seed}")
        _run(config.model_copy(update={"seeds": numbers}), runs[-1], None, until)
        _finish(config, runs, study_place)


@app.command()
def pretrain(
    config_file: ConfigFile,
    run_path: RunText = "runs/pretrain",
    score: Annotated[
        Path | None, typer.Option(help="Train nothing; score this model on fresh drills")
    ] = None,
) -> None:
    """Make a tiny base model and score it; resumable, and able to run in the background for hours."""
    from bi_ray.pretraining.pretrain import pretrain as train
    from bi_ray.pretraining.pretrain import score_drills
    from bi_ray.runs.directory import RunDirectory
    from bi_ray.runs.display import Display, figures_line

    config = load_config(config_file, PretrainConfig)
    if score:
        _show_scores(score_drills(score, config))
        return
    display = Display(console)
    with (
        RunDirectory(run_path) as directory,
        display.task(f"pre-training {config.name}", config.steps),
    ):
        for row in train(config, directory.path):
            display.set(row["step"], config.steps, figures_line(row))
    model = directory.path / "checkpoint" / "model"
    _show_scores(score_drills(model, config))
    console.print(f"The model: {model}", highlight=False)


def _show_scores(scores: dict[str, DrillScore]) -> None:
    for name, score in scores.items():
        line = (
            f"{name}: {score.exact:.1%} of fresh drills exact, {score.tokens:.2%} of their tokens"
        )
        console.print(line, highlight=False)


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run directories or studies; several are compared on one page",
            callback=_refuse_uri,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The page to write [default: RUN/report/report.html; several: comparison.html]"
        ),
    ] = None,
) -> None:
    """Write the report of a run or study again from its files, finished or not, or compare several
    on one page.
    """
    from bi_ray.report.writing import write_report

    console.print(str(write_report(runs, out)), highlight=False, markup=False, soft_wrap=True)


@app.command()
def serve(
    run_path: Annotated[
        Path,
        typer.Argument(
            help="Run directory, finished or still at work", metavar="RUN", callback=_refuse_uri
        ),
    ],
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--models",
            help="Only these, for example bridge-rl; repeatable, or with commas between them",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; others than loopback need an API key")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="API key that clients must send (repeatable; also read from BI_RAY_API_KEYS=key,key)"
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="File with one API key per line; no other user may be able to read it"),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Host name that requests may use besides localhost (repeatable)"),
    ] = None,
    allowed_origin: Annotated[
        list[str] | None,
        typer.Option(help="Web page origin that may send requests from a browser (repeatable)"),
    ] = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow/--no-follow",
            help="Take the newest version of each policy while training goes on",
        ),
    ] = True,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to serve on, HOST:PORT; else RAY_ADDRESS, else a local one"),
    ] = None,
) -> None:
    """Serve the policies of a run with an OpenAI-compatible interface, until Ctrl-C."""
    from serve.command import ServeOptions, serve_run

    names = [name for group in models or [] for name in group.split(",") if name]
    options = ServeOptions(
        run_path,
        names or None,
        host,
        port,
        api_key or [],
        api_key_file,
        allowed_host or [],
        allowed_origin or [],
        follow,
        address,
    )
    serve_run(options, console)


@app.command()
def options(
    prefix: Annotated[
        str | None,
        typer.Argument(help="Only options that begin with this, such as rl.validation"),
    ] = None,
    of: Annotated[
        Literal["run", "pretrain", "extract"],
        typer.Option(help="The configuration file whose options to print"),
    ] = "run",
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the whole page docs/options.md")
    ] = False,
) -> None:
    """Print every option of a configuration with its type, default, unit and meaning."""
    from bi_ray.config.manual import FILES, as_markdown, as_text
    from bi_ray.config.options import find_options

    if markdown:
        print(as_markdown(), end="")
        return
    width = min(console.width, 100) if console.is_terminal else None
    print(as_text(find_options(FILES[of], prefix or ""), width))


@contextmanager
def _pipeline(config: RunConfig, place: RunPlace, from_stage: str | None = None) -> Iterator[Any]:
    """The pipeline of a run in its directory, which is locked meanwhile."""
    from actors.pipeline import Pipeline
    from bi_ray.policy.chat import check_chat
    from bi_ray.policy.checkpoint import check_model, load_tokenizer
    from bi_ray.runs.directory import keep_config
    from bi_ray.runs.display import Display
    from bi_ray.runs.layout import CONFIG_FILE, STAGES

    # A wrong model shows before anything starts.
    check_model(config.model.path)
    check_chat(load_tokenizer(config.model.path), config.model)
    with _stopped_by_sigterm(), place.directory() as directory:
        if from_stage:
            directory.forget_from(STAGES, from_stage)
        # a report can be asked for while the run goes on
        keep_config(config, directory.path, replace=False)
        yield Pipeline(config, directory, Display(console))
        keep_config(config, directory.path, replace=True)  # no stage refused it
        place.publish_file(CONFIG_FILE)


def _run(config: RunConfig, place: RunPlace, from_stage: str | None, until: str | None) -> None:
    with _pipeline(config, place, from_stage) as pipeline:
        pipeline.run(until)


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM, by which a job is stopped, ends the block as an error does: locks are released,
    actors closed.
    """

    def stop(number: int, _: object) -> None:
        # the closing is not to be broken off by a second one
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        console.print(
            "stopped by SIGTERM; the same command goes on from the last finished stage or checkpoint"
        )
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _finish(config: RunConfig, runs: list[RunPlace], place: RunPlace) -> None:
    from bi_ray.report.writing import show_summary, write_summary

    show_summary(write_summary(config, [run.path for run in runs], place.path), console, place.path)
    place.publish_report()
    if place.uri:
        console.print(f"All of it is at {place.name} too", highlight=False, soft_wrap=True)


add_job_commands(app)
add_data_commands(app)
add_plan_commands(app)


def main() -> None:
    """Run a command; a known kind of error becomes its message and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except (ValueError, RuntimeError, OSError) as error:
        if not _is_known(error):
            raise
        message = _message(error)
        console.print(
            Text.assemble(("error: ", "bold red"), message), highlight=False, soft_wrap=True
        )
        sys.exit(2)


def _message(error: Exception) -> str:
    """The message in words; one of the file system begins with the file."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {in_words(error)}"
    return str(error)


def _is_known(error: Any) -> bool:
    """Errors that say what to change, and those of the file system (no space, no right, no such
    folder).
    """
    if isinstance(error, OSError) and error.strerror:
        return True
    return type(error).__module__.partition(".")[0] in ("bi_ray", "actors", "serve")
