import json
import random
from pathlib import Path

import pytest
import torch
import yaml
from ranks import on_ranks
from torch.distributed.fsdp._fully_shard import _fsdp_collectives as collectives

from bi_ray.config.base import ConfigError
from bi_ray.config.files import load_config
from bi_ray.config.run import ModelConfig, RunConfig
from bi_ray.config.training import LearnerConfig, OptimizerConfig
from bi_ray.learning.learner import Learner
from bi_ray.planning.hardware import HARDWARE, load_hardware, measure
from bi_ray.planning.job import CHUNK_LOGITS, Job
from bi_ray.planning.memory import learner_parts
from bi_ray.planning.plan import make_plan
from bi_ray.planning.shapes import Shape
from bi_ray.planning.times import remote_nodes, train
from bi_ray.policy import logprobs
from bi_ray.policy.packing import Row, pack

ROOT = Path(__file__).parents[2]
CONFIG = load_config(ROOT / "configs" / "plan_7b.yaml", RunConfig)
SHAPE = Shape.read(ROOT / "configs" / "models" / "qwen2.5-7b")
SMALL = Shape(
    hidden=64, intermediate=128, layers=2, query=64, key=64, head=32, vocabulary=100, tied=False
)


def changed(config=CONFIG, **sections):
    values = config.model_dump()
    for name, options in sections.items():
        values[name] |= options
    return RunConfig.model_validate(values)


def job_of(config=CONFIG, shape=SHAPE, hardware="h100", prompt=300.0, response=1500.0, **more):
    options = {"informative_share": 1.0, "nodes": 0} | more
    return Job(config, shape, HARDWARE[hardware], prompt, response, **options)


def plan_of(
    config=CONFIG, shape=SHAPE, hardware=HARDWARE["h100"], prompt=300, response=1500, **more
):
    return make_plan(config, shape, hardware, prompt, response, **more)


def phases_of(plan):
    return {phase.name: phase for phase in plan.phases}


# What a step has to do


@pytest.mark.parametrize("packing", ["shared", "flat", "padded"])
@pytest.mark.parametrize("limit", [300, 1000, 100_000])
def test_micro_batches_are_those_that_the_learners_make(packing, limit):
    prompt, response, groups, samples = 40, 60, 12, 8
    rng = random.Random(0)
    rows = []
    for _ in range(groups):
        tokens = tuple(rng.randrange(100) for _ in range(prompt))
        rows += [
            Row(tokens + tuple(rng.randrange(100) for _ in range(response)), prompt, 1.0)
            for _ in range(samples)
        ]
    rl = {"prompts_per_step": groups, "samples_per_prompt": samples}
    config = changed(learner={"packing": packing, "microbatch_tokens": limit, "workers": 2}, rl=rl)
    job = job_of(config, SMALL, prompt=prompt, response=response)
    batches = pack(rows, limit, 0, 2, packing)
    assert job.microbatches == pytest.approx(len(batches), abs=max(1, 0.15 * len(batches)))
    assert job.learner_tokens == pytest.approx(
        sum(batch.tokens.numel() for batch in batches), rel=0.05
    )


@pytest.mark.parametrize(("sequences", "limit"), [(7, 256), (40, 8), (64, 7)])
def test_decode_steps_are_those_of_continuous_batching(sequences, limit):
    length = 128
    config = changed(
        rollout={"workers": 1, "max_sequences": limit},
        rl={"prompts_per_step": sequences, "samples_per_prompt": 2},
        model={"max_response_tokens": length},
    )
    job = job_of(config, response=length)
    left, running, steps = [length] * (2 * sequences), [], 0
    while left or running:
        while left and len(running) < limit:
            running.append(left.pop())
        running = [tokens - 1 for tokens in running if tokens > 1]
        steps += 1
    assert job.decode_steps == pytest.approx(steps, rel=0.15)


def test_a_full_cache_limits_how_many_sequences_run():
    roomy, tight = job_of(), job_of(changed(rollout={"kv_cache_mib": 2048}))
    assert roomy.concurrent_sequences == 256
    held = 2048 * 2**20 / SHAPE.cache_bytes_per_token(2) / (1500 + 300 / 16)
    assert tight.concurrent_sequences == int(held) < 256
    assert tight.decode_steps > roomy.decode_steps


def test_constants_are_those_of_the_code_that_they_describe():
    assert CHUNK_LOGITS == logprobs.CHUNK_LOGITS


# Traffic and memory, against the real learner


def _count_traffic(folder, policy, options, file):
    """What rank 0's collectives of one update and its state hold."""
    moved = {"gathered": 0, "scattered": 0}
    gather, scatter = (
        collectives.DefaultAllGather.__call__,
        collectives.DefaultReduceScatter.__call__,
    )

    def counted_gather(self, output_tensor, *rest, **more):
        moved["gathered"] += output_tensor.nbytes
        return gather(self, output_tensor, *rest, **more)

    def counted_scatter(self, output_tensor, input_tensor, *rest, **more):
        moved["scattered"] += input_tensor.nbytes
        return scatter(self, output_tensor, input_tensor, *rest, **more)

    collectives.DefaultAllGather.__call__ = counted_gather
    collectives.DefaultReduceScatter.__call__ = counted_scatter
    learner = Learner(
        policy, ModelConfig(dtype="bfloat16"), options, OptimizerConfig(), torch.device("cpu")
    )
    rows = [Row(tuple(range(1, 40)), 10, 1.0) for _ in range(8)]
    learner.update(1, rows, lambda batch, totals: learner.policy(batch)[0].sum(), 1e-6)

    def local(tensor):
        return getattr(tensor, "_local_tensor", tensor)

    state = [
        value
        for entry in learner._optimizer.state.values()
        for value in entry.values()
        if value.dim()
    ]
    moved["optimizer"] = sum(local(value).nbytes for value in state)
    moved["weights"] = sum(local(parameter).nbytes for parameter in learner.model.parameters())
    if torch.distributed.get_rank() == 0:
        file.write_text(json.dumps(moved))


@pytest.mark.parametrize(
    "options",
    [{}, {"reshard_after_forward": False}, {"gradient_sync": "step"}],
    ids=["resharded", "kept", "summed once"],
)
def test_traffic_and_state_are_those_of_two_real_learners(tmp_path, tiny_model, options):
    policy = tiny_model(tied=False)
    learner = {"workers": 2, "microbatch_tokens": 80, "packing": "padded"} | options
    on_ranks(
        2,
        _count_traffic,
        tmp_path,
        policy,
        LearnerConfig.model_validate(learner),
        tmp_path / "moved.json",
    )
    real = json.loads((tmp_path / "moved.json").read_text())
    config = changed(
        learner=learner | {"gpus_per_worker": 1},
        rl={"prompts_per_step": 4, "samples_per_prompt": 2},
    )
    job = job_of(config, Shape.read(policy), prompt=10, response=29)
    assert job.microbatches == 2
    assert train(job).network_bytes == pytest.approx(
        (real["gathered"] + real["scattered"]) / 2, rel=0.02
    )
    parts = learner_parts(job)
    assert parts["weights"] == pytest.approx(real["weights"], rel=0.01)
    assert parts["optimizer"] == pytest.approx(real["optimizer"], rel=0.01)


# Verdicts


def test_the_shipped_plan_of_7_b_fits_on_8_gpus():
    plan = plan_of(nodes=1)
    assert plan.job.devices == 8
    assert plan.fits
    assert not plan.problems


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"learner": {"activation_checkpointing": False}},
            "learner.activation_checkpointing: true",
        ),
        (
            {"learner": {"reshard_after_forward": False, "microbatch_tokens": 65_536}},
            "learner.reshard_after_forward",
        ),
        ({"rollout": {"kv_cache_mib": 80_000}}, "rollout.kv_cache_mib: "),
        (
            {"model": {"dtype": "float32"}, "rollout": {"kv_cache_mib": 45_000}},
            "model.dtype: bfloat16",
        ),
    ],
)
def test_what_does_not_fit_says_which_option_would_help_and_it_does(options, expected):
    plan = plan_of(changed(**options))
    assert not plan.fits
    use = next(use for use in plan.memory if not use.fits)
    assert any(text.startswith(expected) for text in use.advice)
    for text in use.advice:
        section, _, rest = text.partition(": then")[0].partition(".")
        option, _, value = rest.partition(": ")
        better = options | {section: options.get(section, {}) | {option: yaml.safe_load(value)}}
        assert next(
            again for again in plan_of(changed(**better)).memory if again.name == use.name
        ).fits


def test_problems_that_are_no_memory_are_told():
    problems = "\n".join(plan_of(nodes=1, config=changed(learner={"workers": 8})).problems)
    assert "asks for 12 devices, but 1 nodes have 8" in problems
    assert "would not start" in "\n".join(plan_of(changed(rollout={"kv_cache_mib": 100})).problems)
    narrow = HARDWARE["h100"].model_copy(update={"link_bytes_per_s": 2e10})
    waiting = plan_of(changed(learner={"microbatch_tokens": 1024}), hardware=narrow)
    assert "raise learner.microbatch_tokens" in "\n".join(waiting.problems)


def test_a_step_is_the_sum_of_its_phases_or_the_longer_side():
    one, other = plan_of(changed(rl={"max_staleness": 0})), plan_of()
    seconds = [phase.seconds for phase in one.phases]
    fixed = one.job.hardware.step_s
    assert one.step_s == pytest.approx(sum(seconds) + fixed)
    assert sum(other.sides) == pytest.approx(sum(seconds))
    assert other.step_s == pytest.approx(max(other.sides) + fixed)
    assert one.samples_per_s == pytest.approx(64 * 16 / one.step_s)


def test_options_cost_what_they_should():
    plain = phases_of(plan_of())
    kept = phases_of(plan_of(changed(learner={"activation_checkpointing": False})))
    name = "learner: forward and backward"
    assert plain[name].flops / kept[name].flops == pytest.approx(4 / 3, rel=0.05)
    lora = phases_of(plan_of(changed(learner={"lora": {"rank": 8}})))
    assert lora[name].flops < plain[name].flops
    assert lora["learner: optimizer"].seconds < 0.05 * plain["learner: optimizer"].seconds
    held = phases_of(plan_of(changed(rl={"kl": {"estimator": "k3"}})))
    assert held["learner: reference"].flops == pytest.approx(
        kept[name].flops / 3, rel=0.03
    )  # which has its logits twice
    half = phases_of(plan_of(informative_share=0.5))
    assert half[name].flops == pytest.approx(plain[name].flops / 2)
    assert half["rollout: decode"] == plain["rollout: decode"]


@pytest.mark.parametrize(
    ("learners", "engines", "remote"), [(4, 4, 0), (8, 8, 1), (4, 12, 1), (32, 32, 4), (1, 1, 0)]
)
def test_nodes_that_fetch_weights(learners, engines, remote):
    assert (
        remote_nodes(job_of(changed(learner={"workers": learners}, rollout={"workers": engines})))
        == remote
    )


# Hardware


def test_a_measured_machine_goes_through_a_file(tmp_path):
    found = measure(HARDWARE["cpu"], 64, 128, 2, 8, 256)
    assert found.kind == "cpu"
    assert 1e6 < found.flops_float32 < 1e13  # however busy the machine is
    assert 1e6 < found.memory_bytes_per_s < 1e12
    (tmp_path / "here.json").write_text(found.model_dump_json())
    assert load_hardware(str(tmp_path / "here.json")) == found


def test_faults_are_named(tmp_path):
    with pytest.raises(ConfigError, match="expected one of a100, h100, h200, cpu"):
        load_hardware("b9000")
    (tmp_path / "bad.json").write_text('{"name": "x", "flops": 3}')
    with pytest.raises(ConfigError, match="flops"):
        load_hardware(str(tmp_path / "bad.json"))
    with pytest.raises(ConfigError, match="at most 4096, the longest allowed; got 5000"):
        plan_of(response=5000)
    with pytest.raises(ConfigError, match="--hardware cpu"):
        plan_of(changed(learner={"gpus_per_worker": 0}))
    with pytest.raises(ConfigError, match="informative-share"):
        plan_of(informative_share=0)
