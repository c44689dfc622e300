import pytest
from igsm_tools import SETS, draws, make_task, operations

from bi_ray.config.base import ConfigError
from bi_ray.config.files import load_config
from bi_ray.config.recipes import BRIDGE, VANILLA, BehaviorConfig, RecipeConfig
from bi_ray.config.run import RunConfig
from bi_ray.config.tasks import IGSMConfig
from bi_ray.injection.recipes import Recipe
from bi_ray.reasoning.check import check_trace
from bi_ray.reasoning.graph import formula_hash
from bi_ray.reasoning.trace import Step, StepKind, another_way, join, mark, vanilla_plan
from bi_ray.tasks.base import in_split
from bi_ray.tasks.igsm.task import IGSMTask
from bi_ray.tasks.registry import build_task

ALL = RecipeConfig(
    behaviors=tuple(
        BehaviorConfig(name=name, probability=1.0) for name in ("reflection", "analysis", "subgoal")
    )
)


@pytest.mark.parametrize("mode", ["paper", "clean"])
def test_an_item_depends_on_seed_set_and_index_only(mode):
    first, second = make_task(mode), make_task(mode)
    backwards = {index: second.problem("rl", index) for index in reversed(range(12))}
    for index in range(12):
        problem = first.problem("rl", index)
        assert (problem.question, problem.id) == (backwards[index].question, f"rl-{index}")
        assert problem.graph.to_json() == backwards[index].graph.to_json()
    assert make_task(mode, seed=1).problem("rl", 0).question != first.problem("rl", 0).question
    assert first.problem("sft", 0).question != first.problem("rl", 0).question


@pytest.mark.parametrize("mode", ["paper", "clean"])
def test_every_problem_lies_in_its_set_and_has_its_operations(mode):
    task = make_task(mode, ops=(1, 12))
    for name in SETS:
        for index in range(8):
            graph = task.problem(name, index).graph
            assert in_split(graph.hash(), name)
            assert 1 <= operations(graph) <= 12


def test_the_hash_of_formulas_is_that_of_their_graph():
    for graph in draws(make_task(), 50):
        formulas = {node.name: node.formula for node in graph.nodes.values()}
        assert formula_hash(formulas, graph.question) == graph.hash()
        assert formula_hash(formulas, next(iter(formulas))) != graph.hash()


def test_premises_and_question_stand_where_they_are_asked_for():
    last = make_task(premises="in_order").problem("rl", 0)
    first = make_task(question="first").problem("rl", 0)
    assert last.graph.to_json() == first.graph.to_json()
    *stated, asked = last.question.split(". ")
    assert asked.startswith("How many ")
    told = [text.removeprefix("The number of each ").partition(" equals ")[0] for text in stated]
    assert told == [name for name in last.graph.nodes if name in told]
    assert first.question.startswith("How many ")
    assert first.question.split("? ")[1].split(". ") != stated
    assert sorted(first.question.split("? ")[1].removesuffix(".").split(". ")) == sorted(stated)


def test_a_set_that_no_problem_falls_into_is_named(monkeypatch):
    monkeypatch.setattr("bi_ray.tasks.igsm.task._MAX_DRAFTS", 20)
    task = make_task(ops=1, redundant_nodes=0)  # twenty problems, which most sets have none of
    own = {name for name in SETS for graph in draws(task, 400) if in_split(graph.hash(), name)}
    absent = next(name for name in SETS if name not in own)
    with pytest.raises(
        ValueError, match=f"no problem of set '{absent}' .* raise its ops or redundant_nodes"
    ):
        task.problem(absent, 0)


def rich_plan(graph):
    """Everything that a line can do, in one plan."""
    plan = [Step(graph.question, StepKind.OUTLINE)] if graph.nodes[graph.question].parents else []
    solved = []
    for number, step in enumerate(vanilla_plan(graph)):
        node = graph.nodes[step.node]
        later = [
            name
            for name in graph.nodes
            if name not in solved and graph.missing_parents(name, solved)
        ]
        if number % 3 == 1 and later and number + 1 < len(graph.needed):
            plan.append(Step(later[-1], StepKind.ATTEMPT))
        mistake = node.value + 7 if node.operator and number % 2 else None
        plan.append(
            mark(
                step,
                analysis=number % 2 == 0 and node.operator is not None,
                subgoal=True,
                mistake=mistake,
            )
        )
        solved.append(step.node)
        if another_way(node):
            plan.append(Step(step.node, StepKind.VERIFY))
    return plan


@pytest.mark.parametrize("mode", ["paper", "clean"])
@pytest.mark.parametrize("ops", [(1, 5), (15, 20), 40])
def test_what_is_written_reads_back_as_valid_with_its_spans(mode, ops):
    task = make_task(mode, ops=ops)
    shown = set()
    for index in range(40):
        problem = task.problem("sft", index)
        for plan in (vanilla_plan(problem.graph), rich_plan(problem.graph)):
            response, spans = join(task.render(plan, problem.graph))
            steps = task.parse_trace(response)
            report = check_trace(steps, problem.graph, task.notation)
            assert report.valid, (report.reason, response)
            assert set(report.solved) == problem.graph.needed
            assert [(step.node, step.kind, step.mistake) for step in steps] == [
                (s.node, s.kind, s.mistake) for s in plan
            ]
            assert task.behavior_spans(response) == spans
            assert task.parse_answer(response) == problem.answer
            assert task.format_is_right(response)
            shown.update(span.behavior for span in spans)
    assert shown == {"planning", "reflection", "analysis", "subgoal", "correction", "verification"}


@pytest.mark.parametrize("config", [VANILLA, BRIDGE, ALL])
def test_recipes_make_valid_demonstrations(config):
    task = make_task("paper")
    for index in range(60):
        # raises where a line is wrong
        Recipe(config, seed=index).demonstrate(task, task.problem("sft", index))


def test_a_changed_number_is_found():
    task = make_task()
    found = 0
    for index in range(40):
        graph = task.problem("rl", index).graph
        lines = join(task.render(vanilla_plan(graph), graph))[0].split("\n")
        head, equals, value = lines[-4].rpartition(" = ")  # the line that solves the question
        lines[-4] = f"{head}{equals}{int(value[:-1]) + 1}."
        report = check_trace(task.parse_trace("\n".join(lines)), graph, task.notation)
        assert not report.valid
        found += "not" in report.reason
    assert found == 40


def test_the_same_letter_whenever_a_quantity_comes_again():
    task = make_task()
    graph = task.problem("rl", 0).graph
    plan = [step for step in rich_plan(graph) if step.kind in (StepKind.SOLVE, StepKind.ATTEMPT)]
    steps = task.parse_trace(join(task.render(plan, graph))[0])
    letters = {step.node: step.symbol for step in steps}
    assert len(set(letters.values())) == len(letters)
    assert all(letters[step.node] == step.symbol for step in steps)


THINK = "<think>\n- So, the number of each A's B is 9. Let's denote it as a. So a = 9.\n</think>\n"
NINE = "<answer> The final answer is 9 </answer>"


@pytest.mark.parametrize(
    ("response", "answer", "right_format"),
    [
        (THINK + NINE, "9", True),
        (THINK + NINE.replace("9", "-012"), "-12", True),
        (NINE, "9", False),
        (THINK, None, False),
        (THINK + NINE + NINE, "9", False),
        (THINK + NINE + "<answer> The final answer is x </answer>", None, False),
        (THINK + NINE.replace("9", "9.5"), None, False),
    ],
)
def test_answer_and_format(response, answer, right_format):
    task = make_task()
    assert task.parse_answer(response) == answer
    assert task.format_is_right(response) is right_format


@pytest.mark.parametrize(
    ("path", "ops"), [("configs/igsm_paper.yaml", (25, 25)), ("configs/igsm_tiny.yaml", (5, 6))]
)
def test_the_shipped_configs_are_good(path, ops):
    config = load_config(path, RunConfig)
    assert isinstance(config.task, IGSMConfig)
    assert config.task.sets["test_ood"].ops == ops
    task = build_task(config.task, 0)
    assert isinstance(task, IGSMTask)
    assert operations(task.problem("test_ood", 0).graph) in range(ops[0], ops[1] + 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("ops: 41", "at most 40"),
        ("ops: [5, 3]", r"ops: expected \[low, high\] with 0 <= low <= high, got \[5, 3\]$"),
        ("depth: 3", "unknown option"),
        ("ops: 0", "greater than 0"),
    ],
)
def test_a_faulty_set_is_named_as_the_file_names_it(tmp_path, options, message):
    path = tmp_path / "run.yaml"
    path.write_text(f"name: x\narms: [vanilla]\ntask: {{kind: igsm, sets: {{rl: {{{options}}}}}}}")
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path, RunConfig)
    assert "task.sets.rl" in str(caught.value)
    assert "task.igsm" not in str(caught.value)
