"""Arguments, options and checks that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bi_ray.data.export import Format
from bi_ray.files.errors import RunError
from bi_ray.files.uri import public_name, uri_in
from bi_ray.runs.place import LOCAL_VARIABLE

ConfigFile = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG", help="Configuration file (YAML), for example configs/quickstart.yaml"
    ),
]
RunText = Annotated[
    str,
    typer.Option(
        "--run",
        metavar="DIR",
        help="Run directory, a path or a URI; repeat the command to resume a run",
    ),
]
Local = Annotated[
    Path | None,
    typer.Option(
        envvar=LOCAL_VARIABLE,
        metavar="DIR",
        help="Working copy of a run directory given as a URI; every node must see it",
    ),
]
FromStage = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="STAGE", help="Discard this stage and all later ones, and run them again"
    ),
]
Out = Annotated[
    Path,
    typer.Option(metavar="DIR", help="Directory to create, with data, manifest.json and README.md"),
]
AsFormat = Annotated[
    Format,
    typer.Option(
        "--format",
        help="All columns (arrow, jsonl, parquet), or the rows that TRL (messages, completion)"
        " or verl reads",
    ),
]
TaskFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Configuration that defines the task; not needed for data that `bi-ray` wrote",
    ),
]


def refuse_uri(paths: Any) -> Any:
    """Check the path or paths of a command that reads local directories, and return them.

    Raises:
        RunError: one of them is a URI; the message shows no credentials.
    """
    for path in paths if isinstance(paths, (list, tuple)) else [paths]:
        uri = uri_in(path)
        if uri:
            raise RunError(
                f"{public_name(uri)} is a URI: this command reads a directory; "
                "give it the working copy of the run"
            )
    return paths
