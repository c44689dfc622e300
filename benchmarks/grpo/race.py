"""A GRPO step of this project against one of TRL's GRPOTrainer, in turn, on the same two cores."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common import BUILD, ROOT, report
from grpo.ours import OwnSide

from bi_ray.config import RunConfig

TRL = "trl==1.16.0"
PACKAGES = (TRL, "torch==2.13.0", "transformers>=5.19,<5.20")
ENVIRONMENT = ROOT / "build" / "trl"
WARM_UP_STEPS = 1


@dataclass(frozen=True)
class TRLSetting:
    """What ``trl_side.py`` is told; ``micro_batch`` and ``threads`` are TRL's to choose."""

    model: str
    prompts: str
    output: str
    prompts_per_step: int
    samples_per_prompt: int
    max_response_tokens: int
    learning_rate: float
    fixed_length: bool
    steps: int
    micro_batch: int
    threads: int


def trl_python() -> Path:
    """The interpreter of TRL's own environment, made when it is not there."""
    python, done = ENVIRONMENT / "bin" / "python", ENVIRONMENT / ".installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--progress-bar", "off", *PACKAGES],
            check=True,
        )
        done.write_text("\n".join(PACKAGES))
    return python


class TRLSide:
    """A TRL process that makes a step when asked."""

    def __init__(self, setting: TRLSetting) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment |= {
            "OMP_NUM_THREADS": str(setting.threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._process = subprocess.Popen(
            [trl_python(), Path(__file__).with_name("trl_side.py"), json.dumps(asdict(setting))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(BUILD / "trl.log").open("w"),
            text=True,
            env=environment,
        )

    def make_step(self) -> dict[str, Any]:
        """Seconds and metrics of the next step."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"TRL ended; see {BUILD / 'trl.log'}")

    def close(self) -> None:
        """End the process: with its input it ends."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


@contextmanager
def trl_side(setting: TRLSetting) -> Iterator[TRLSide]:
    """A ``TRLSide`` that is ended."""
    side = TRLSide(setting)
    try:
        yield side
    finally:
        side.close()


def best_setting(
    setting: TRLSetting, micro_batches: tuple[int, ...]
) -> tuple[TRLSetting, dict[str, float]]:
    """TRL's fastest of the micro-batches and of 1 and 2 threads, by its second step; and seconds of
    all.
    """
    seconds = {}
    for micro_batch in micro_batches:
        for threads in (1, 2):
            tried = replace(setting, micro_batch=micro_batch, threads=threads)
            with trl_side(tried) as side:
                side.make_step()
                seconds[tried] = side.make_step()["seconds"]
    best = min(seconds, key=lambda tried: seconds[tried])
    return best, {
        f"micro-batch {s.micro_batch}, {s.threads} threads": round(t, 2) for s, t in seconds.items()
    }


def race(
    name: str, config: RunConfig, fixed_length: bool, micro_batches: tuple[int, ...], setup: str
) -> None:
    """Measure both, step by step in turn, and report samples a second, ours over TRL's."""
    rl = config.rl
    BUILD.mkdir(parents=True, exist_ok=True)
    own = OwnSide(config, BUILD / "runs" / name, drawn_rewards=fixed_length)
    setting = TRLSetting(
        model=config.model.path,
        prompts=str(own.write_prompts()),
        output=str(BUILD / "runs" / name / "trl"),
        prompts_per_step=rl.prompts_per_step,
        samples_per_prompt=rl.samples_per_prompt,
        max_response_tokens=config.model.max_response_tokens,
        learning_rate=rl.optimizer.learning_rate,
        fixed_length=fixed_length,
        steps=rl.steps,
        micro_batch=0,
        threads=0,
    )
    setting, grid = best_setting(setting, micro_batches)
    own.start()
    ours, theirs = [], []
    with trl_side(setting) as trl:
        for _ in range(rl.steps):
            seconds, metrics = own.make_step()
            ours.append({"seconds": seconds} | metrics)
            theirs.append(trl.make_step())
    own.close()
    samples = rl.prompts_per_step * rl.samples_per_prompt
    rates = [[samples / row["seconds"] for row in rows[WARM_UP_STEPS:]] for rows in (ours, theirs)]
    report(
        name,
        statistics.median(rates[0]) / statistics.median(rates[1]),
        setup,
        trl_settings=grid,
        trl_best=f"micro-batch {setting.micro_batch}, {setting.threads} threads",
        ours_samples_per_s=[round(rate, 1) for rate in rates[0]],
        trl_samples_per_s=[round(rate, 1) for rate in rates[1]],
        response_tokens_mean=[
            round(mean(rows, "response_tokens_mean"), 1) for rows in (ours, theirs)
        ],
        reward=[round(mean(rows, "reward"), 3) for rows in (ours, theirs)],
        informative_share=round(mean(ours, "informative_share"), 3),
        ours_phases_s={
            key: round(mean(ours, key), 3) for key in ("generate_s", "verify_s", "sync_s")
        },
    )


def mean(rows: list[dict[str, Any]], key: str) -> float:
    """Of a metric, over the steps that count."""
    return statistics.fmean(row[key] for row in rows[WARM_UP_STEPS:])
