from pathlib import Path

import pytest
import yaml

from bi_ray.config.algorithms import ALGORITHMS, DynamicSamplingConfig
from bi_ray.config.base import ConfigError
from bi_ray.config.extraction import ExtractConfig
from bi_ray.config.files import load_config, save_config
from bi_ray.config.pretraining import PretrainConfig
from bi_ray.config.recipes import BASE, BRIDGE, RECIPES, VANILLA
from bi_ray.config.run import RunConfig
from bi_ray.config.training import RLConfig

CONFIGS = Path(__file__).parents[2] / "configs"
SETS = {name: {"depth": 3} for name in ("sft", "rl", "test_id", "test_ood")}
GOOD = {"name": "run", "task": {"sets": SETS}, "arms": ["vanilla", "bridge"]}


def written(tmp_path, content):
    path = tmp_path / "run.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def changed(where: str, value: object) -> dict:
    """GOOD with the dotted key ``where`` set to ``value``."""
    content = yaml.safe_load(yaml.safe_dump(GOOD))
    *sections, last = where.split(".")
    inner = content
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[last] = value
    return content


def test_a_good_file_is_read_with_every_default(tmp_path):
    config = load_config(
        written(tmp_path, changed("task.sets.rl", {"depth": 4, "redundant_nodes": [0, 8]})),
        RunConfig,
    )
    assert config.arms == {"vanilla": VANILLA, "bridge": BRIDGE}
    assert config.task.sets["rl"].depth == (4, 4)
    assert config.task.sets["rl"].redundant_nodes == (0, 8)
    assert (config.rl.clip_high, config.sft.epochs, config.verifier.sample_timeout_s) == (0.2, 5, 5)
    assert config.model.max_model_tokens == 1024
    again = RunConfig.model_validate(config.model_dump(mode="json"))
    assert again == config


def test_an_algorithm_sets_its_knobs_and_each_can_be_set():
    dapo = RLConfig(algorithm="dapo")
    assert (dapo.clip_low, dapo.clip_high, dapo.loss_scale) == (0.2, 0.28, "token_mean")
    assert dapo.dynamic_sampling == DynamicSamplingConfig()
    assert dapo.shaping.overlong_penalty == 0.5
    own = RLConfig(
        algorithm="dapo",
        clip_high=0.3,
        dynamic_sampling=None,
        shaping={"overlong_buffer_share": 0.1},
        kl={},
    )
    assert (own.clip_high, own.dynamic_sampling) == (0.3, None)
    assert (own.shaping.overlong_penalty, own.shaping.overlong_buffer_share) == (0.5, 0.1)
    rloo = RLConfig(algorithm="rloo", importance={"cap": 3.0})
    assert (rloo.advantage, rloo.importance.level, rloo.importance.cap) == (
        "leave_one_out",
        "sequence",
        3.0,
    )
    assert RLConfig(algorithm="mine:loss").clip_high == RLConfig().clip_high


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_an_algorithm_set_is_kept_with_the_run(tmp_path, name):
    config = RunConfig.model_validate(changed("rl.algorithm", name))
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", RunConfig) == config
    stored = yaml.safe_load((tmp_path / "config.yaml").read_text())["rl"]
    assert stored["clip_high"] == config.rl.clip_high
    assert stored["zero_variance_groups"] in ("drop", "keep")


def test_groups_without_variance_stay_where_a_kl_term_needs_them():
    assert RLConfig().zero_variance_groups == "drop"
    assert RLConfig(kl={"estimator": "k3"}).zero_variance_groups == "keep"
    assert RLConfig(kl={"estimator": "k3", "coefficient": 0}).zero_variance_groups == "drop"
    assert (
        RLConfig(kl={"estimator": "k3"}, zero_variance_groups="drop").zero_variance_groups == "drop"
    )
    assert RLConfig(algorithm="reinforce_pp").zero_variance_groups == "keep"


def test_the_paper_s_rates_of_bridge():
    rates = {
        behavior.name: (behavior.probability, behavior.redundant_share)
        for behavior in BRIDGE.behaviors
    }
    assert rates["reflection"] == (0.1, 0.3)
    assert rates["analysis"][0] == 0.1
    assert rates["subgoal"][0] == 1.0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            changed("rl.stepz", 3),
            ["unknown option `rl.stepz`; remove it (did you mean `rl.steps`?)"],
        ),
        (changed("ral", {}), ["unknown option `ral`; remove it (did you mean `rl`?)"]),
        (changed("rl.steps", 0), ["rl.steps", "greater than 0", "found 0"]),
        (
            changed("rl.samples_per_prompt", 1),
            ["rl.samples_per_prompt", "greater than or equal to 2"],
        ),
        (changed("rl.top_p", 1.5), ["rl.top_p", "less than or equal to 1", "found 1.5"]),
        (changed("rl.steps", "many"), ["rl.steps", "valid integer", "'many'"]),
        (changed("rl.loss_scale", "mean"), ["rl.loss_scale", "sequence_mean", "'mean'"]),
        (changed("rl.algorithm", ["grpo"]), ["rl.algorithm", "valid string"]),
        (
            changed("rl.algorithm", "gpro"),
            ["rl", "'gpro' is neither one of grpo, dr_grpo, dapo", "package.module:"],
        ),
        (
            changed("rl.advantage", "groups"),
            ["rl", "'groups' is neither one of group, leave_one_out"],
        ),
        (changed("rl.kl", {"estimator": "k4"}), ["rl.kl.estimator", "'k4'"]),
        (
            changed("rl.importance", {"cap": 0.5, "floor": 0.7}),
            ["rl.importance", "floor 0.7 is not below cap 0.5"],
        ),
        (
            changed("rl.importance", {"floor": 0.7}),
            ["rl.importance", "only the treatment mask has one"],
        ),
        (
            changed("rl", {"algorithm": "gpg", "importance": {"base": "sampler"}}),
            ["gpg has no ratio"],
        ),
        (changed("rollout.sync_timeout_s", -1), ["rollout.sync_timeout_s", "greater than 0"]),
        (
            changed("task.sets.rl.depth", [4, 3]),
            ["task.sets.rl.depth: expected [low, high]", "got [4, 3]"],
        ),
        (
            changed("task.sets.rl.redundant_nodes", [-1, 3]),
            ["task.sets.rl.redundant_nodes: expected [low, high]", "got [-1, 3]"],
        ),
        (changed("task.sets.rll", {"depth": 3}), ["task.sets.rll", "test_id"]),
        (
            changed("task.sets.rl.depth", 11),
            ["task", "set rl: up to 2047 nodes need a name_pool of at least 2047"],
        ),
        (
            changed("task.constants", [5, 1]),
            ["task", "constants: expected [low, high]", "got [5, 1]"],
        ),
        (
            changed("task.max_abs_value", 9),
            ["task", "max_abs_value is smaller than the largest constant"],
        ),
        (changed("task.operators", []), ["task", "operators: name at least one"]),
        (changed("task.operators", ["divide"]), ["task.operators.0", "'divide'"]),
        (changed("arms", []), ["arms: name at least one"]),
        (
            changed("arms", ["vanila"]),
            ["arms", "unknown recipe 'vanila'; known: base, vanilla, bridge"],
        ),
        (
            changed("arms", {"a": {"behaviors": [{"name": "subgoal", "probability": 2}]}}),
            ["arms.a.behaviors.0.probability"],
        ),
        (changed("task.sets", {"sft": {}, "rl": {}, "test_id": {}}), ["task.sets lacks test_ood"]),
        (changed("rl.validation", {"sets": ["val"]}), ["task.sets lacks val"]),
        (
            changed("learner.lora", {})
            | {"rl": {"kl": {"estimator": "k3", "reference": "moving"}}},
            ["rl.kl.reference", "use frozen"],
        ),
        ({"name": "run", "arms": ["vanilla"]}, ["task", "required"]),
        ("[1, 2]", ["expected the configuration of an experiment", "the file holds a list"]),
        ("", ["expected the configuration of an experiment", "the file holds nothing"]),
        ("name: [", ["not valid YAML", "line 1"]),
        ("a: b: c", ["not valid YAML"]),
    ],
)
def test_a_fault_is_one_clear_line(tmp_path, content, words):
    path = written(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        load_config(path, RunConfig)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    for word in words:
        assert word in message


USER = {
    "name": "run",
    "task": {"kind": "jsonl", "path": "a.jsonl", "sets": {"rl": {}, "test_id": {}, "sft": {}}},
    "arms": ["vanilla"],
    "evaluation": {"sets": ["test_id"]},
}
GYM = USER | {
    "task": {"kind": "reasoning_gym", "task": "maze", "sets": {"rl": {}, "test_id": {}}},
    "arms": ["base"],
}


@pytest.mark.parametrize("content", [USER, GYM])
def test_every_kind_of_task_is_read_and_written_back(tmp_path, content):
    config = load_config(written(tmp_path, content), RunConfig)
    assert config.task.kind == content["task"]["kind"]
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", RunConfig) == config


def test_an_arm_without_sft_needs_no_set_for_it(tmp_path):
    sets = {name: {} for name in ("rl", "test_id", "test_ood")}
    config = load_config(
        written(tmp_path, {"name": "run", "task": {"sets": sets}, "arms": ["base"]}), RunConfig
    )
    assert config.arms == {"base": BASE}
    with pytest.raises(ConfigError, match=r"task.sets lacks sft"):
        load_config(
            written(tmp_path, {"name": "run", "task": {"sets": sets}, "arms": ["base", "vanilla"]}),
            RunConfig,
        )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (USER | {"task": {"kind": "json", "sets": {}}}, ["task", "'json'"]),
        (USER | {"task": USER["task"] | {"depth": 3}}, ["unknown option `task.depth`; remove it"]),
        (
            USER | {"task": USER["task"] | {"sets": {"rl": {"depth": 3}}}},
            ["unknown option `task.sets.rl.depth`; remove it"],
        ),
        (USER | {"arms": ["bridge"]}, ["arms.bridge: behaviors are injected into graphs"]),
        (
            GYM | {"arms": {"x": {"demonstrations": "d.jsonl", "sft": False}}},
            ["sft: false leaves nothing"],
        ),
        (
            GYM
            | {
                "task": GYM["task"] | {"sets": GYM["task"]["sets"] | {"sft": {}}},
                "arms": ["vanilla"],
            },
            ["arm base"],
        ),
        (
            USER | {"arms": {"x": {"demonstrations": "d", "behaviors": [{"name": "subgoal"}]}}},
            ["as they are"],
        ),
        (
            USER
            | {
                "task": {
                    "kind": "jsonl",
                    "sets": {n: {"path": n} for n in ("sft", "rl", "test_id")},
                }
            },
            ["lacks influence_target", "readiness.queries to 0"],
        ),
        (USER | {"readiness": {"target": {"problems": 3}}}, ["name that instead"]),
        (
            changed("readiness.target", {"depht": 3}),
            [
                "unknown option `readiness.target.depht`",
                "did you mean `readiness.target.depth`?",
            ],
        ),
        (
            changed("readiness.target", {"depth": [4, 3]}),
            ["readiness.target.depth: expected [low, high]", "got [4, 3]"],
        ),
    ],
)
def test_a_fault_of_another_task_or_arm_is_one_clear_line(tmp_path, content, words):
    test_a_fault_is_one_clear_line(tmp_path, content, words)


def test_two_faults_are_two_lines(tmp_path):
    content = changed("rl.stepz", 3) | {"nam": 1}
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, content), RunConfig)
    assert len(str(caught.value).splitlines()) == 2


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"absent.yaml: no such file"):
        load_config(tmp_path / "absent.yaml", RunConfig)
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(tmp_path, RunConfig)
    (tmp_path / "latin.yaml").write_bytes("name: caf\u00e9".encode("latin-1"))
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "latin.yaml", RunConfig)


def test_values_cannot_be_changed():
    config = RunConfig.model_validate(GOOD)
    with pytest.raises(ValueError, match="frozen"):
        config.rl.steps = 3


@pytest.mark.parametrize("path", ["configs/pretrain_tiny.yaml"])
def test_the_shipped_pretraining_config_is_good(path):
    assert load_config(path, PretrainConfig).task.sets["pretrain"].depth[1] >= 4


def test_what_is_saved_is_read_back_the_same(tmp_path):
    config = load_config(written(tmp_path, changed("rl.steps", 7)), RunConfig)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", RunConfig) == config
    # defaults too: they may change with the code
    assert "learning_rate" in (tmp_path / "config.yaml").read_text()


def test_the_paper_s_configuration():
    """The paper, arXiv:2505.18917: sizes, rates and factors."""
    config = load_config("configs/promptbench_paper.yaml", RunConfig)
    assert list(config.arms) == ["vanilla", "pp_aug", "rc_aug", "bridge"]
    assert [config.arms[name].for_task(config.task.kind).copies for name in config.arms] == [
        1,
        2,
        2,
        1,
    ]
    assert (config.task.sets["sft"].problems, config.task.sets["sft"].depth) == (5000, (4, 4))
    assert (config.sft.epochs, config.rl.steps, config.rl.samples_per_prompt) == (2, 100, 32)


def test_arms_take_recipes_by_name_or_written_out():
    arms = {
        "control": "filler",
        "own": {"behaviors": [{"name": "planning", "by_in_degree": [0, 0.5], "most": 1}]},
    }
    config = RunConfig.model_validate(changed("arms", arms))
    assert config.arms["control"] == RECIPES["filler"]
    assert config.arms["own"].behaviors[0].by_in_degree == (0, 0.5)
    assert set(RunConfig.model_validate(changed("arms", list(RECIPES))).arms) == set(RECIPES)


@pytest.mark.parametrize(
    ("file", "kind", "looks", "wanted"),
    [
        (
            "pretrain_tiny.yaml",
            RunConfig,
            "of a pre-training",
            "of an experiment, as configs/quickstart.yaml",
        ),
        ("quickstart.yaml", PretrainConfig, "of an experiment", "of a pre-training"),
        (
            "quickstart.yaml",
            ExtractConfig,
            "of an experiment",
            "of a language model that extracts graphs",
        ),
        ("extract.yaml", RunConfig, "of a language model that extracts graphs", "of an experiment"),
    ],
)
def test_a_file_of_another_kind_is_told_in_one_line(tmp_path, file, kind, looks, wanted):
    (tmp_path / "extract.yaml").write_text(
        "model: m\nendpoint: http://localhost:8000/v1\nretries: 2\n"
    )
    path = tmp_path / file if file == "extract.yaml" else CONFIGS / file
    with pytest.raises(
        ConfigError,
        match=f"{file} looks like the configuration {looks}.*; expected that {wanted}",
    ):
        load_config(path, kind)


def test_a_slip_in_a_file_of_the_right_kind_is_told_itself(tmp_path):
    path = written(tmp_path, "endpoint: http://localhost:8000/v1\nmodl: m\n")
    with pytest.raises(
        ConfigError, match=r"unknown option `modl`; remove it \(did you mean `model`\?\)"
    ):
        load_config(path, ExtractConfig)
