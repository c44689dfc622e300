"""What a task is: a source of problems, and the wording of their chains of thought."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from bi_ray.answers.characters import one_form
from bi_ray.config import SetName
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
        question: its text.
        graph: its graph; None: free text, which has ``given_answer``.
        given_answer: the right answer as the data give it; None: the graph's.
        reference: what the task needs beside the answer to check one; its own business.
        response: a demonstration that comes with the problem, "" where there is none.
        spans: the behaviors in it.
        place: where its row stands, None for a problem that was generated.
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
        """The right answer, as text; that of a graph as the model has to write it."""
        if self.given_answer is not None:
            return self.given_answer
        assert self.graph is not None
        return str(self.graph.answer)

    def hash(self) -> str:
        """Canonical hash that decides its set: of the graph, or of the question where there is
        none.
        """
        return text_hash(self.question) if self.graph is None else self.graph.hash()


class Task(Protocol):
    """A source of problems. Item ``index`` of a set is a pure function of the configuration, set,
    seed and index.
    """

    kind: str  # what configurations call it
    system_prompt: str
    notation: Notation  # of the equations in its traces

    def problem(self, split: SetName, index: int) -> Problem:
        """Problem ``index`` of a set."""
        ...

    def parse_question(self, text: str) -> Graph:
        """The graph behind a question, redundant nodes included.

        Raises:
            bi_ray.reasoning.parse.ParseError: a sentence has no known form, or what they say makes
            no graph.
        """
        ...

    def render(self, plan: Plan, graph: Graph) -> list[Piece]:
        """The whole response for a plan: chain of thought and answer, behaviors marked piece by
        piece.
        """
        ...

    def parse_trace(self, response: str) -> list[ParsedStep]:
        """The lines of a response's chain of thought, read back into steps."""
        ...

    def behavior_spans(self, response: str) -> list[Span]:
        """What in a response, whoever wrote it, is a behavior; in order, without overlaps."""
        ...

    def parse_answer(self, response: str) -> str | None:
        """The last answer of a response, None where there is none in the right format."""
        ...

    def format_is_right(self, response: str) -> bool:
        """Whether a response is one chain of thought and one answer, and nothing else."""
        ...


@runtime_checkable
class ChecksAnswers(Protocol):
    """A task whose right answers can be written in several ways. Without it an exact match of the
    text decides.
    """

    def prepare(self) -> None:
        """Load whatever the checks need: a time limit that ends a first check amid its imports
        would leave halves.
        """
        ...

    def answer_is_right(self, response: str, question: str, answer: str, reference: str) -> bool:
        """Whether a response gives the right answer. Runs under the verifier's time limit; what it
        raises is a fault.

        Args:
            response: the whole response.
            question: the problem's text.
            answer: the right answer.
            reference: the problem's (see ``Problem``).
        """
        ...


@runtime_checkable
class FiniteTask(Task, Protocol):
    """A task that reads its problems from files: each set has only so many, and rows of them may be
    bad.
    """

    rejects: Rejects

    def available(self, split: SetName) -> int:
        """How many problems a set has."""
        ...


def in_split(problem_hash: str, split: SetName) -> bool:
    """Whether a problem with this hash belongs to ``split`` (section 8 of docs/method.md)."""
    return int(problem_hash, 16) % SPLIT_BUCKETS in SPLIT_RANGES[split]


def text_hash(question: str) -> str:
    """Canonical hash of a text (64 bits, hexadecimal): letter case, spacing and forms of one
    character count as one.
    """
    canonical = " ".join(one_form(question).casefold().split())
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def item_stream(seed: int, split: SetName, index: int) -> random.Random:
    """The random stream of one item, independent of every other item's."""
    return random.Random(f"{seed}/{split}/{index}")
