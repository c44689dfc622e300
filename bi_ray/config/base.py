"""What every section of the configuration is built from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

SetName = Literal["pretrain", "sft", "rl", "val", "val_ood", "test_id", "test_ood", "influence_target"]

Positive = Annotated[int, Field(gt=0)]

Fraction = Annotated[float, Field(ge=0, le=1)]

Seconds = Annotated[float, Field(gt=0)]


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says what to change."""


class Config(BaseModel):
    """Base of every section: unknown keys are refused, values cannot be changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)
