"""The command that plans a run on paper: memory, traffic and time of an RL step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bi_ray.cli.data import ConfigFile
from bi_ray.config import RunConfig, load_config
from bi_ray.planning.hardware import load_hardware
from bi_ray.planning.memory import USABLE
from bi_ray.planning.plan import Plan, make_plan, measure_for
from bi_ray.planning.shapes import Shape
from bi_ray.planning.times import short

console = Console()
HardwareName = Annotated[
    str | None,
    typer.Option(
        "--hardware",
        help="cpu, a100, h100, h200, or a JSON file; without it h100 where learners have GPUs, else cpu",
    ),
]


def plan(
    config_file: ConfigFile,
    model_config: Annotated[
        Path | None, typer.Option(help="config.json of the model; without it, that in model.path")
    ] = None,
    hardware: HardwareName = None,
    nodes: Annotated[
        int | None,
        typer.Option(min=1, help="How many there are; without it as many as the run needs"),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs of a node, where they are not 8")
    ] = None,
    measured: Annotated[
        bool,
        typer.Option(
            "--measure", help="Time this machine's matrix products and memory first; for CPUs"
        ),
    ] = False,
    prompt_tokens: Annotated[
        float | None, typer.Option(help="Mean length; without it the longest")
    ] = None,
    response_tokens: Annotated[
        float | None, typer.Option(help="Mean length; without it the longest")
    ] = None,
    informative_share: Annotated[
        float, typer.Option(help="Share of the groups that the learners see")
    ] = 1.0,
    training_mfu: Annotated[
        float | None, typer.Option(min=0.01, max=1, help="Share of the peak in training passes")
    ] = None,
    prefill_mfu: Annotated[
        float | None, typer.Option(min=0.01, max=1, help="Share of the peak in engines")
    ] = None,
    decode_bandwidth_share: Annotated[
        float | None,
        typer.Option(min=0.01, max=1, help="Share of the memory bandwidth in decoding"),
    ] = None,
    network_share: Annotated[
        float | None,
        typer.Option(min=0.01, max=1, help="Share of links and network in collectives"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="For machines: bytes, FLOP and seconds")
    ] = False,
) -> None:
    """Plan an RL step on paper: memory, traffic and time per phase, and which option to change
    where it does not fit.

    Needs no cluster, no GPU and no weights: a run of a 70 B model can be planned on a laptop.
    """
    config = load_config(config_file, RunConfig)
    shape = Shape.read(model_config or Path(config.model.path))
    machine = load_hardware(hardware or ("h100" if config.learner.gpus_per_worker else "cpu"))
    if measured:
        machine = measure_for(config, shape, machine)
    given: dict[str, Any] = {
        "devices_per_node": gpus,
        "training_mfu": training_mfu,
        "prefill_mfu": prefill_mfu,
        "decode_bandwidth_share": decode_bandwidth_share,
        "network_share": network_share,
    }
    machine = machine.model_copy(
        update={name: value for name, value in given.items() if value is not None}
    )
    made = make_plan(
        config, shape, machine, prompt_tokens, response_tokens, informative_share, nodes
    )
    if as_json:
        print(json.dumps(made.as_dict(), indent=1))
        return
    show(made, console)


def show(made: Plan, to: Console) -> None:
    """Print a plan for people."""
    job, rl = made.job, made.job.config.rl
    model = job.config.model.dtype
    lines = [
        f"{job.config.name}: {job.shape.parameters / 1e9:.3g} B parameters in {model} on {job.hardware.name}: "
        f"{job.config.learner.workers} learners of {job.learner_devices:g}, {job.config.rollout.workers} engines of "
        f"{job.engine_devices:g} {'GPUs' if job.on_gpu else 'cores'}",
        f"A step: {rl.prompts_per_step} prompts of {job.prompt_tokens:g} tokens x {rl.samples_per_prompt} responses of "
        f"{job.response_tokens:g}, {job.informative_share:.0%} of the groups learned from, packing {job.packing}",
    ]
    _say(to, "\n".join(lines))
    to.print(_phases(made))
    to.print(_memory(made))
    engines, learners = map(short, made.sides)
    way = (
        f"the longer of engines {engines} s, learners {learners} s"
        if rl.max_staleness
        else "one phase after the other"
    )
    rates = f"{short(made.samples_per_s)} samples/s, {short(made.tokens_per_s)} tokens/s"
    _say(to, f"A step takes {short(made.step_s)} s ({way}): {rates}")
    _say(to, "It fits." if made.fits else "It does NOT fit.")
    for problem in made.problems:
        _say(to, f"- {problem}")


def _phases(made: Plan) -> Table:
    table = Table(title="Time and traffic of a phase", title_justify="left")
    for name in (
        "phase",
        "seconds",
        "share",
        "TFLOP",
        "memory GB",
        "network GB",
        "waits for",
        "how",
    ):
        table.add_column(name, justify="left" if name in ("phase", "waits for", "how") else "right")
    total = sum(phase.seconds for phase in made.phases) + made.job.hardware.step_s
    for phase in made.phases:
        figures = (phase.flops / 1e12, phase.memory_bytes / 1e9, phase.network_bytes / 1e9)
        shown = [short(value) if value else "" for value in figures]
        share = f"{phase.seconds / total:.0%}"
        table.add_row(phase.name, short(phase.seconds), share, *shown, phase.limit, phase.detail)
    fixed = made.job.hardware.step_s
    table.add_row(
        "else", short(fixed), f"{fixed / total:.0%}", "", "", "", "calls", "transport, verification"
    )
    return table


def _memory(made: Plan) -> Table:
    table = Table(title="Memory", title_justify="left")
    for name in ("of", "GB", "of GB", "fits", "made of (GB)"):
        table.add_column(
            name, justify="right" if "GB" in name and name != "made of (GB)" else "left"
        )
    for use in made.memory:
        parts = ", ".join(f"{name} {short(size / 1e9)}" for name, size in use.parts.items() if size)
        verdict = "yes" if use.fits else f"no: over {USABLE:.0%}"
        table.add_row(use.name, short(use.needed / 1e9), short(use.available / 1e9), verdict, parts)
    return table


def _say(to: Console, text: str) -> None:
    to.print(text, highlight=False, markup=False, soft_wrap=True)


def add_commands(app: typer.Typer) -> None:
    """Give the front door the command of this file."""
    app.command()(plan)
