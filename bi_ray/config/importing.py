"""Objects of the user, by import path."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from bi_ray.config.base import ConfigError


def load_object(path: str, where: str, kind: str = "function") -> Any:
    """The object at ``package.module:name``; modules of the working directory are found too.

    Args:
        path: where it is.
        where: the option that names it, for messages.
        kind: what it should be, for messages.

    Raises:
        ConfigError: no such module, no such object, or the module does not import.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ConfigError(f"{where} is no import path; write package.module:{kind}")
    if os.getcwd() not in sys.path:  # a console script's path lacks it
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(f"{where}: {module_name} does not import: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise ConfigError(f"{where}: {module_name} has no {kind} {name!r}")
    return found
