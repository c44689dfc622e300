"""What tasks share whose problems are free text: no graph, so no plan to render and no line to
check.
"""

from __future__ import annotations

from bi_ray.answers.checker import SYSTEM_PROMPTS, Extract, find_answer, format_is_right
from bi_ray.reasoning.check import ParsedStep
from bi_ray.reasoning.expression import Notation
from bi_ray.reasoning.graph import Graph
from bi_ray.reasoning.parse import ParseError
from bi_ray.reasoning.trace import Piece, Plan, Span
from bi_ray.rows.cells import RowError
from bi_ray.tasks.base import Problem


class TextTask:
    """The graph's side of ``Task`` left empty, and answers found by ``extract``.

    Args:
        extract: where a response has its answer (``AnswerConfig.extract``).
        system_prompt: None: asks for the answer there.
    """

    kind = "text"
    notation = Notation({})

    def __init__(self, extract: Extract, system_prompt: str | None) -> None:
        self.extract: Extract = extract
        self.system_prompt = SYSTEM_PROMPTS[extract] if system_prompt is None else system_prompt

    def parse_question(self, text: str) -> Graph:
        """Raises ParseError: free text says no graph by itself."""
        raise ParseError("free text: only an extraction can find its graph")

    def recall(self, name: str, question: str, answer: str | None) -> Problem:
        """The problem of a row that somebody gives back with a response.

        Args:
            name: the row's id.
            question: its question.
            answer: its answer, None where it has none.

        Raises:
            RowError: it cannot be graded.
        """
        if answer is None:
            raise RowError("no answer to grade by: name the column answer")
        return Problem(name, question, given_answer=answer)

    def render(self, plan: Plan, graph: Graph) -> list[Piece]:
        """Raises ValueError: nobody knows the wording."""
        raise ValueError(
            "free text has no wording for a plan; give its problems demonstrations instead"
        )

    def parse_trace(self, response: str) -> list[ParsedStep]:
        """No line of free text has a known form."""
        return []

    def behavior_spans(self, response: str) -> list[Span]:
        """None that anybody could tell."""
        return []

    def parse_answer(self, response: str) -> str | None:
        """What the response gives as its answer, None where there is none."""
        return find_answer(response, self.extract)

    def format_is_right(self, response: str) -> bool:
        """Whether the response has one answer at its place and, with tags, one chain of thought
        before it.
        """
        return format_is_right(response, self.extract)
