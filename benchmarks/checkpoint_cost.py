"""What a checkpoint costs on this machine: writing it, its digests, the disk, and looking at it
before a resume.

    python benchmarks/checkpoint_cost.py [--parameters 135e6] [--folder .]

Weights and the two moments of AdamW in float32, as random numbers, written as a training writes
them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from bi_ray.files.atomic import sync_folder
from bi_ray.files.integrity import record_files
from bi_ray.runs.checkpoints import StepDirectories, checkpoint_damage

COLUMNS = 1024


def seconds(work: Callable[[], object]) -> float:
    """How long ``work`` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Print one line per part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--parameters", type=float, default=135e6)
    parser.add_argument("--folder", type=Path, default=Path())
    options = parser.parse_args()
    weights = torch.randn(int(options.parameters) // COLUMNS, COLUMNS)

    def fill(folder: Path) -> None:
        (folder / "policy").mkdir()
        save_file({"weights": weights}, folder / "policy" / "model.safetensors")
        save_file({"first": weights, "second": weights + 1}, folder / "optimizer.safetensors")

    with tempfile.TemporaryDirectory(dir=options.folder) as root:
        plain = Path(root) / "plain"
        plain.mkdir()
        print(f"write the files        {seconds(lambda: fill(plain)):6.2f} s")
        print(f"their digests          {seconds(lambda: record_files(plain)):6.2f} s")
        print(f"until they are on disk {seconds(lambda: sync_folder(plain)):6.2f} s")
        directories = StepDirectories(Path(root) / "steps")
        directories.directory.mkdir()
        print(f"a whole checkpoint     {seconds(lambda: directories.write(1, fill)):6.2f} s")
        print(
            f"look at it, to resume  {seconds(lambda: checkpoint_damage(directories.path(1))):6.2f} s"
        )


if __name__ == "__main__":
    main()
