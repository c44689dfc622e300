"""What the tiny base practices: copying, recall by name, arithmetic, traces, and what is known.

Difficulty rises with ``progress`` (0 at the start of training, 1 at its end): drills for copying
and recall come first, then become rare; problems, and questions about half-finished traces, come
last. No drill contains a reflection or an analysis: SFT teaches those. What reflection rests on, to
see whether a quantity has been computed and what it still needs, is practiced in other words.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bi_ray.config.pretraining import PretrainConfig
from bi_ray.config.tasks import DifficultyConfig, IGSMDifficultyConfig
from bi_ray.injection.recipes import random_order
from bi_ray.reasoning.expression import Operator, compute, reductions
from bi_ray.reasoning.graph import Graph, NodeState
from bi_ray.reasoning.trace import Step, join, plan_in_order, vanilla_plan
from bi_ray.tasks.base import in_split
from bi_ray.tasks.igsm.task import IGSMTask
from bi_ray.tasks.promptbench.task import PromptBenchTask
from bi_ray.tasks.promptbench.wording import NOTATION, PREMISES

AnyTask = PromptBenchTask | IGSMTask
LOOK = "Look at what each step waits for."  # the prompt's last line in ``looking``
NOTHING = "nothing"


class Drill(NamedTuple):
    """A conversation to learn from.

    Attributes:
        prompt: the user's first turn.
        response: the assistant's first turn.
        follow_ups: further turns, each a question and its answer.
        learned: whether the loss covers the response; it always covers answers to follow-ups.
    """

    prompt: str
    response: str
    follow_ups: tuple[tuple[str, str], ...] = ()
    learned: bool = True


def copying(task: PromptBenchTask, rng: random.Random, progress: float) -> Drill:
    """A random sequence of names and digits, repeated two to four times."""
    length = rng.randint(3, 10 + int(20 * progress))
    alphabet = [*task.names, *"0123456789"]
    text = "".join(rng.choice(alphabet) for _ in range(length))
    return Drill(text, "\n".join([text] * rng.randint(2, 4)))


def recall(task: PromptBenchTask, rng: random.Random, progress: float) -> Drill:
    """Constants given by name, then listed in another order, which the prompt states."""
    count = rng.randint(2, 5 + int(11 * progress))
    values: dict[str, int] = {}
    for name in rng.sample(task.names, count):
        values[name] = _number(rng, task.config.max_abs_value)
    given = _premises(values)
    listed = list(values)
    rng.shuffle(listed)
    lines = [f"Let's solve {name}, {name} is {values[name]}" for name in listed]
    return Drill("\n".join([*given, "".join(listed)]), "\n".join(lines))


def _premises(values: Mapping[str, int]) -> list[str]:
    """A line for each given value."""
    return [PREMISES[None].format(node=name, value=value) for name, value in values.items()]


def equations(task: PromptBenchTask, rng: random.Random, progress: float) -> Drill:
    """Given values, then independent equations over them, in a form that a trace can have."""
    limit = task.config.max_abs_value
    names = rng.sample(task.names, rng.randint(3, 6) + rng.randint(1, 4))
    count = rng.randint(1, min(5, len(names) - 2))
    values = {name: _number(rng, limit) for name in names[count:]}
    premises = _premises(values)
    lines = []
    written_out = rng.random() < 0.5
    for name in names[:count]:
        operator = rng.choice(task.operators)
        parents = rng.sample(list(values), operator.arity)
        numbers = [values[parent] for parent in parents]
        result = compute(operator, numbers)
        if abs(result) > limit:
            continue
        premise = PREMISES[operator].format(node=name, a=parents[0], b=parents[-1], value=result)
        premises.append(premise)
        sides = [NOTATION.text((operator, *parents)), str(result)]
        if written_out:
            sides.insert(1, NOTATION.text((operator, *numbers)))
        lines.append(f"Let's solve {name}, {name} = {' = '.join(sides)}")
    if not lines:
        return equations(task, rng, progress)
    return Drill("\n".join(premises), "\n".join(lines))


def arithmetic(task: PromptBenchTask, rng: random.Random, progress: float) -> Drill:
    """Bare expressions over numbers, then each with its result."""
    results: dict[str, str] = {}
    limit = task.config.max_abs_value
    while len(results) < 8:
        operator = rng.choice(task.operators)
        operands = [_number(rng, limit) for _ in range(operator.arity)]
        result = compute(operator, operands)
        if abs(result) <= limit:
            results[NOTATION.text((operator, *operands))] = str(result)
    return _expressions(results)


def _expressions(results: Mapping[str, str]) -> Drill:
    """Expressions, and each with its result."""
    lines = [f"{expression} = {result}" for expression, result in results.items()]
    return Drill("\n".join(results), "\n".join(lines))


def sums(task: PromptBenchTask, rng: random.Random, progress: float) -> Drill:
    """Sums of two to five numbers, then each with its result; half of the drills with all steps."""
    results: dict[str, str] = {}
    limit = task.config.max_abs_value
    written_out = rng.random() < 0.5
    while len(results) < 6:
        numbers = [abs(_number(rng, limit)) for _ in range(rng.randint(2, 5))]
        if sum(numbers) > limit:
            continue
        expression = (Operator.ADD, *numbers)
        steps = reductions(expression)[1:] if written_out else []
        sides = [*map(NOTATION.text, steps), str(sum(numbers))]
        results[NOTATION.text(expression)] = " = ".join(sides)
    return _expressions(results)


def problems(task: AnyTask, rng: random.Random, progress: float) -> Drill:
    """Whole problems of the pre-training split; traces plain or with the numbers written out."""
    graph = draw_graph(task, rng, progress)
    subgoal = rng.random() < 0.5
    plan = [Step(step.node, subgoal=subgoal) for step in vanilla_plan(graph)]
    return Drill(task.describe(graph, rng), join(task.render(plan, graph))[0])


def asking(task: AnyTask, rng: random.Random, progress: float) -> Drill:
    """A trace that breaks off anywhere, then questions about what is known and what is needed."""
    graph = draw_graph(task, rng, progress)
    order = random_order(graph, rng) if rng.random() < 0.5 else graph.needed_order
    done = order[: rng.randrange(len(order))]
    trace = join(task.render(plan_in_order(order), graph))[0]
    lines = trace.split("\n")[: 1 + len(done)]
    if not done:
        lines.append("")
    computed = _computed(graph)
    questions = [_question(task, graph, computed, done, rng) for _ in range(8)]
    return Drill(task.describe(graph, rng), "\n".join(lines), tuple(questions), learned=False)


def _computed(graph: Graph) -> list[str]:
    """The quantities that are computed from others."""
    return [name for name, node in graph.nodes.items() if node.parents]


def _question(
    task: AnyTask, graph: Graph, computed: list[str], done: list[str], rng: random.Random
) -> tuple[str, str]:
    """A question about a trace that has computed ``done``, and its answer."""
    pool = list(graph.nodes)
    if computed and rng.random() < 0.7:
        pool = computed
    name = rng.choice(pool)
    kind = rng.random()
    if kind < 0.25:
        return f"Is {_called(task, name)} known?", "yes" if name in done else "no"
    if kind < 0.6:
        missing = graph.missing_parents(name, done)
        return f"What does {_called(task, name)} still need?", _listed(task, missing)
    return _choice(task, graph, done, rng)


def _choice(task: AnyTask, graph: Graph, done: list[str], rng: random.Random) -> tuple[str, str]:
    """Which of some quantities can be solved now, or matter to the problem, in their order."""
    offered = rng.sample(list(graph.nodes), min(len(graph.nodes), rng.randint(2, 4)))
    if rng.random() < 0.5:
        chosen = [name for name in offered if graph.state(name, done) is NodeState.UNLOCKED]
        return f"Which of {_listed(task, offered)} can be solved now?", _listed(task, chosen)
    chosen = [name for name in offered if name in graph.needed]
    return f"Which of {_listed(task, offered)} matter?", _listed(task, chosen)


def looking(task: AnyTask, rng: random.Random, progress: float) -> Drill:
    """A whole trace that says, before some steps, what a quantity waits for.

    The quantity is the next one, a later one or one that does not matter.
    """
    graph = draw_graph(task, rng, progress)
    order = graph.needed_order
    trace = join(task.render(plan_in_order(order), graph))[0]
    lines = trace.split("\n")
    computed = _computed(graph)
    response = [lines[0]]
    for position, line in enumerate(lines[1 : 1 + len(order)]):
        if computed and rng.random() < 0.6:
            name = rng.choice(computed)
            missing = _listed(task, graph.missing_parents(name, order[:position]))
            response.append(f"Look at {_called(task, name)}, it waits for {missing}")
        response.append(line)
    response += lines[1 + len(order) :]
    return Drill(f"{task.describe(graph, rng)}\n{LOOK}", "\n".join(response))


def draw_graph(task: AnyTask, rng: random.Random, progress: float) -> Graph:
    """A problem of the pre-training split, small at first."""
    if isinstance(task, IGSMTask):
        return _draw_igsm(task, rng, progress)
    sets = task.config.sets["pretrain"]
    low, high = sets.depth
    depth = rng.randint(low, _largest(low, high, progress))
    most = round(sets.redundant_nodes[1] * min(1.0, 0.2 + progress))
    difficulty = DifficultyConfig(depth=(depth, depth), redundant_nodes=(0, most))
    while True:
        graph = task.draw(rng, difficulty)
        if in_split(graph.hash(), "pretrain"):
            return graph


def _draw_igsm(task: IGSMTask, rng: random.Random, progress: float) -> Graph:
    sets = task.config.sets["pretrain"]
    low, high = sets.ops
    most = _largest(low, high, progress)
    difficulty = IGSMDifficultyConfig(ops=(low, most), redundant_nodes=sets.redundant_nodes)
    while True:
        graph = task.draw(rng, difficulty, "pretrain")
        if graph is not None:
            return graph


def _largest(low: int, high: int, progress: float) -> int:
    """The largest size at this progress: a third of the range at first, all of it at the middle."""
    return max(low, round(low + (high - low) * min(1.0, 0.34 + progress * 1.3)))


def _called(task: AnyTask, name: str) -> str:
    return f"each {name}" if isinstance(task, IGSMTask) else name


def _listed(task: AnyTask, names: list[str]) -> str:
    return " and ".join(_called(task, name) for name in names) or NOTHING


def phrases() -> list[str]:
    """The fixed parts of the texts that this module adds to the tasks' own, for the tokenizer."""
    return [
        "Is ",
        " known?",
        "yes",
        "no",
        "What does ",
        " still need?",
        "Which of ",
        " can be solved now?",
        " matter?",
        NOTHING,
        LOOK,
        "Look at ",
        "\nLook at ",
        ", it waits for ",
        "each ",
        " and each ",
    ]


class Practice:
    """The tasks that drills are drawn from.

    Attributes:
        promptbench: problems whose premises are in the configured order.
        in_order: the same with every premise after those that it uses.
        igsm: None if the base does not learn iGSM.
    """

    def __init__(self, config: PretrainConfig) -> None:
        self.promptbench = PromptBenchTask(config.task, config.seed)
        in_order = config.task.model_copy(update={"order": "topological"})
        self.in_order = PromptBenchTask(in_order, config.seed)
        self.in_order_share = config.in_order_share
        self.igsm = IGSMTask(config.igsm, config.seed) if config.igsm else None

    def task_of(self, kind: str, rng: random.Random) -> AnyTask:
        """The task that a drill of this kind is drawn from."""
        if kind.startswith("igsm_"):
            assert self.igsm is not None
            return self.igsm
        return self.in_order if rng.random() < self.in_order_share else self.promptbench

    def kinds(self) -> dict[str, tuple[float, float]]:
        """Every kind of drill and its share at the start and at the end of training."""
        if self.igsm:
            return dict(SCHEDULE)
        return {kind: SCHEDULE[kind] for kind in SCHEDULE if not kind.startswith("igsm_")}


DrillMaker = Callable[[Any, random.Random, float], Drill]
MAKERS: dict[str, DrillMaker] = {
    "copying": copying,
    "recall": recall,
    "equations": equations,
    "arithmetic": arithmetic,
    "sums": sums,
    "problems": problems,
    "asking": asking,
    "looking": looking,
    "igsm_problems": problems,
    "igsm_asking": asking,
    "igsm_looking": looking,
}
# Share of the drawn drills, at the start and at the end of training.
SCHEDULE: dict[str, tuple[float, float]] = {
    "copying": (0.35, 0.02),
    "recall": (0.25, 0.05),
    "equations": (0.15, 0.13),
    "arithmetic": (0.10, 0.10),
    "sums": (0.05, 0.05),
    "problems": (0.05, 0.27),
    "asking": (0.02, 0.10),
    "looking": (0.01, 0.08),
    "igsm_problems": (0.01, 0.13),
    "igsm_asking": (0.005, 0.04),
    "igsm_looking": (0.005, 0.03),
}
_RAMP = 0.25  # share of the training after which the mixture no longer changes


def draw_drill(practice: Practice, rng: random.Random, progress: float) -> Drill:
    """One drill of the mixture at ``progress`` (0 to 1)."""
    ramp = min(1.0, progress / _RAMP)
    shares = practice.kinds()
    weights = [start + (end - start) * ramp for start, end in shares.values()]
    kind = rng.choices(list(shares), weights)[0]
    return MAKERS[kind](practice.task_of(kind, rng), rng, progress)


def _number(rng: random.Random, limit: int) -> int:
    """Mostly small numbers, as in problems, of either sign."""
    kind = rng.random()
    if kind < 0.5:
        return rng.randint(1, min(10, limit))
    largest = limit
    if kind < 0.75:
        largest = min(30, limit)
    elif kind < 0.95:
        largest = min(100, limit)
    value = rng.randint(0, largest)
    return -value if rng.random() < 0.3 else value
