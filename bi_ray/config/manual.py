"""The options as text for a terminal and as the page docs/options.md."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from bi_ray.config.base import Config
from bi_ray.config.extraction import ExtractConfig
from bi_ray.config.options import Option, options_of
from bi_ray.config.pretraining import PretrainConfig
from bi_ray.config.run import RunConfig

FILES: dict[str, type[Config]] = {
    "run": RunConfig,
    "pretrain": PretrainConfig,
    "extract": ExtractConfig,
}
_TITLES = {
    "run": "An experiment: `bi-ray run`, `study`, `readiness`, `submit`, `plan`",
    "pretrain": "A pre-training: `bi-ray pretrain`",
    "extract": "Extraction of graphs by a language model: docs/extract.md",
}
_INTRODUCTION = """\
# Options

Every option of the YAML files, section by section. `bi-ray options` prints them in a terminal,
`bi-ray options rl.validation` those of one section, and `bi-ray run CONFIG --dry-run` a
configuration with every default filled in.

In names, `<name>` and `<set>` stand for a key of your choice and `<n>` for a position in a list.
An option *of kind* K exists only if the `kind` of its task is K.

This page is generated; after a change of an option, write it again:
`bi-ray options --markdown > docs/options.md`.
"""


def as_text(options: Sequence[Option], width: int | None) -> str:
    """The options for a terminal: name, type and default on a line, the meaning below it.

    Args:
        options: the options to print.
        width: columns at which the meaning is wrapped; None: it stays one line, for pipes.
    """
    lines = []
    for option in options:
        lines.append(_headline(option))
        if width is None:
            lines.append(f"    {option.meaning}")
        else:
            indent = " " * 4
            lines += textwrap.wrap(
                option.meaning, width, initial_indent=indent, subsequent_indent=indent
            )
    return "\n".join(lines)


def _headline(option: Option) -> str:
    details = [f"{option.name}: {option.type}"]
    if option.required:
        details.append("required")
    elif option.default is not None:
        details.append(f"default {option.default}")
    if option.kind:
        details.append(f"of kind {option.kind}")
    return "; ".join(details)


def as_markdown() -> str:
    """The page docs/options.md: the options of every kind of file."""
    chapters = [_INTRODUCTION]
    for name, model in FILES.items():
        chapters.append("\n".join(_chapter(_TITLES[name], options_of(model))))
    return "\n".join(chapters)


def _chapter(title: str, options: Sequence[Option]) -> Iterator[str]:
    """The lines of a chapter: a table for each first key, single options in one of their own."""
    yield f"## {title}"
    tables: dict[str, list[Option]] = {}
    sections = {option.path[0] for option in options if len(option.path) > 1}
    for option in options:
        key = option.path[0] if option.path[0] in sections else ""
        tables.setdefault(key, []).append(option)
    for key, rows in tables.items():
        yield ""
        if key:
            yield from (f"### `{key}`", "")
        yield from ("| option | type | default | meaning |", "|---|---|---|---|")
        yield from map(_row, rows)
    yield ""


def _row(option: Option) -> str:
    default = f"`{option.default}`" if option.default is not None else ""
    if option.required:
        default = "required"
    name = f"`{option.name}`"
    if option.kind:
        name = f"{name} (of kind {option.kind})"
    cells = [name, option.type, default, option.meaning]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
