"""What every section of the configuration is built from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SetName = Literal[
    "pretrain", "sft", "rl", "val", "val_ood", "test_id", "test_ood", "influence_target"
]

Positive = Annotated[int, Field(gt=0)]

NotNegative = Annotated[int, Field(ge=0)]

Fraction = Annotated[float, Field(ge=0, le=1)]

Seconds = Annotated[float, Field(gt=0)]

ForeignOptions = dict[str, Any]  # options that code of the user or of a library checks


@dataclass(frozen=True, slots=True)
class NotInKey:
    """Marks an option that no stage's key covers: finished stages stay valid when it changes.

    Deadlines are of this kind, resources, how often checkpoints are written, and options that only
    decide whether a stage exists at all. Marking a section marks all its options.
    """


@dataclass(frozen=True, slots=True)
class InKeyOf:
    """Marks an option that another stage's key covers than the rest of its section.

    Attributes:
        stage: the first part of that stage's name, such as ``queries``.
    """

    stage: str


Deadline = Annotated[Seconds, NotInKey()]


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says what to change."""


class Config(BaseModel):
    """Base of every section: unknown keys are refused, values cannot be changed afterwards.

    The docstring below an option is its description in `bi-ray options` and docs/options.md.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
