"""The iGSM task: problems of an exact number of operations, and the wording of their chains of
thought.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from bi_ray.answers.checker import has_each_tag_once
from bi_ray.config import IGSMConfig, IGSMDifficultyConfig, SetName
from bi_ray.reasoning.check import ParsedStep
from bi_ray.reasoning.expression import Expression, names_in
from bi_ray.reasoning.graph import Graph, Node, formula_hash
from bi_ray.reasoning.trace import Piece, Plan, Span
from bi_ray.tasks.base import Problem, in_split, item_stream
from bi_ray.tasks.igsm import parse, wording
from bi_ray.tasks.igsm.dependencies import Draft, Shape, draw_draft
from bi_ray.tasks.igsm.values import CLEAN, PAPER, draw_names, draw_values, formula_of
from bi_ray.tasks.igsm.vocabulary import CATEGORIES

SYSTEM_PROMPT = "Think step by step inside <think> and </think>, then write <answer> The final answer is ... </answer>."
SHAPE = Shape()
_MAX_DRAFTS = 2000
# of the values of one draft in mode clean, before it is given up: some sums of sums are always too
# large
_TRIES = 8
_MAX_VALUE_DRAWS = 100  # for one draft; the smallest ones have no values at all for some sets
_INTEGER = r"-?[0-9]{1,30}"
_RESPONSE = re.compile(
    rf"\s*<think>.*?</think>\s*<answer> The final answer is {_INTEGER} </answer>\s*", re.DOTALL
)
_ANSWER_TAG = re.compile(rf"<answer> The final answer is ({_INTEGER}) </answer>")


class IGSMTask:
    """Problems of iGSM, and the wording of their traces.

    In mode ``paper`` a problem whose answer is too large is drawn again whole, as the authors do,
    so that problems with small answers are likelier; operations are the lesser of two uniform
    draws. In mode ``clean`` operations are uniform and only relations and numbers are drawn again,
    so that a limit changes no structure. To fall into its set a problem gets other relations and
    numbers in both modes: the hash knows nothing of what a problem is like, so that the
    distribution stays what it was.
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
        """Problem ``index`` of ``split``: drawn from its own stream until its graph hash falls in
        the set.

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
        """One random graph of the given difficulty, of a set or (None) of any; None where there is
        none to be found.
        """
        uniform, paper = rng.random, self.config.mode == "paper"
        ops = _draw_ops(uniform, difficulty.ops, paper)
        least, most = difficulty.redundant_nodes
        for _ in range(_MAX_DRAFTS):
            draft = draw_draft(uniform, ops, least + int(uniform() * (most - least + 1)), SHAPE)
            if draft is not None:
                graph = self._complete(uniform, draft, split)
                if graph is not None:
                    return graph
                if paper:
                    ops = _draw_ops(uniform, difficulty.ops, paper)
        return None

    def _complete(
        self, uniform: Callable[[], float], draft: Draft, split: SetName | None
    ) -> Graph | None:
        """The draft with names, relations and numbers that are within the limit and put it into its
        set.
        """
        names: list[str] = []
        beyond = 0
        for _ in range(_MAX_VALUE_DRAWS):
            drawn = draw_values(uniform, draft, self.numbers, self.config.max_abs_value)
            if drawn is None:
                beyond += 1
                if not names and beyond == self.tries:
                    return None
                continue
            names = names or draw_names(uniform, draft)
            relations, values = drawn
            formulas = [
                formula_of(relation, [names[place] for place in places])
                for relation, places in zip(relations, draft.operands, strict=True)
            ]
            asked = names[draft.question]
            if split is None or in_split(
                formula_hash(dict(zip(names, formulas, strict=True)), asked), split
            ):
                return Graph(map(_node, names, formulas, values), asked)
        return None

    def describe(self, graph: Graph, rng: random.Random) -> str:
        """The premises, in the configured order, and the question. Abstract quantities are left to
        the world.
        """
        texts = [
            wording.premise(name, node.formula)
            for name, node in graph.nodes.items()
            if not is_abstract(name)
        ]
        if self.config.premises == "shuffled":
            rng.shuffle(texts)
        texts.insert(
            0 if self.config.question == "first" else len(texts), wording.question(graph.question)
        )
        return " ".join(texts)

    def parse_question(self, text: str) -> Graph:
        """The graph behind a question, redundant nodes included; its premises may come in any
        order.

        Raises:
            ParseError: a sentence has no known form, or what they say makes no graph.
        """
        return parse.parse_question(text)

    def render(self, plan: Plan, graph: Graph) -> list[Piece]:
        """The whole response: a line per step and the conclusion inside <think>, then the answer."""
        return wording.render(plan, graph)

    def parse_trace(self, response: str) -> list[ParsedStep]:
        """The lines between <think> and </think>; a line of no known form becomes a step without a
        node.
        """
        return parse.parse_trace(response)

    def behavior_spans(self, response: str) -> list[Span]:
        """What ``render`` marks: whole lines of reflection, verification and planning, and parts of
        solving ones.
        """
        return parse.behavior_spans(response)

    def parse_answer(self, response: str) -> str | None:
        """The number of the last <answer>, None where there is none or it does not hold a number."""
        match = _ANSWER_TAG.match(response, max(0, response.rfind("<answer>")))
        return str(int(match[1])) if match else None

    def format_is_right(self, response: str) -> bool:
        """Whether the response is exactly one <think> part and one <answer> part."""
        return has_each_tag_once(response) and _RESPONSE.fullmatch(response) is not None


def is_abstract(name: str) -> bool:
    """Whether a quantity of our own worlds is abstract: what a holder holds of a whole category."""
    return name.partition("'s ")[2] in CATEGORIES


def _draw_ops(uniform: Callable[[], float], ops: tuple[int, int], paper: bool) -> int:
    low, high = ops
    drawn = int(uniform() * (high - low + 1))
    return low + (min(drawn, int(uniform() * (high - low + 1))) if paper else drawn)


def _node(name: str, formula: Expression, value: int) -> Node:
    """As ``Node.of``, with the value that is known already; the graph checks it."""
    if not isinstance(formula, tuple):
        return Node(name, value)
    parents = formula[1:]
    for operand in parents:
        if type(operand) is not str:
            return Node(name, value, formula[0], names_in(formula), formula)
    return Node(name, value, formula[0], parents)
