"""Spans of tokens decoded back, on every behavior, in the project's tokenizer and in a byte-level
one.
"""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from bi_ray.config.recipes import BehaviorConfig, RecipeConfig
from bi_ray.config.tasks import DifficultyConfig, PromptBenchConfig
from bi_ray.injection.behaviors import BEHAVIORS
from bi_ray.injection.recipes import Recipe
from bi_ray.policy.checkpoint import load_tokenizer
from bi_ray.policy.spans import encode_with_ends, token_spans
from bi_ray.reasoning.trace import Span
from bi_ray.tasks.registry import build_task

TASK = build_task(
    PromptBenchConfig(sets={"sft": DifficultyConfig(depth=4, redundant_nodes=(2, 6))}), seed=2
)
RECIPE = Recipe(
    RecipeConfig(behaviors=tuple(BehaviorConfig(name=name, probability=0.5) for name in BEHAVIORS)),
    0,
)
DEMONSTRATIONS = [RECIPE.demonstrate(TASK, TASK.problem("sft", i)) for i in range(25)]


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
    )
    tokenizer.train_from_iterator(
        [demonstration.response for demonstration in DEMONSTRATIONS], trainer
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


@pytest.fixture(scope="module", params=["tiny-base", "byte-level"])
def tokenizer(request):
    return load_tokenizer("models/tiny-base") if request.param == "tiny-base" else byte_level()


def check_cover(tokenizer, tokens, text, spans):
    """Every span's tokens hold its text whole, and lose it without their first or their last."""
    found = token_spans(tokenizer, tokens, text, spans)
    assert [span.behavior for span in found] == [span.behavior for span in spans]
    for (first, end, _), (start, stop, _) in zip(found, spans, strict=True):
        before = [
            len(tokenizer.decode(list(tokens[:count]), skip_special_tokens=True))
            for count in (first, first + 1)
        ]
        after = [
            len(tokenizer.decode(list(tokens[:count]), skip_special_tokens=True))
            for count in (end - 1, end)
        ]
        assert before[0] <= start < before[1]
        assert after[0] < stop <= after[1]
        assert text[start:stop] in tokenizer.decode(
            list(tokens[first:end]), skip_special_tokens=True
        )
    return found


def test_spans_of_every_behavior_decode_back(tokenizer):
    seen = set()
    for demonstration in DEMONSTRATIONS:
        tokens, ends = encode_with_ends(tokenizer, demonstration.response)
        assert ends[-1] == len(demonstration.response)
        found = check_cover(
            tokenizer,
            [*tokens, tokenizer.eos_token_id],
            demonstration.response,
            demonstration.spans,
        )
        seen |= {span.behavior for span in found}
    assert seen == set(BEHAVIORS)


def test_a_policy_may_write_the_same_text_in_other_tokens(tokenizer):
    """Character by character, as no tokenizer would: the spans are found by decoding."""
    for demonstration in DEMONSTRATIONS[:3]:
        text = demonstration.response
        tokens = [
            token
            for character in text
            for token in tokenizer.encode(character, add_special_tokens=False)
        ]
        assert tokenizer.decode(tokens) == text
        found = check_cover(tokenizer, [*tokens, tokenizer.eos_token_id], text, demonstration.spans)
        assert [span[:2] for span in found] == [span[:2] for span in demonstration.spans]


def test_special_tokens_in_the_middle_have_no_characters(tokenizer):
    demonstration = DEMONSTRATIONS[0]
    tokens = tokenizer.encode(demonstration.response, add_special_tokens=False)
    middle = len(tokens) // 2
    odd = [*tokens[:middle], tokenizer.eos_token_id, *tokens[middle:]]
    check_cover(tokenizer, odd, demonstration.response, demonstration.spans)


def test_a_token_between_two_spans_counts_for_the_later_one():
    tokenizer = load_tokenizer("models/tiny-base")
    text = "Let's solve aaa"
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert len(tokens) == 2  # "Let's solve " and the name
    spans = [Span(0, 3, "first"), Span(5, 15, "second")]
    assert token_spans(tokenizer, tokens, text, spans) == [Span(0, 2, "second")]


def test_no_spans_no_work():
    assert token_spans(None, [1, 2], "text", []) == []
