"""The command `plan`: estimate memory, traffic and time of an RL step without running it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from bi_ray.cli.arguments import ConfigFile
from bi_ray.cli.console import console, say
from bi_ray.config.files import load_config
from bi_ray.config.run import RunConfig
from bi_ray.planning.hardware import load_hardware
from bi_ray.planning.job import Job
from bi_ray.planning.memory import USABLE, MemoryUse
from bi_ray.planning.plan import Plan, make_plan, measure_for
from bi_ray.planning.shapes import Shape
from bi_ray.planning.times import Phase, short

_HARDWARE_VALUE = "the hardware's"  # shown as the default


def _share_of_hardware(meaning: str) -> Any:
    """An option that replaces a share of what the hardware can do."""
    return typer.Option(min=0.01, max=1, help=meaning, show_default=_HARDWARE_VALUE)


ModelConfig = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="config.json of the model", show_default="the one in model.path"
    ),
]
HardwareName = Annotated[
    str | None,
    typer.Option(
        "--hardware",
        metavar="NAME",
        help="cpu, a100, h100, h200, or a JSON file",
        show_default="h100 if learners have GPUs, else cpu",
    ),
]
Nodes = Annotated[
    int | None,
    typer.Option(min=1, help="Number of nodes", show_default="as many as the run needs"),
]
GpusPerNode = Annotated[
    int | None, typer.Option("--gpus", min=1, help="GPUs per node", show_default=_HARDWARE_VALUE)
]
Measure = Annotated[
    bool,
    typer.Option(
        "--measure", help="Measure the speed of this machine's cores and memory first (CPU only)"
    ),
]
PromptTokens = Annotated[
    float | None,
    typer.Option(help="Mean length of prompts, in tokens", show_default="the maximum"),
]
ResponseTokens = Annotated[
    float | None,
    typer.Option(help="Mean length of responses, in tokens", show_default="the maximum"),
]
InformativeShare = Annotated[
    float, typer.Option(help="Share of groups whose rewards differ: those that learners train on")
]
TrainingMfu = Annotated[
    float | None, _share_of_hardware("Share of the peak FLOP/s reached in training")
]
PrefillMfu = Annotated[
    float | None, _share_of_hardware("Share of the peak FLOP/s reached by engines in prefill")
]
DecodeBandwidthShare = Annotated[
    float | None, _share_of_hardware("Share of the memory bandwidth reached in decoding")
]
NetworkShare = Annotated[
    float | None,
    _share_of_hardware("Share of the link and network bandwidth reached in collectives"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, in bytes, FLOP and seconds")]


def plan(
    config_file: ConfigFile,
    model_config: ModelConfig = None,
    hardware: HardwareName = None,
    nodes: Nodes = None,
    gpus: GpusPerNode = None,
    measured: Measure = False,
    prompt_tokens: PromptTokens = None,
    response_tokens: ResponseTokens = None,
    informative_share: InformativeShare = 1.0,
    training_mfu: TrainingMfu = None,
    prefill_mfu: PrefillMfu = None,
    decode_bandwidth_share: DecodeBandwidthShare = None,
    network_share: NetworkShare = None,
    as_json: AsJson = False,
) -> None:
    """Estimate memory, traffic and time of an RL step, and say what to change if it won't fit.

    Needs no cluster, no GPU and no weights: a laptop can plan the run of a 70 B model.
    """
    config = load_config(config_file, RunConfig)
    shape = Shape.read(model_config or Path(config.model.path))
    machine = load_hardware(hardware or ("h100" if config.learner.gpus_per_worker else "cpu"))
    if measured:
        machine = measure_for(config, shape, machine)
    replaced = {
        "devices_per_node": gpus,
        "training_mfu": training_mfu,
        "prefill_mfu": prefill_mfu,
        "decode_bandwidth_share": decode_bandwidth_share,
        "network_share": network_share,
    }
    given = {name: value for name, value in replaced.items() if value is not None}
    step_plan = make_plan(
        config,
        shape,
        machine.model_copy(update=given),
        prompt_tokens,
        response_tokens,
        informative_share,
        nodes,
    )
    if as_json:
        print(json.dumps(step_plan.as_dict(), indent=1))
    else:
        _print_plan(step_plan)


def _print_plan(step_plan: Plan) -> None:
    """Print a plan as tables, with its problems at the end."""
    say(_describe_job(step_plan.job))
    console.print(_phase_table(step_plan))
    console.print(_memory_table(step_plan.memory))
    say(_describe_speed(step_plan))
    say("It fits." if step_plan.fits else "It does NOT fit.")
    for problem in step_plan.problems:
        say(f"- {problem}")


def _describe_job(job: Job) -> str:
    config = job.config
    device = "GPU" if job.on_gpu else "core"
    return (
        f"{config.name}: {job.shape.parameters / 1e9:.3g} B parameters in {config.model.dtype} "
        f"on {job.hardware.name}; {config.learner.workers} learners x {job.learner_devices:g} "
        f"{device}, {config.rollout.workers} engines x {job.engine_devices:g} {device}\n"
        f"A step: {config.rl.prompts_per_step} prompts of {job.prompt_tokens:g} tokens x "
        f"{config.rl.samples_per_prompt} responses of {job.response_tokens:g} tokens; trains on "
        f"{job.informative_share:.0%} of the groups; packing: {job.packing}"
    )


def _describe_speed(step_plan: Plan) -> str:
    order = "all phases in turn"
    if step_plan.job.config.rl.max_staleness:
        engines, learners = map(short, step_plan.sides)
        order = f"the longer of engines {engines} s, learners {learners} s"
    return (
        f"A step takes {short(step_plan.step_s)} s ({order}): "
        f"{short(step_plan.samples_per_s)} samples/s, {short(step_plan.tokens_per_s)} tokens/s"
    )


def _phase_table(step_plan: Plan) -> Table:
    table = Table(title="Time and traffic per phase", title_justify="left")
    table.add_column("phase")
    for name in ("seconds", "share", "TFLOP", "memory GB", "network GB"):
        table.add_column(name, justify="right")
    table.add_column("waits for")
    table.add_column("how")
    fixed_s = step_plan.job.hardware.step_s
    total_s = sum(phase.seconds for phase in step_plan.phases) + fixed_s
    for phase in step_plan.phases:
        table.add_row(*_phase_cells(phase, total_s))
    table.add_row(
        "other",
        short(fixed_s),
        f"{fixed_s / total_s:.0%}",
        *("", "", ""),
        "calls",
        "transport and verification",
    )
    return table


def _phase_cells(phase: Phase, total_s: float) -> list[str]:
    amounts = (phase.flops / 1e12, phase.memory_bytes / 1e9, phase.network_bytes / 1e9)
    shown_amounts = [short(amount) if amount else "" for amount in amounts]
    share = f"{phase.seconds / total_s:.0%}"
    return [phase.name, short(phase.seconds), share, *shown_amounts, phase.limit, phase.detail]


def _memory_table(uses: tuple[MemoryUse, ...]) -> Table:
    table = Table(title="Memory", title_justify="left")
    table.add_column("per")
    table.add_column("GB", justify="right")
    table.add_column("available", justify="right")
    table.add_column("fits")
    table.add_column("parts (GB)")
    for use in uses:
        parts = [f"{name} {short(size / 1e9)}" for name, size in use.parts.items() if size]
        verdict = "yes" if use.fits else f"no: over {USABLE:.0%}"
        needed, available = short(use.needed / 1e9), short(use.available / 1e9)
        table.add_row(use.name, needed, available, verdict, ", ".join(parts))
    return table
