"""Operations, traffic and time of the phases of an RL step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bi_ray.planning.job import CHUNK_LOGITS, Job

# Passes of a step over every learned float32 parameter, in bytes: AdamW reads weight, gradient and
# two moments and writes all but the gradient (28); the gradient's norm (4), its clipping (8), the
# norm of the weights (4).
_UPDATE_BYTES = 44
_MOMENT_BYTES = 16  # the part of it that reads and writes AdamW's moments


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a step.

    Attributes:
        name: its name, as in the metrics of a run if those have the phase.
        seconds: its duration.
        limit: what it waits for most.
        flops: floating-point operations of one device.
        memory_bytes: bytes that one device moves from or to its memory.
        network_bytes: bytes that one worker receives or sends.
        detail: what the time consists of.
    """

    name: str
    seconds: float
    limit: str
    flops: float = 0.0
    memory_bytes: float = 0.0
    network_bytes: float = 0.0
    detail: str = ""


def prefill(job: Job) -> Phase:
    """Prefill of the engine that has the most prompts."""
    tokens = job.prefill_tokens
    devices = max(1.0, job.engine_devices)
    flops = job.shape.layer_flops(tokens, tokens * job.prompt_tokens / 2)
    seconds = flops / (job.flops_per_s * job.hardware.prefill_mfu * job.engine_devices)
    return Phase(
        "rollout: prefill",
        seconds,
        "compute",
        flops / devices,
        detail=f"{tokens:,.0f} tokens per engine",
    )


def decode(job: Job) -> Phase:
    """Decoding by the engine that has the most responses.

    Every step reads all weights, and the keys and values of every running sequence.
    """
    shape, hardware, devices = job.shape, job.hardware, job.engine_devices
    steps, tokens = job.decode_steps, job.engine_sequences * job.response_tokens
    seen = tokens * (job.prompt_tokens + job.response_tokens / 2)  # pairs of a query and a key
    weights = job.bytes_per_number * (shape.layers * shape.layer_parameters + shape.head_parameters)
    moved = steps * weights + seen * shape.cache_bytes_per_token(job.bytes_per_number)
    flops = shape.forward_flops(tokens, seen, tokens)
    rate = hardware.decode_flops or job.flops_per_s
    memory_s = moved / (hardware.memory_bytes_per_s * hardware.decode_bandwidth_share * devices)
    compute_s = flops / (rate * hardware.prefill_mfu * devices)
    graphs = job.on_gpu and not job.config.rollout.enforce_eager
    layer_s = hardware.engine_graph_layer_s if graphs else hardware.engine_layer_s
    calls_s = steps * (hardware.engine_step_s + shape.layers * layer_s)
    calls_s += tokens * hardware.engine_sequence_s
    parts = {"memory": memory_s, "compute": compute_s, "calls": calls_s}
    between = _between_engine_devices(job, tokens)
    detail = f"{steps:,.0f} steps of {tokens / steps:.0f} sequences, {_parts(parts)}"
    between_s = between / (hardware.link_bytes_per_s * hardware.network_share)
    seconds = max(memory_s, compute_s) + calls_s + between_s
    per_device = max(1.0, devices)
    return Phase(
        "rollout: decode",
        seconds,
        max(parts, key=parts.__getitem__),
        flops / per_device,
        moved / per_device,
        between,
        detail,
    )


def _between_engine_devices(job: Job, tokens: float) -> float:
    """Bytes of two all-reduces of the activations per layer, if an engine has several GPUs."""
    devices = job.engine_devices if job.on_gpu else 1
    share = 2 * (devices - 1) / devices if devices > 1 else 0.0
    return 2 * job.shape.layers * job.shape.hidden * job.bytes_per_number * tokens * share


def reference(job: Job) -> Phase:
    """The forward pass of a KL term's reference policy, which gathers its own weights."""
    flops = job.shape.forward_flops(
        job.learner_tokens, job.learner_pairs, job.sequences * job.response_tokens
    )
    layers = job.shape.layers * job.shape.layer_parameters
    # without a backward pass the root stays whole after the first micro-batch
    gathered = job.bytes_per_number * (job.microbatches * layers + job.shape.root_parameters)
    return _passes(job, "learner: reference", flops, gathered, passes=1)


def train(job: Job) -> Phase:
    """Forward and backward passes over all micro-batches of a learner."""
    shape, options = job.shape, job.config.learner
    learned = job.sequences * job.response_tokens
    layers = shape.layer_flops(job.learner_tokens, job.learner_pairs)
    head = 2 * shape.head_parameters * learned
    forward = layers + head
    again = layers if options.activation_checkpointing else 0.0
    if learned / job.microbatches > max(1, CHUNK_LOGITS // shape.vocabulary):
        again += head  # chunks of logits are computed twice
    backward = forward * (1 if options.lora else 2)  # frozen matrices get no gradient of their own
    adapters = 6 * job.learned_parameters * job.learner_tokens if options.lora else 0.0
    times_gathered = 2 if options.reshard_after_forward else 1
    layer_parameters = shape.layers * shape.layer_parameters
    adapter_parameters = job.held_parameters - shape.parameters
    # the root is gathered once: it stays whole until its backward pass, which comes last
    gathered = times_gathered * (layer_parameters + adapter_parameters) + shape.root_parameters
    gathers = job.bytes_per_number * gathered
    sums = job.microbatches if options.gradient_sync == "microbatch" else 1
    traffic = job.microbatches * gathers + sums * 4 * job.learned_parameters
    return _passes(
        job,
        "learner: forward and backward",
        forward + backward + again + adapters,
        traffic,
        passes=3,
    )


def _passes(job: Job, name: str, flops: float, traffic: float, passes: int) -> Phase:
    """Forward, or forward and backward passes, over all micro-batches of a learner.

    Compute and collectives overlap, so the longer of the two counts; kernel launches and moving
    activations come on top.

    Args:
        job: what is planned.
        name: name of the phase.
        flops: operations of the passes.
        traffic: bytes that collectives move.
        passes: 1 for a forward pass alone, 3 with a backward pass.
    """
    hardware, ranks, options = job.hardware, job.config.learner.workers, job.config.learner
    sent = traffic * (ranks - 1) / ranks
    network_s = sent / (_link(job) * hardware.network_share)
    compute_s = flops / (job.flops_per_s * hardware.training_mfu * job.learner_devices)
    per_token = job.shape.layers * job.shape.activation_bytes_per_token(job.bytes_per_number)
    moved = per_token * job.learner_tokens * passes / 3
    bandwidth = hardware.memory_bytes_per_s * job.learner_devices
    extra_s = hardware.activation_passes * moved / bandwidth
    extra_s += job.microbatches * job.shape.layers * hardware.learner_layer_s * passes / 3
    offload_s = 0.0
    if options.cpu_offload and job.on_gpu:  # shards go to the GPU for every gather, gradients back
        shards = job.microbatches * 4 * (passes - 1 or 1) * job.shape.parameters / ranks
        offload_s = shards / hardware.host_link_bytes_per_s
    parts = {"compute": compute_s, "network": network_s, "calls": extra_s, "host link": offload_s}
    tokens = f"{job.learner_tokens:,.0f} tokens per learner"
    detail = f"{job.microbatches} micro-batches, {tokens}, {_parts(parts)}"
    seconds = max(compute_s, network_s, offload_s) + extra_s
    return Phase(
        name,
        seconds,
        max(parts, key=parts.__getitem__),
        flops / max(1, job.learner_devices),
        moved,
        sent,
        detail,
    )


def _link(job: Job) -> float:
    """Bytes per second of a learner in a collective; between nodes its share of their cards."""
    hardware = job.hardware
    if job.learner_nodes <= 1:
        return hardware.link_bytes_per_s
    return min(hardware.link_bytes_per_s, hardware.network_bytes_per_s / hardware.devices_per_node)


def update(job: Job) -> Phase:
    """Gradient norm, clipping and the optimizer over a learner's shard."""
    hardware = job.hardware
    per_parameter = _UPDATE_BYTES
    if job.config.rl.optimizer.kind == "sgd":
        per_parameter -= _MOMENT_BYTES
    moved = per_parameter * job.learned_parameters / job.config.learner.workers
    rate = hardware.memory_bytes_per_s * job.learner_devices
    if job.config.learner.cpu_offload and job.on_gpu:
        rate = hardware.file_read_bytes_per_s
    return Phase("learner: optimizer", moved / rate, "memory", memory_bytes=moved)


def publish(job: Job) -> Phase:
    """Rank 0 gathers all weights in float32 and writes them to a file in shared memory."""
    hardware, size = job.hardware, 4.0 * job.shape.parameters
    ranks = job.config.learner.workers
    gathered_s = size * (ranks - 1) / ranks / (_link(job) * hardware.network_share)
    down_s = size / hardware.host_link_bytes_per_s if job.on_gpu else 0.0
    write_s = size / hardware.file_write_bytes_per_s
    parts = {"gather": gathered_s, "host link": down_s, "write": write_s}
    detail = f"{size / 1e9:,.2f} GB, {_parts(parts)}"
    return Phase(
        "sync: publish",
        sum(parts.values()),
        max(parts, key=parts.__getitem__),
        0,
        size,
        size * (ranks > 1),
        detail,
    )


def take(job: Job) -> Phase:
    """Engines read the file; every other node with engines first fetches it from one process."""
    hardware, size = job.hardware, 4.0 * job.shape.parameters
    remote = remote_nodes(job)
    fetch_s = size * remote / hardware.object_bytes_per_s
    read_s = size / hardware.file_read_bytes_per_s
    up_s = size / hardware.host_link_bytes_per_s if job.on_gpu else 0.0
    parts = {"fetch": fetch_s, "read": read_s, "host link": up_s, "calls": hardware.sync_s}
    detail = f"{remote} other nodes, {_parts(parts)}"
    return Phase(
        "sync: engines",
        sum(parts.values()),
        max(parts, key=parts.__getitem__),
        0,
        size,
        size * remote,
        detail,
    )


def remote_nodes(job: Job) -> int:
    """Number of nodes with engines but without the learners' rank 0.

    Learners are packed densely, and engines come after them.
    """
    if not job.on_gpu:
        return 0
    nodes = math.ceil(job.devices / job.hardware.devices_per_node)
    filled = int(job.config.learner.workers * job.learner_devices // job.hardware.devices_per_node)
    return nodes - max(1, filled)


def _parts(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {short(seconds)} s" for name, seconds in parts.items() if seconds)


def short(value: float) -> str:
    """A number in three digits, without an exponent if it is large."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
