"""What all tasks have in common whose problems are free text.

Without a graph there is no plan to render and no line to check.
"""

from __future__ import annotations

from bi_ray.answers.extraction import SYSTEM_PROMPTS, find_answer, format_is_right
from bi_ray.config.tasks import Extract
from bi_ray.reasoning.check import ParsedStep
from bi_ray.reasoning.expression import Notation
from bi_ray.reasoning.graph import Graph
from bi_ray.reasoning.parse import ParseError
from bi_ray.reasoning.trace import Piece, Plan, Span
from bi_ray.rows.cells import RowError
from bi_ray.tasks.base import Problem


class TextTask:
    """A task without graphs; answers are found by ``extract``.

    Args:
        extract: the place of the answer in a response (``AnswerConfig.extract``).
        system_prompt: None: one that asks for the answer at that place.
    """

    kind = "text"
    notation = Notation({})

    def __init__(self, extract: Extract, system_prompt: str | None) -> None:
        self.extract: Extract = extract
        self.system_prompt = SYSTEM_PROMPTS[extract] if system_prompt is None else system_prompt

    def parse_question(self, text: str) -> Graph:
        """Raises ParseError: free text has no graph that could be read."""
        raise ParseError("free text: only an extraction can find its graph")

    def recall(self, name: str, question: str, answer: str | None) -> Problem:
        """The problem of a row with a response that is to be judged.

        Args:
            name: the row's id.
            question: its question.
            answer: its answer, None where it has none.

        Raises:
            RowError: the response cannot be judged.
        """
        if answer is None:
            raise RowError("no answer to grade by: name the column answer")
        return Problem(name, question, given_answer=answer)

    def render(self, plan: Plan, graph: Graph) -> list[Piece]:
        """Raises ValueError: there is no wording."""
        raise ValueError(
            "free text has no wording for a plan; give its problems demonstrations instead"
        )

    def parse_trace(self, response: str) -> list[ParsedStep]:
        """No line of free text has a known form."""
        return []

    def behavior_spans(self, response: str) -> list[Span]:
        """None: the behaviors of free text are not recognized."""
        return []

    def parse_answer(self, response: str) -> str | None:
        """The answer of a response; None where there is none."""
        return find_answer(response, self.extract)

    def format_is_right(self, response: str) -> bool:
        """Whether the response has one answer, at its place (``extraction.format_is_right``)."""
        return format_is_right(response, self.extract)
