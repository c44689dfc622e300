"""Training of the tiny base model in one plain process; resumable from its last checkpoint."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed
from torch.nn import functional
from transformers import (
    AttentionInterface,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from bi_ray.config.pretraining import PretrainConfig
from bi_ray.files.atomic import write_atomically
from bi_ray.files.errors import RunError
from bi_ray.files.names import temporary_name
from bi_ray.policy.chat import encode_prompt
from bi_ray.policy.checkpoint import load_model, load_tokenizer
from bi_ray.pretraining import drills
from bi_ray.pretraining.drills import MAKERS, Drill, Practice, draw_drill
from bi_ray.pretraining.muon import Muon
from bi_ray.pretraining.tokenizer import build_tokenizer
from bi_ray.runs.checkpoints import StepDirectories
from bi_ray.runs.layout import METRICS_FILE
from bi_ray.runs.metrics import append_metrics, cut_metrics, read_steps
from bi_ray.runs.records import read_record
from bi_ray.tasks import igsm, promptbench

_PROGRESS = "progress.json"  # in a checkpoint
IGNORED = -100  # label of a token that the loss does not cover
CHECKPOINTS = "checkpoints"  # folder from which training resumes
NEWEST = "checkpoint"  # folder with the model of the newest checkpoint, for everybody else
_POOL_STEPS = 4  # drills of this many steps are sorted by length together, which keeps padding low


def new_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A fresh Llama with tied embeddings whose first heads look one, two and three tokens back.

    Recall by name needs such heads first, and plain training takes longest to find them.
    """
    torch.manual_seed(config.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.mlp_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=config.max_positions,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attention_bias=True,
            initializer_range=0.05,
            dtype="float32",
        )
    )
    attention = model.model.layers[0].self_attn
    width = config.hidden_size // config.heads
    with torch.no_grad():
        for head, distance in enumerate(range(1, min(config.heads, 4))):
            rows = slice(head * width, (head + 1) * width)
            attention.q_proj.bias[rows], attention.k_proj.bias[rows] = _look_back(
                distance, width, config.rope_theta
            )
    return model


def _look_back(distance: int, width: int, rope_theta: float) -> tuple[Tensor, Tensor]:
    """Query and key biases of a head that attends ``distance`` tokens back, each of shape [width].

    Under rotary embedding the score at a distance d is the sum over frequencies f of cos(f * (d -
    distance)): largest at ``distance``. Only the fastest frequencies distinguish neighbors, so only
    they are set.
    """
    half, fastest, strength = width // 2, 4, 6.0
    angles = distance * rope_theta ** (-torch.arange(fastest) / half)
    query, key = torch.zeros(width), torch.zeros(width)
    key[:fastest] = strength
    # transformers rotates the pair (i, i + half) of a query at position t by t * f; rotate it back
    # by the distance
    query[:fastest], query[half : half + fastest] = (
        strength * angles.cos(),
        -strength * angles.sin(),
    )
    return query, key


def make_tokenizer(config: PretrainConfig) -> PreTrainedTokenizerFast:
    """A token for every phrase and name of the tasks that the base learns."""
    practice = Practice(config)
    fixed = promptbench.phrases()
    names = list(practice.promptbench.names)
    if practice.igsm:
        fixed += igsm.phrases()
        names += igsm.names()
    return build_tokenizer([*fixed, *drills.phrases()], names)


def _float32_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
) -> Any:
    """PyTorch's attention in float32, although other products are in bfloat16.

    On a CPU its backward pass is four times slower in bfloat16.
    """
    with torch.autocast("cpu", enabled=False):
        return sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), mask, **options
        )


_FLOAT32_ATTENTION = "bi_ray_float32_sdpa"
AttentionInterface.register(_FLOAT32_ATTENTION, _float32_attention)


def in_bfloat16(config: PretrainConfig) -> bool:
    """Whether matrix products are in bfloat16; weights, gradients and attention never are."""
    if config.precision == "auto":
        return bool(torch.cpu._is_avx512_bf16_supported())
    return config.precision == "bfloat16"


Example = tuple[list[int], list[bool]]  # tokens, and which of them the loss covers


def encode_drill(tokenizer: PreTrainedTokenizerBase, system_prompt: str, drill: Drill) -> Example:
    """Turn a drill into tokens, with the loss on the assistant's."""
    tokens = encode_prompt(tokenizer, system_prompt, drill.prompt)
    learned = [False] * len(tokens)
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    assistant = tokenizer.convert_tokens_to_ids("<|assistant|>")
    response = [*tokenizer.encode(drill.response, add_special_tokens=False), tokenizer.eos_token_id]
    tokens += response
    learned += [drill.learned] * len(response)
    for question, answer in drill.follow_ups:
        question_tokens = tokenizer.encode(question, add_special_tokens=False)
        answer_tokens = tokenizer.encode(answer, add_special_tokens=False)
        user_turn = [user, *question_tokens, tokenizer.eos_token_id, assistant]
        assistant_turn = [*answer_tokens, tokenizer.eos_token_id]
        tokens += user_turn + assistant_turn
        learned += [False] * len(user_turn) + [True] * len(assistant_turn)
    return tokens, learned


def batches(
    config: PretrainConfig, tokenizer: PreTrainedTokenizerFast, start_step: int
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Micro-batches of every step from ``start_step`` on.

    A step's content depends on the configuration and on its number only, so that a resumed run sees
    what an undisturbed one does.

    Yields:
        For each step a list of pairs (tokens, labels) of shape [rows, length].
    """
    practice = Practice(config)
    system_prompt = practice.promptbench.system_prompt
    for pool in range(start_step // _POOL_STEPS, -(-config.steps // _POOL_STEPS)):
        rng = random.Random(f"{config.seed}/pretrain/{pool}")
        progress = min(1.0, pool * _POOL_STEPS / config.curriculum_steps)
        examples: list[Example] = []
        tokens = 0
        while tokens < _POOL_STEPS * config.batch_tokens:
            example = encode_drill(tokenizer, system_prompt, draw_drill(practice, rng, progress))
            if len(example[0]) <= config.max_positions:
                examples.append(example)
                tokens += len(example[0])
        groups = _by_length(examples, config.microbatch_tokens)
        micro = [_pad(rows, tokenizer.pad_token_id) for rows in groups]
        rng.shuffle(micro)
        for step in range(pool * _POOL_STEPS, (pool + 1) * _POOL_STEPS):
            if start_step <= step < config.steps:
                yield micro[step % _POOL_STEPS :: _POOL_STEPS]


def _by_length(examples: list[Example], limit: int) -> Iterator[list[Example]]:
    """Groups of examples of similar length, of at most ``limit`` padded tokens if they can be."""
    rows: list[Example] = []
    for example in sorted(examples, key=lambda item: len(item[0])):
        if rows and (len(rows) + 1) * len(example[0]) > limit:
            yield rows
            rows = []
        rows.append(example)
    yield rows


def _pad(rows: list[Example], pad: int) -> tuple[Tensor, Tensor]:
    """Tokens and labels of shape [rows, length]."""
    length = max(len(tokens) for tokens, _ in rows)
    tokens = torch.full((len(rows), length), pad)
    labels = torch.full((len(rows), length), IGNORED)
    for i, (row, learned) in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
        labels[i, : len(row)] = tokens[i, : len(row)].where(torch.tensor(learned), IGNORED)
    return tokens, labels


def rate_factor(step: int, config: PretrainConfig) -> float:
    """Learning rate as a share of its peak: a linear warm-up, a plateau, a linear fall to zero."""
    return min(1.0, (step + 1) / config.warmup_steps, (config.steps - step) / config.decay_steps)


def pretrain(config: PretrainConfig, directory: Path) -> Iterator[dict[str, Any]]:
    """Train, and write checkpoints and ``metrics.jsonl`` to ``directory``.

    Stopping at any time loses at most ``checkpoint_every_steps`` steps; called again, it resumes
    from there. The work is split over processes of one thread each, not over threads: on a shared
    machine a delayed thread delays every operator, a delayed process only the end of the step.

    Yields:
        The metrics of every step.

    Raises:
        RunError: ``directory`` holds a model that this training did not make.
        RuntimeError: a process ended early; its traceback is part of the message.
    """
    directory.mkdir(parents=True, exist_ok=True)
    metrics = directory / METRICS_FILE
    rendezvous = temporary_name(directory / "rendezvous")
    _refuse_foreign_checkpoint(directory / NEWEST)
    processes = torch.multiprocessing.spawn(
        _train, (config, directory, rendezvous), nprocs=config.processes, join=False
    )
    try:
        done, shown = False, 0
        while not done:
            done = processes.join(timeout=1)
            for row in read_steps(metrics):
                if row["step"] > shown:
                    shown = row["step"]
                    yield row
    finally:
        for process in processes.processes:
            process.kill()
        rendezvous.unlink(missing_ok=True)


def _train(rank: int, config: PretrainConfig, directory: Path, rendezvous: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous.absolute()}",
        rank=rank,
        world_size=config.processes,
    )
    tokenizer = make_tokenizer(config)
    model = new_model(config, tokenizer)
    model.config._attn_implementation = _FLOAT32_ATTENTION
    bfloat16 = in_bfloat16(config)
    parameters = list(model.parameters())
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "embed" not in name:
            matrices.append(parameter)
        else:
            others.append(parameter)
    muon = Muon(matrices, lr=config.muon_learning_rate)
    adamw = torch.optim.AdamW(others, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    checkpoints = StepDirectories(directory / CHECKPOINTS)
    start, seconds = _resume(checkpoints, config.steps, model, [muon, adamw])
    if rank == 0:
        cut_metrics(directory / METRICS_FILE, start)
    parent = os.getppid()
    for step, micro in enumerate(batches(config, tokenizer, start), start):
        if os.getppid() != parent:  # the command was killed, and nobody waits for this process
            return
        began = time.perf_counter()
        factor = rate_factor(step, config)
        muon.param_groups[0]["lr"] = config.muon_learning_rate * factor
        adamw.param_groups[0]["lr"] = config.learning_rate * factor
        learned = sum(int((labels != IGNORED).sum()) for _, labels in micro)
        loss_sum = torch.zeros(())
        for tokens, labels in micro[rank :: config.processes]:
            loss = summed_loss(model, tokens, labels, bfloat16)
            (loss / learned).backward()
            loss_sum += loss.detach()
        loss_sum = _sum_over_processes(parameters, loss_sum)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in (muon, adamw):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds += time.perf_counter() - began
        if rank != 0:
            continue
        row = {
            "step": step + 1,
            "loss": float(loss_sum) / learned,
            "tokens": sum(tokens.numel() for tokens, _ in micro),
            "training_s": seconds,
        }
        is_last = step + 1 == config.steps
        is_checkpointed = is_last or (step + 1) % config.checkpoint_every_steps == 0
        append_metrics(directory / METRICS_FILE, row, durable=is_checkpointed)
        if is_checkpointed:
            _save(checkpoints, model, tokenizer, [muon, adamw], step + 1, seconds)
    distributed.destroy_process_group()


def summed_loss(model: LlamaForCausalLM, tokens: Tensor, labels: Tensor, bfloat16: bool) -> Tensor:
    """Cross-entropy summed over the learned tokens; logits are computed for these alone.

    Args:
        model: the policy in training.
        tokens: shape [rows, length].
        labels: the same, ``IGNORED`` where the loss does not cover a token.
        bfloat16: whether matrix products are in bfloat16.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state[:, :-1]
        learned = labels[:, 1:] != IGNORED
        logits = model.lm_head(hidden[learned])
    return functional.cross_entropy(logits.float(), labels[:, 1:][learned], reduction="sum")


class DrillScore(NamedTuple):
    """How well a model does on fresh drills of one kind.

    Attributes:
        exact: share of the drills in which every learned token is the likeliest one.
        tokens: share of the learned tokens that are the likeliest ones.
    """

    exact: float
    tokens: float


def score_drills(model_path: Path, config: PretrainConfig) -> dict[str, DrillScore]:
    """Share of fresh drills, of each kind, that greedy decoding answers exactly.

    Greedy decoding gives exactly the expected response if every token of it is the likeliest after
    those before it, so one forward pass per drill decides. The drills come from a separate random
    stream, at full difficulty.

    Args:
        model_path: a checkpoint directory.
        config: its tasks give ``scored_drills`` drills of each kind.
    """
    model, tokenizer = load_model(model_path).eval(), load_tokenizer(model_path)
    practice = Practice(config)
    scores = {}
    for kind in practice.kinds():
        rng = random.Random(f"{config.seed}/scores/{kind}")
        exact = right = learned = 0
        for _ in range(config.scored_drills):
            drill = MAKERS[kind](practice.task_of(kind, rng), rng, 1.0)
            example = encode_drill(tokenizer, practice.promptbench.system_prompt, drill)
            tokens, labels = _pad([example], tokenizer.pad_token_id)
            with torch.no_grad():
                likeliest = model(input_ids=tokens, use_cache=False).logits[:, :-1].argmax(dim=-1)
            wanted = labels[:, 1:] != IGNORED
            hits = likeliest[wanted] == labels[:, 1:][wanted]
            exact += bool(hits.all())
            right += int(hits.sum())
            learned += hits.numel()
        scores[kind] = DrillScore(exact / config.scored_drills, right / learned)
    return scores


def _sum_over_processes(parameters: list[torch.nn.Parameter], loss: Tensor) -> Tensor:
    """Sum the gradients of all processes in place, and return the summed loss."""
    parts = []
    for parameter in parameters:
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parts.append(gradient.flatten())
    flat = torch.cat([*parts, loss.reshape(1)])
    distributed.all_reduce(flat)
    position = 0
    for parameter in parameters:
        parameter.grad = flat[position : position + parameter.numel()].view_as(parameter)
        position += parameter.numel()
    return flat[-1]


def _save(
    checkpoints: StepDirectories,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    optimizers: list[torch.optim.Optimizer],
    step: int,
    seconds: float,
) -> None:
    def fill(folder: Path) -> None:
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        state: dict[str, Tensor] = {}
        for number, optimizer in enumerate(optimizers):
            for index, entries in optimizer.state_dict()["state"].items():
                for key, value in entries.items():
                    state[f"{number}.{index}.{key}"] = torch.as_tensor(value)
        save_file(state, folder / "optimizers.safetensors")
        (folder / _PROGRESS).write_text(json.dumps({"training_s": seconds}))

    checkpoints.write(step, fill)
    with write_atomically(checkpoints.directory.with_name(NEWEST)) as folder:
        shutil.copytree(checkpoints.path(step) / "model", folder / "model")


@dataclass(frozen=True, slots=True)
class _Progress:
    training_s: float


def _refuse_foreign_checkpoint(folder: Path) -> None:
    """Raise RunError if the folder of the newest model holds something else."""
    if not folder.exists():
        return
    has_model = (folder / "model" / "config.json").exists()
    if any(folder.iterdir()) and not has_model:
        raise RunError(
            f"{folder} was not made by bi-ray: it has no model/config.json; move it away and try "
            "again"
        )
    if not any((folder.parent / CHECKPOINTS).glob("step_*")):
        raise RunError(
            f"{folder} has a model, but {CHECKPOINTS}/ has no step to resume from; choose a new "
            "directory"
        )


def _resume(
    checkpoints: StepDirectories,
    last_step: int,
    model: LlamaForCausalLM,
    optimizers: list[torch.optim.Optimizer],
) -> tuple[int, float]:
    """Load the newest complete checkpoint, if there is one.

    Returns:
        Its step, and the seconds trained so far; 0 and 0 if there is none.
    """
    shared = [0]
    if distributed.get_rank() == 0:
        shared = [checkpoints.recover(last_step)]
    distributed.broadcast_object_list(shared)
    step = shared[0]
    if not step:
        return 0, 0.0
    checkpoint = checkpoints.path(step)
    model.load_state_dict(LlamaForCausalLM.from_pretrained(checkpoint / "model").state_dict())
    state = load_file(checkpoint / "optimizers.safetensors")
    for number, optimizer in enumerate(optimizers):
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            which, index, name = key.split(".", 2)
            if int(which) == number:
                entries.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict(
            {"state": entries, "param_groups": optimizer.state_dict()["param_groups"]}
        )
    return step, read_record(checkpoint / _PROGRESS, _Progress).training_s
