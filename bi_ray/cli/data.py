"""The commands about data: make a set, inject behaviors into rows, check responses, show a row."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bi_ray.config import ConfigError, ExtractConfig, RunConfig, SetName, load_config
from bi_ray.data.export import Format
from bi_ray.files.atomic import remove_leftovers, write_whole
from bi_ray.files.errors import RunError, in_words
from bi_ray.files.records import parse_record
from bi_ray.rows.cells import RowError
from bi_ray.rows.fields import fields_of, rows_of
from bi_ray.rows.rejects import REJECTS, DataError, Place, Reject, Rejects
from bi_ray.runs.display import Display
from bi_ray.runs.records import read_jsonl

console = Console()
_COLORS = {
    "reflection": "magenta",
    "analysis": "cyan",
    "subgoal": "green",
    "correction": "red",
    "verification": "blue",
    "planning": "bright_yellow",
}
_SHOWN_REJECTS = 10  # the rest is in the file
_MOST_BYTES_OF_A_ROW = 2**24
_ROWS_PER_UPDATE = 200  # of the bar

ConfigFile = Annotated[
    Path, typer.Argument(help="YAML file of the experiment, for example configs/quickstart.yaml")
]
Out = Annotated[Path, typer.Option(help="Directory to make: data files, manifest.json, README.md")]
AsFormat = Annotated[
    Format,
    typer.Option(
        "--format",
        help="arrow, jsonl, parquet: all columns; messages, completion: as TRL takes them; verl: as verl takes it",
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first bad row")]
TaskFile = Annotated[
    Path | None,
    typer.Option(
        "--config", help="YAML file that names the task; not needed for what `bi-ray` made"
    ),
]


def data(
    config_file: ConfigFile,
    out: Out,
    set_name: Annotated[str, typer.Option("--set", help="Which set of problems")] = "sft",
    problems: Annotated[
        int | None, typer.Option(min=1, help="How many [default: what the configuration says]")
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="How many make problems; the files do not depend on it")
    ] = 1,
    export: AsFormat = "arrow",
) -> None:
    """Make a set of problems, no two alike. Killed, the same command goes on; memory does not grow
    with the set.
    """
    from bi_ray.api import problems_of
    from bi_ray.data.sets import write_set

    config = load_config(config_file, RunConfig)
    configured = problems_of(config, set_name)
    count = problems or configured
    with _written_to(out), _bar(f"problems of {set_name}", count) as show:
        manifest = write_set(config, cast(SetName, set_name), count, out, export, processes, show)
    _say(
        f"{out}: {manifest['problems']:,} problems, best constant answer {manifest['best_constant_answer']!r} "
        f"scores {manifest['best_constant_accuracy']:.1%}"
    )
    if manifest.get("rejected"):
        rejects = Rejects()
        rejects.rows = _read_rejects(out / REJECTS)
        _tell(rejects, out / REJECTS)


def inject(
    source: Annotated[
        Path,
        typer.Argument(metavar="INPUT", help="A .jsonl or .parquet file, or a set's directory"),
    ],
    out: Out,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="vanilla, bridge, pp_aug, rc_aug, filler, one behavior, or an arm of --config"
        ),
    ] = None,
    behavior: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:PROBABILITY]",
            help="Instead: behaviors one by one, or package.module:Class; repeatable",
        ),
    ] = None,
    config_file: TaskFile = None,
    extract_config: Annotated[
        Path | None,
        typer.Option(help="YAML file of the language model that finds graphs in free text"),
    ] = None,
    extract_cache: Annotated[Path, typer.Option(help="Where its answers are kept")] = Path(
        "extract-cache"
    ),
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Directory of one; filler and token budgets are counted with it"),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="What is injected into a row depends on it and the row's id")
    ] = 0,
    strict: Strict = False,
    processes: Annotated[
        int,
        typer.Option(min=1, help="How many inject (free text: one); the files do not depend on it"),
    ] = 1,
    export: AsFormat = "arrow",
) -> None:
    """Turn rows into demonstrations with behaviors in them, each proven right before it is written."""
    from bi_ray.api import task_of, token_counter
    from bi_ray.data.sets import write_injected
    from bi_ray.injection.rows import inject_rows, recipe_of

    run = load_config(config_file, RunConfig) if config_file else None
    wanted = recipe_of(recipe, behavior or (), run.arms if run else None)
    rejects, extractor, task = Rejects(strict), None, None
    about: dict[str, Any] = {"recipe": wanted, "seed": seed}
    with _bar("demonstrations", None) as show:
        if extract_config:
            from bi_ray.injection.free_text import llm_extractor
            from bi_ray.tasks.freetext import FreeTextTask

            options = load_config(extract_config, ExtractConfig)
            about["extraction"] = options.model_dump(include={"model", "temperature"})
            extractor = llm_extractor(
                options, extract_cache, lambda done, total: show(0, f"read {done} of {total}")
            )
            task = task_of(run) if run else None
            prompt = task.system_prompt if task else FreeTextTask.system_prompt
        else:
            task = task_of(run, source)
            prompt = task.system_prompt
        count_tokens = token_counter(tokenizer) if tokenizer else None
        read = rows_of(source, rejects)
        rows = inject_rows(read, task, wanted, seed, rejects, extractor, count_tokens, processes)
        with _written_to(out):
            manifest = write_injected(rows, rejects, source, out, prompt, run, about, export, show)
    rates = ", ".join(
        f"{n:.2f} {name}" for name, n in manifest.get("behaviors_per_row", {}).items()
    )
    _say(f"{out}: {manifest['problems']:,} demonstrations with {rates or 'no behaviors'} each")
    _tell(rejects, out / REJECTS)


def check(
    source: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Responses: .jsonl, .parquet, or a set's directory"),
    ],
    config_file: TaskFile = None,
    out: Annotated[
        Path | None, typer.Option(help="Where verdicts go [default: FILE.verdicts.jsonl]")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit code 1 where a row is wrong or cannot be graded")
    ] = False,
) -> None:
    """Grade responses, a model's or demonstrations: right answer, valid trace, first bad line with
    its reason.
    """
    from bi_ray.api import task_of
    from bi_ray.verification.grading import Grade, Tally, grade_rows

    run = load_config(config_file, RunConfig) if config_file else None
    task = task_of(run, source)
    out = out or source.with_name(f"{source.name}.verdicts.jsonl")
    if out.resolve() == source.resolve() or os.path.isdir(out):
        raise ConfigError(f"--out {out}: it has to be a file of its own")
    left_out = out.with_name(f"{out.name}.{REJECTS}")
    with _written_to(out):
        _refuse_foreign_rows(out, Grade, "verdicts")
        _refuse_foreign_rows(left_out, Reject, "rejected rows")
    tally, rejects, faults = (
        Tally(),
        Rejects(),
        Table("row", "line of it", "what is wrong", box=None),
    )
    with _written_to(out), _whole_file(out) as file, _bar("responses", None) as show:
        for place, grade in grade_rows(
            rows_of(source, rejects), task, rejects, run.verifier if run else None
        ):
            tally.add(grade)
            show(tally.rows)
            file.write(json.dumps(asdict(place) | grade.as_json(), ensure_ascii=False) + "\n")
            if grade.first_bad_step is not None and faults.row_count < _SHOWN_REJECTS:
                line = "end" if grade.bad_response_line is None else str(grade.bad_response_line)
                faults.add_row(Text(grade.id), line, Text(grade.reason or ""))
        _keep(rejects, left_out)
        if not tally.rows:
            raise DataError(rejects.explain(source, "nothing was graded"))
    console.print(_tally_table(tally))
    if faults.row_count:
        console.print(faults)
        if tally.traces - tally.trace_valid > faults.row_count:
            _say(f"and {tally.traces - tally.trace_valid - faults.row_count:,} more in {out}")
    _tell(rejects, left_out)
    _say(f"Every verdict: {out}")
    if strict and (tally.right < tally.rows or tally.trace_valid < tally.traces or rejects.rows):
        raise typer.Exit(1)


def show(
    source: Annotated[
        Path,
        typer.Argument(help="A configuration, or a file or directory of problems or responses"),
    ],
    arm: Annotated[
        str | None,
        typer.Option(
            help="Of a configuration: whose recipe to inject [default: bridge, or the first]"
        ),
    ] = None,
    set_name: Annotated[
        str, typer.Option("--set", help="Of a configuration: which set of problems")
    ] = "sft",
    index: Annotated[int, typer.Option(min=0, help="Which problem, from 0")] = 0,
    row_id: Annotated[
        str | None, typer.Option("--id", help="Of a file or directory: the row with this id")
    ] = None,
) -> None:
    """Print one problem and its demonstration, injected behaviors in color."""
    if source.suffix in (".yaml", ".yml"):
        if row_id is not None:
            raise ConfigError("--id: a configuration has no ids; use --index")
        row = _made_row(load_config(source, RunConfig), arm, set_name, index)
    else:
        row = _found_row(source, index, row_id)
    text = Text(row.get("response") or "")
    for span in row.get("spans") or ():
        text.stylize(_COLORS.get(span["behavior"], "yellow"), span["start"], span["end"])
    shown = dict.fromkeys(span["behavior"] for span in row.get("spans") or ())
    legend = Text("  ").join(Text(name, style=_COLORS.get(name, "yellow")) for name in shown)
    parts = [Text(row["question"]), text, legend]
    if not row.get("response"):
        parts = [Text(row["question"]), Text(f"Answer: {row.get('answer')}")]
    elif not shown:
        parts.append(Text("(no behavior in this one; try another --index)"))
    console.print(
        *(item for part in parts if part for item in (part, "")), sep="\n", soft_wrap=True
    )


def add_commands(app: typer.Typer) -> None:
    """Give the front door the commands of this file."""
    for command in (data, inject, check, show):
        app.command()(command)


def _made_row(config: RunConfig, arm: str | None, set_name: str, index: int) -> dict[str, Any]:
    from bi_ray.api import problems_of, token_counter
    from bi_ray.injection.recipes import Recipe
    from bi_ray.injection.rows import demonstration_row
    from bi_ray.tasks.registry import build_task

    if arm is None:
        arm = "bridge" if "bridge" in config.arms else next(iter(config.arms))
    if arm not in config.arms:
        raise ConfigError(f"--arm {arm}: the configuration has {', '.join(config.arms)}")
    problems_of(config, set_name)
    task = build_task(config.task, config.seeds.data, config.verifier)
    problem = task.problem(cast(SetName, set_name), index)
    wanted = config.arms[arm]
    if not wanted.sft or (problem.graph is None and not problem.response):
        return {"question": problem.question, "answer": problem.answer}
    count_tokens = token_counter(config.model.path) if wanted.counts_tokens else None
    recipe = Recipe(wanted.for_task(task.kind), config.seeds.data, count_tokens)
    return demonstration_row(recipe.demonstrate(task, problem))


def _found_row(source: Path, index: int, row_id: str | None) -> dict[str, Any]:
    rejects, rows = Rejects(), 0
    for number, (place, row) in enumerate(rows_of(source, rejects)):
        rows = number + 1
        if number != index and row_id is None:
            continue
        try:
            fields = fields_of(row)
        except RowError as error:
            if row_id is not None:
                continue
            raise DataError(f"{place}: {error}") from error
        if row_id is None or row_id in (fields.id, f"row-{place.line}"):
            spans = row.get("spans") if fields.response == row.get("response") else None
            _require_spans(spans, fields.response or "", place)
            return {
                "question": fields.question,
                "answer": fields.answer,
                "response": fields.response,
                "spans": spans,
            }
    left_out = source / REJECTS
    if left_out.is_file():  # when the set was made
        rejects.rows += _read_rejects(left_out)
    asked_for = (
        f"row {index} (its {rows:,} rows count from 0)"
        if row_id is None
        else f"row with the id {row_id}"
    )
    if not rows:
        raise DataError(rejects.explain(source, "there is nothing to show"))
    raise DataError("\n".join([f"{source} has no {asked_for}", *rejects.summary()]))


def _read_rejects(file: Path) -> list[Reject]:
    return read_jsonl(file, Reject)


def _require_spans(spans: Any, response: str, place: Place) -> None:
    """Refuse what is no list of behaviors' spans of the response."""
    for span in spans if isinstance(spans, list) else [] if spans is None else [spans]:
        whole = isinstance(span, dict) and isinstance(span.get("behavior"), str)
        ends = [span.get("start"), span.get("end")] if whole else [None]
        if not all(isinstance(end, int) and 0 <= end <= len(response) for end in ends):
            raise DataError(
                f"{place}: spans has to be a list of start, end and behavior within the response"
            )


def _refuse_foreign_rows(file: Path, kind: type[Any], what: str) -> None:
    """Raises ConfigError where a file of rows is to replace one that does not begin with a row of
    that kind.
    """
    if not file.is_file():
        return
    with open(file, "rb") as content:
        start = content.readline(_MOST_BYTES_OF_A_ROW)
    try:
        if start:
            parse_record(start, kind, str(file), "")
    except RunError as error:
        raise ConfigError(
            f"{file} exists and does not contain {what}; it was not replaced, choose another --out"
        ) from error


def _keep(rejects: Rejects, file: Path) -> None:
    """Write the bad rows; where there are none, no file of an earlier call stays."""
    file.unlink(missing_ok=True)
    if rejects.rows:
        rejects.write(file)


def _tell(rejects: Rejects, file: Path) -> None:
    """The first bad rows, how many there are of each kind, and where all of them are."""
    for reject in rejects.rows[:_SHOWN_REJECTS]:
        _say(f"{reject.file}, line {reject.line}: {reject.reason}")
    if len(rejects.rows) > _SHOWN_REJECTS:
        for line in rejects.summary():
            _say(line)
    if rejects.rows:
        count = "1 row was" if len(rejects.rows) == 1 else f"{len(rejects.rows):,} rows were"
        _say(f"{count} left out; each with its reason: {file}")


def _tally_table(tally: Any) -> Table:
    table = Table(box=None, show_header=False)
    for name, count, total in (
        ("right answer", tally.right, tally.rows),
        ("right format", tally.format_right, tally.rows),
        ("valid trace", tally.trace_valid, tally.traces),
        ("right answer by a wrong trace", tally.right_by_wrong_trace, tally.traces),
    ):
        if total:
            table.add_row(name, f"{count:,} of {total:,}", f"{count / total:.1%}")
    for name, count in sorted(tally.behaviors.items()):
        note = f"{tally.right_reflections:,} of them right" if name == "reflection" else ""
        table.add_row(f"{name} lines", f"{count:,}", note)
    return table


@contextmanager
def _written_to(out: Path) -> Iterator[None]:
    """What the file system says against ``--out``, in words."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"--out {out} cannot be written: {in_words(error)}; choose another --out"
        ) from error


@contextmanager
def _whole_file(path: Path) -> Iterator[IO[str]]:
    """A file that takes the place of ``path`` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    with write_whole(path) as fresh, fresh.open("w", encoding="utf-8") as file:
        yield file


@contextmanager
def _bar(title: str, total: int | None) -> Iterator[Any]:
    """A bar, told how many rows are done; it moves every few hundred."""
    display = Display(console)

    def show(done: int, figures: str = "") -> None:
        if figures or done % _ROWS_PER_UPDATE == 0 or done == total:
            display.set(done, total, figures)

    with display.task(title, total):
        yield show


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
