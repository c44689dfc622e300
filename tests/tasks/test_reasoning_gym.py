import builtins
import pickle

import pytest

from bi_ray.config.base import ConfigError
from bi_ray.config.tasks import ReasoningGymConfig
from bi_ray.tasks.base import in_split
from bi_ray.tasks.reasoning_gym import ReasoningGymTask
from bi_ray.tasks.registry import build_task, target_config

reasoning_gym = pytest.importorskip("reasoning_gym")


def config_of(task="spell_backward", **options):
    sets = (
        {"rl": {}, "test_ood": {"options": {"min_word_len": 8}}}
        if task == "spell_backward"
        else {"rl": {}}
    )
    return ReasoningGymConfig.model_validate(
        {"kind": "reasoning_gym", "task": task, "sets": sets} | options
    )


def tagged(answer):
    return f"<think>x</think><answer>{answer}</answer>"


def test_a_problem_is_a_pure_function_of_its_place():
    first, again, other = (ReasoningGymTask(config_of(), seed) for seed in (0, 0, 1))
    ids = [7, 2, 7]
    assert [first.problem("rl", i) for i in ids] == [again.problem("rl", i) for i in ids]
    assert first.problem("rl", 3) != other.problem("rl", 3)
    for name in ("rl", "test_ood", "influence_target"):
        assert all(in_split(first.problem(name, i).hash(), name) for i in range(5))


def test_options_of_a_set_make_it_harder():
    task = ReasoningGymTask(config_of(options={"max_word_len": 12}), 0)
    assert all(8 <= len(task.problem("test_ood", i).answer) <= 12 for i in range(10))
    assert min(len(task.problem("rl", i).answer) for i in range(10)) < 8


# countdown, n_queens and graph_color take any answer that solves the problem
TASKS = [
    "spell_backward",
    "basic_arithmetic",
    "countdown",
    "n_queens",
    "knights_knaves",
    "graph_color",
    "gsm_symbolic",
]


@pytest.mark.parametrize("name", TASKS)
def test_the_scorer_of_reasoning_gym_judges(name):
    task = ReasoningGymTask(config_of(name), 0)
    task = pickle.loads(pickle.dumps(task))  # it travels to the verifier
    problem = task.problem("rl", 0)
    assert problem.answer
    assert problem.graph is None

    def right(response):
        return task.answer_is_right(response, problem.question, problem.answer, problem.reference)

    if name != "graph_color":  # it has no answer of its own to give
        assert right(tagged(problem.answer))
        assert not right(problem.answer)  # not where it is looked for
    assert not right(tagged("no such answer"))
    assert not right("")


def test_an_answer_other_than_the_one_it_gives_can_be_right():
    task = ReasoningGymTask(config_of("countdown"), 0)
    problem = task.problem("rl", 0)
    swapped = f"0 * 0 + ({problem.answer})"
    same = f"({problem.answer})"
    assert task.answer_is_right(tagged(same), problem.question, problem.answer, problem.reference)
    assert not task.answer_is_right(
        tagged(swapped), problem.question, problem.answer, problem.reference
    )


def test_the_target_is_as_hard_as_rl_or_as_it_is_told():
    same = target_config(config_of(), None, 5)
    assert same.sets["influence_target"].problems == 5
    harder = target_config(config_of(), {"options": {"min_word_len": 8}}, 5)
    assert len(build_task(harder, 0).problem("influence_target", 0).answer) >= 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "no_such_task"}, "no_such_task"),
        ({"options": {"min_word_length": 3}}, "min_word_length"),
        ({"options": {"min_word_len": -3}}, "min_word_len"),
    ],
)
def test_what_reasoning_gym_refuses_is_one_line(options, words):
    with pytest.raises(ConfigError, match=words) as caught:
        ReasoningGymTask(config_of(**options), 0)
    assert "\n" not in str(caught.value)


def test_seeds_are_not_options():
    with pytest.raises(ValueError, match="seed is set per problem"):
        config_of(options={"seed": 3})


def test_without_reasoning_gym_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **named):
        if name == "reasoning_gym":
            raise ModuleNotFoundError("No module named 'reasoning_gym'")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"pip install 'bi-ray\[gym\]'"):
        ReasoningGymTask(config_of(), 0)


def test_a_task_with_too_few_different_problems_says_so(monkeypatch):
    monkeypatch.setattr("bi_ray.tasks.reasoning_gym._MAX_DRAWS", 50)
    task = ReasoningGymTask(config_of("coin_flip", options={"min_trials": 3, "max_trials": 3}), 0)
    with pytest.raises(ConfigError, match="too few different ones"):
        [task.problem("influence_target", i) for i in range(1000)]


@pytest.mark.parametrize("name", ["survo", "acre"])
def test_a_task_that_draws_when_it_is_made_still_varies(name):
    task = ReasoningGymTask(config_of(name), 0)
    assert len({task.problem("rl", i).question for i in range(3)}) == 3
