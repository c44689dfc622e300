"""Problems out of a user's rows."""

from __future__ import annotations

from bi_ray.answers.characters import one_form
from bi_ray.reasoning.expression import value_of
from bi_ray.reasoning.graph import Graph
from bi_ray.rows.cells import RowError
from bi_ray.rows.fields import Fields
from bi_ray.rows.rejects import Place
from bi_ray.tasks.base import Problem, Task


def problem_of(fields: Fields, task: Task | None, place: Place) -> tuple[Task, Problem]:
    """The task and problem of a row that has a graph, or whose question the task can read.

    Raises:
        RowError: neither, or the row's own answer is not the graph's.
    """
    if task is None:
        raise RowError("no task to read it by: give the configuration of one, or extract free text")
    graph = _graph_of(fields, task)
    if fields.answer is not None and not same_answer(fields.answer, graph):
        raise RowError(f"its answer is {fields.answer}, but its question comes to {graph.answer}")
    return task, Problem(id_of(fields, place), fields.question, graph)


def id_of(fields: Fields, place: Place) -> str:
    """The id of a row; one by its line where the row has none."""
    return fields.id or f"row-{place.line}"


def _graph_of(fields: Fields, task: Task) -> Graph:
    """The graph of a row; if it has one and a readable question, both have to be the same.

    Free text cannot be read, so there the row's own graph is taken on trust.
    """
    given: Graph | None = None
    if fields.graph:
        try:
            given = Graph.from_json(fields.graph)
        except (ValueError, KeyError, TypeError) as error:  # of a graph that somebody else wrote
            raise RowError(f"its graph cannot be read: {error}") from error
        if task.kind == "text":
            return given
    try:
        graph = task.parse_question(fields.question)
    except ValueError as error:
        raise RowError(f"its question cannot be read: {error}") from error
    if given is not None and (given.nodes, given.question) != (graph.nodes, graph.question):
        raise RowError(
            "its graph is not that of its question: remove the graph, and the question is read"
        )
    return graph


def same_answer(answer: str, graph: Graph) -> bool:
    """Whether an answer is the value that a graph comes to."""
    text = one_form(answer).strip()
    return text == str(graph.answer) or value_of(text) == graph.answer
