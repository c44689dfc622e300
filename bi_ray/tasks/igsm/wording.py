"""The sentences of iGSM: relations, premises, questions, and lines of a chain of thought.

Their wording follows arXiv:2505.18917. A quantity is called "A's B": how many B each A has. A chain
of thought denotes it by one letter; letters and the words at a line's beginning are drawn from a
random stream of the graph alone.
"""

from __future__ import annotations

import random

from bi_ray.reasoning.expression import (
    Expression,
    Notation,
    Operator,
    Value,
    reductions,
    substitute,
)
from bi_ray.reasoning.graph import Graph, Node
from bi_ray.reasoning.trace import (
    LINE_BEHAVIORS,
    Piece,
    Plan,
    Step,
    StepKind,
    outline,
    verification_of,
)
from bi_ray.tasks.traces import ANSWER, THINK_END, THINK_START

NOTATION = Notation({Operator.ADD: "+", Operator.SUBTRACT: "-", Operator.MULTIPLY: "*"})
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

CONCLUSION = "Thus, the answer is {answer}."

GIVEN_INTROS = ("According to the information given", "As the problem says", "From what is given")
INTROS = ("Next", "Then", "After that", "Now")
# What marks the parts of a line, also for the parser.
NUMBER_OF = "the number of each "
REMEMBER = "Remember that it has been denoted as "
RELATION = "We know that it equals "
UNKNOWN = "But we haven't calculated "
STILL_UNKNOWN = " yet, thus the value of {letter} is still unknown."
MISTAKE = ". Wait, that is wrong. So "
CHECK = "let's check "
TO_GET = "to get the number of each "
WE_NEED = ", we need "


def phrases() -> list[str]:
    """The fixed parts of the task's texts, for a tokenizer that gives each one token."""
    intros = (*GIVEN_INTROS, *INTROS)
    return [
        *(f"- {intro}, " for intro in intros),
        *(f".\n- {intro}, " for intro in intros),
        THINK_START,
        "The number of each ",
        ". The number of each ",
        "'s ",
        " equals ",
        " more than each ",
        " more than the sum of each ",
        " more than the difference of each ",
        " times each ",
        " times the sum of each ",
        " times the difference of each ",
        "the sum of each ",
        "the difference of each ",
        "each ",
        ", each ",
        " and each ",
        ". How many ",
        "How many ",
        " does each ",
        " have?",
        NUMBER_OF,
        " is ",
        ". Let's denote it as ",
        ". So ",
        "let ",
        f" represent {NUMBER_OF}",
        f"let's denote {NUMBER_OF}",
        " as ",
        f"let's come back to {NUMBER_OF}",
        f". {REMEMBER}",
        ". Then ",
        f". {RELATION}each ",
        f". {RELATION}the sum of each ",
        f". {RELATION}the difference of each ",
        f". {RELATION}",
        f". {UNKNOWN}{NUMBER_OF}",
        f" and {NUMBER_OF}",
        *STILL_UNKNOWN.split("{letter}"),
        MISTAKE,
        " = ",
        " + ",
        " - ",
        " * ",
        ".\nThus, the answer is ",
        f".{THINK_END}<answer> The final answer is ",
        " </answer>",
    ]


def relation(formula: Expression) -> str:
    """A formula over quantities in words, as premises and information analysis state it.

    Numbers come first: ``(ADD, 9, "a", "b")`` is "9 more than the sum of each a and each b".
    """
    if type(formula) is str:
        return f"each {formula}"
    if not isinstance(formula, tuple):
        return str(formula)
    operator, first, *others = formula
    if isinstance(first, int):
        joint = "more than" if operator is Operator.ADD else "times"
        inner = others[0] if len(others) == 1 else (Operator.ADD, *others)
        return f"{first} {joint} {relation(inner)}"
    if operator is Operator.ADD:
        *words, last = map(relation, formula[1:])
        return f"the sum of {', '.join(words)} and {last}"
    if operator is Operator.SUBTRACT:
        return f"the difference of each {first} and each {others[0]}"
    if operator is Operator.MULTIPLY:
        return f"each {first} times each {others[0]}"
    return f"each {first}"


def premise(name: str, formula: Expression) -> str:
    """The sentence that states a quantity."""
    return f"The number of each {name} equals {relation(formula)}."


def question(name: str) -> str:
    """The sentence that asks for a quantity."""
    holder, _, held = name.partition("'s ")
    return f"How many {held} does each {holder} have?"


def render(plan: Plan, graph: Graph) -> list[Piece]:
    """The whole response: a line per step, the conclusion, and the answer."""
    pieces = [Piece(THINK_START)]
    writer = _Writer(graph)
    for step in plan:
        writer.line(step, pieces)
        pieces.append(Piece("\n"))
    conclusion = CONCLUSION.format(answer=graph.answer)
    answer = ANSWER.format(answer=graph.answer)
    pieces.append(Piece(f"{conclusion}{THINK_END}{answer}"))
    return pieces


class _Writer:
    """Writes the lines of one chain of thought; remembers the letters and values of quantities."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.uniform = random.Random(f"{graph.question}/{graph.answer}/{len(graph.nodes)}").random
        self.unused = list(LETTERS)
        self.letters: dict[str, str] = {}
        self.values: dict[str, Expression] = {}

    def line(self, step: Step, pieces: list[Piece]) -> None:
        if step.kind is StepKind.SOLVE:
            self._solution(step, self.graph.nodes[step.node], pieces)
            return
        if step.kind is StepKind.ATTEMPT:
            text = self._attempt(step.node)
        elif step.kind is StepKind.VERIFY:
            text = self._verification(step.node)
        else:
            text = self._outline()
        pieces.append(Piece(text, LINE_BEHAVIORS[step.kind]))

    def _intro(self, words: tuple[str, ...] = INTROS) -> str:
        return words[int(self.uniform() * len(words))]

    def _new_letter(self, name: str) -> str:
        if not self.unused:
            raise ValueError(
                f"a chain of thought with more than {len(LETTERS)} quantities: lower ops"
            )
        letter = self.letters[name] = self.unused.pop(int(self.uniform() * len(self.unused)))
        return letter

    def _denote(self, name: str) -> tuple[str, str]:
        """The letter of a quantity, and the sentence that mentions it."""
        letter = self.letters.get(name)
        if letter:
            start = f"- {self._intro()}, let's come back to {NUMBER_OF}{name}. {REMEMBER}{letter}. "
            return letter, start
        letter = self._new_letter(name)
        if self.uniform() < 0.5:
            return letter, f"- {self._intro()}, let {letter} represent {NUMBER_OF}{name}. "
        return letter, f"- {self._intro()}, let's denote {NUMBER_OF}{name} as {letter}. "

    def _solution(self, step: Step, node: Node, pieces: list[Piece]) -> None:
        name, value = node.name, node.value
        self.values[name] = value
        if node.operator is None:
            pieces.append(Piece(self._given(name, value)))
            return
        letter, start = self._denote(name)
        formula = node.formula
        if step.analysis:
            pieces.append(Piece(start))
            pieces.append(Piece(f"{RELATION}{relation(formula)}. ", "analysis"))
            start = ""
        text = f"{start}Then {letter} = {NOTATION.text(substitute(formula, self.letters))}"
        if node.operator is not Operator.SAME:
            numbers = substitute(formula, self.values)
            text = f"{text} = {NOTATION.text(numbers)}"
            further = reductions(numbers)[1:] if step.subgoal else ()
            if further:
                sides = ["", *map(NOTATION.text, further)]
                pieces += (Piece(text), Piece(" = ".join(sides), "subgoal"))
                text = ""
        if step.mistake is not None:
            if text:
                pieces.append(Piece(text))
            pieces.append(Piece(f" = {step.mistake}{MISTAKE}{letter}", "correction"))
            text = ""
        pieces.append(Piece(f"{text} = {value}."))

    def _given(self, name: str, value: Value) -> str:
        intro = self._intro(GIVEN_INTROS)
        letter = self._new_letter(name)
        return (
            f"- {intro}, {NUMBER_OF}{name} is {value}. "
            f"Let's denote it as {letter}. So {letter} = {value}."
        )

    def _attempt(self, name: str) -> str:
        letter, start = self._denote(name)
        missing = self.graph.missing_parents(name, self.values)
        known = " and ".join(f"{NUMBER_OF}{parent}" for parent in missing)
        return f"{start}{UNKNOWN}{known}{STILL_UNKNOWN.format(letter=letter)}"

    def _verification(self, name: str) -> str:
        check = verification_of(self.graph.nodes[name])
        symbols = NOTATION.text(substitute(check.expression, self.letters))
        numbers = NOTATION.text(substitute(check.expression, self.values))
        value = self.values[check.target]
        return (
            f"- {self._intro()}, {CHECK}{self.letters[name]}: {symbols} = {numbers} = {value}, "
            f"and {self.letters[check.target]} is {value}, right."
        )

    def _outline(self) -> str:
        needs: list[str] = []
        for name, parents in outline(self.graph):
            each_parent = " and ".join(map("each {}".format, dict.fromkeys(parents)))
            needs.append(f"{TO_GET}{name}{WE_NEED}{each_parent}")
        return f"- Plan: {'; '.join(needs)}."
