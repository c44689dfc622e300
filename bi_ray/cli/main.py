"""The entry point `bi-ray`: registers all commands, and turns known errors into messages.

Commands import the cluster inside their functions, so that `--help` and `show` start at once.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Annotated, Literal

import typer
from rich.text import Text

from bi_ray.cli import check, data, jobs, plan, runs, show
from bi_ray.cli.console import console
from bi_ray.files.errors import in_words

log = logging.getLogger(__name__)
app = typer.Typer(
    help="Will reinforcement learning help this checkpoint, and if not, what should its SFT data"
    " look like?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def options(
    prefix: Annotated[
        str | None,
        typer.Argument(
            metavar="PREFIX",
            help="Print only options whose names begin with this, such as rl.validation",
        ),
    ] = None,
    of: Annotated[
        Literal["run", "pretrain", "extract"],
        typer.Option(help="Kind of configuration whose options are printed"),
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


# The headings of `bi-ray --help`, in the order of docs/commands.md.
_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Runs": (
        runs.run,
        runs.readiness,
        runs.study,
        runs.report,
        runs.status,
        plan.plan,
        runs.serve,
        runs.pretrain,
        options,
    ),
    "Clusters": (jobs.submit, jobs.scale),
    "Data": (data.data, data.inject, check.check, show.show),
}
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
app.add_typer(jobs.jobs_app, name="job", rich_help_panel="Clusters")


def main() -> None:
    """Run a command; an error that explains itself becomes its message and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except (ValueError, RuntimeError, OSError) as error:
        if not _explains_itself(error):
            raise
        log.debug("the command failed", exc_info=error)
        line = Text.assemble(("error: ", "bold red"), _message(error))
        console.print(line, highlight=False, soft_wrap=True)
        sys.exit(2)


def _message(error: Exception) -> str:
    """The error in words; one of the file system begins with the name of the file."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {in_words(error)}"
    return str(error)


def _explains_itself(error: Exception) -> bool:
    """Whether an error is one of ours, or of the file system (disk full, permission denied)."""
    if isinstance(error, OSError) and error.strerror:
        return True
    package = type(error).__module__.partition(".")[0]
    return package in ("bi_ray", "actors", "serve")
