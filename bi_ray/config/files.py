"""Configurations in YAML files: reading with errors that point at the option, and writing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from bi_ray.config.base import Config, ConfigError
from bi_ray.config.pretraining import PretrainConfig
from bi_ray.config.run import ExtractConfig, RunConfig
from bi_ray.config.tasks import (
    TASK_KINDS,
)
from bi_ray.files.atomic import write_text

C = TypeVar("C", bound=Config)

_FILES: dict[type[Config], str] = {  # what a YAML file can be for
    RunConfig: "an experiment, as configs/quickstart.yaml",
    PretrainConfig: "a pre-training, as configs/pretrain_tiny.yaml",
    ExtractConfig: "a language model that extracts graphs, as in docs/extract.md",
}


def load_config(path: str | Path, kind: type[C]) -> C:
    """Read a YAML file.

    Raises:
        ConfigError: no such file, no YAML, or a value that does not fit; one line per fault.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; paths start at the working directory") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        wanted = (
            f"wanted is the configuration of {_FILES[kind]}"
            if kind in _FILES
            else "expected keys and values"
        )
        found = "nothing in it" if content is None else f"a {type(content).__name__}"
        raise ConfigError(f"{path}: {wanted}; there is {found}")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        if other := _other_kind(content, kind):
            wanted = f"the configuration of {_FILES[kind]}"
            raise ConfigError(
                f"{path} looks like that of {_FILES[other]}; wanted here is {wanted}"
            ) from error
        raise ConfigError("\n".join(_fault(path, fault) for fault in error.errors())) from error


def _other_kind(content: dict[Any, Any], kind: type[Config]) -> type[Config] | None:
    """The kind of file whose keys these are far rather than those of ``kind``, None where there is none."""

    def strangeness(one: type[Config]) -> int:
        lacking = [
            name
            for name, field in one.model_fields.items()
            if field.is_required() and name not in content
        ]
        return len(lacking) + len(content.keys() - one.model_fields.keys())

    best = min(_FILES, key=strangeness)
    return best if kind in _FILES and strangeness(best) + 1 < strangeness(kind) else None


def save_config(config: Config, path: Path) -> None:
    """Write every option, defaults included, by atomic rename; ``load_config`` reads it back the same."""
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _fault(path: Path, fault: object) -> str:
    assert isinstance(fault, dict)
    parts = [str(part) for part in fault["loc"]]
    if parts[:1] == ["task"] and parts[1:2] and parts[1] in TASK_KINDS:
        del parts[1]  # pydantic's name for a member of the union, which the file does not have
    where = ".".join(parts) or "the file"
    if fault["type"] == "extra_forbidden":
        return f"{path}: {where} is no option; take it out, or see `bi-ray options` for the names"
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{path}: {where}: {message} (found {fault['input']!r:.60})"
