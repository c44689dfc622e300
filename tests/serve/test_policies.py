import asyncio
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from bi_ray.config.files import load_config, save_config
from bi_ray.config.run import ModelConfig, RunConfig
from bi_ray.files.integrity import record_files
from bi_ray.policy.checkpoint import WEIGHTS
from bi_ray.policy.files import CheckpointError
from bi_ray.runs.layout import step_of
from bi_ray.runs.stages import StageRecord
from bi_ray.runs.validation import Outcome
from serve import policies
from serve.policies import ServeError, choose_policies, read_run, version_of
from serve.server import PolicyServer
from serve.versions import VersionGate
from tests.serving import record_checkpoint


def newest_policy(run, name):
    return policies.newest_policy(run, name, run / "base/policy")


@pytest.fixture
def run(tmp_path):
    """A run with two arms, of which one has its SFT."""
    make(tmp_path / "sft/bridge", "sft weights")
    return tmp_path


def make(stage, weights, steps=None):
    policy = stage / "policy"
    policy.mkdir(parents=True)
    (policy / WEIGHTS).write_text(weights)
    (policy / "config.json").write_text("{}")
    (policy / "tokenizer_config.json").write_text("{}")
    if (step := step_of(stage.name)) is not None:
        record_checkpoint(stage, step)
    if steps:
        outcome = Outcome(steps, steps, best_step=None, stopped=None)
        (stage / "outcome.json").write_text(json.dumps(asdict(outcome)))
        record = StageRecord(
            "key", {"rl": {"steps": steps}}, {}, "0", 1.0, _plain(record_files(stage))
        )
        (stage / "stage.json").write_text(json.dumps(asdict(record)))
    return policy


def _plain(files):
    return {name: file.model_dump() for name, file in files.items()}


def config(root="configs/quickstart.yaml"):
    return load_config(root, RunConfig)


def test_the_rl_policy_is_the_sft_policy_then_the_newest_checkpoint_then_the_artifact(run):
    assert newest_policy(run, "bridge-rl") is None
    work = run / "work/rl/bridge"
    work.mkdir(parents=True)
    at_start = newest_policy(run, "bridge-rl")
    assert (at_start.label, at_start.directory) == ("rl-0", run / "sft/bridge/policy")
    make(work / "step_9", "nine")
    make(work / "step_10", "ten")
    make(work / "step_20.123.tmp", "unfinished")
    assert newest_policy(run, "bridge-rl").label == "rl-10"
    assert newest_policy(run, "bridge-rl").directory == work / "step_10/policy"
    make(run / "rl/bridge", "ten", steps=10)
    finished = newest_policy(run, "bridge-rl")
    assert (finished.label, finished.directory) == ("rl-10", run / "rl/bridge/policy")


def test_the_version_tells_weights_apart_and_knows_the_same_ones_again(run):
    work = run / "work/rl/bridge"
    make(work / "step_10", "ten")
    checkpoint = newest_policy(run, "bridge-rl")
    before = version_of(checkpoint)
    assert before.startswith("rl-10-")
    make(run / "rl/bridge", "ten", steps=10)  # the artifact is a copy of the last checkpoint
    assert version_of(newest_policy(run, "bridge-rl")) == before
    checkpoint.weights.write_text("ten, made again")
    record_checkpoint(work / "step_10", 10)
    assert version_of(checkpoint) != before


def test_weights_made_again_at_the_same_place_are_another_policy(run):
    first = newest_policy(run, "bridge-sft")
    os.utime(first.weights, ns=(1, 1))
    assert newest_policy(run, "bridge-sft") != first


def test_every_policy_there_is_unless_models_are_named(run):
    make(run / "sft/vanilla", "v")
    make(run / "rl/vanilla", "v", steps=50)
    names = [policy.name for policy in choose_policies(run, config())]
    assert names == ["vanilla-sft", "vanilla-rl", "bridge-sft"]
    chosen = choose_policies(run, config(), ["bridge-sft", "vanilla-rl", "bridge-sft"])
    assert [policy.name for policy in chosen] == ["bridge-sft", "vanilla-rl"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["bridge"], "it has base, vanilla-sft, vanilla-rl, bridge-sft, bridge-rl"),
        (["bridge-rl"], "not trained yet; there is base, bridge-sft"),
    ],
)
def test_a_model_that_is_not_there_is_refused_with_those_that_are(run, names, words):
    with pytest.raises(ServeError, match=words):
        choose_policies(run, config(), names)


def test_a_policy_that_is_not_complete_is_refused_before_anything_starts(run):
    (run / "sft/bridge/policy/tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        choose_policies(run, config())


def test_the_base_is_served_where_nothing_is_trained_and_where_it_is_named(run, tmp_path_factory):
    fresh = tmp_path_factory.mktemp("fresh")
    (base,) = choose_policies(fresh, config())
    assert (base.name, base.label, base.directory) == (
        "base",
        "base",
        Path("models/tiny-base").absolute(),
    )
    assert version_of(base).startswith("base-")
    assert [policy.name for policy in choose_policies(run, config(), ["base", "bridge-sft"])] == [
        "base",
        "bridge-sft",
    ]


def test_a_run_without_any_policy_is_refused(tmp_path):
    moved = config().model_copy(update={"model": ModelConfig(path=str(tmp_path / "elsewhere"))})
    with pytest.raises(
        ServeError, match=r"no trained policy yet, and no base at .*elsewhere \(model.path\)"
    ):
        choose_policies(tmp_path, moved)


def test_a_run_is_read_by_its_own_configuration(run):
    with pytest.raises(ServeError, match="no run at"):
        read_run(run / "absent")
    with pytest.raises(ServeError, match=r"has no config\.yaml: run `bi-ray run"):
        read_run(run)
    save_config(config(), run / "config.yaml")
    assert read_run(run) == config()


def test_a_finished_stage_without_its_weights_is_refused(run):
    make(run / "rl/bridge", "ten", steps=10)
    (run / "rl/bridge/policy" / WEIGHTS).unlink()
    with pytest.raises(ServeError, match=r"rl/bridge/policy has no model\.safetensors"):
        choose_policies(run, config())


def flip_a_bit(file):
    """Of the same size, as a disk or a network does it."""
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)


def test_a_flipped_bit_is_seen_before_a_version_is_named(run):
    make(run / "sft/vanilla", "v", steps=1)
    make(run / "work/rl/vanilla/step_10", "ten")
    make(run / "rl/bridge", "twenty", steps=20)
    for name, folder in (("vanilla-rl", "work/rl/vanilla/step_10"), ("bridge-rl", "rl/bridge")):
        policy = newest_policy(run, name)
        assert version_of(policy)
        flip_a_bit(policy.weights)
        with pytest.raises(
            CheckpointError, match=rf"{folder} is damaged: policy/{WEIGHTS} has changed.*bi-ray run"
        ):
            version_of(policy)


def test_a_damaged_newer_version_is_logged_once_and_the_old_one_stays(run, monkeypatch, caplog):
    work = run / "work/rl/bridge"
    make(work / "step_10", "ten")
    server = PolicyServer(
        run, "bridge-rl", ModelConfig(path=str(run / "base")), config().rollout, follow_s=0.01
    )
    server._policy = newest_policy(run, "bridge-rl")
    server._gate = VersionGate(version_of(server._policy))
    taken = []

    async def take(policy, version):
        taken.append(version)

    monkeypatch.setattr(server, "_take", take)
    flip_a_bit(make(work / "step_20", "twenty") / WEIGHTS)

    async def follow():
        follower = asyncio.create_task(server._follow())
        await asyncio.sleep(0.2)
        assert not taken
        make(work / "step_30", "thirty")
        for _ in range(100):
            await asyncio.sleep(0.02)
            if taken:
                break
        follower.cancel()

    with caplog.at_level(logging.WARNING):
        asyncio.run(follow())
    assert [version[:6] for version in taken] == ["rl-30-"]
    damaged = [
        record.getMessage()
        for record in caplog.records
        if "step_20 is damaged" in record.getMessage()
    ]
    assert len(damaged) == 1
    assert "stays at version rl-10-" in damaged[0]
