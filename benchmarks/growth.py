"""Measure how the cost of an RL step grows with model, group, response and number of workers.

    python benchmarks/growth.py [--out docs/results/growth]

One of these varies at a time, around 5 M parameters and 16 prompts x 8 samples x 128 tokens. Steps
are synchronous, with 2 engines and 1 learner of 2 threads in float32; both phases use the same two
cores. Each phase is shown with its limit on this machine: its floating-point operations at the rate
of large matrix products, or its bytes at the speed of memory, whichever takes longer. Medians of
the steps after the first.

Each row is written to ``<out>.jsonl`` as soon as it is measured, so that the same command resumes
an interrupted run. At the end, ``<out>.md`` and ``<out>.svg`` are made from the rows.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import ROOT, arguments_parser, timed
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rl_runs import medians, random_model, rl_options, run_config, run_rl, work_folder
from transformers import AutoModelForCausalLM

from bi_ray.data.problems import read_problems

PHASES = {"generate_s": "generation", "compute_s": "training", "other_s": "all else"}


@dataclass(frozen=True)
class Setting:
    """What is measured in one row; ``tokens`` is the length of each response."""

    size: str = "5m"
    prompts: int = 16
    samples: int = 8
    tokens: int = 128
    engines: int = 2
    learners: int = 1
    steps: int = 4


CENTER = Setting()
VARIED: dict[str, list[Setting]] = {
    "parameters": [
        replace(CENTER, size="1m"),
        CENTER,
        replace(CENTER, size="30m"),
        replace(CENTER, size="135m", prompts=2, steps=2),
    ],
    "samples per prompt": [replace(CENTER, samples=samples) for samples in (2, 8, 32)],
    "response tokens": [replace(CENTER, tokens=tokens) for tokens in (32, 128, 512)],
    "engines x learners": [
        replace(CENTER, engines=1, learners=1),
        replace(CENTER, engines=1, learners=2),
        replace(CENTER, engines=2, learners=1),
        replace(CENTER, engines=2, learners=2),
    ],
}
Row = dict[str, Any]
COLUMNS = (
    "varied",
    "parameters",
    "prompts x samples x tokens",
    "engines, learners",
    "generation (limit)",
    "training (limit)",
    "all else",
    "step",
    "samples/s",
)


def machine() -> dict[str, float]:
    """What two threads reach: FLOP/s of a large float32 matrix product, bytes/s of a copy."""
    torch.set_num_threads(2)
    a = torch.randn(2048, 2048)
    source, target = torch.randn(2, 1 << 26).unbind()  # 256 MB each: no cache holds them
    products, copies = [], []
    for _ in range(8):
        product_s, _ = timed(lambda: torch.mm(a, a))
        products.append(2 * 2048**3 / product_s)
        copy_s, _ = timed(lambda: target.copy_(source))
        copies.append(2 * source.nbytes / copy_s)
    return {"gemm_flops": statistics.median(products), "bytes_per_s": statistics.median(copies)}


def limits(
    setting: Setting, model: Path, prompt_tokens: float, peak: dict[str, float]
) -> dict[str, float]:
    """The fewest seconds that each phase can take.

    A forward pass takes 2 operations per weight and token, with the backward pass 6. Every weight
    is in one product per token, except an embedding that is not also the head; a prompt is
    computed once for its group. A decode step of an engine reads every weight once.

    Args:
        setting: what is measured.
        model: directory of the model.
        prompt_tokens: mean length of a prompt.
        peak: see ``machine``.
    """
    policy = AutoModelForCausalLM.from_pretrained(model, trust_remote_code=False)
    weights = sum(parameter.numel() for parameter in policy.parameters())
    generated = setting.prompts * setting.samples * setting.tokens
    tokens = generated + setting.prompts * prompt_tokens
    forward_s = 2 * weights * tokens / peak["gemm_flops"]
    read_s = 4 * weights * setting.tokens * setting.engines / peak["bytes_per_s"]
    return {
        "weights": weights,
        "generate_limit_s": max(forward_s, read_s),
        "compute_limit_s": 6 * weights * tokens / peak["gemm_flops"],
    }


def measure(setting: Setting, peak: dict[str, float]) -> dict[str, float]:
    """Medians of a run's steps, in seconds, with the limits."""
    with work_folder() as folder:
        model = random_model(folder / "model", setting.size)
        options = {
            "model": {"max_response_tokens": setting.tokens},
            "rl": rl_options(setting.prompts, setting.samples, setting.steps),
            "rollout": {"workers": setting.engines},
            "learner": {"workers": setting.learners, "threads_per_worker": 2 // setting.learners},
        }
        rows = run_rl(run_config(model, options), folder)[1:]
        seconds = medians(rows, "generate_s", "compute_s", "step_s")
        prompts = [len(row.prompt_tokens) for row in read_problems(folder / "data/rl")]
        seconds["other_s"] = seconds["step_s"] - seconds["generate_s"] - seconds["compute_s"]
        seconds["samples_per_s"] = setting.prompts * setting.samples / seconds["step_s"]
        return seconds | limits(setting, model, statistics.mean(prompts), peak)


def table(rows: list[Row], peak: dict[str, float], commit: str) -> str:
    """The rows as Markdown."""
    lines = [
        f"Measured at {commit} by `python benchmarks/growth.py`. "
        f"Limits: {peak['gemm_flops'] / 1e9:.0f} GFLOP/s and "
        f"{peak['bytes_per_s'] / 1e9:.1f} GB/s, both of two threads.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
    ]
    for row in rows:
        setting = Setting(**row["setting"])
        cells = (
            row["varied"],
            f"{row['weights'] / 1e6:.1f} M",
            f"{setting.prompts} x {setting.samples} x {setting.tokens}",
            f"{setting.engines}, {setting.learners}",
            f"{row['generate_s']:.2f} s ({row['generate_limit_s']:.2f})",
            f"{row['compute_s']:.2f} s ({row['compute_limit_s']:.2f})",
            f"{row['other_s']:.2f} s",
            f"{row['step_s']:.2f} s",
            f"{row['samples_per_s']:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(rows: list[Row], path: Path) -> None:
    """Plot seconds per 1,000 generated tokens of each phase, and the limits."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    for axes, varied in zip(figure.subplots(2, 2).flat, VARIED, strict=True):
        _draw_panel(axes, varied, [row for row in rows if row["varied"] == varied])
    figure.savefig(path, metadata={"Date": None})


def _draw_panel(axes: Axes, varied: str, rows: list[Row]) -> None:
    """One bar per row, a stack of its phases."""
    thousands = []
    for row in rows:
        setting = Setting(**row["setting"])
        thousands.append(setting.prompts * setting.samples * setting.tokens / 1000)
    positions = range(len(rows))
    bottoms = [0.0] * len(rows)
    for name, label in PHASES.items():
        heights = [row[name] / count for row, count in zip(rows, thousands, strict=True)]
        axes.bar(positions, heights, 0.6, bottoms, label=label)
        bottoms = [low + height for low, height in zip(bottoms, heights, strict=True)]
    least = []
    for row, count in zip(rows, thousands, strict=True):
        least.append((row["generate_limit_s"] + row["compute_limit_s"]) / count)
    axes.plot(positions, least, "k_", markersize=26, label="limit of both phases")
    axes.set_xticks(positions, [_tick_label(varied, row) for row in rows])
    axes.set(xlabel=varied, ylabel="s per 1,000 tokens")
    if varied == "parameters":
        axes.set_yscale("log")
        axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _tick_label(varied: str, row: Row) -> str:
    setting = Setting(**row["setting"])
    labels = {
        "parameters": f"{row['weights'] / 1e6:.0f} M",
        "samples per prompt": str(setting.samples),
        "response tokens": str(setting.tokens),
        "engines x learners": f"{setting.engines} x {setting.learners}",
    }
    return labels[varied]


def _first_line() -> Row:
    """The machine and the commit of a new file of rows."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return {"machine": machine(), "commit": commit.stdout.strip()}


def _append(file: Path, row: Row) -> None:
    with file.open("a") as lines:
        lines.write(json.dumps(row) + "\n")


def main() -> None:
    """Measure what is missing, then write table and plot."""
    parser = arguments_parser(__doc__)
    default = ROOT / "build" / "bench" / "growth"
    parser.add_argument("--out", type=Path, default=default, help="path without a suffix")
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.with_suffix(".jsonl")
    if not file.exists() or not file.read_text():
        _append(file, _first_line())
    first, *measured = [json.loads(line) for line in file.read_text().splitlines()]
    measured_rows = {json.dumps(row["setting"]): row for row in measured}
    rows = []
    for varied, settings in VARIED.items():
        for setting in settings:
            key = json.dumps(asdict(setting))
            if key not in measured_rows:
                row = {"setting": asdict(setting), **measure(setting, first["machine"])}
                _append(file, row)
                print(key, {name: round(row[name], 2) for name in (*PHASES, "step_s")}, flush=True)
                measured_rows[key] = row
            rows.append({**measured_rows[key], "varied": varied})
    text = table(rows, first["machine"], first["commit"])
    out.with_suffix(".md").write_text(text)
    draw(rows, out.with_suffix(".svg"))
    print(text)


if __name__ == "__main__":
    main()
