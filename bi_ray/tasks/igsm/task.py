"""The iGSM task: problems of an exact number of operations, and their chains of thought."""

from __future__ import annotations

import random
from collections.abc import Callable

from bi_ray.answers.extraction import has_each_tag_once
from bi_ray.config.base import SetName
from bi_ray.config.tasks import IGSMConfig, IGSMDifficultyConfig
from bi_ray.reasoning.check import ParsedStep
from bi_ray.reasoning.expression import Expression, names_in
from bi_ray.reasoning.graph import Graph, Node, formula_hash
from bi_ray.reasoning.trace import Piece, Plan, Span
from bi_ray.tasks.base import Problem, in_split, item_stream
from bi_ray.tasks.igsm import parse, wording
from bi_ray.tasks.igsm.dependencies import Draft, Shape, draw_draft
from bi_ray.tasks.igsm.values import (
    CLEAN,
    PAPER,
    Relation,
    draw_names,
    draw_values,
    formula_of,
)
from bi_ray.tasks.igsm.vocabulary import CATEGORIES
from bi_ray.tasks.traces import SYSTEM_PROMPT, answer_pattern, last_answer, response_pattern

SHAPE = Shape()
_MAX_DRAFTS = 2000
# in mode clean, draws of the values of a draft before it is given up: some sums of sums are always
# too large
_TRIES = 8
_MAX_VALUE_DRAWS = 100  # for one draft; the smallest ones have no values at all for some sets
_INTEGER = r"-?[0-9]{1,30}"
_RESPONSE = response_pattern(_INTEGER)
_ANSWER_TAG = answer_pattern(_INTEGER)


class IGSMTask:
    """Problems of iGSM, and the wording of their traces.

    In mode ``paper`` a problem whose answer is too large is drawn again from scratch, as the
    authors do, so that problems with small answers are likelier; the number of operations is the
    smaller of two uniform draws. In mode ``clean`` it is uniform, and only relations and numbers
    are drawn again, so that the limit does not change the distribution of structures. In both modes
    a problem gets other relations and numbers until it falls into its set: the hash does not depend
    on what a problem is like, so the distribution does not change.
    """

    kind = "igsm"
    system_prompt = SYSTEM_PROMPT
    notation = wording.NOTATION

    def __init__(self, config: IGSMConfig, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.numbers = PAPER if config.mode == "paper" else CLEAN
        self.tries = 1 if config.mode == "paper" else _TRIES

    def problem(self, split: SetName, index: int) -> Problem:
        """Problem ``index`` of ``split``.

        It is drawn from its own stream until its graph hash falls in the set.

        Raises:
            ValueError: the configured difficulty yields no problem of this set.
        """
        rng = item_stream(self.seed, split, index)
        difficulty = self.config.sets[split]
        graph = self.draw(rng, difficulty, split)
        if graph is None:
            raise ValueError(
                f"no problem of set {split!r} in {_MAX_DRAFTS} draws: "
                "raise its ops or redundant_nodes, or max_abs_value"
            )
        return Problem(f"{split}-{index}", self.describe(graph, rng), graph)

    def draw(
        self, rng: random.Random, difficulty: IGSMDifficultyConfig, split: SetName | None = None
    ) -> Graph | None:
        """One random graph of the given difficulty; None where there is none to be found.

        Args:
            rng: the random stream.
            difficulty: number of operations and of redundant nodes.
            split: the set that the graph belongs to; None: any.
        """
        uniform, paper = rng.random, self.config.mode == "paper"
        ops = _draw_ops(uniform, difficulty.ops, paper)
        least, most = difficulty.redundant_nodes
        for _ in range(_MAX_DRAFTS):
            redundant = least + int(uniform() * (most - least + 1))
            draft = draw_draft(uniform, ops, redundant, SHAPE)
            if draft is None:
                continue
            graph = self._complete(uniform, draft, split)
            if graph is not None:
                return graph
            if paper:
                ops = _draw_ops(uniform, difficulty.ops, paper)
        return None

    def _complete(
        self, uniform: Callable[[], float], draft: Draft, split: SetName | None
    ) -> Graph | None:
        """The draft with names, and with relations and numbers that put it into its set.

        None where values within the limit are not found.
        """
        names: list[str] = []
        failures = 0
        for _ in range(_MAX_VALUE_DRAWS):
            drawn = draw_values(uniform, draft, self.numbers, self.config.max_abs_value)
            if drawn is None:
                failures += 1
                if not names and failures == self.tries:
                    return None
                continue
            if not names:
                names = draw_names(uniform, draft)
            relations, values = drawn
            formulas = _formulas(relations, draft, names)
            question = names[draft.question]
            if split is not None:
                named = dict(zip(names, formulas, strict=True))
                if not in_split(formula_hash(named, question), split):
                    continue
            return Graph(map(_node, names, formulas, values), question)
        return None

    def describe(self, graph: Graph, rng: random.Random) -> str:
        """The premises, in the configured order, and the question; the world implies the rest."""
        texts: list[str] = []
        for name, node in graph.nodes.items():
            if not is_abstract(name):
                texts.append(wording.premise(name, node.formula))
        if self.config.premises == "shuffled":
            rng.shuffle(texts)
        question = wording.question(graph.question)
        if self.config.question == "first":
            return " ".join([question, *texts])
        return " ".join([*texts, question])

    def parse_question(self, text: str) -> Graph:
        """The graph behind a question, redundant nodes included, whatever the premises' order.

        Raises:
            ParseError: a sentence has no known form, or the sentences do not make a graph.
        """
        return parse.parse_question(text)

    def render(self, plan: Plan, graph: Graph) -> list[Piece]:
        """The whole response: steps and conclusion inside <think>, then the answer."""
        return wording.render(plan, graph)

    def parse_trace(self, response: str) -> list[ParsedStep]:
        """The lines between <think> and </think>; one of no known form becomes a step without a
        node.
        """
        return parse.parse_trace(response)

    def behavior_spans(self, response: str) -> list[Span]:
        """The spans that ``render`` marks: whole lines, and parts of solving lines."""
        return parse.behavior_spans(response)

    def parse_answer(self, response: str) -> str | None:
        """The number in the last <answer>; None where there is none."""
        answer = last_answer(response, _ANSWER_TAG)
        return str(int(answer)) if answer else None

    def format_is_right(self, response: str) -> bool:
        """Whether the response is exactly one <think> part and one <answer> part."""
        return has_each_tag_once(response) and _RESPONSE.fullmatch(response) is not None


def is_abstract(name: str) -> bool:
    """Whether a quantity of our own worlds is what a holder has of a whole category."""
    return name.partition("'s ")[2] in CATEGORIES


def _draw_ops(uniform: Callable[[], float], ops: tuple[int, int], paper: bool) -> int:
    low, high = ops
    count = high - low + 1
    drawn = int(uniform() * count)
    if paper:
        drawn = min(drawn, int(uniform() * count))
    return low + drawn


def _formulas(relations: list[Relation], draft: Draft, names: list[str]) -> list[Expression]:
    """The relation of every quantity between named operands."""
    formulas: list[Expression] = []
    for relation, positions in zip(relations, draft.operands, strict=True):
        formulas.append(formula_of(relation, [names[position] for position in positions]))
    return formulas


def _node(name: str, formula: Expression, value: int) -> Node:
    """As ``Node.of``, with a value that is known already; the graph checks it."""
    if not isinstance(formula, tuple):
        return Node(name, value)
    operator, parents = formula[0], formula[1:]
    for operand in parents:
        if type(operand) is not str:
            return Node(name, value, operator, names_in(formula), formula)
    return Node(name, value, operator, parents)
