"""Loads objects of the user by import path."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from bi_ray.config.base import ConfigError


def load_object(path: str, where: str, kind: str = "function") -> Any:
    """Load the object at an import path; modules in the working directory are found, too.

    Args:
        path: ``package.module:name``.
        where: the option that has the path, for messages.
        kind: what the object should be, for messages.

    Raises:
        ConfigError: the module does not exist or does not import, or has no such object.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ConfigError(f"{where} is not an import path; write package.module:{kind}")
    if os.getcwd() not in sys.path:  # a console script's path lacks it
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(
            f"{where}: {module_name} does not import: {type(error).__name__}: {error}"
        ) from error
    loaded = getattr(module, name, None)
    if not callable(loaded):
        raise ConfigError(f"{where}: {module_name} has no {kind} {name!r}")
    return loaded
