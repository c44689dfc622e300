"""What benchmarks share: paths, the quickstart's configuration, clocks, and printed results."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import distributed

from bi_ray.config.base import SetName
from bi_ray.config.files import load_config
from bi_ray.config.run import RunConfig
from bi_ray.files.atomic import write_text
from bi_ray.policy.chat import encode_prompt
from bi_ray.policy.checkpoint import load_tokenizer
from bi_ray.tasks.registry import build_task

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "bench"
Result = TypeVar("Result")
Metrics = dict[str, Any]  # a row of metrics.jsonl


def arguments_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose `--help` begins with the benchmark's docstring, line breaks kept."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def quickstart() -> RunConfig:
    """The shipped quickstart, with an absolute path to its model."""
    config = load_config(ROOT / "configs" / "quickstart.yaml", RunConfig)
    model = config.model.model_copy(update={"path": str(ROOT / config.model.path)})
    return config.model_copy(update={"model": model})


def encoded_prompts(
    config: RunConfig, set_name: SetName, first: int, count: int
) -> list[tuple[int, ...]]:
    """Token ids of the prompts of ``count`` problems, from problem ``first`` on."""
    task = build_task(config.task, 0)
    tokenizer = load_tokenizer(config.model.path)
    prompts = []
    for index in range(first, first + count):
        question = task.problem(set_name, index).question
        prompts.append(tuple(encode_prompt(tokenizer, task.system_prompt, question)))
    return prompts


def timed(
    work: Callable[[], Result], clock: Callable[[], float] = time.perf_counter
) -> tuple[float, Result]:
    """Seconds that a piece of work takes, and its result."""
    began = clock()
    result = work()
    return clock() - began, result


def times_in_turn(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round. The ways take turns; the first round only warms up.

    Args:
        ways: what is compared, by name.
        rounds: number of rounds, the first included.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            seconds[name].append(timed(work)[0])
    return {name: values[1:] for name, values in seconds.items()}


def medians_of(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each list."""
    return {name: statistics.median(numbers) for name, numbers in values.items()}


def rounded(values: Sequence[float], digits: int = 2) -> list[float]:
    """The values, rounded for printing."""
    return [round(value, digits) for value in values]


def start_process_group(folder: Path, rank: int = 0, ranks: int = 1) -> None:
    """Join a gloo process group, which a learner needs even when it is alone.

    Args:
        folder: an existing directory of this group alone, where its members meet.
        rank: of this process.
        ranks: number of processes.
    """
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks
    )


def print_ratio(name: str, ratio: float, digits: int = 2) -> None:
    """Print the line that docs/performance.md quotes."""
    print(f"RATIO {name} {ratio:.{digits}f}")


def report(name: str, ratio: float, setup: str, **figures: Any) -> None:
    """Print a benchmark's setup, figures and ratio, and keep them in build/bench/NAME.json."""
    print(setup)
    for key, value in figures.items():
        print(f"  {key}: {value}")
    BUILD.mkdir(parents=True, exist_ok=True)
    result = {"name": name, "ratio": ratio, "setup": setup, **figures}
    write_text(BUILD / f"{name}.json", json.dumps(result, indent=1), durable=False)
    print_ratio(name, ratio)
