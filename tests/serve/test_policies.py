import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from bi_ray.config import ModelConfig, RunConfig, load_config, save_config
from bi_ray.policy.checkpoint import WEIGHTS, CheckpointError
from bi_ray.run_files import StageRecord
from serve import policies
from serve.policies import ServeError, choose_policies, read_run, version_of


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
    if steps:
        record = StageRecord("key", {"rl": {"steps": steps}}, {}, "0", 1.0, None)
        (stage / "stage.json").write_text(json.dumps(asdict(record)))
    return policy


def config(root="configs/quickstart.yaml"):
    return load_config(root, RunConfig)


def test_the_rl_policy_is_the_sft_policy_then_the_newest_checkpoint_then_the_artefact(run):
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
    make(run / "rl/bridge", "ten", steps=10)  # the artefact is a copy of the last checkpoint
    assert version_of(newest_policy(run, "bridge-rl")) == before
    checkpoint.weights.write_text("ten, made again")
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
    assert (base.name, base.label, base.directory) == ("base", "base", Path("models/tiny-base").absolute())
    assert version_of(base).startswith("base-")
    assert [policy.name for policy in choose_policies(run, config(), ["base", "bridge-sft"])] == ["base", "bridge-sft"]


def test_a_run_without_any_policy_is_refused(tmp_path):
    moved = config().model_copy(update={"model": ModelConfig(path=str(tmp_path / "elsewhere"))})
    with pytest.raises(ServeError, match=r"no trained policy yet, and no base at .*elsewhere \(model.path\)"):
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
