"""What pydantic finds wrong with a configuration, in words that say what to change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bi_ray.config.base import Config
from bi_ray.config.options import nearest_option, options_of
from bi_ray.config.tasks import TASK_KINDS


def describe_fault(fault: Mapping[str, Any], model: type[Config], section: str = "") -> str:
    """One line about one fault, which begins with the option.

    Args:
        fault: an element of ``ValidationError.errors()``.
        model: the class that was validated.
        section: the name of the section that it was validated for; empty: the whole file.
    """
    keys = [str(key) for key in fault["loc"]]
    kind = ""
    if keys[:1] == ["task"] and keys[1:2] and keys[1] in TASK_KINDS:
        # Pydantic's name for a member of the union, which the file does not have.
        kind = keys.pop(1)
    where = ".".join([section, *keys] if section else keys)
    if fault["type"] == "extra_forbidden":
        options = [option for option in options_of(model) if option.kind in ("", kind)]
        near = nearest_option(keys, options)
        if near is None:
            return f"unknown option `{where}`; remove it (`bi-ray options` lists the known ones)"
        full_name = f"{section}.{near}" if section else near
        return f"unknown option `{where}`; remove it (did you mean `{full_name}`?)"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if where:
        message = f"{where}: {message}"
    value = fault["input"]
    shown = f"{value!r:.60}"
    # A whole section adds nothing to the message, and some messages quote the value themselves.
    if isinstance(value, dict) or message.endswith(f"got {shown}"):
        return message
    return f"{message} (found {shown})"
