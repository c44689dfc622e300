"""The command `show`: print one problem and its demonstration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.text import Text

from bi_ray.cli.console import console
from bi_ray.cli.data import SetOption
from bi_ray.config.base import ConfigError, SetName
from bi_ray.config.files import load_config
from bi_ray.config.run import RunConfig
from bi_ray.rows.cells import RowError
from bi_ray.rows.fields import Fields, fields_of, rows_of
from bi_ray.rows.rejects import REJECTS, DataError, Place, Reject, Rejects, RowValues
from bi_ray.runs.records import read_jsonl

_COLORS = {
    "reflection": "magenta",
    "analysis": "cyan",
    "subgoal": "green",
    "correction": "red",
    "verification": "blue",
    "planning": "bright_yellow",
}
_OTHER_COLOR = "yellow"

Source = Annotated[
    Path,
    typer.Argument(
        metavar="SOURCE",
        help="A configuration, or a file or directory of problems or responses",
    ),
]
Arm = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="With a configuration: the arm whose recipe is injected",
        show_default="bridge, or the first arm",
    ),
]
Index = Annotated[int, typer.Option(min=0, help="Position of the problem, from 0")]
RowId = Annotated[
    str | None,
    typer.Option("--id", metavar="ID", help="With a file or directory: the id of the row"),
]


def show(
    source: Source,
    arm: Arm = None,
    set_name: SetOption = "sft",
    index: Index = 0,
    row_id: RowId = None,
) -> None:
    """Print a problem and its demonstration, with injected behaviors in color.

    SOURCE is a configuration, from which the problem is generated (--set, --index, --arm), or
    data on disk (--index or --id).
    """
    if source.suffix not in (".yaml", ".yml"):
        _print_row(_find_row(source, index, row_id))
        return
    if row_id is not None:
        raise ConfigError("--id: the problems of a configuration have no ids; use --index")
    _print_row(_make_row(load_config(source, RunConfig), arm, set_name, index))


@dataclass(frozen=True, slots=True)
class _ShownRow:
    """What is printed of a problem.

    Attributes:
        question: its text.
        answer: the right one, if it is known.
        response: a demonstration or a model's response, if there is one.
        spans: ``behavior``, ``start`` and ``end`` (characters) of each behavior in the response.
    """

    question: str
    answer: object
    response: str | None = None
    spans: Sequence[dict[str, Any]] = ()


def _print_row(row: _ShownRow) -> None:
    for block in _blocks(row):
        if block:
            console.print(block, "", sep="\n", soft_wrap=True)


def _blocks(row: _ShownRow) -> list[Text]:
    """The question, the response with its behaviors in color, and a legend of the colors."""
    question = Text(row.question)
    if not row.response:
        return [question, Text(f"Answer: {row.answer}")]
    response = Text(row.response)
    colors: dict[str, str] = {}
    for span in row.spans:
        color = _COLORS.get(span["behavior"], _OTHER_COLOR)
        response.stylize(color, span["start"], span["end"])
        colors[span["behavior"]] = color
    if not colors:
        return [question, response, Text("(this one has no behaviors; try another --index)")]
    legend = Text("  ").join(Text(name, style=color) for name, color in colors.items())
    return [question, response, legend]


def _make_row(config: RunConfig, arm: str | None, set_name: str, index: int) -> _ShownRow:
    """Generate a problem of a configuration, and demonstrate it with the recipe of an arm.

    Raises:
        ConfigError: the configuration has no such arm or set.
    """
    from bi_ray.api import problems_of, token_counter
    from bi_ray.injection.recipes import Recipe
    from bi_ray.injection.user_rows import demonstration_row
    from bi_ray.tasks.registry import build_task

    if arm is None:
        arm = "bridge" if "bridge" in config.arms else next(iter(config.arms))
    if arm not in config.arms:
        raise ConfigError(
            f"--arm {arm}: no such arm; the configuration has {', '.join(config.arms)}"
        )
    problems_of(config, set_name)  # raises for an unknown set
    task = build_task(config.task, config.seeds.data, config.verifier)
    problem = task.problem(cast(SetName, set_name), index)
    options = config.arms[arm]
    can_demonstrate = problem.graph is not None or problem.response
    if not options.sft or not can_demonstrate:
        return _ShownRow(problem.question, problem.answer)
    count_tokens = token_counter(config.model.path) if options.counts_tokens else None
    recipe = Recipe(options.for_task(task.kind), config.seeds.data, count_tokens)
    row = demonstration_row(recipe.demonstrate(task, problem))
    return _ShownRow(row["question"], row["answer"], row["response"], row["spans"])


def _find_row(source: Path, index: int, row_id: str | None) -> _ShownRow:
    """The row of a file or directory at a position, or the one with an id.

    Raises:
        DataError: there is no such row, or it cannot be used.
    """
    rejects = Rejects()
    row_count = 0
    for place, row in rows_of(source, rejects):
        row_count += 1
        if row_id is not None:
            fields = _usable_fields(row)
            if fields is not None and row_id in (fields.id, f"row-{place.line}"):
                return _shown_row(row, fields, place)
        elif row_count == index + 1:
            return _shown_row(row, _require_fields(row, place), place)
    left_out = source / REJECTS  # when the set was made
    if left_out.is_file():
        rejects.rows += read_jsonl(left_out, Reject)
    if not row_count:
        raise DataError(rejects.explain(source, "there is nothing to show"))
    missing = f"row {index} (its {row_count:,} rows count from 0)"
    if row_id is not None:
        missing = f"row with the id {row_id}"
    raise DataError("\n".join([f"{source} has no {missing}", *rejects.summary()]))


def _require_fields(row: RowValues, place: Place) -> Fields:
    try:
        return fields_of(row)
    except RowError as error:
        raise DataError(f"{place}: {error}") from error


def _usable_fields(row: RowValues) -> Fields | None:
    """The fields of a row; None for a bad row, which a search by id passes over."""
    try:
        return fields_of(row)
    except RowError:
        return None


def _shown_row(row: RowValues, fields: Fields, place: Place) -> _ShownRow:
    # Spans are positions in the response as it is in the file.
    spans = row.get("spans") if fields.response == row.get("response") else None
    _check_spans(spans, fields.response or "", place)
    return _ShownRow(fields.question, fields.answer, fields.response, spans or ())


def _check_spans(spans: object, response: str, place: Place) -> None:
    """Refuse spans that are not a list of behaviors within the response.

    Raises:
        DataError: see above.
    """
    if spans is None:
        return
    if not isinstance(spans, list) or not all(_is_span(span, response) for span in spans):
        raise DataError(
            f"{place}: expected spans to be a list of objects with start, end (within the "
            "response) and behavior"
        )


def _is_span(span: object, response: str) -> bool:
    if not isinstance(span, dict) or not isinstance(span.get("behavior"), str):
        return False
    for offset in (span.get("start"), span.get("end")):
        if not isinstance(offset, int) or not 0 <= offset <= len(response):
            return False
    return True
