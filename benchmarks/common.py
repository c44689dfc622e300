"""What benchmarks share: how a result is shown and kept."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "bench"


def report(name: str, ratio: float, setup: str, **figures: object) -> None:
    """Print a benchmark's setup, its figures and its ``RATIO`` line, and keep all of it in
    build/bench/<name>.json.
    """
    print(setup)
    for key, value in figures.items():
        print(f"  {key}: {value}")
    BUILD.mkdir(parents=True, exist_ok=True)
    temporary = BUILD / f"{name}.tmp"
    temporary.write_text(
        json.dumps({"name": name, "ratio": ratio, "setup": setup, **figures}, indent=1)
    )
    temporary.rename(BUILD / f"{name}.json")
    print(f"RATIO {name} {ratio:.2f}")
