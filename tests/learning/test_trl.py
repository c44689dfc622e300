"""The losses against TRL's own trainers: the same model, tokens, log-probabilities and advantages
through both.

Nothing of TRL is copied: the trainers are built as a user builds them, and ``compute_loss`` is
called with the inputs that they would have made themselves.
"""

import re
from pathlib import Path

import pytest
import torch
from ranks import TOKENS, logprobs_of

from bi_ray.batches.advantages import step_advantages
from bi_ray.batches.batch import LearnerBatch, TrainSample
from bi_ray.config.training import RLConfig
from bi_ray.learning.rl import batch_rows, microbatch_loss
from bi_ray.policy.checkpoint import load_model, load_tokenizer
from bi_ray.policy.logprobs import TokenLogprobs
from bi_ray.policy.packing import pack

LIMIT = 12
REWARDS = [[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]]
BETA = 0.3


class Ignored:
    def add(self, name, value): ...

    def add_per_token(self, name, value): ...

    def keep_largest(self, name, value): ...


@pytest.fixture(scope="module")
def policy(tiny_model):
    return tiny_model(tied=True)


def make_batch(policy, config, noise):
    """Two groups of four responses; the sampler's log-probabilities are those of the policy, and
    noise on them.
    """
    model = load_model(policy)
    generator = torch.Generator().manual_seed(3)
    advantages = step_advantages(
        REWARDS, config.advantage, config.advantage_std, config.advantage_epsilon
    )
    samples = []
    for number, group in enumerate(advantages):
        prompt = torch.randint(0, TOKENS, (6,), generator=generator)
        for index, advantage in enumerate(group):
            response = torch.randint(0, TOKENS, (2 + 2 * index + number,), generator=generator)
            with torch.no_grad():
                logprobs = logprobs_of(model, [*prompt.tolist(), *response.tolist()], len(prompt))
            logprobs = logprobs + noise * torch.randn(len(response), generator=generator)
            parts = tuple(prompt.tolist()), tuple(response.tolist()), tuple(logprobs.tolist())
            samples.append(TrainSample(f"{number}/{index}", *parts, advantage))
    return LearnerBatch(samples, len(samples))


def padded(rows, dtype):
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row, dtype=dtype) for row in rows], batch_first=True
    )


def trl_inputs(batch):
    """What ``_generate_and_score_completions`` hands to ``compute_loss``."""
    completions = [sample.response_tokens for sample in batch.samples]
    prompts = torch.tensor([sample.prompt_tokens for sample in batch.samples])
    mask = padded([[1] * len(completion) for completion in completions], torch.int64)
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": padded(completions, torch.int64),
        "completion_mask": mask,
        "advantages": torch.tensor([sample.advantage for sample in batch.samples]),
        "old_per_token_logps": padded([sample.logprobs for sample in batch.samples], torch.float32),
        "num_items_in_batch": mask.sum(),
    }


@torch.no_grad()
def completion_logprobs(model, inputs):
    """[responses, length], by plain transformers."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    attended = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    logits = model(input_ids=ids, attention_mask=attended).logits[
        :, inputs["prompt_ids"].shape[1] - 1 : -1
    ]
    return logits.log_softmax(-1).gather(2, inputs["completion_ids"][:, :, None])[:, :, 0]


def make_trainer(kind, policy, out, **options):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    trainer, config = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}[kind]
    arguments = config(
        output_dir=str(out),
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=LIMIT,
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_dropout=True,
        gradient_checkpointing=False,
        **options,
    )
    return trainer(
        model=load_model(policy),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["1"] * 8}),
        processing_class=load_tokenizer(policy),
    )


def trl_gradient(trainer, inputs):
    model = trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.compute_loss(model, inputs)
    loss.backward()
    return float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters()])


def our_gradient(policy, batch, config, reference=None, limit=40):
    model = load_model(policy)
    loss = microbatch_loss(TokenLogprobs(model), reference and TokenLogprobs(reference), config)
    total = 0.0
    for micro in pack(batch_rows(batch, config, LIMIT), limit, packing="padded"):
        value = loss(micro, Ignored())
        value.backward()
        total += float(value.detach())
    return total, torch.cat([p.grad.flatten() for p in model.parameters()])


def assert_equal(ours, theirs):
    assert theirs[1].norm() > 1e-3, "the test wants a gradient"
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    assert float((ours[1] - theirs[1]).norm() / theirs[1].norm()) <= 1e-5


NO_TREATMENT = {"treatment": "none"}
TRL_GRPO = {"loss_scale": "sequence_mean", "importance": NO_TREATMENT}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"algorithm": "grpo", **TRL_GRPO}, {"loss_type": "grpo"}),
        (
            {"algorithm": "grpo", **TRL_GRPO, "clip_low": 0.05, "clip_high": 0.1},
            {"loss_type": "grpo", "epsilon": 0.05, "epsilon_high": 0.1},
        ),
        ({"algorithm": "dr_grpo", "importance": NO_TREATMENT}, {"loss_type": "dr_grpo"}),
        (
            {"algorithm": "dapo", "importance": NO_TREATMENT},
            {"loss_type": "dapo", "epsilon_high": 0.28},
        ),
        (
            {"algorithm": "gspo"},
            {
                "loss_type": "grpo",
                "importance_sampling_level": "sequence",
                "epsilon": 3e-4,
                "epsilon_high": 4e-4,
            },
        ),
        (
            {"algorithm": "gspo", "clip_low": 0.2, "clip_high": 0.05},
            {
                "loss_type": "grpo",
                "importance_sampling_level": "sequence",
                "epsilon": 0.2,
                "epsilon_high": 0.05,
            },
        ),
        ({"algorithm": "cispo"}, {"loss_type": "cispo", "epsilon_high": 5.0}),
        ({"algorithm": "cispo", "clip_high": 0.1}, {"loss_type": "cispo", "epsilon_high": 1.1}),
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_losses_and_gradients_are_those_of_trl(policy, tmp_path, ours, theirs, noise):
    std = "none" if ours["algorithm"] == "dr_grpo" else "sample"
    config = RLConfig(advantage_std=std, advantage_epsilon=1e-4, **ours)
    batch = make_batch(policy, config, noise)
    trainer = make_trainer("grpo", policy, tmp_path, **theirs)
    assert_equal(our_gradient(policy, batch, config), trl_gradient(trainer, trl_inputs(batch)))


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_rloo_is_that_of_trl(policy, tmp_path, noise):
    config = RLConfig(algorithm="rloo", importance={"level": "sequence", "treatment": "none"})
    batch = make_batch(policy, config, noise)
    trainer = make_trainer("rloo", policy, tmp_path)
    inputs = trl_inputs(batch)
    inputs["old_logps"] = (inputs.pop("old_per_token_logps") * inputs["completion_mask"]).sum(1)
    assert_equal(our_gradient(policy, batch, config), trl_gradient(trainer, inputs))


@pytest.mark.parametrize("with_ratio", [False, True])
def test_the_kl_term_is_that_of_trl(policy, tmp_path, with_ratio):
    config = RLConfig(
        **TRL_GRPO, kl={"estimator": "k3", "coefficient": BETA, "with_ratio": with_ratio}
    )
    batch = make_batch(policy, config, 0.1)
    reference = load_model(policy).requires_grad_(False)
    generator = torch.Generator().manual_seed(4)
    for parameter in reference.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    trainer = make_trainer(
        "grpo", policy, tmp_path, loss_type="grpo", beta=BETA, use_bias_correction_kl=with_ratio
    )
    inputs = trl_inputs(batch)
    inputs["ref_per_token_logps"] = completion_logprobs(reference, inputs)
    theirs = trl_gradient(trainer, inputs)
    assert_equal(our_gradient(policy, batch, config, reference), theirs)
    apart = our_gradient(policy, batch, RLConfig(**TRL_GRPO))
    assert float((apart[1] - theirs[1]).norm() / theirs[1].norm()) > 0.01, "the term should be seen"


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("treatment", ["truncate", "mask"])
def test_the_importance_correction_is_that_of_trl(policy, tmp_path, level, treatment):
    """TRL's ratio is against the learner's own log-probabilities, and the weight is made where it
    generates.
    """
    treated = {"base": "learner", "level": level, "treatment": treatment, "cap": 1.2}
    config = RLConfig(loss_scale="sequence_mean", importance=treated)
    batch = make_batch(policy, config, 0.3)
    trainer = make_trainer("grpo", policy, tmp_path, loss_type="grpo")
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
    inputs = trl_inputs(batch)
    sampled = inputs.pop("old_per_token_logps")
    own = completion_logprobs(load_model(policy), inputs)
    difference = (own - sampled) * inputs["completion_mask"]
    weight = (difference.sum(1, keepdim=True) if level == "sequence" else difference).exp()
    assert (weight > 1.2).any()
    weight = weight.clamp(max=1.2) if treatment == "truncate" else weight * (weight <= 1.2)
    inputs["importance_sampling_ratio"] = weight
    assert_equal(our_gradient(policy, batch, config), trl_gradient(trainer, inputs))


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_example_of_the_docs_is_trl_s_sapo(policy, tmp_path, monkeypatch, noise):
    page = (Path(__file__).parents[2] / "docs/algorithms.md").read_text()
    (tmp_path / "sapo_of_docs.py").write_text(
        re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[0]
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    options = {"tau_good": 1.0, "tau_bad": 1.05}
    config = RLConfig(algorithm="sapo_of_docs:sapo", algorithm_options=options, **TRL_GRPO)
    batch = make_batch(policy, config, noise)
    trainer = make_trainer("grpo", policy, tmp_path, loss_type="sapo")
    assert_equal(our_gradient(policy, batch, config), trl_gradient(trainer, trl_inputs(batch)))
