"""Which tokens a behavior wrote, on real demonstrations, and the weights of a group's rollouts."""

from dataclasses import asdict

import pytest

from bi_ray.batches.scored_group import Rollout, ScoredGroup
from bi_ray.config.recipes import BRIDGE
from bi_ray.config.tasks import DifficultyConfig, PromptBenchConfig
from bi_ray.injection.recipes import Recipe
from bi_ray.pretraining.tokenizer import build_tokenizer
from bi_ray.readiness.rollouts import PLAIN, scored_group, token_behaviors
from bi_ray.tasks.promptbench.task import PromptBenchTask
from bi_ray.tasks.promptbench.wording import node_names, phrases
from bi_ray.verification.verdicts import Verdict


@pytest.fixture(scope="module")
def task():
    sets = {"sft": DifficultyConfig(depth=(4, 4), redundant_nodes=(2, 6))}
    return PromptBenchTask(PromptBenchConfig(name_pool=60, sets=sets), seed=3)


def demonstrations(task, count):
    recipe = Recipe(
        BRIDGE.model_copy(
            update={
                "behaviors": [b.model_copy(update={"probability": 0.5}) for b in BRIDGE.behaviors]
            }
        ),
        0,
    )
    return [recipe.demonstrate(task, task.problem("sft", i)) for i in range(count)]


def test_the_task_finds_in_a_text_the_spans_that_injection_wrote(task):
    found = 0
    for demonstration in demonstrations(task, 60):
        assert task.behavior_spans(demonstration.response) == demonstration.spans
        found += len(demonstration.spans)
    assert found > 300


def test_garbage_has_no_spans(task):
    assert task.behavior_spans("since when, wait, let's get back = 3 - 5") == []


def test_every_character_of_a_span_is_in_a_token_of_its_behavior(task):
    tokenizer = build_tokenizer(phrases(), node_names(60))
    for demonstration in demonstrations(task, 20):
        tokens = tokenizer.encode(demonstration.response, add_special_tokens=False)
        behaviors = token_behaviors(
            tokenizer,
            [*tokens, tokenizer.eos_token_id],
            demonstration.response,
            demonstration.spans,
        )
        assert len(behaviors) == len(tokens) + 1
        assert behaviors[-1] == PLAIN
        ends = [len(tokenizer.decode(tokens[: i + 1])) for i in range(len(tokens))]
        for index, end in enumerate(ends):
            inside = [span.behavior for span in demonstration.spans if span.start < end <= span.end]
            begun = [
                s.behavior
                for s in demonstration.spans
                if (ends[index - 1] if index else 0) < s.end < end
            ]
            assert behaviors[index] == (inside or begun or [PLAIN])[0]


def group(*rewards):
    return ScoredGroup("q", (1,), tuple(Rollout((2, 3), reward, reward > 0) for reward in rewards))


def test_centered_rewards_leave_the_rollout_itself_out():
    assert group(1.0, 0.0, 0.0, 1.0).centered_rewards() == pytest.approx(
        [2 / 3, -2 / 3, -2 / 3, 2 / 3]
    )


def test_advantages_are_those_of_equation_6():
    assert group(1.0, 0.0, 0.0, 0.0).advantages() == pytest.approx([3**0.5] + [-(3**-0.5)] * 3)
    assert group(1.0, 1.0).advantages() == [0.0, 0.0]
    assert not group(1.0, 1.0).informative
    assert group(1.0, 0.0).informative


def sample(reward, right, outcome):
    verdict = Verdict(reward, right, True, False, None, outcome=outcome)
    return {"tokens": [2], "response": "", **asdict(verdict)}


def test_what_only_format_or_rounding_tells_apart_is_not_informative():
    row = {"id": "q", "prompt_tokens": [1]}
    answers = {
        "format": [(0.05, False, None), (0.0, False, None)],
        "rounding": [(0.1 + 0.2, True, 0.1 + 0.2), (0.3, True, 0.3)],
        "one right": [(1.0, True, None), (0.05, False, None)],
        "partial credit": [(0.1, False, 0.1), (0.4, False, 0.4)],
    }
    informative = {}
    for name, verdicts in answers.items():
        samples = [sample(*verdict) for verdict in verdicts]
        group = scored_group(row | {"samples": samples})
        informative[name] = group.informative
        assert any(group.advantages()) == group.informative
        assert group.rewards == [reward for reward, _, _ in verdicts]
        if name == "format":
            assert scored_group(row | {"samples": samples}, by_outcome=False).informative
    almost = [sample(0.45 + added, False, 0.45) for added in (0.0, 0.1)]
    # a reward for the format makes no answer right
    assert scored_group(row | {"samples": almost}).right == 0
    assert informative == {
        "format": False,
        "rounding": False,
        "one right": True,
        "partial credit": True,
    }
