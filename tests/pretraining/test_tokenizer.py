import functools
import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from bi_ray.config.recipes import BRIDGE
from bi_ray.config.tasks import DifficultyConfig, PromptBenchConfig
from bi_ray.injection.recipes import Recipe
from bi_ray.policy.chat import encode_prompt
from bi_ray.pretraining.tokenizer import build_tokenizer
from bi_ray.tasks.promptbench.task import PromptBenchTask
from bi_ray.tasks.promptbench.wording import node_names, phrases
from bi_ray.tasks.traces import SYSTEM_PROMPT

PRINTABLE = string.printable[:95] + "\n\t"
TOKENIZER = build_tokenizer(phrases(), node_names(48))
TASKS = [
    PromptBenchTask(
        PromptBenchConfig(
            order=order,
            name_pool=48,
            sets={"sft": DifficultyConfig(depth=(2, 4), redundant_nodes=(0, 8))},
        ),
        seed=0,
    )
    for order in ("topological", "reversed", "random")
]


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


@functools.cache
def task_texts() -> list[str]:
    texts = []
    for task in TASKS:
        recipe = Recipe(BRIDGE, seed=0)
        for i in range(40):
            demonstration = recipe.demonstrate(task, task.problem("sft", i))
            texts += [demonstration.problem.question, demonstration.response]
    return texts


@settings(max_examples=500, deadline=None, derandomize=True)
# such are special tokens
@given(st.text(alphabet=PRINTABLE, max_size=200).filter(lambda text: "<|" not in text))
def test_every_printable_text_survives(text):
    assert TOKENIZER.decode(encode(text)) == text
    assert TOKENIZER.unk_token_id not in encode(text)


def test_every_task_text_survives():
    for text in task_texts():
        ids = encode(text)
        assert TOKENIZER.decode(ids) == text
        assert TOKENIZER.unk_token_id not in ids


def test_digits_stay_single():
    rng = random.Random(0)
    digits = set(encode("0123456789"))
    assert len(digits) == 10
    for _ in range(300):
        number = str(rng.randrange(10 ** rng.randint(1, 12)))
        ids = encode(f"Let's solve aab, aab is -{number}")
        assert ids[-len(number) :] == [TOKENIZER.convert_tokens_to_ids(digit) for digit in number]
    for text in task_texts():  # the sign of a square is a token of its own
        numerals = sum(character.isdigit() for character in text.replace("^2", ""))
        assert sum(i in digits for i in encode(text)) == numerals


def test_a_name_is_one_token_wherever_it_stands():
    ids = {name: TOKENIZER.convert_tokens_to_ids(name) for name in node_names(48)}
    assert len(set(ids.values()) - {TOKENIZER.unk_token_id}) == 48
    for task in TASKS:
        for i in range(50):
            problem = task.problem("sft", i)
            tokens = encode(problem.question)
            for name in problem.graph.nodes:
                assert tokens.count(ids[name]) == problem.question.count(name)


def test_task_texts_are_short():
    """Phrases are one token each: a premise of a constant takes its name, its digits and two
    phrases.
    """
    assert len(encode("\nLet's solve aab, aab is 5")) == 6
    assert (
        len(encode("The value of aab is 5.\nThe value of aac is 7.\nWhat is the value of aac?"))
        == 11
    )


def test_special_tokens_stand_where_the_template_puts_them():
    ids = encode_prompt(TOKENIZER, SYSTEM_PROMPT, "What is the value of aab?")
    assert TOKENIZER.convert_ids_to_tokens(ids) == [
        "<|system|>",
        SYSTEM_PROMPT,
        "<|end|>",
        "<|user|>",
        "What is the value of ",
        "aab",
        "?",
        "<|end|>",
        "<|assistant|>",
    ]
    assert TOKENIZER.eos_token == "<|end|>"


def test_the_vocabulary_is_a_multiple_of_32_without_repeats():
    assert len(TOKENIZER) % 32 == 0
    assert len(set(TOKENIZER.get_vocab().values())) == len(TOKENIZER)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save_pretrained(directory)
    return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)


def test_saved_and_loaded_it_gives_the_same_ids(loaded):
    for text in task_texts():
        assert loaded.encode(text, add_special_tokens=False) == encode(text)
        assert encode_prompt(loaded, SYSTEM_PROMPT, text) == encode_prompt(
            TOKENIZER, SYSTEM_PROMPT, text
        )
    assert (loaded.eos_token_id, loaded.pad_token_id) == (
        TOKENIZER.eos_token_id,
        TOKENIZER.pad_token_id,
    )
    assert loaded.decode(encode(PRINTABLE)) == PRINTABLE
