"""The PromptBench task (DyVal, arXiv:2309.17167): trees of operators, described in sentences.

A problem of depth d is a tree of d levels, the leaves included: of small numbers (arithmetic) or of
truth values that are computed (boolean), concluded by rules (deductive), or concluded backwards
from the root (abductive). Redundant nodes are further small subtrees that the question does not
need. The wording of arithmetic and of all traces follows section 3 of arXiv:2505.18917 and its
appendix; the sentences of logic follow DyVal's.
"""

from __future__ import annotations

import random

from bi_ray.answers.extraction import has_each_tag_once
from bi_ray.config.base import SetName
from bi_ray.config.tasks import DifficultyConfig, LogicName, PromptBenchConfig
from bi_ray.reasoning.check import ParsedStep
from bi_ray.reasoning.expression import value_of
from bi_ray.reasoning.graph import Graph
from bi_ray.reasoning.trace import Piece, Plan, Span, StepKind
from bi_ray.tasks.base import Problem, in_split, item_stream
from bi_ray.tasks.promptbench import premises, wording
from bi_ray.tasks.promptbench.drawing import Abduction, Arithmetic, Logic, Trees, Wish
from bi_ray.tasks.promptbench.lines import parse_line, spans_in, write_line
from bi_ray.tasks.traces import (
    ANSWER,
    THINK_END,
    THINK_START,
    answer_pattern,
    inside_think,
    last_answer,
    response_pattern,
)

# a set owns at least 2.5 % of the hashes, so this many draws only fail under a wrong configuration
_MAX_DRAWS = 100_000
_SOLVE = StepKind.SOLVE
_ANSWERS: dict[LogicName, str] = {
    "arithmetic": wording.INTEGER,
    "boolean": "True|False",
    "deductive": wording.TRUTH,
    "abductive": wording.TRUTH,
}
_DRAWING: dict[LogicName, type[Trees]] = {
    "arithmetic": Arithmetic,
    "boolean": Logic,
    "deductive": Logic,
    "abductive": Abduction,
}


class PromptBenchTask:
    """Problems of one of the four logics, and the wording of their traces."""

    kind = "promptbench"
    notation = wording.NOTATION

    def __init__(self, config: PromptBenchConfig, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.drawing = _DRAWING[config.logic](config)
        self.names = self.drawing.names
        self.operators = self.drawing.operators
        self.system_prompt = wording.SYSTEM_PROMPTS[config.logic]
        self._answer = answer_pattern(_ANSWERS[config.logic])
        self._response = response_pattern(_ANSWERS[config.logic])

    def problem(self, split: SetName, index: int) -> Problem:
        """Problem ``index`` of ``split``.

        It is drawn from its own stream until its graph hash falls in the set.

        Raises:
            ValueError: the configured difficulty yields no problem of this set.
        """
        rng = item_stream(self.seed, split, index)
        difficulty = self.config.sets[split]
        wish: Wish | None = None
        if self.drawing.answers_are_wished:
            wish = self.drawing.wish(rng, difficulty)
        for _ in range(_MAX_DRAWS):
            draft = self.drawing.draft(rng, difficulty, wish)
            if in_split(draft.hash(), split):
                graph = draft.graph()
                return Problem(f"{split}-{index}", self.describe(graph, rng), graph)
        raise ValueError(
            f"no problem of set {split!r} in {_MAX_DRAWS} draws: raise its depth or redundant_nodes"
        )

    def draw(self, rng: random.Random, difficulty: DifficultyConfig) -> Graph:
        """One random graph of the given difficulty, whatever set it belongs to."""
        return self.drawing.draft(rng, difficulty).graph()

    def describe(self, graph: Graph, rng: random.Random) -> str:
        """The premises, in the configured order, and the question."""
        lines = premises.sentences(graph, self.config.logic)
        if self.config.order == "reversed":
            lines.reverse()
        elif self.config.order == "random":
            rng.shuffle(lines)
        return "\n".join([*lines, premises.question(graph, self.config.logic)])

    def parse_question(self, text: str) -> Graph:
        """The graph behind a question, redundant nodes included, whatever the premises' order.

        Raises:
            ParseError: a sentence has no known form, or the sentences do not make a graph.
        """
        return premises.read_question(text, self.config.logic)

    def render(self, plan: Plan, graph: Graph) -> list[Piece]:
        """The whole response: a line per step inside <think>, then the answer."""
        pieces: list[Piece] = []
        solved: set[str] = set()
        text = before = THINK_START
        for step in plan:
            text = write_line(step, graph, solved, before, pieces)
            before = f"{text}\n"
            if step.kind is _SOLVE:
                solved.add(step.node)
        answer = ANSWER.format(answer=graph.answer)
        pieces.append(Piece(f"{text}{THINK_END}{answer}"))
        return pieces

    def parse_trace(self, response: str) -> list[ParsedStep]:
        """The lines between <think> and </think>; one of no known form becomes a step without a
        node.
        """
        lines = inside_think(response).splitlines()
        return list(map(parse_line, filter(str.strip, lines)))

    def behavior_spans(self, response: str) -> list[Span]:
        """The spans that ``render`` marks: whole lines, and parts of solving lines."""
        return spans_in(response)

    def parse_answer(self, response: str) -> str | None:
        """The value in the last <answer>; None where there is none of this logic's."""
        answer = last_answer(response, self._answer)
        return str(value_of(answer)) if answer else None

    def format_is_right(self, response: str) -> bool:
        """Whether the response is exactly one <think> part and one <answer> part."""
        return has_each_tag_once(response) and self._response.fullmatch(response) is not None
