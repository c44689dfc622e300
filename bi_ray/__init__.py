"""bi_ray: will reinforcement learning help this checkpoint, and if not, what should its SFT data
look like?

``bi_ray.generate``, ``bi_ray.inject`` and ``bi_ray.check`` are the Python API (docs/injection.md);
they are loaded when they are first used, so that ``import bi_ray`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bi_ray.api import check, generate, inject

__all__ = ["check", "generate", "inject"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from bi_ray import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
