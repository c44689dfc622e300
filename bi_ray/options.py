"""Every option of a configuration, a line each, read from the models themselves."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel
from pydantic_core import PydanticUndefined


def describe_options(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Lines such as ``rl.steps: int = 200``; sections come with their own options."""
    for name, field in model.model_fields.items():
        where = f"{prefix}{name}"
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from describe_options(kind, f"{where}.")
            continue
        shown = getattr(kind, "__name__", None) if isinstance(kind, type) else str(kind).replace("typing.", "")
        default = "" if field.default is PydanticUndefined else f" = {field.default!r}"
        yield f"{where}: {shown}{default}"
