"""Every option of a configuration, a line each, read from the models themselves."""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin

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
        if members := _models(kind):
            for member in members:  # one of them, as its kind says
                yield from describe_options(member, f"{where}({get_args(member.model_fields['kind'].annotation)[0]}).")
            continue
        shown = getattr(kind, "__name__", None) if isinstance(kind, type) else str(kind).replace("typing.", "")
        default = "" if field.default is PydanticUndefined else f" = {field.default!r}"
        yield f"{where}: {shown}{default}"


def _models(kind: Any) -> list[type[BaseModel]]:
    """The members of a union of models that differ in their ``kind``; of any other type none."""
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else ()
    return [m for m in members if isinstance(m, type) and issubclass(m, BaseModel) and "kind" in m.model_fields]
