"""The sharded learner on real gloo processes, against one plain transformers model and its own twin
on one process.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ranks import TOKENS, distance, on_ranks
from safetensors.torch import load_file, save_file
from torch import distributed

from bi_ray.config.algorithms import ImportanceConfig, KLConfig
from bi_ray.config.run import ModelConfig
from bi_ray.config.training import LearnerConfig, OptimizerConfig, RLConfig
from bi_ray.learning.learner import (
    Learner,
    Totals,
    TrainingError,
    choose_packing,
    load_checkpoint,
    load_sharded,
    on_rank_0,
    save_checkpoint,
)
from bi_ray.learning.losses import nll_loss
from bi_ray.learning.rl import microbatch_loss
from bi_ray.learning.sharding import full_tensor
from bi_ray.policy.checkpoint import load_model, save_weights
from bi_ray.policy.logprobs import TokenLogprobs
from bi_ray.policy.packing import Row, pack
from bi_ray.runs.checkpoints import StepDirectories

CPU = torch.device("cpu")
SGD = OptimizerConfig(kind="sgd", learning_rate=0.5, max_grad_norm=1e9)
ADAMW = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1)
GRPO = RLConfig(kl=KLConfig(estimator="k3", coefficient=0.1), temperature=0.7)
NO_KL = RLConfig(temperature=0.7)


def make_rows(count: int, seed: int = 0) -> list[Row]:
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    rows = []
    for i in range(count):
        prompt, response = number(1, 12), number(1, 20)
        tokens = tuple(torch.randint(0, TOKENS, (prompt + response,), generator=generator).tolist())
        logprobs = tuple((-5 + torch.randn(response, generator=generator)).tolist())
        rows.append(
            Row(tokens, prompt, 1 / (count * response), (-1.0) ** i * (1 + i / count), logprobs)
        )
    return rows


def options_of(microbatch_tokens: int, **options) -> LearnerConfig:
    return LearnerConfig(microbatch_tokens=microbatch_tokens, **options)


def loss_of(kind: str, model, reference=None):
    if kind == "grpo":
        return microbatch_loss(model, reference, GRPO if reference else NO_KL)
    return lambda batch, _: nll_loss(model(batch)[0], batch.weights)


def learn(policy: Path, out: Path, kind: str, rows: list[Row], limit: int) -> None:
    """Accumulate one gradient, then make one update; rank 0 writes both."""
    learner = Learner(policy, ModelConfig(), options_of(limit), SGD, CPU)
    reference = load_sharded(policy, ModelConfig(), options_of(limit), CPU).requires_grad_(False)
    loss = loss_of(kind, learner.policy, reference)
    learner.accumulate(rows, loss)
    gradient = {name: full_tensor(p.grad) for name, p in learner.model.named_parameters()}
    learner.model.zero_grad()
    metrics = learner.update(1, rows, loss, SGD.learning_rate)
    weights = learner.gather_weights()
    if learner.rank == 0:
        out.mkdir(parents=True)
        save_file(gradient, out / "gradient")
        save_file({name: tensor.clone() for name, tensor in weights.items()}, out / "weights")
        numbers = {
            name: torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()
        }
        save_file(numbers, out / "metrics")


@pytest.fixture(scope="module")
def policy(tiny_model) -> Path:
    return tiny_model(tied=True)


@pytest.mark.parametrize(("kind", "tied"), [("sft", True), ("grpo", False)])
def test_two_ranks_learn_what_one_plain_model_learns(tmp_path, tiny_model, kind, tied):
    """5 rows on 2 ranks in tiny micro-batches: uneven shares, so that one rank gets an empty
    micro-batch.
    """
    policy = tiny_model(tied=tied)
    rows = make_rows(5)
    shares = [pack(rows, 24, rank, 2) for rank in range(2)]
    assert any(not len(batch.targets) for share in shares for batch in share), (
        "the test wants an empty micro-batch"
    )
    on_ranks(2, learn, policy, tmp_path / "two", kind, rows, 24)
    model, reference = load_model(policy), load_model(policy)
    [batch] = pack(rows, 10**9, packing="padded")  # all rows in one pass of an unsharded model
    totals = Totals()
    loss_of(kind, TokenLogprobs(model), TokenLogprobs(reference))(batch, totals).backward()
    gradient = {name: p.grad for name, p in model.named_parameters()}
    assert distance(load_file(tmp_path / "two" / "gradient"), gradient) <= 1e-5
    torch.optim.SGD(model.parameters(), lr=SGD.learning_rate).step()
    learned = load_file(tmp_path / "two" / "weights")
    assert (
        distance(learned, {name: tensor.detach() for name, tensor in model.state_dict().items()})
        <= 1e-5
    )
    assert distance(learned, dict(load_model(policy).state_dict())) > 1e-3  # the step was large
    norm = sum(float(g.double().square().sum()) for g in gradient.values()) ** 0.5
    assert float(load_file(tmp_path / "two" / "metrics")["grad_norm"]) == pytest.approx(
        norm, rel=1e-5
    )


def write_gradients(
    policy: Path, out: Path, rows: list[Row], cases: list[tuple[int, dict]]
) -> None:
    """The gradient of every case (micro-batch tokens, options), in one file each; rank 0 writes."""
    out.mkdir(parents=True, exist_ok=True)
    for number, (limit, options) in enumerate(cases):
        learner = Learner(policy, ModelConfig(), options_of(limit, **options), SGD, CPU)
        learner.accumulate(rows, loss_of("grpo", learner.policy))
        gradient = {name: full_tensor(p.grad) for name, p in learner.model.named_parameters()}
        if learner.rank == 0:
            save_file(gradient, out / str(number))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_sizes_packing_and_options_give_one_gradient(tmp_path, tiny_model, ranks):
    policy = tiny_model(tied=False)
    prompts = [row.tokens[:10] for row in make_rows(20) if len(row.tokens) > 10][:4]
    rows = [
        dataclasses.replace(
            row, tokens=prompts[i % 4] + row.tokens[row.first_learned :], first_learned=10
        )
        for i, row in enumerate(make_rows(14, seed=1))
    ]
    cases = [
        (limit, {"packing": packing})
        for limit in (30, 10**6)
        for packing in ("shared", "flat", "padded")
    ]
    cases += [(100, {"activation_checkpointing": True}), (100, {"cpu_offload": True})]
    cases += [(100, {"reshard_after_forward": False}), (30, {"gradient_sync": "step"})]
    on_ranks(ranks, write_gradients, policy, tmp_path, rows, cases)
    model = load_model(policy)
    [batch] = pack(rows, 10**9, packing="padded")
    totals = Totals()
    loss_of("grpo", TokenLogprobs(model))(batch, totals).backward()
    gradient = {name: p.grad for name, p in model.named_parameters()}
    for number, case in enumerate(cases):
        assert distance(load_file(tmp_path / str(number)), gradient) <= 1e-5, case


def train_and_checkpoint(policy: Path, folder: Path, start: int, stop: int) -> None:
    directories = StepDirectories(folder)
    assert directories.recover() == start
    learner = load_checkpoint(policy, directories, start, ModelConfig(), options_of(64), ADAMW, CPU)
    for step in range(start + 1, stop + 1):
        learner.update(
            step, make_rows(6, seed=step), loss_of("sft", learner.policy), ADAMW.learning_rate
        )
    save_checkpoint(learner, policy, directories, stop)


def test_a_checkpoint_of_two_ranks_goes_on_at_one(tmp_path, policy):
    on_ranks(2, train_and_checkpoint, policy, tmp_path / "a", 0, 2)
    on_ranks(1, train_and_checkpoint, policy, tmp_path / "a", 2, 4)
    on_ranks(1, train_and_checkpoint, policy, tmp_path / "b", 0, 4)
    for name in ("policy/model.safetensors", "optimizer.safetensors"):
        resumed, straight = (
            load_file(tmp_path / "a/step_4" / name),
            load_file(tmp_path / "b/step_4" / name),
        )
        assert distance(resumed, straight) <= 1e-5, name
    state = load_file(tmp_path / "a/step_4/optimizer.safetensors")
    assert {float(value) for name, value in state.items() if name.endswith("|step")} == {4.0}
    assert (tmp_path / "a/step_4/policy/tokenizer_config.json").exists()


def perturb_the_sampler(policy: Path) -> None:
    """The gradient, to the last bit, with the learner's own log-probabilities for the sampler's,
    and with noise.
    """
    learner = Learner(policy, ModelConfig(), options_of(256), SGD, CPU)
    rows, model = make_rows(8), load_model(policy)
    for row_number, row in enumerate(rows):
        tokens = torch.tensor([row.tokens])
        with torch.no_grad():
            every = (
                model(tokens).logits[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None])[0, :, 0]
            )
        own = tuple(every[row.first_learned - 1 :].tolist())
        rows[row_number] = dataclasses.replace(row, sampler_logprobs=own)
    gradients = {}
    for tolerance in (1e-4, 0.0):
        config = RLConfig(importance=ImportanceConfig(tolerance=tolerance))
        for noise in (0.0, 1e-6, -3e-6):
            noisy = [
                dataclasses.replace(
                    row, sampler_logprobs=tuple(value + noise for value in row.sampler_logprobs)
                )
                for row in rows
            ]
            learner.model.zero_grad()
            learner.accumulate(noisy, microbatch_loss(learner.policy, None, config))
            found = [full_tensor(p.grad).clone() for p in learner.model.parameters()]
            gradients.setdefault(tolerance, []).append(found)

    def same(one, other):
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    first, second, third = gradients[1e-4]
    assert same(first, second)
    assert same(first, third)
    assert not same(gradients[0.0][1], gradients[0.0][2])


def test_the_gradient_does_not_depend_on_the_last_bits_of_the_sampler(policy):
    on_ranks(1, perturb_the_sampler, policy)


def fill_the_disk(policy: Path, folder: Path) -> None:
    learner = Learner(policy, ModelConfig(), options_of(64), SGD, CPU)
    directories = StepDirectories(folder)
    save_checkpoint(learner, policy, directories, 2)

    class FullDisk(StepDirectories):
        def write(self, step: int, fill: Callable[[Path], None]) -> None:
            def fill_up(folder: Path) -> None:
                fill(folder)
                # the kernel's own answer of a disk without space
                with open("/dev/full", "w") as full:
                    full.write("w")

            super().write(step, fill_up)

    with pytest.raises(
        TrainingError, match=r"no space left on the disk of .* while the checkpoint of step 4"
    ):
        # on every rank: none waits for the other
        save_checkpoint(learner, policy, FullDisk(folder), 4)
    distributed.barrier()
    assert directories.recover() == 2
    weights = learner.gather_weights()
    (folder / "1.4.safetensors").mkdir(exist_ok=True)  # cannot be replaced by a file
    # as in a publish
    with pytest.raises(
        TrainingError, match=r"1\.4\.safetensors was not written: it is a directory"
    ):
        on_rank_0(lambda: save_weights(weights, folder / "1.4.safetensors", tied={}))


def test_a_disk_that_fills_ends_the_training_on_every_rank(tmp_path, policy):
    on_ranks(2, fill_the_disk, policy, tmp_path)


def refuse_nan(policy: Path) -> None:
    learner = Learner(policy, ModelConfig(), options_of(64), SGD, CPU)
    before = learner.gather_weights()
    rows = [dataclasses.replace(row, weight=float("nan")) for row in make_rows(4)]
    with pytest.raises(TrainingError, match=r"step 7: the loss is nan"):
        learner.update(7, rows, loss_of("sft", learner.policy), 0.1)
    after = learner.gather_weights()
    if learner.rank == 0:
        assert before
        assert all(torch.equal(before[name], after[name]) for name in before)
    # no trace of the bad gradient is left
    learner.update(8, make_rows(4), loss_of("sft", learner.policy), 0.1)


def test_a_loss_that_is_not_a_number_changes_nothing(policy):
    on_ranks(2, refuse_nan, policy)


def losses_of_a_training(policy: Path, out: Path, model: ModelConfig, options: dict) -> None:
    learner = Learner(policy, model, options_of(64, **options), ADAMW, CPU)
    rows = make_rows(6)
    found = [
        learner.update(step, rows, loss_of("sft", learner.policy), 3e-3)["loss"]
        for step in range(1, 21)
    ]
    assert all(p.dtype == torch.float32 for p in learner.model.parameters())
    if learner.rank == 0:
        save_file({"losses": torch.tensor(found)}, out)


@pytest.mark.parametrize("ranks", [1, 2])
def test_bfloat16_learns_as_float32_does(tmp_path, policy, ranks):
    for dtype in ("float32", "bfloat16"):
        on_ranks(
            ranks, losses_of_a_training, policy, tmp_path / dtype, ModelConfig(dtype=dtype), {}
        )
    exact, rounded = (load_file(tmp_path / dtype)["losses"] for dtype in ("float32", "bfloat16"))
    assert float(exact[-1]) < 0.5 * float(exact[0])
    assert not torch.equal(exact, rounded)
    assert torch.allclose(exact, rounded, rtol=0.1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_layers_learn_the_same(tmp_path, policy):
    for name, options in (("plain", {}), ("compiled", {"compile": True})):
        on_ranks(1, losses_of_a_training, policy, tmp_path / name, ModelConfig(), options)
    plain, compiled = (load_file(tmp_path / name)["losses"] for name in ("plain", "compiled"))
    assert torch.allclose(plain, compiled, rtol=1e-4)


def test_a_packing_that_the_attention_cannot_do_is_refused(policy):
    model = load_model(policy, attention="eager")
    assert choose_packing("auto", model) == "padded"
    with pytest.raises(
        ValueError, match=r"learner.packing is shared, .* \(eager\) .* \['padded'\]"
    ):
        choose_packing("shared", model)
