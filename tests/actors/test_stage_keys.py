"""Which options a stage's key covers: derived from the marks on the fields."""

import re
from collections.abc import Iterator

import pytest

from actors import stage_keys
from actors.stage_keys import StageKeys, keyed_options
from bi_ray.config.base import Config, Deadline, InKeyOf, NotInKey
from bi_ray.config.evaluation import EvaluationConfig, VerifierConfig
from bi_ray.config.readiness import ReadinessConfig
from bi_ray.config.recipes import VANILLA
from bi_ray.config.run import ModelConfig, RunConfig
from bi_ray.config.training import LoRAConfig, QueryFilterConfig, RLConfig, SFTConfig
from bi_ray.runs.layout import STAGES
from bi_ray.runs.stage_key import StageKey

SETS = ("sft", "rl", "val", "test_id", "test_ood")
CONFIG = RunConfig.model_validate(
    {
        "name": "keys",
        "task": {"sets": {name: {"depth": 3} for name in SETS}},
        "arms": ["vanilla"],
        "model": {"stop": ["\n\n"]},
        "rl": {"query_filter": {}, "validation": {}, "dynamic_sampling": {}, "kl": {}},
        "readiness": {"realized_queries": 2, "target": {"depth": 4}},
    }
)


@pytest.fixture(autouse=True)
def _no_checkpoint(monkeypatch):
    monkeypatch.setattr(stage_keys, "digest", lambda path: "digest of the base")


def digests(config: RunConfig) -> dict[str, str]:
    """The digest of every stage's key."""
    keys = StageKeys(config)
    made: dict[str, StageKey] = {"data": keys.data()}
    made["sft_data"] = keys.sft_data("vanilla", made["data"])
    made["sft"] = keys.sft(made["sft_data"], "sft")
    made["sft_double"] = keys.sft(made["sft_data"], "sft_double")
    made["no_sft"] = keys.no_sft(made["data"])
    made["target"] = keys.target(made["data"])
    policy = {"sft": made["sft"].digest}
    made["readiness"] = keys.readiness(policy, {"vanilla": VANILLA}, made["target"])
    made["realized"] = keys.realized(made["readiness"])
    made["queries"] = keys.queries(made["sft"])
    made["rl"] = keys.rl(made["sft"], made["queries"])
    made["eval"] = keys.evaluation(policy)
    return {stage: key.digest for stage, key in made.items()}


def has_mark(config: Config, name: str, kind: type) -> bool:
    return any(isinstance(mark, kind) for mark in type(config).model_fields[name].metadata)


def marked(config: Config, kind: type) -> set[str]:
    return {name for name in type(config).model_fields if has_mark(config, name, kind)}


@pytest.mark.parametrize(
    ("section", "elsewhere"),
    [
        (SFTConfig(), {"report_twice_the_budget", "checkpoint_every_steps"}),
        (
            RLConfig(),
            {
                "batch_timeout_s",
                "query_filter",
                "checkpoint_every_steps",
                "keep_last",
                "keep_best",
            },
        ),
        (QueryFilterConfig(), {"timeout_s"}),
        (VerifierConfig(), {"batch_timeout_s", "start_timeout_s", "memory_mib"}),
        (EvaluationConfig(), {"base_model", "timeout_s"}),
        (ModelConfig(), {"path", "dtype", "attention"}),
        (
            ReadinessConfig(),
            {
                "every_rl_steps",
                "target",
                "threads",
                "cpus",
                "gpus",
                "start_timeout_s",
                "timeout_s",
                "realized_queries",
                "realized_samples_per_prompt",
                "realized_step_norm",
            },
        ),
    ],
)
def test_the_key_of_a_section_leaves_out_what_it_always_did(section, elsewhere):
    assert type(section).model_fields.keys() - keyed_options(section).keys() == elsewhere


def test_options_of_another_stage_are_in_its_key():
    assert marked(CONFIG.readiness, InKeyOf) == {
        "target",
        "realized_queries",
        "realized_samples_per_prompt",
        "realized_step_norm",
    }
    assert list(keyed_options(CONFIG.readiness, "realized")) == [
        "realized_queries",
        "realized_samples_per_prompt",
        "realized_step_norm",
    ]
    assert keyed_options(CONFIG.model, "sft") == {"dtype": "float32"}
    assert list(keyed_options(CONFIG.rl, "queries")) == ["query_filter"]


def test_sections_that_no_key_covers():
    assert marked(CONFIG, NotInKey) == {"name", "learner", "rollout", "ray", "trackers"}


def test_a_renamed_deadline_invalidates_nothing():
    class Renamed(EvaluationConfig):
        answer_timeout_s: Deadline = 5
        """A deadline of a new name."""

    assert keyed_options(Renamed()) == keyed_options(EvaluationConfig())


def test_a_mark_inside_a_nested_section_counts():
    class Inner(Config):
        size: int = 1
        timeout_s: Deadline = 5

    class Outer(Config):
        inner: Inner = Inner()

    assert keyed_options(Outer()) == {"inner": {"size": 1}}


def changes(config: Config, path: str = "", is_keyed: bool = True) -> Iterator[tuple]:
    """Configurations with one number or boolean changed: name, whether it is keyed, the whole."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        keyed = is_keyed and not has_mark(config, name, NotInKey)
        where = f"{path}{name}"
        if isinstance(value, Config):
            for inner, inner_keyed, changed in changes(value, f"{where}.", keyed):
                yield inner, inner_keyed, config.model_copy(update={name: changed})
        elif isinstance(value, bool):
            yield where, keyed, config.model_copy(update={name: not value})
        elif isinstance(value, int | float):
            yield where, keyed, config.model_copy(update={name: value + 1})


CHANGES = list(changes(CONFIG))


@pytest.mark.parametrize(
    ("changed", "is_keyed"),
    [(changed, is_keyed) for _, is_keyed, changed in CHANGES],
    ids=[name for name, _, _ in CHANGES],
)
def test_an_option_changes_a_key_if_and_only_if_it_is_not_marked(changed, is_keyed):
    assert (digests(changed) != digests(CONFIG)) == is_keyed


@pytest.mark.parametrize(
    ("update", "stages"),
    [
        ({"rl": CONFIG.rl.model_copy(update={"steps": 7})}, {"rl"}),
        (
            {"readiness": CONFIG.readiness.model_copy(update={"realized_queries": 7})},
            {"realized"},
        ),
        (
            {"readiness": CONFIG.readiness.model_copy(update={"target": {"depth": 5}})},
            {"target", "readiness", "realized"},
        ),
        (
            {"evaluation": CONFIG.evaluation.model_copy(update={"sampled_problems": 7})},
            {"eval"},
        ),
        (  # adapters in place of all weights make another policy
            {"learner": CONFIG.learner.model_copy(update={"lora": LoRAConfig()})},
            {"sft", "sft_double", "readiness", "realized", "queries", "rl", "eval"},
        ),
    ],
)
def test_a_change_reaches_the_stages_that_read_it_and_no_other(update, stages):
    before, after = digests(CONFIG), digests(CONFIG.model_copy(update=update))
    assert {stage for stage in before if before[stage] != after[stage]} == stages


# Options whose names look like limits, resources or intervals, and which do change results.
DECIDED = {
    "model.max_prompt_tokens",
    "model.max_response_tokens",
    "readiness.microbatch_tokens",
    "readiness.pairwise_mib",  # too little: no influence of all on all
    "rl.dynamic_sampling.max_rounds",
    "rl.kl.moving_every_steps",
    "rl.max_staleness",
    "rl.optimizer.max_grad_norm",
    "rl.validation.every_steps",  # decides where RL stops, and which step is kept
    "sft.optimizer.max_grad_norm",
    "task.max_abs_value",
    "verifier.sample_timeout_s",  # a late judgment is a data failure
}
LOOKS_LIKE_A_LIMIT = re.compile(
    r"_s$|_mib$|cpus|gpus|threads|workers|keep_|every_|max_|microbatch|restarts|attempts|retries"
)


def test_whoever_adds_a_limit_decides_whether_results_depend_on_it():
    undecided = [
        name
        for name, is_keyed, _ in CHANGES
        if is_keyed and LOOKS_LIKE_A_LIMIT.search(name.rpartition(".")[2]) and name not in DECIDED
    ]
    assert undecided == [], "mark it NotInKey(), or list it in DECIDED"
    assert {name for name, _, _ in CHANGES} >= DECIDED


def test_marks_name_stages_that_exist():
    for section in (CONFIG, CONFIG.model, CONFIG.rl, CONFIG.readiness):
        for field in type(section).model_fields.values():
            for mark in field.metadata:
                if isinstance(mark, InKeyOf):
                    assert mark.stage in STAGES
