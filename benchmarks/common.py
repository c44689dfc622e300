"""What benchmarks share: how a result is shown and kept."""

from __future__ import annotations

import json
from pathlib import Path

from bi_ray.files.atomic import write_text

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
    result = {"name": name, "ratio": ratio, "setup": setup, **figures}
    write_text(BUILD / f"{name}.json", json.dumps(result, indent=1), durable=False)
    print(f"RATIO {name} {ratio:.2f}")
