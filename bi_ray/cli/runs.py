"""The commands for runs: `run`, `readiness`, `study`, `report`, `status`, `serve`, `pretrain`."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
import yaml

from bi_ray.cli.arguments import ConfigFile, FromStage, Local, RunText, refuse_uri
from bi_ray.cli.console import console, say
from bi_ray.config.base import ConfigError
from bi_ray.config.files import load_config
from bi_ray.config.pretraining import PretrainConfig
from bi_ray.config.run import RunConfig, SeedsConfig
from bi_ray.runs.layout import CONFIG_FILE
from bi_ray.runs.place import RunPlace
from bi_ray.runs.status import describe_status

if TYPE_CHECKING:
    from actors.pipeline import Pipeline
    from bi_ray.pretraining.pretrain import DrillScore

Until = Annotated[
    Literal["readiness"] | None,
    typer.Option(help="Stop after the measurements that precede RL"),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print the configuration with every default, and run nothing"),
]
SeedCount = Annotated[
    int, typer.Option(min=1, help="Number of seeds; each changes data, training and sampling")
]
ScoredModel = Annotated[
    Path | None,
    typer.Option(metavar="MODEL", help="Only score this model, on new practice problems"),
]
ReportedRuns = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN",
        help="Directory of a run or study; several are compared on one page",
        callback=refuse_uri,
    ),
]
ReportFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Page to write",
        show_default="RUN/report/report.html; comparison.html for several",
    ),
]
StatusRun = Annotated[str, typer.Argument(metavar="DIR", help="Run directory, a path or a URI")]
ServedRun = Annotated[
    Path,
    typer.Argument(
        metavar="DIR", help="Directory of a run, finished or in progress", callback=refuse_uri
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--models",
        metavar="NAMES",
        help="Policies to serve, for example bridge-rl (repeatable, or separated by commas)",
        show_default="all",
    ),
]
Host = Annotated[
    str, typer.Option(help="Address to listen on; any but a loopback address needs an API key")
]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on")]
ApiKeys = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY",
        help="API key that clients must send (repeatable; also read from BI_RAY_API_KEYS=key,key)",
    ),
]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="File with one API key per line; only you may be able to read it"
    ),
]
AllowedHosts = Annotated[
    list[str] | None,
    typer.Option(
        metavar="HOST", help="Host name that requests may use besides localhost (repeatable)"
    ),
]
AllowedOrigins = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ORIGIN", help="Web origin that may send requests from a browser (repeatable)"
    ),
]
Follow = Annotated[
    bool,
    typer.Option("--follow/--no-follow", help="Switch to newer policies as training continues"),
]
ServingCluster = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Ray cluster to serve on",
        show_default="RAY_ADDRESS, or a local one",
    ),
]


def run(
    config_file: ConfigFile,
    run_path: RunText,
    from_stage: FromStage = None,
    until: Until = None,
    dry_run: DryRun = False,
    local: Local = None,
) -> None:
    """Run every stage that the run directory lacks, and write the report.

    The stages: data, injection, SFT, readiness, RL, evaluation and the report.
    """
    config = load_config(config_file, RunConfig)
    if dry_run:
        values = config.model_dump(mode="json")
        console.print(yaml.safe_dump(values, sort_keys=False), highlight=False)
        return
    place = RunPlace.of(run_path, local)
    _run_stages(config, place, from_stage, until)
    _report_on(config, [place], place)


def readiness(config_file: ConfigFile, run_path: RunText, local: Local = None) -> None:
    """Measure the checkpoint at model.path before RL: rollout accuracy and influence.

    Trains nothing.
    """
    from bi_ray.report.readiness import read_readiness, render_readiness

    config = load_config(config_file, RunConfig)
    if not config.readiness.queries:
        raise ConfigError("readiness.queries is 0; set it to the number of queries to measure")
    place = RunPlace.of(run_path, local)
    with _pipeline(config, place) as pipeline:
        pipeline.readiness_of_base()
    summary = read_readiness(["base"], [place.path], config.evaluation.bootstrap_draws)
    console.print(render_readiness(summary.readiness))
    say(f"All measured queries: {place.path / 'readiness' / 'base'}")


def study(
    config_file: ConfigFile,
    run_path: RunText,
    seeds: SeedCount = 3,
    until: Until = None,
    local: Local = None,
) -> None:
    """Repeat an experiment under several seeds, and report on all of them in one table.

    If it is interrupted, the same command resumes; finished seeds are kept.
    """
    config = load_config(config_file, RunConfig)
    study_place = RunPlace.of(run_path, local)
    study_place.begin()
    runs: list[RunPlace] = []
    for seed in range(seeds):
        console.rule(f"seed {seed}")
        place = study_place / f"seed_{seed}"
        runs.append(place)
        seeds_config = SeedsConfig(data=seed, training=seed, sampling=seed)
        _run_stages(config.model_copy(update={"seeds": seeds_config}), place, None, until)
        _report_on(config, runs, study_place)


def report(runs: ReportedRuns, out: ReportFile = None) -> None:
    """Rewrite the report of a run or study, finished or not, or compare several on one page."""
    from bi_ray.report.writing import write_report

    say(str(write_report(runs, out)))


def status(run: StatusRun, local: Local = None) -> None:
    """Print which stages of a run are done or in progress, and the latest figures.

    Reads files only; needs no cluster.
    """
    for line in describe_status(RunPlace.of(run, local)):
        say(line)


def serve(
    run_path: ServedRun,
    models: Models = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key: ApiKeys = None,
    api_key_file: ApiKeyFile = None,
    allowed_host: AllowedHosts = None,
    allowed_origin: AllowedOrigins = None,
    follow: Follow = True,
    address: ServingCluster = None,
) -> None:
    """Serve the policies of a run through an OpenAI-compatible API, until Ctrl-C."""
    from serve.command import ServeOptions, serve_run

    names: list[str] = []
    for names_with_commas in models or []:
        names += [name for name in names_with_commas.split(",") if name]
    options = ServeOptions(
        run=run_path,
        models=names or None,
        host=host,
        port=port,
        api_keys=api_key or [],
        api_key_file=api_key_file,
        allowed_hosts=allowed_host or [],
        allowed_origins=allowed_origin or [],
        follow=follow,
        address=address,
    )
    serve_run(options, console)


def pretrain(
    config_file: ConfigFile, run_path: RunText = "runs/pretrain", score: ScoredModel = None
) -> None:
    """Train a tiny base model and score it. If interrupted, the same command resumes."""
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
    say(f"The model: {model}")


def _show_scores(scores: dict[str, DrillScore]) -> None:
    for name, score in scores.items():
        say(f"{name}: {score.exact:.1%} of new drills exact, {score.tokens:.2%} of their tokens")


@contextmanager
def _pipeline(
    config: RunConfig, place: RunPlace, from_stage: str | None = None
) -> Iterator[Pipeline]:
    """The pipeline of a run; its directory is locked while the block runs."""
    from actors.pipeline import Pipeline
    from bi_ray.policy.chat import check_chat
    from bi_ray.policy.checkpoint import check_model, load_tokenizer
    from bi_ray.runs.directory import keep_config
    from bi_ray.runs.display import Display
    from bi_ray.runs.layout import STAGES

    # A faulty model is reported before anything starts.
    check_model(config.model.path)
    check_chat(load_tokenizer(config.model.path), config.model)
    with _stopped_by_sigterm(), place.directory() as directory:
        if from_stage:
            directory.forget_from(STAGES, from_stage)
        # `report` needs the configuration while the run is in progress. A changed one replaces
        # the earlier one at the end, when no stage has refused it.
        keep_config(config, directory.path, replace=False)
        yield Pipeline(config, directory, Display(console))
        keep_config(config, directory.path, replace=True)
        place.publish_file(CONFIG_FILE)


def _run_stages(
    config: RunConfig, place: RunPlace, from_stage: str | None, until: str | None
) -> None:
    with _pipeline(config, place, from_stage) as pipeline:
        pipeline.run(until)


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM, which stops a job, end the block like an error: it releases locks and actors."""

    def stop(signal_number: int, _: object) -> None:
        # Ignore further SIGTERMs while shutting down.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        say(
            "stopped by SIGTERM; the same command resumes from the last finished stage or "
            "checkpoint"
        )
        raise SystemExit(128 + signal_number)

    previous_handler = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


def _report_on(config: RunConfig, runs: list[RunPlace], place: RunPlace) -> None:
    """Summarize runs in ``place``, and print the table."""
    from bi_ray.report.writing import show_summary, write_summary

    summary = write_summary(config, [run.path for run in runs], place.path)
    show_summary(summary, console, place.path)
    place.publish_report()
    if place.uri:
        say(f"Also at {place.name}")
