"""Measure the cost of a checkpoint on this machine: writing, digests, syncing, and checking it.

    python benchmarks/checkpoint_cost.py [--parameters 135e6] [--folder .]

The files are those of a training run: weights and the two moments of AdamW in float32, filled with
random numbers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from common import arguments_parser, timed
from safetensors.torch import save_file

from bi_ray.files.atomic import sync_folder
from bi_ray.files.integrity import record_files
from bi_ray.runs.checkpoints import StepDirectories, checkpoint_damage

COLUMNS = 1024


def _print_seconds(part: str, work: Callable[[], object]) -> None:
    seconds, _ = timed(work)
    print(f"{part:23s} {seconds:6.2f} s")


def main() -> None:
    """Print one line per part."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--parameters", type=float, default=135e6, help="of the model")
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure")
    options = parser.parse_args()
    weights = torch.randn(int(options.parameters) // COLUMNS, COLUMNS)

    def fill(folder: Path) -> None:
        (folder / "policy").mkdir()
        save_file({"weights": weights}, folder / "policy" / "model.safetensors")
        save_file({"first": weights, "second": weights + 1}, folder / "optimizer.safetensors")

    with tempfile.TemporaryDirectory(dir=options.folder) as root:
        plain = Path(root) / "plain"
        plain.mkdir()
        _print_seconds("write the files", lambda: fill(plain))
        _print_seconds("compute digests", lambda: record_files(plain))
        _print_seconds("sync to disk", lambda: sync_folder(plain))
        directories = StepDirectories(Path(root) / "steps")
        directories.directory.mkdir()
        _print_seconds("a whole checkpoint", lambda: directories.write(1, fill))
        _print_seconds("check before a resume", lambda: checkpoint_damage(directories.path(1)))


if __name__ == "__main__":
    main()
