"""Compare GRPO steps of this project and of TRL's GRPOTrainer, which take turns on two cores."""

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

from common import BUILD, ROOT, Metrics, report, rounded
from grpo.ours import OwnSide

from bi_ray.config.run import RunConfig

TRL = "trl==1.16.0"
PACKAGES = (TRL, "torch==2.13.0", "transformers>=5.19,<5.20")
ENVIRONMENT = ROOT / "build" / "trl"
WARM_UP_STEPS = 1
THREADS = (1, 2)


@dataclass(frozen=True)
class TRLSetting:
    """The arguments of ``trl_side.py``, of which ``micro_batch`` and ``threads`` are tuned."""

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
    """The Python of TRL's own environment, which is created if it is missing."""
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
    """A process with TRL that takes a step when asked."""

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

    def make_step(self) -> Metrics:
        """Take the next step; returns its seconds and metrics."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"the process with TRL ended; see {BUILD / 'trl.log'}")

    def close(self) -> None:
        """End the process by closing its input."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


@contextmanager
def trl_side(setting: TRLSetting) -> Iterator[TRLSide]:
    """A ``TRLSide`` for the block."""
    side = TRLSide(setting)
    try:
        yield side
    finally:
        side.close()


def rl_section(prompts: int, samples: int, steps: int) -> dict[str, Any]:
    """The section ``rl`` of the configuration, without checkpoints.

    The learning rate is small, so that responses keep their lengths.
    """
    return {
        "prompts_per_step": prompts,
        "samples_per_prompt": samples,
        "steps": steps,
        "checkpoint_every_steps": 1000,
        "optimizer": {"learning_rate": 1e-6},
    }


def seconds_per_setting(
    setting: TRLSetting, micro_batches: tuple[int, ...]
) -> dict[TRLSetting, float]:
    """Seconds of TRL's second step with each micro-batch and number of threads."""
    seconds = {}
    for micro_batch in micro_batches:
        for threads in THREADS:
            candidate = replace(setting, micro_batch=micro_batch, threads=threads)
            with trl_side(candidate) as side:
                side.make_step()
                seconds[candidate] = side.make_step()["seconds"]
    return seconds


@dataclass(frozen=True, slots=True)
class Race:
    """What is compared.

    Attributes:
        name: of the benchmark.
        setup: one sentence that describes it.
        config: of this project's run; TRL gets the same prompts and options.
        fixed_length: see ``DrawnVerdicts``.
        micro_batches: the sizes of which TRL gets its fastest.
    """

    name: str
    setup: str
    config: RunConfig
    fixed_length: bool
    micro_batches: tuple[int, ...]

    def trl_setting(self, prompts: Path) -> TRLSetting:
        """TRL's arguments, without micro-batch and threads."""
        rl = self.config.rl
        return TRLSetting(
            model=self.config.model.path,
            prompts=str(prompts),
            output=str(BUILD / "runs" / self.name / "trl"),
            prompts_per_step=rl.prompts_per_step,
            samples_per_prompt=rl.samples_per_prompt,
            max_response_tokens=self.config.model.max_response_tokens,
            learning_rate=rl.optimizer.learning_rate,
            fixed_length=self.fixed_length,
            steps=rl.steps,
            micro_batch=0,
            threads=0,
        )


def race(what: Race) -> None:
    """Measure both sides in turn, and report our samples per second over TRL's."""
    BUILD.mkdir(parents=True, exist_ok=True)
    own = OwnSide(what.config, BUILD / "runs" / what.name, drawn_rewards=what.fixed_length)
    candidates = seconds_per_setting(what.trl_setting(own.write_prompts()), what.micro_batches)
    best = min(candidates, key=lambda candidate: candidates[candidate])
    own.start()
    ours: list[Metrics] = []
    theirs: list[Metrics] = []
    with trl_side(best) as trl:
        for _ in range(what.config.rl.steps):
            seconds, metrics = own.make_step()
            ours.append({"seconds": seconds} | metrics)
            theirs.append(trl.make_step())
    own.close()
    samples = what.config.rl.prompts_per_step * what.config.rl.samples_per_prompt
    our_rates, trl_rates = _rates(samples, ours), _rates(samples, theirs)
    report(
        what.name,
        statistics.median(our_rates) / statistics.median(trl_rates),
        what.setup,
        trl_settings={_describe(setting): round(s, 2) for setting, s in candidates.items()},
        trl_best=_describe(best),
        ours_samples_per_s=rounded(our_rates, 1),
        trl_samples_per_s=rounded(trl_rates, 1),
        response_tokens_mean=rounded(_means("response_tokens_mean", ours, theirs), 1),
        reward=rounded(_means("reward", ours, theirs), 3),
        informative_share=rounded(_means("informative_share", ours), 3)[0],
        ours_phases_s={
            "generate_s": rounded(_means("generate_s", ours), 3)[0],
            "verify_s": rounded(_means("verify_s", ours), 3)[0],
            "sync_s": rounded(_means("sync_s", ours), 3)[0],
        },
    )


def _describe(setting: TRLSetting) -> str:
    return f"micro-batch {setting.micro_batch}, {setting.threads} threads"


def _rates(samples: int, rows: list[Metrics]) -> list[float]:
    """Samples per second of each step that counts."""
    return [samples / row["seconds"] for row in rows[WARM_UP_STEPS:]]


def _means(name: str, *sides: list[Metrics]) -> list[float]:
    """The mean of a metric over the steps that count, of each side."""
    means = []
    for rows in sides:
        means.append(statistics.fmean(row[name] for row in rows[WARM_UP_STEPS:]))
    return means
