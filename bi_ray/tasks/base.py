"""What a task is: a source of problems, and the wording of their chains of thought."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from bi_ray.answers.characters import one_form
from bi_ray.config.base import SetName
from bi_ray.reasoning.check import ParsedStep
from bi_ray.reasoning.expression import Notation
from bi_ray.reasoning.graph import Graph
from bi_ray.reasoning.trace import Piece, Plan, Span
from bi_ray.rows.rejects import Place, Rejects

SPLIT_BUCKETS = 1000
# A problem belongs to exactly one set, by the hash of its graph: no set ever needs to see another.
SPLIT_RANGES: dict[SetName, range] = {
    "pretrain": range(0, 300),
    "sft": range(300, 500),
    "rl": range(500, 700),
    "val": range(700, 725),
    "val_ood": range(725, 750),
    "test_id": range(750, 850),
    "test_ood": range(850, 950),
    "influence_target": range(950, 1000),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: the text of its question, and the graph behind it where there is one.

    Attributes:
        id: unique in a run.
        question: text of the question.
        graph: graph of the question; None: free text, which has ``given_answer``.
        given_answer: the right answer as in the data; None: the graph's.
        reference: what the task needs besides the answer to check one; only the task reads it.
        response: a demonstration that comes with the problem, "" where there is none.
        spans: the behaviors in the demonstration.
        place: file and line of its row, None for a generated problem.
    """

    id: str
    question: str
    graph: Graph | None = None
    given_answer: str | None = None
    reference: str = ""
    response: str = ""
    spans: tuple[Span, ...] = ()
    place: Place | None = None

    def __post_init__(self) -> None:
        if self.graph is None and self.given_answer is None:
            raise ValueError(f"problem {self.id}: neither a graph nor an answer")

    @property
    def answer(self) -> str:
        """The right answer, as the model has to write it."""
        if self.given_answer is not None:
            return self.given_answer
        assert self.graph is not None
        return str(self.graph.answer)

    def hash(self) -> str:
        """Canonical hash of the graph, or else of the question; it decides the problem's set."""
        if self.graph is None:
            return text_hash(self.question)
        return self.graph.hash()


class Task(Protocol):
    """A source of problems, and the wording of their chains of thought.

    Item ``index`` of a set depends on the configuration, the set, the seed and the index alone.
    """

    kind: str  # its name in configurations
    system_prompt: str
    notation: Notation  # of the equations in its traces

    def problem(self, split: SetName, index: int) -> Problem:
        """Problem ``index`` of a set."""
        ...

    def parse_question(self, text: str) -> Graph:
        """The graph behind a question, redundant nodes included.

        Raises:
            bi_ray.reasoning.parse.ParseError: a sentence has no known form, or the sentences do not
                make a graph.
        """
        ...

    def render(self, plan: Plan, graph: Graph) -> list[Piece]:
        """The whole response for a plan: chain of thought and answer, with behaviors marked."""
        ...

    def parse_trace(self, response: str) -> list[ParsedStep]:
        """The lines of a response's chain of thought as steps, with their text as it is there."""
        ...

    def behavior_spans(self, response: str) -> list[Span]:
        """The behaviors in a response, whoever wrote it; in order, without overlaps."""
        ...

    def parse_answer(self, response: str) -> str | None:
        """The last answer of a response; None where there is none in the right format."""
        ...

    def format_is_right(self, response: str) -> bool:
        """Whether a response is one chain of thought and one answer, and nothing else."""
        ...


@runtime_checkable
class ChecksAnswers(Protocol):
    """A task whose right answers can be written in several ways.

    Other tasks' answers are right where their text is that of the right one.
    """

    def prepare(self) -> None:
        """Load what the checks need, so that a time limit cannot interrupt an import half-way."""
        ...

    def answer_is_right(self, response: str, question: str, answer: str, reference: str) -> bool:
        """Whether a response gives the right answer.

        It runs under the verifier's time limit; an exception is a data failure.

        Args:
            response: the whole response.
            question: the problem's text.
            answer: the right answer.
            reference: see ``Problem``.
        """
        ...


@runtime_checkable
class FiniteTask(Task, Protocol):
    """A task that reads its problems from files: sets are finite, and rows may be bad."""

    rejects: Rejects

    def available(self, split: SetName) -> int:
        """Number of problems of a set."""
        ...


def in_split(problem_hash: str, split: SetName) -> bool:
    """Whether a problem with this hash belongs to ``split`` (docs/method.md, "Definitions")."""
    return int(problem_hash, 16) % SPLIT_BUCKETS in SPLIT_RANGES[split]


def text_hash(question: str) -> str:
    """Canonical hash of a text: 64 bits, hexadecimal.

    Letter case, spacing and the forms of a character make no difference.
    """
    canonical = " ".join(one_form(question).casefold().split())
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def item_stream(seed: int, split: SetName, index: int) -> random.Random:
    """The random stream of one item, independent of every other item's."""
    return random.Random(f"{seed}/{split}/{index}")
