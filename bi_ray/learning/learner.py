"""One rank of a learner group: a sharded policy, its optimizer, and one update from rows of tokens.

Needs a ``torch.distributed`` process group, and nothing of Ray: Ray Train or a test sets it up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from bi_ray.batches.rollout import seed_for
from bi_ray.config.run import ModelConfig
from bi_ray.config.training import LearnerConfig, OptimizerConfig
from bi_ray.files.errors import DiskFull
from bi_ray.learning.adapters import ADAPTERS, adapters_of, add_adapters, merged
from bi_ray.learning.optimizer import make_optimizer, set_learning_rate
from bi_ray.learning.sharding import (
    fill_shards,
    full_tensor,
    gather_optimizer,
    gather_weights,
    load_optimizer,
    save_optimizer,
    shard,
)
from bi_ray.policy.attention import (
    PACKED_ATTENTION,
    attends_as_laid_out,
    can_pack,
    can_share_prompts,
)
from bi_ray.policy.checkpoint import (
    empty_model,
    load_model,
    save_policy,
    save_weights,
    tied_weights,
)
from bi_ray.policy.files import CheckpointError
from bi_ray.policy.logprobs import TokenLogprobs
from bi_ray.policy.noise import switch_off_noise
from bi_ray.policy.packing import MicroBatch, Packing, Row, pack
from bi_ray.runs.checkpoints import StepDirectories
from bi_ray.runs.layout import POLICY


class TrainingError(RuntimeError):
    """Training that cannot continue and would fail again. Raised on every rank at once."""


class Totals:
    """Sums and maxima over the tokens of a step: of this rank, and after ``reduce`` of all."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._maxima: dict[str, float] = {}
        self._per_token: set[str] = set()

    def add(self, name: str, value: float) -> None:
        """Add to the sum called ``name``."""
        self._sums[name] = self._sums.get(name, 0.0) + value

    def add_per_token(self, name: str, value: float) -> None:
        """Add to the sum called ``name``, which ``reduce`` divides by the sum ``tokens``."""
        self.add(name, value)
        self._per_token.add(name)

    def keep_largest(self, name: str, value: float) -> None:
        """Raise the maximum called ``name`` to ``value``."""
        self._maxima[name] = max(self._maxima.get(name, -math.inf), value)

    def reduce(self, device: torch.device) -> dict[str, float]:
        """Every sum, mean per token and maximum over all ranks.

        All ranks must have used the same names in the same order.
        """
        for values, operation in (
            (self._sums, distributed.ReduceOp.SUM),
            (self._maxima, distributed.ReduceOp.MAX),
        ):
            if values:
                tensor = torch.tensor(list(values.values()), device=device, dtype=torch.float64)
                distributed.all_reduce(tensor, op=operation)
                values.update(zip(values, tensor.tolist(), strict=True))
        figures = {**self._sums, **self._maxima}
        for name in self._per_token:
            figures[name] /= max(1.0, figures["tokens"])
        return figures


MicroBatchLoss = Callable[[MicroBatch, Totals], Tensor]


class Learner:
    """A rank's part of the policy that learns.

    Args:
        policy: directory of the checkpoint to start from.
        model: data type and attention kernel.
        options: size and packing of micro-batches, and what spares memory or time.
        optimizer: kind, clipping and base rate.
        device: where this rank computes.
        adapters: file of LoRA's adapters to resume from.

    Attributes:
        policy: the sharded policy as a function to log-probabilities.
        model: the language model in it.
        rank: of this process.
    """

    def __init__(
        self,
        policy: Path,
        model: ModelConfig,
        options: LearnerConfig,
        optimizer: OptimizerConfig,
        device: torch.device,
        adapters: Path | None = None,
    ) -> None:
        self.rank = distributed.get_rank()
        self.device = device
        self.policy = load_sharded(policy, model, options, device, adapters)
        self.model = self.policy.model
        self._config = optimizer
        self._learned = [
            parameter for parameter in self.model.parameters() if parameter.requires_grad
        ]
        self._optimizer = make_optimizer(self._learned, optimizer)
        self._options = options
        self._packing = choose_packing(options.packing, self.model)

    def update(
        self, step: int, rows: Sequence[Row], loss: MicroBatchLoss, rate: float
    ) -> dict[str, float]:
        """One optimizer step; every rank is given the same rows and takes its share.

        Args:
            step: its number, for messages.
            rows: the whole step.
            loss: of one micro-batch, summed with the rows' weights; may add to the totals.
            rate: learning rate.

        Returns:
            ``loss``, ``grad_norm`` (before clipping), ``tokens`` (learned ones), ``pack_s`` (of the
            slowest rank), ``compute_s`` (of this rank, all of the update), and the totals of
            ``loss``; all but ``compute_s`` are the same on every rank.

        Raises:
            TrainingError: the loss or the gradient is not finite; the weights are as before.
        """
        began = time.perf_counter()
        if self._options.lora and self._options.lora.dropout:
            # so that a resumed run draws what this one does
            torch.manual_seed(seed_for("dropout", step, self.rank))
        totals = self.accumulate(rows, loss).reduce(self.device)
        norm = self.gradient_norm()
        if not (math.isfinite(totals["loss"]) and math.isfinite(norm)):
            self._optimizer.zero_grad(set_to_none=True)
            raise TrainingError(
                f"step {step}: the loss is {totals['loss']} and the gradient norm {norm}, so "
                f"nothing was updated; lower optimizer.learning_rate (now {rate:g}) and start from "
                "an earlier checkpoint"
            )
        torch.nn.utils.clip_grads_with_norm_(
            self._learned, self._config.max_grad_norm, torch.tensor(norm)
        )
        set_learning_rate(self._optimizer, rate)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return {**totals, "grad_norm": norm, "compute_s": time.perf_counter() - began}

    def accumulate(self, rows: Sequence[Row], loss: MicroBatchLoss) -> Totals:
        """Forward and backward over this rank's share.

        Leaves the gradient of the whole step in the parameters.
        """
        ranks = distributed.get_world_size()
        totals = Totals()
        # In a layer, a pair of a query and a key costs 4 * width operations, a token about
        # 24 * width^2.
        pair_cost = 1 / (6 * self.model.config.hidden_size)
        began = time.perf_counter()
        batches = pack(
            rows, self._options.microbatch_tokens, self.rank, ranks, self._packing, pair_cost
        )
        totals.keep_largest("pack_s", time.perf_counter() - began)
        for number, batch in enumerate(batches, 1):
            if self._options.gradient_sync == "step" and isinstance(self.policy, FSDPModule):
                self.policy.set_requires_gradient_sync(number == len(batches))
            value = loss(batch.to(self.device), totals)
            # FSDP averages gradients over ranks; the loss of a step is a sum over them.
            (value * ranks).backward()
            totals.add("loss", float(value.detach()))
            totals.add("tokens", len(batch.targets))
        return totals

    def gradient_norm(self) -> float:
        """L2 norm of the whole gradient."""
        gradients = [parameter.grad for parameter in self._learned if parameter.grad is not None]
        return float(full_tensor(torch.nn.utils.get_total_norm(gradients)))

    def weight_norm(self) -> float:
        """L2 norm of all weights together."""
        weights = [parameter.detach() for parameter in self.model.parameters()]
        return float(full_tensor(torch.nn.utils.get_total_norm(weights)))

    def gather_weights(self) -> dict[str, Tensor]:
        """All weights as a plain checkpoint has them, adapters merged; on rank 0 only.

        Other ranks get an empty dict.
        """
        return self.plain(gather_weights(self.model))

    def plain(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A gathered state with the adapters merged, if there are any."""
        return merged(state, self._options.lora) if self._options.lora else state

    def gather_optimizer(self) -> dict[str, Tensor]:
        """See ``sharding.gather_optimizer``."""
        return gather_optimizer(self.model, self._optimizer)

    def load_optimizer(self, path: Path) -> None:
        """See ``sharding.load_optimizer``."""
        load_optimizer(self.model, self._optimizer, path)


def load_sharded(
    policy: Path,
    model: ModelConfig,
    options: LearnerConfig,
    device: torch.device,
    weights: Path | None = None,
) -> TokenLogprobs:
    """The policy of a directory, in float32 and sharded over all ranks.

    Rank 0 alone reads it and holds it whole.

    Args:
        policy: the directory.
        model: data type and attention kernel.
        options: sharding, LoRA, and what spares memory or time.
        device: where this rank computes.
        weights: file to resume from: the adapters of a LoRA, else all weights.
    """
    reads = distributed.get_rank() == 0
    load = load_model if reads else empty_model
    full = load(policy, attention=model.attention)
    switch_off_noise(full)
    log_probabilities = TokenLogprobs(full)
    if options.lora:
        add_adapters(full, options.lora, weights if reads else None)
    elif weights and reads:
        full.load_state_dict(load_file(weights))
    state = full.state_dict() if reads else {}
    if options.activation_checkpointing:
        full.gradient_checkpointing_enable({"use_reentrant": False})
    _choose_attention(full, device)
    sharded = shard(log_probabilities, device, getattr(torch, model.dtype), options)
    if distributed.get_world_size() > 1:
        fill_shards(full, state, torch.device("cpu") if options.cpu_offload else device)
    if options.compile:
        for layer in full.get_decoder().layers:
            layer.compile(dynamic=True)
    return sharded


def _choose_attention(full: PreTrainedModel, device: torch.device) -> None:
    """Share prompts between sequences where the model can; rank 0, which has weights, tries it."""
    if not can_share_prompts(full, device):
        return
    full.set_attn_implementation(PACKED_ATTENTION)
    exact = [distributed.get_rank() == 0 and attends_as_laid_out(full)]
    distributed.broadcast_object_list(exact)
    if not exact[0]:
        full.set_attn_implementation("sdpa")


def choose_packing(wanted: str, model: PreTrainedModel) -> Packing:
    """The first of shared, flat and padded that is wanted and that the model can do.

    Raises:
        ValueError: it cannot do what is wanted.
    """
    attention = model.config._attn_implementation
    possible: list[Packing] = ["padded"]
    if attention == PACKED_ATTENTION:
        possible = ["shared", "flat", "padded"]
    elif attention.startswith("flash_attention") and can_pack(model):
        possible = ["flat", "padded"]
    if wanted == "auto":
        return possible[0]
    for packing in possible:
        if packing == wanted:
            return packing
    raise ValueError(
        f"learner.packing is {wanted}, which {type(model).__name__} ({attention}) cannot do here: "
        f"set it to auto, or to one of {possible}. shared needs model.attention sdpa, full "
        "attention in every layer, and CPU learners; flat also works with flash_attention_2 if "
        "every layer has full or sliding attention"
    )


def load_checkpoint(
    base: Path,
    directories: StepDirectories,
    step: int,
    model: ModelConfig,
    options: LearnerConfig,
    optimizer: OptimizerConfig,
    device: torch.device,
) -> Learner:
    """The learner as it was after ``step``, whatever number of ranks wrote the checkpoint.

    Step 0 is the policy ``base``.
    """
    if not step:
        return Learner(base, model, options, optimizer, device)
    folder = directories.path(step)
    policy, adapters = folder / POLICY, None
    if options.lora:
        policy, adapters = base, folder / ADAPTERS
    learner = Learner(policy, model, options, optimizer, device, adapters)
    learner.load_optimizer(folder / "optimizer.safetensors")
    return learner


def save_checkpoint(
    learner: Learner,
    base: Path,
    directories: StepDirectories,
    step: int,
    more: Mapping[str, dict[str, Tensor]] | None = None,
) -> None:
    """Write ``step_N`` with ``policy/``, ``optimizer.safetensors`` and ``state.json``.

    Every rank calls it. ``policy/`` is a plain model; a LoRA's adapters have a file of their own,
    since they cannot be recovered from merged weights.

    Args:
        learner: this rank's.
        base: directory of the policy that training started from.
        directories: where checkpoints go.
        step: number of the checkpoint.
        more: full weights of other models, on rank 0, by the name of the file for them.

    Raises:
        TrainingError: the disk is full.
    """
    weights, state = gather_weights(learner.model), learner.gather_optimizer()

    def fill(folder: Path) -> None:
        save_policy(learner.plain(weights), base, folder / POLICY)
        if adapters := adapters_of(weights):
            save_file(adapters, folder / ADAPTERS)
        save_optimizer(state, folder / "optimizer.safetensors")
        for name, weights_of_another in (more or {}).items():
            save_weights(weights_of_another, folder / name, tied_weights(base))

    on_rank_0(lambda: directories.write(step, fill))


def on_rank_0(call: Callable[[], None]) -> None:
    """Let rank 0 act for all. Every rank calls it, so that none waits for one that has given up.

    Raises:
        TrainingError: on every rank, when ``call`` raises it or there is no room for what it
            writes.
    """
    reason = [""]
    cause: Exception | None = None
    if distributed.get_rank() == 0:
        try:
            call()
        except (TrainingError, CheckpointError, DiskFull) as error:
            reason, cause = [str(error)], error
    distributed.broadcast_object_list(reason)
    if reason[0]:
        raise TrainingError(reason[0]) from cause
