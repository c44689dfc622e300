"""LoRA on real gloo processes, against peft's own merge."""

import pytest
import torch
from ranks import distance, on_ranks
from safetensors.torch import load_file, save_file
from test_learner import loss_of, make_rows

from bi_ray.config.run import ModelConfig
from bi_ray.config.training import LearnerConfig, LoRAConfig, OptimizerConfig
from bi_ray.learning.adapters import ADAPTERS, add_adapters
from bi_ray.learning.learner import Learner, load_checkpoint, save_checkpoint
from bi_ray.policy.checkpoint import load_model
from bi_ray.runs.checkpoints import StepDirectories

CPU = torch.device("cpu")
ADAMW = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1)
LORA = LoRAConfig(rank=4, alpha=12, targets=("q_proj", "down_proj"))


def train(policy, folder, start, stop, lora, options):
    directories = StepDirectories(folder)
    assert directories.recover() == start
    learner = load_checkpoint(policy, directories, start, ModelConfig(), options, ADAMW, CPU)
    for step in range(start + 1, stop + 1):
        learner.update(
            step, make_rows(6, seed=step), loss_of("sft", learner.policy), ADAMW.learning_rate
        )
    save_checkpoint(learner, policy, directories, stop)


def run(ranks, policy, folder, start, stop, lora=LORA, **options):
    on_ranks(
        ranks,
        train,
        policy,
        folder,
        start,
        stop,
        lora,
        LearnerConfig(microbatch_tokens=64, lora=lora, **options),
    )
    return load_file(folder / f"step_{stop}" / "policy" / "model.safetensors")


@pytest.mark.parametrize("tied", [True, False])
def test_published_weights_are_those_that_peft_merges(tmp_path, tiny_model, tied):
    policy = tiny_model(tied=tied)
    learned = run(2, policy, tmp_path, 0, 3)
    model = load_model(policy)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    add_adapters(model, LORA, tmp_path / "step_3" / ADAPTERS)
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.merge()
    wanted = {
        name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items()
    }
    wanted = {name: tensor for name, tensor in wanted.items() if "lora_" not in name}
    assert distance(learned, wanted) <= 1e-6
    changed = {name for name in before if not torch.equal(before[name], learned[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "down_proj"}
    assert distance(learned, before) > 1e-3
    plain = load_model(tmp_path / "step_3" / "policy")  # as everybody else loads it
    assert distance(dict(plain.state_dict()), learned) == 0


def test_two_ranks_learn_what_one_learns(tmp_path, tiny_model):
    policy = tiny_model(tied=True)
    one, two = (run(ranks, policy, tmp_path / str(ranks), 0, 2) for ranks in (1, 2))
    base = dict(load_model(policy).state_dict())
    moved = [{name: weights[name] - base[name] for name in base} for weights in (one, two)]
    assert distance(*moved) <= 1e-4  # of what the adapters add, after steps of AdamW


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, tiny_model, ranks):
    """Dropout included."""
    policy = tiny_model(tied=True)
    lora = LORA.model_copy(update={"dropout": 0.2})
    run(ranks, policy, tmp_path / "a", 0, 2, lora)
    run(ranks, policy, tmp_path / "a", 2, 4, lora)
    run(ranks, policy, tmp_path / "b", 0, 4, lora)
    for name in ("policy/model.safetensors", ADAPTERS, "optimizer.safetensors"):
        resumed, straight = (load_file(tmp_path / side / "step_4" / name) for side in "ab")
        assert resumed.keys() == straight.keys()
        assert all(torch.equal(resumed[key], straight[key]) for key in resumed), name
    state = load_file(tmp_path / "a/step_4/optimizer.safetensors")
    assert state
    assert all("lora_" in name for name in state)


def test_adapters_of_other_layers_are_refused(tmp_path, tiny_model):
    model = load_model(tiny_model(tied=True))
    with pytest.raises(ValueError, match="nothing_like_it"):
        add_adapters(model, LoRAConfig(targets=("nothing_like_it",)), None)
    save_file({"x": torch.zeros(1)}, tmp_path / ADAPTERS)
    with pytest.raises(ValueError, match="adapters of other layers"):
        add_adapters(model, LORA, tmp_path / ADAPTERS)


def one_update(policy, options):
    learner = Learner(policy, ModelConfig(dtype="bfloat16"), options, ADAMW, CPU)
    before = learner.gather_weights()
    metrics = learner.update(1, make_rows(6), loss_of("sft", learner.policy), 1e-2)
    after = learner.gather_weights()
    assert metrics["grad_norm"] > 0
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_all_linear_layers_in_bfloat16_with_checkpointing(tiny_model):
    options = LearnerConfig(
        lora=LoRAConfig(rank=2, alpha=4), activation_checkpointing=True, cpu_offload=True
    )
    on_ranks(1, one_update, tiny_model(tied=True), options)
