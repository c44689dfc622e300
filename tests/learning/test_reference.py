"""A moving reference through the whole training loop of a rank, on real gloo processes, without
Ray.
"""

from pathlib import Path

import torch
from ranks import TOKENS, distance, on_ranks
from safetensors.torch import load_file

from bi_ray.batches.batch import LearnerBatch, TrainSample
from bi_ray.config.algorithms import KLConfig
from bi_ray.config.run import ModelConfig
from bi_ray.config.training import LearnerConfig, OptimizerConfig, RLConfig
from bi_ray.learning.rl import RLJob, train

KL = KLConfig(
    estimator="k3", coefficient=5.0, reference="moving", moving_every_steps=2, moving_rate=0.25
)
RATE = 0.05


class PlainDriver:
    """Serves random batches; published weights stay where they were written."""

    def join(self, step: int) -> int:
        return 1

    def lease(self, step: int, incarnation: int) -> LearnerBatch:
        generator = torch.Generator().manual_seed(step)
        samples = []
        for i in range(4):
            tokens = torch.randint(0, TOKENS, (9 + i,), generator=generator).tolist()
            logprobs = (-5 + torch.randn(5 + i, generator=generator)).tolist()
            samples.append(
                TrainSample(
                    str(i), tuple(tokens[:4]), tuple(tokens[4:]), tuple(logprobs), (-1.0) ** i
                )
            )
        return LearnerBatch(samples, 4)

    def publish(
        self, incarnation: int, step: int, path: Path, metrics: dict[str, float]
    ) -> None: ...

    def checkpointed(self, step: int) -> None: ...


def run(policy: Path, out: Path, steps: int, kl: KLConfig) -> None:
    optimizer = OptimizerConfig(kind="sgd", learning_rate=RATE, max_grad_norm=1e9)
    config = RLConfig(steps=steps, kl=kl, optimizer=optimizer, checkpoint_every_steps=3)
    job = RLJob(
        policy,
        out / "rl",
        out / "weights",
        config,
        ModelConfig(),
        LearnerConfig(microbatch_tokens=64),
    )
    train(job, PlainDriver(), torch.device("cpu"))


def published(path: Path) -> dict[str, torch.Tensor]:
    """Published weights leave a tied head out."""
    weights = load_file(path)
    assert "lm_head.weight" not in weights
    return weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}


def test_a_moving_reference_follows_the_policy_and_survives_a_restart(tmp_path, tiny_model):
    policy = tiny_model(tied=True)
    on_ranks(2, run, policy, tmp_path / "whole", 6, KL)
    on_ranks(2, run, policy, tmp_path / "resumed", 3, KL)
    on_ranks(1, run, policy, tmp_path / "resumed", 6, KL)
    after = {
        step: published(tmp_path / f"whole/weights/1.{step}.safetensors") for step in range(1, 7)
    }
    expected = load_file(policy / "model.safetensors")
    expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
    for step in (2, 4, 6):
        expected = {
            name: 0.75 * tensor + 0.25 * after[step][name] for name, tensor in expected.items()
        }
    whole, resumed = (
        load_file(tmp_path / name / "rl/step_6/reference.safetensors")
        for name in ("whole", "resumed")
    )
    assert distance(whole, expected) <= 1e-6
    assert (
        distance(
            whole,
            load_file(policy / "model.safetensors") | {"lm_head.weight": whole["lm_head.weight"]},
        )
        > 1e-3
    )
    assert distance(resumed, whole) <= 1e-5
    weights = [
        published(tmp_path / name / "weights/1.6.safetensors") for name in ("whole", "resumed")
    ]
    assert distance(*weights) <= 1e-5


def test_a_frozen_reference_is_not_written(tmp_path, tiny_model):
    policy = tiny_model(tied=True)
    frozen = KL.model_copy(update={"reference": "frozen"})
    on_ranks(1, run, policy, tmp_path / "frozen", 3, frozen)
    on_ranks(1, run, policy, tmp_path / "moving", 3, KL)
    assert not (tmp_path / "frozen/rl/step_3/reference.safetensors").exists()
    weights = [
        load_file(tmp_path / name / "weights/1.2.safetensors") for name in ("frozen", "moving")
    ]
    assert distance(*weights) == 0  # before it moved
    weights = [
        load_file(tmp_path / name / "weights/1.3.safetensors") for name in ("frozen", "moving")
    ]
    assert distance(*weights) > 1e-4


def test_training_resumes_from_the_older_checkpoint_where_a_bit_of_the_newest_flipped(
    tmp_path, tiny_model
):
    on_ranks(1, run, tiny_model(tied=True), tmp_path, 6, KL)
    damaged = tmp_path / "rl/step_6/reference.safetensors"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    weights = tmp_path / "weights/1.6.safetensors"
    published_before = weights.read_bytes()
    weights.unlink()
    on_ranks(1, run, tiny_model(tied=True), tmp_path, 6, KL)
    assert damaged.read_bytes() == whole
    assert weights.read_bytes() == published_before
    assert not (tmp_path / "rl/step_6.damaged").exists()
