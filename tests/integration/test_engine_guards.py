"""Checks before and after a request is in the engine, with vLLM's own types and no engine."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from bi_ray.policy.checkpoint import load_tokenizer

VOCABULARY = 192


@pytest.fixture(scope="module")
def guards():
    from serve import stamped_engine

    return stamped_engine


@pytest.mark.parametrize("tokens", [[VOCABULARY], [5, 10**6, 7], [-1]])
def test_tokens_without_an_embedding_are_refused(guards, tokens):
    with pytest.raises(guards.VLLMValidationError) as error:
        guards.require_known_tokens({"prompt_token_ids": tokens}, VOCABULARY)
    assert error.value.parameter == "prompt"
    for fine in ([0, VOCABULARY - 1], []):
        guards.require_known_tokens({"prompt_token_ids": fine}, VOCABULARY)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("allowed_token_ids", list(range(1025))),
        ("logit_bias", dict.fromkeys(range(1025), 1.0)),
        ("stop_token_ids", list(range(101))),
    ],
)
def test_lists_that_a_worker_has_no_room_for_are_refused(guards, name, value):
    from vllm import SamplingParams

    with pytest.raises(guards.VLLMValidationError) as error:
        guards.require_short_lists(SamplingParams(**{name: value}))
    assert error.value.parameter == name
    guards.require_short_lists(SamplingParams())


def test_a_grammar_that_the_engine_gave_up_is_the_requests_fault(guards):
    output = SimpleNamespace(outputs=[SimpleNamespace(finish_reason="error")])
    with pytest.raises(guards.VLLMValidationError) as error:
        guards.require_grammar(output, SimpleNamespace(structured_outputs={"regex": "x"}))
    assert error.value.parameter == "structured_outputs"
    guards.require_grammar(output, SimpleNamespace(structured_outputs=None))


def test_only_end_tokens_are_left_out_of_a_text(guards, tiny_model):
    tokenizer = load_tokenizer(tiny_model(True))
    end = tokenizer.eos_token_id
    ended = {
        "finish_reason": "stop",
        "stop_reason": None,
        "token_ids": [5, end],
        "text": f"ab{tokenizer.eos_token}",
    }
    stopped = {"finish_reason": "stop", "stop_reason": "b", "token_ids": [5, 6], "text": "ab"}
    empty = {"finish_reason": "stop", "stop_reason": None, "token_ids": [], "text": ""}
    output = SimpleNamespace(
        outputs=[SimpleNamespace(**sequence) for sequence in (ended, stopped, empty)]
    )
    guards.drop_end_tokens(output, params(include_stop_str_in_output=True), tokenizer)
    assert [sequence.text for sequence in output.outputs] == ["ab", "ab", ""]


def params(**options):
    return SimpleNamespace(
        **{"include_stop_str_in_output": False, "skip_special_tokens": False} | options
    )


def test_parts_with_other_columns_are_joined():
    """A step has as many columns of log-probabilities as its most demanding request asked for."""
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.outputs import LogprobsLists

    from actors.rollout.engine_scheduler import _Held

    def step(token, columns):
        tokens = np.arange(token, token + columns)[None]
        return EngineCoreOutput(
            "x", [token], new_logprobs=LogprobsLists(tokens, -tokens / 2, np.array([1]))
        )

    steps = [step(5, 3), step(6, 8), step(7, 2)]
    held = _Held(0, steps[0], 2)
    for one in steps:
        held.add(one)
    whole = held.onto(steps[-1])
    assert whole.new_token_ids == [5, 6, 7]
    assert whole.new_logprobs.logprob_token_ids.tolist() == [[5, 6], [6, 7], [7, 8]]
    assert whole.new_logprobs.sampled_token_ranks.tolist() == [1, 1, 1]
