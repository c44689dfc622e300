"""`bi-ray options`, docs/options.md and the suggestions for unknown keys come from the models."""

import ast
import re
from pathlib import Path

import pytest

from bi_ray.config.base import ConfigError
from bi_ray.config.extraction import ExtractConfig
from bi_ray.config.manual import as_markdown, as_text
from bi_ray.config.options import Option, find_options, nearest_option, options_of
from bi_ray.config.pretraining import PretrainConfig
from bi_ray.config.run import RunConfig

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/options.md"
MODELS = [RunConfig, PretrainConfig, ExtractConfig]


def option(name: str, kind: str = "") -> Option:
    [match] = [
        option
        for option in options_of(RunConfig)
        if option.name == name and option.kind in ("", kind)
    ]
    return match


@pytest.mark.parametrize("model", MODELS)
def test_every_option_has_a_docstring(model):
    silent = [option.name for option in options_of(model) if not option.meaning]
    assert silent == []


@pytest.mark.parametrize("model", MODELS)
def test_every_meaning_is_a_sentence(model):
    odd = [
        option.name
        for option in options_of(model)
        if not option.meaning.endswith(".") or "  " in option.meaning
    ]
    assert odd == []


def test_the_page_is_the_one_that_the_code_makes():
    assert PAGE.read_text() == as_markdown(), (
        "write it again: bi-ray options --markdown > docs/options.md"
    )


def test_options_of_optional_sections_lists_and_mappings_are_listed():
    names = {option.name for option in options_of(RunConfig)}
    assert {
        "rl.validation.patience",
        "rl.query_filter.most_right",
        "rl.dynamic_sampling.max_rounds",
        "learner.lora.rank",
        "arms.<name>.copies",
        "arms.<name>.behaviors.<n>.probability",
        "task.sets.<set>.depth",
        "task.answer.tolerance",
    } <= names
    assert not any("same_length_as." in name for name in names)  # a recipe in a recipe


@pytest.mark.parametrize(
    ("name", "words", "default"),
    [
        ("rl.steps", "integer >= 1 (steps)", "200"),
        ("rl.samples_per_prompt", "integer >= 2", "8"),
        ("rl.batch_timeout_s", "seconds > 0", "600"),
        ("rl.clip_low", "number >= 0 and <= 1", "0.2"),
        ("rl.loss_scale", None, "token_mean"),
        ("rl.zero_variance_groups", "one of drop, keep, or null", "null"),
        ("rl.optimizer.learning_rate", "number > 0", "1.0e-06"),
        ("sft.optimizer.learning_rate", "number > 0", "5.0e-06"),
        ("sft.optimizer.betas", "list of 2 numbers", "[0.9, 0.95]"),
        ("rl.validation", "section, or null", "null"),
        ("rl.algorithm_options", "mapping", "{}"),
        ("rollout.redispatch_factor", "number >= 1, or null", "3.0"),
        ("rollout.kv_cache_mib", "integer >= 1 (MiB)", "512"),
        ("readiness.pairwise_mib", "MiB >= 0", "1024"),
        ("readiness.token_scales", "list of values, each one of sum, mean", "[sum, mean]"),
        ("learner.lora.targets", "list of strings, or all-linear", "all-linear"),
        ("arms", "mapping to sections", None),
        ("arms.<name>.behaviors", "list of sections", "[]"),
        ("trackers", "mapping to mappings", "{}"),
        ("model", "section", None),
    ],
)
def test_types_and_defaults_are_in_words(name, words, default):
    found = option(name)
    assert words in (None, found.type)
    assert found.default == default


def test_an_option_of_one_kind_of_task_says_so():
    assert option("task.logic", "promptbench").kind == "promptbench"
    assert option("task.sets.<set>.ops", "igsm").type == "list of 2 integers >= 1"
    assert option("task.task", "reasoning_gym").required


@pytest.mark.parametrize(
    ("prefix", "first", "count"),
    [
        ("rl.validation", "rl.validation", 10),
        ("rl.validation.", "rl.validation", 10),
        ("rl.kl.mov", "rl.kl.moving_every_steps", 2),
        ("task.sets.rl.ops", "task.sets.<set>.ops", 1),
        ("arms.bridge.behaviors.0.name", "arms.<name>.behaviors.<n>.name", 1),
        ("seeds.data", "seeds.data", 1),
    ],
)
def test_a_prefix_chooses_options(prefix, first, count):
    options = find_options(RunConfig, prefix)
    assert (options[0].name, len(options)) == (first, count)


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("rl.optimzer", "did you mean rl.optimizer?"),
        ("xyzzy", "`bi-ray options` lists all of them"),
    ],
)
def test_an_unknown_prefix_names_the_nearest_option(prefix, words):
    with pytest.raises(ConfigError) as caught:
        find_options(RunConfig, prefix)
    assert str(caught.value).startswith(f"no option begins with {prefix}")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("unknown", "near"),
    [
        ("rl.stepz", "rl.steps"),
        ("ral", "rl"),
        ("samples_per_promt", "rl.samples_per_prompt"),
        ("rl.learning_rate", "rl.optimizer.learning_rate"),
        ("sets", "task.sets"),
        ("arms.mine.behaviors.0.probabilty", "arms.mine.behaviors.0.probability"),
        ("rl.foo", None),
    ],
)
def test_the_nearest_option_of_an_unknown_one(unknown, near):
    assert nearest_option(unknown.split("."), options_of(RunConfig)) == near


def test_text_is_wrapped_in_a_terminal_and_one_line_in_a_pipe():
    options = find_options(RunConfig, "rl.zero_variance_groups")
    head, *meaning = as_text(options, 60).splitlines()
    assert head == "rl.zero_variance_groups: one of drop, keep, or null; default null"
    assert len(meaning) > 1
    assert all(line.startswith("    ") and len(line) <= 60 for line in meaning)
    assert len(as_text(options, None).splitlines()) == 2


# not model, ray and task: files, modules and weights have names that begin with these
SECTIONS = "evaluation|learner|readiness|rl|rollout|sft|verifier"
OPTION_NAME = re.compile(rf"(?<![\w./-])(?:{SECTIONS})(?:\.[a-z_0-9]+)+(?![\w(/-])")


def strings_of(file: Path) -> list[str]:
    """The strings of a module, docstrings included, or the text of a page."""
    if file.suffix != ".py":
        return [file.read_text()]
    nodes = ast.walk(ast.parse(file.read_text()))
    constants = (node.value for node in nodes if isinstance(node, ast.Constant))
    return [constant for constant in constants if isinstance(constant, str)]


def test_messages_and_pages_name_options_that_exist():
    options = options_of(RunConfig)
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for package in ("bi_ray", "actors", "serve"):
        files += (ROOT / package).rglob("*.py")
    unknown = []
    for file in files:
        for text in strings_of(file):
            for name in OPTION_NAME.findall(text):
                is_option = any(option.is_below(name.split(".")) for option in options)
                if not is_option and not name.endswith(".json"):
                    unknown.append(f"{file.relative_to(ROOT)}: {name}")
    assert unknown == []
