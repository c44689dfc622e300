"""How the cost of an RL step grows: with the model, the group, the response, and the workers, one
at a time.

    python benchmarks/growth.py [--out docs/results/growth]

Synchronous steps of the real run (2 engines, 1 learner of 2 threads, float32, both phases on the
same two cores) around one setting: 5 M parameters, 16 prompts x 8 samples x 128 tokens. Beside each
phase stands its limit on this
machine: its floating-point operations at the rate of large matrix products, or its bytes at the
speed of memory, whichever takes longer. Medians of the steps after the first. Each row is kept as
it is measured (``<out>.jsonl``): a run that is cut off goes on. Then ``<out>.md`` and ``<out>.svg``
are written from the rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import ROOT
from matplotlib.figure import Figure
from rl_runs import column, random_model, run_config, run_rl, work_folder
from transformers import AutoModelForCausalLM

from bi_ray.data.problems import read_problems

PHASES = {"generate_s": "generation", "compute_s": "training", "other_s": "all else"}


@dataclass(frozen=True)
class Setting:
    """What a row varies."""

    size: str = "5m"
    prompts: int = 16
    samples: int = 8
    tokens: int = 128
    engines: int = 2
    learners: int = 1
    steps: int = 4


CENTRE = Setting()
VARIED: dict[str, list[Setting]] = {
    "parameters": [
        *(replace(CENTRE, size=size) for size in ("1m", "5m", "30m")),
        replace(CENTRE, size="135m", prompts=2, steps=2),
    ],
    "samples per prompt": [replace(CENTRE, samples=samples) for samples in (2, 8, 32)],
    "response tokens": [replace(CENTRE, tokens=tokens) for tokens in (32, 128, 512)],
    "engines x learners": [
        replace(CENTRE, engines=e, learners=n) for e, n in ((1, 1), (1, 2), (2, 1), (2, 2))
    ],
}


def machine() -> dict[str, float]:
    """What two threads reach: operations per second of a large float32 matrix product, bytes per
    second of a copy.
    """
    torch.set_num_threads(2)
    a = torch.randn(2048, 2048)
    source, target = torch.randn(2, 1 << 26).unbind()  # 256 MB each: no cache holds them
    products, copies = [], []
    for _ in range(8):
        began = time.perf_counter()
        torch.mm(a, a)
        products.append(2 * 2048**3 / (time.perf_counter() - began))
        began = time.perf_counter()
        target.copy_(source)
        copies.append(2 * source.nbytes / (time.perf_counter() - began))
    return {"gemm_flops": statistics.median(products), "bytes_per_s": statistics.median(copies)}


def limits(
    setting: Setting, model: Path, prompt_tokens: float, peak: dict[str, float]
) -> dict[str, float]:
    """Seconds that a phase needs at least: 2 operations per weight and token forward, 6 with the
    backward pass.

    Every weight but an embedding that only looks up (a tied one is the head too) is in a product
    once per token; a prompt is computed once for its group. A decode step of an engine reads every
    weight once.
    """
    policy = AutoModelForCausalLM.from_pretrained(model, trust_remote_code=False)
    weights = sum(p.numel() for p in policy.parameters())
    generated = setting.prompts * setting.samples * setting.tokens
    seen = generated + setting.prompts * prompt_tokens
    read = 4 * weights * setting.tokens * setting.engines
    return {
        "weights": weights,
        "generate_limit_s": max(
            2 * weights * seen / peak["gemm_flops"], read / peak["bytes_per_s"]
        ),
        "compute_limit_s": 6 * weights * seen / peak["gemm_flops"],
    }


def measure(setting: Setting, peak: dict[str, float]) -> dict[str, Any]:
    """The medians of a run's steps."""
    with work_folder() as folder:
        model = random_model(folder / "model", setting.size)
        options = {
            "model": {"max_response_tokens": setting.tokens},
            "rl": {
                "steps": setting.steps,
                "prompts_per_step": setting.prompts,
                "samples_per_prompt": setting.samples,
                "checkpoint_every_steps": setting.steps,
            },
            "rollout": {"workers": setting.engines},
            "learner": {"workers": setting.learners, "threads_per_worker": 2 // setting.learners},
        }
        rows = run_rl(run_config(model, options), folder)[1:]
        found = {
            name: statistics.median(column(rows, name))
            for name in ("generate_s", "compute_s", "step_s")
        }
        prompts = [len(row.prompt_tokens) for row in read_problems(folder / "data/rl")]
        found["other_s"] = found["step_s"] - found["generate_s"] - found["compute_s"]
        found["samples_per_s"] = setting.prompts * setting.samples / found["step_s"]
        return found | limits(setting, model, statistics.mean(prompts), peak)


def table(rows: list[dict[str, Any]], peak: dict[str, float], commit: str) -> str:
    """The rows as Markdown."""
    lines = [
        f"Measured at {commit} by `python benchmarks/growth.py`. Limits: {peak['gemm_flops'] / 1e9:.0f} GFLOP/s and "
        f"{peak['bytes_per_s'] / 1e9:.1f} GB/s, both of two threads.",
        "",
        "| varied | parameters | prompts x samples x tokens | engines, learners | generation (limit) "
        "| training (limit) | all else | step | samples/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        s = Setting(**row["setting"])
        lines.append(
            f"| {row['varied']} | {row['weights'] / 1e6:.1f} M | {s.prompts} x {s.samples} x {s.tokens} "
            f"| {s.engines}, {s.learners} | {row['generate_s']:.2f} s ({row['generate_limit_s']:.2f}) "
            f"| {row['compute_s']:.2f} s ({row['compute_limit_s']:.2f}) | {row['other_s']:.2f} s "
            f"| {row['step_s']:.2f} s | {row['samples_per_s']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Seconds per 1,000 generated tokens in each phase, and the limits, over what is varied."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    for axes, (varied, settings) in zip(figure.subplots(2, 2).flat, VARIED.items(), strict=True):
        chosen = [row for row in rows if row["varied"] == varied]
        thousands = [s.prompts * s.samples * s.tokens / 1000 for s in settings]
        places = range(len(chosen))
        bottom = [0.0] * len(chosen)
        for name, label in PHASES.items():
            heights = [row[name] / tokens for row, tokens in zip(chosen, thousands, strict=True)]
            axes.bar(places, heights, 0.6, bottom, label=label)
            bottom = [low + high for low, high in zip(bottom, heights, strict=True)]
        least = [
            (row["generate_limit_s"] + row["compute_limit_s"]) / tokens
            for row, tokens in zip(chosen, thousands, strict=True)
        ]
        axes.plot(places, least, "k_", markersize=26, label="limit of both phases")
        labels = {
            "parameters": [f"{row['weights'] / 1e6:.0f} M" for row in chosen],
            "samples per prompt": [str(s.samples) for s in settings],
            "response tokens": [str(s.tokens) for s in settings],
            "engines x learners": [f"{s.engines} x {s.learners}" for s in settings],
        }[varied]
        axes.set_xticks(places, labels)
        axes.set(xlabel=varied, ylabel="s per 1,000 tokens")
        if varied == "parameters":
            axes.set_yscale("log")
            axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure what is missing, then write table and plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "build" / "bench" / "growth",
        help="path without an ending",
    )
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = out.with_suffix(".jsonl")
    lines = (
        [json.loads(line) for line in kept.read_text().split("\n") if line] if kept.exists() else []
    )
    if not lines:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT
        )
        lines = [{"machine": machine(), "commit": commit.stdout.strip()}]
        kept.write_text(json.dumps(lines[0]) + "\n")
    peak = lines[0]["machine"]
    done = {json.dumps(row["setting"]): row for row in lines[1:]}
    rows = []
    for varied, settings in VARIED.items():
        for setting in settings:
            key = json.dumps(asdict(setting))
            if key not in done:
                done[key] = {"setting": asdict(setting), **measure(setting, peak)}
                with kept.open("a") as file:
                    file.write(json.dumps(done[key]) + "\n")
                print(
                    key,
                    {name: round(done[key][name], 2) for name in (*PHASES, "step_s")},
                    flush=True,
                )
            rows.append({**done[key], "varied": varied})
    out.with_suffix(".md").write_text(table(rows, peak, lines[0]["commit"]))
    draw(rows, out.with_suffix(".svg"))
    print(out.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
