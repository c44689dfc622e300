"""The commands that write data: `data` generates a set, `inject` adds behaviors to rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from bi_ray.cli.arguments import AsFormat, ConfigFile, Out, TaskFile
from bi_ray.cli.console import ShowProgress, progress_bar, say
from bi_ray.config.base import ConfigError, SetName
from bi_ray.config.extraction import ExtractConfig
from bi_ray.config.files import load_config
from bi_ray.config.recipes import RecipeConfig
from bi_ray.config.run import RunConfig
from bi_ray.data.export import Format
from bi_ray.files.errors import in_words
from bi_ray.rows.fields import rows_of
from bi_ray.rows.rejects import REJECTS, Reject, Rejects
from bi_ray.runs.records import read_jsonl

if TYPE_CHECKING:
    from bi_ray.injection.user_rows import Extractor
    from bi_ray.tasks.base import Task

SHOWN_REJECTS = 10  # the file has all of them

SetOption = Annotated[
    str, typer.Option("--set", metavar="NAME", help="Set of problems: sft, rl, test_id, ...")
]
ProblemCount = Annotated[
    int | None,
    typer.Option(
        min=1, help="Number of problems", show_default="the configuration's number for this set"
    ),
]
DataProcesses = Annotated[
    int, typer.Option(min=1, help="Processes that generate problems; does not change the files")
]
Input = Annotated[
    Path,
    typer.Argument(
        metavar="INPUT", help="Rows to start from: .jsonl, .parquet, or the directory of a set"
    ),
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="vanilla, bridge, pp_aug, rc_aug, filler, the name of one behavior,"
        " or an arm of --config",
    ),
]
Behaviors = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[:PROBABILITY]",
        help="Behavior to inject, in place of --recipe: its name, or package.module:Class"
        " (repeatable)",
    ),
]
ExtractFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Settings (YAML) of the language model that extracts graphs from free text",
    ),
]
ExtractCache = Annotated[
    Path, typer.Option(metavar="DIR", help="Cache for the answers of that language model")
]
TokenizerDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Tokenizer directory, for recipes that count tokens (filler, token budgets)",
    ),
]
InjectSeed = Annotated[
    int, typer.Option(help="Random seed; the result for a row depends on the seed and the row's id")
]
StrictRows = Annotated[
    bool, typer.Option("--strict", help="Stop at the first bad row instead of leaving it out")
]
InjectProcesses = Annotated[
    int,
    typer.Option(
        min=1, help="Processes that inject (free text always uses one); does not change the files"
    ),
]


def data(
    config_file: ConfigFile,
    out: Out,
    set_name: SetOption = "sft",
    problems: ProblemCount = None,
    processes: DataProcesses = 1,
    export: AsFormat = "arrow",
) -> None:
    """Generate a set of distinct problems.

    If it is interrupted, the same command resumes. Memory use does not grow with its size.
    """
    from bi_ray.api import problems_of
    from bi_ray.data.sets import write_set

    config = load_config(config_file, RunConfig)
    count = problems or problems_of(config, set_name)
    name = cast(SetName, set_name)
    with explain_out(out), progress_bar(f"problems of {set_name}", count) as show_progress:
        manifest = write_set(config, name, count, out, export, processes, show_progress)
    say(
        f"{out}: {manifest['problems']:,} problems; the best constant answer, "
        f"{manifest['best_constant_answer']!r}, scores {manifest['best_constant_accuracy']:.1%}"
    )
    if manifest.get("rejected"):
        rejects = Rejects()
        rejects.rows = read_jsonl(out / REJECTS, Reject)
        show_rejects(rejects, out / REJECTS)


def inject(
    source: Input,
    out: Out,
    recipe: RecipeName = None,
    behavior: Behaviors = None,
    config_file: TaskFile = None,
    extract_config: ExtractFile = None,
    extract_cache: ExtractCache = Path("extract-cache"),
    tokenizer: TokenizerDir = None,
    seed: InjectSeed = 0,
    strict: StrictRows = False,
    processes: InjectProcesses = 1,
    export: AsFormat = "arrow",
) -> None:
    """Turn rows into demonstrations with behaviors, and check each one before writing it."""
    _inject(
        InjectOptions(
            source=source,
            out=out,
            recipe=recipe,
            behaviors=behavior or [],
            config_file=config_file,
            extract_config=extract_config,
            extract_cache=extract_cache,
            tokenizer=tokenizer,
            seed=seed,
            strict=strict,
            processes=processes,
            export=export,
        )
    )


@dataclass(frozen=True, slots=True)
class InjectOptions:
    """The command line of `bi-ray inject`; the options' help texts explain the fields."""

    source: Path
    out: Path
    recipe: str | None
    behaviors: list[str]
    config_file: Path | None
    extract_config: Path | None
    extract_cache: Path
    tokenizer: Path | None
    seed: int
    strict: bool
    processes: int
    export: Format


@dataclass(frozen=True, slots=True)
class _QuestionReading:
    """How the questions of rows become graphs.

    Attributes:
        task: parses templated questions; None: all questions are free text.
        system_prompt: of the demonstrations.
        extractor: a language model that reads free text; None: without one.
        extraction: settings of that model, for the manifest.
    """

    task: Task | None
    system_prompt: str
    extractor: Extractor | None = None
    extraction: ExtractConfig | None = None


def _inject(options: InjectOptions) -> None:
    from bi_ray.injection.user_rows import recipe_of

    run = load_config(options.config_file, RunConfig) if options.config_file else None
    arms = run.arms if run else None
    recipe = recipe_of(options.recipe, options.behaviors, arms)
    rejects = Rejects(options.strict)
    with progress_bar("demonstrations", None) as show_progress:
        manifest = _write_demonstrations(options, run, recipe, rejects, show_progress)
    rates = [f"{rate:.2f} {name}" for name, rate in manifest.get("behaviors_per_row", {}).items()]
    behaviors = ", ".join(rates) or "no behaviors"
    say(f"{options.out}: {manifest['problems']:,} demonstrations with {behaviors} each")
    show_rejects(rejects, options.out / REJECTS)


def _write_demonstrations(
    options: InjectOptions,
    run: RunConfig | None,
    recipe: RecipeConfig,
    rejects: Rejects,
    show_progress: ShowProgress,
) -> dict[str, Any]:
    """Read, inject and write all rows; returns the manifest."""
    from bi_ray.api import token_counter
    from bi_ray.data.sets import write_injected
    from bi_ray.injection.user_rows import inject_rows

    reading = _question_reading(options, run, show_progress)
    about: dict[str, Any] = {"recipe": recipe, "seed": options.seed}
    if reading.extraction is not None:
        about["extraction"] = reading.extraction.model_dump(include={"model", "temperature"})
    count_tokens = token_counter(options.tokenizer) if options.tokenizer else None
    rows = inject_rows(
        rows_of(options.source, rejects),
        reading.task,
        recipe,
        options.seed,
        rejects,
        reading.extractor,
        count_tokens,
        options.processes,
    )
    with explain_out(options.out):
        return write_injected(
            rows,
            rejects,
            options.source,
            options.out,
            reading.system_prompt,
            run,
            about,
            options.export,
            show_progress,
        )


def _question_reading(
    options: InjectOptions, run: RunConfig | None, show_progress: ShowProgress
) -> _QuestionReading:
    from bi_ray.api import task_of

    if options.extract_config is None:
        task = task_of(run, options.source)
        return _QuestionReading(task, task.system_prompt)

    from bi_ray.injection.free_text import llm_extractor
    from bi_ray.tasks.freetext import FreeTextTask

    def show_questions_read(done: int, total: int) -> None:
        show_progress(0, f"{done} of {total} questions read")

    extraction = load_config(options.extract_config, ExtractConfig)
    extractor = llm_extractor(extraction, options.extract_cache, show_questions_read)
    if run is None:
        return _QuestionReading(None, FreeTextTask.system_prompt, extractor, extraction)
    task = task_of(run)
    return _QuestionReading(task, task.system_prompt, extractor, extraction)


def show_rejects(rejects: Rejects, file: Path) -> None:
    """Print the first bad rows, the number of each kind if there are more, and their file."""
    if not rejects.rows:
        return
    for reject in rejects.rows[:SHOWN_REJECTS]:
        say(f"{reject.file}, line {reject.line}: {reject.reason}")
    if len(rejects.rows) > SHOWN_REJECTS:
        for line in rejects.summary():
            say(line)
    count = "1 row was" if len(rejects.rows) == 1 else f"{len(rejects.rows):,} rows were"
    say(f"{count} left out; {file} has the reason for each")


@contextmanager
def explain_out(out: Path) -> Iterator[None]:
    """Turn an error of the file system into advice about ``--out``.

    Raises:
        ConfigError: the block could not write to ``out``.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"--out {out} cannot be written: {in_words(error)}; choose another --out"
        ) from error
