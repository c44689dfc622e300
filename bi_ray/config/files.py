"""Configurations in YAML files: reading with errors that point at the option, and writing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from bi_ray.config.base import Config, ConfigError
from bi_ray.config.error_messages import describe_fault
from bi_ray.config.extraction import ExtractConfig
from bi_ray.config.pretraining import PretrainConfig
from bi_ray.config.run import RunConfig
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
        ConfigError: the file does not exist, is not YAML, or has a value that does not fit; one
            line per fault.
    """
    path = Path(path)
    content = _read_yaml(path)
    if not isinstance(content, dict):
        wanted = f"the configuration of {_FILES[kind]}" if kind in _FILES else "keys and values"
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise ConfigError(f"{path}: expected {wanted}; the file holds {found}")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        if other := _other_kind(content, kind):
            raise ConfigError(
                f"{path} looks like the configuration of {_FILES[other]}; "
                f"expected that of {_FILES[kind]}"
            ) from error
        faults = [f"{path}: {describe_fault(fault, kind)}" for fault in error.errors()]
        raise ConfigError("\n".join(faults)) from error


def _read_yaml(path: Path) -> object:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such file; relative paths start at the working directory"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def _other_kind(content: dict[Any, Any], kind: type[Config]) -> type[Config] | None:
    """The kind of file that these keys fit far better than ``kind``; None if there is none."""
    if kind not in _FILES:
        return None
    best = min(_FILES, key=lambda model: _misfits(content, model))
    return best if _misfits(content, best) + 1 < _misfits(content, kind) else None


def _misfits(content: dict[Any, Any], model: type[Config]) -> int:
    """How many keys are unknown to ``model``, plus how many that it requires are absent."""
    unknown = content.keys() - model.model_fields.keys()
    absent = [
        name
        for name, field in model.model_fields.items()
        if field.is_required() and name not in content
    ]
    return len(unknown) + len(absent)


def save_config(config: Config, path: Path) -> None:
    """Write every option, defaults included, by atomic rename.

    ``load_config`` reads the same configuration back.
    """
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
