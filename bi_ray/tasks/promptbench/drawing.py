"""Random problems: drafts of trees over positions, which become graphs once they are wanted.

Most drafts fall into another set than the one that is being made, and a draft is all that its hash
needs.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, ClassVar, TypeAlias

from bi_ray.config import DifficultyConfig, PromptBenchConfig
from bi_ray.reasoning.expression import Operator, Truth, Value, compute
from bi_ray.reasoning.graph import Graph, Node, digest, digest_operation
from bi_ray.tasks.promptbench.wording import CAUSES, node_names

# A node: its value, and the operator on earlier entries, by their positions, that gives it. A plain
# tuple for speed.
Entry: TypeAlias = "tuple[Value, Operator | None, tuple[int, ...]]"
Wish: TypeAlias = "tuple[int, Value | None]"  # depth and answer, None: any
_WORDS = ("and", "not")  # of the rules: no names of facts
_TRUE_ROOTS = 0.1  # of abductions; as rare as upstream, nearly: below a True root nothing is known


@dataclass(frozen=True, slots=True)
class Draft:
    """A problem before it is a graph.

    Attributes:
        entries: its nodes, each after its parents.
        question: position of the node that is asked for.
        order: the positions in the order of the graph.
        names: of the entries.
        implied: whether what an operator gives is only a premise that implies the node (deduction).
    """

    entries: list[Entry]
    question: int
    order: list[int]
    names: list[str]
    implied: bool = False

    def hash(self) -> str:
        """The hash of ``graph``, without making it."""
        digests: list[str] = []
        used = set[int]()
        for value, operator, parents in self.entries:
            if operator is None:
                digests.append(digest(str(value)))
                continue
            one = digest_operation(operator, [digests[parent] for parent in parents])
            digests.append(digest(Operator.IF, one) if self.implied else one)
            used.update(parents)
        used.add(self.question)
        return digest(
            digests[self.question], *sorted(d for i, d in enumerate(digests) if i not in used)
        )

    def graph(self) -> Graph:
        """The problem that was drawn."""
        return Graph(map(self._node, self.order), self.names[self.question])

    def _node(self, position: int) -> Node:
        value, operator, positions = self.entries[position]
        parents = tuple([self.names[parent] for parent in positions])
        if operator is not None and self.implied:
            return Node(
                self.names[position],
                value,
                Operator.IF,
                parents,
                (Operator.IF, (operator, *parents)),
            )
        return Node(self.names[position], value, operator, parents)


class Trees(ABC):
    """A tree that the question needs, and small ones that it does not."""

    answers_are_wished: ClassVar[bool]  # whether each problem is drawn to have one certain answer

    def __init__(self, config: PromptBenchConfig) -> None:
        self.config = config
        self.names = node_names(config.name_pool)
        self.operators = [Operator(name) for name in config.operators]

    @abstractmethod
    def wish(self, rng: random.Random, difficulty: DifficultyConfig) -> Wish:
        """Depth and answer of a problem; where answers are wished, those that the depth can have
        are as likely.
        """

    def draft(
        self, rng: random.Random, difficulty: DifficultyConfig, wish: Wish | None = None
    ) -> Draft:
        """One random problem of the given difficulty, whatever set it belongs to.

        Redundant nodes are further small trees, each as a block at a random place between the
        others.
        """
        depth, wished = wish or self.wish(rng, difficulty)
        entries: list[Entry] = []
        while self._grow(rng, depth, entries) != wished and wished is not None:
            entries.clear()
        question = len(entries) - 1
        blocks: list[range] = []
        rest = rng.randint(*difficulty.redundant_nodes)
        while rest > 0:
            start = len(entries)
            self._grow(rng, 2 if rest >= 2 and rng.random() < 0.7 else 1, entries)
            size = len(entries) - start
            if size > rest:
                del entries[start:]
                continue
            blocks.append(range(start, start + size))
            rest -= size
        names = rng.sample(self.names, len(entries))
        order = list(range(question + 1))
        for block in blocks:
            place = rng.randint(0, len(order))
            order[place:place] = block
        return Draft(entries, question, order, names)

    @abstractmethod
    def _grow(self, rng: random.Random, depth: int, entries: list[Entry]) -> Any:
        """Append a tree, its root last, and give the root's value."""


class Arithmetic(Trees):
    """Trees of operators over small numbers; every |value| within the limit."""

    answers_are_wished = False

    def __init__(self, config: PromptBenchConfig) -> None:
        super().__init__(config)
        self.constants = range(config.constants[0], config.constants[1] + 1)
        self.limit = config.max_abs_value

    def wish(self, rng: random.Random, difficulty: DifficultyConfig) -> Wish:
        """A depth, and any answer."""
        return rng.randint(*difficulty.depth), None

    def _grow(self, rng: random.Random, depth: int, entries: list[Entry]) -> Any:
        if depth == 1:
            constant = rng.choice(self.constants)
            entries.append((constant, None, ()))
            return constant
        start = len(entries)
        a, left = self._grow(rng, depth - 1, entries), len(entries) - 1
        operator = rng.choice(self.operators)
        if operator is Operator.SQUARE and a * a <= self.limit:
            entries.append((a * a, operator, (left,)))
            return a * a
        b, right = self._grow(rng, depth - 1, entries), len(entries) - 1
        value = None if operator is Operator.SQUARE else compute(operator, (a, b))
        if value is None or abs(value) > self.limit:
            allowed = [
                o for o in self.operators if o.arity == 2 and abs(compute(o, (a, b))) <= self.limit
            ]
            if not allowed:  # both sides at the limit and no operator brings them together
                del entries[start:]
                return self._grow(rng, depth, entries)
            operator = rng.choice(allowed)
            value = compute(operator, (a, b))
        entries.append((value, operator, (left, right)))
        return value


class Logic(Trees):
    """Trees of AND, OR and NOT over True and False; in deduction each only implies its node."""

    answers_are_wished = True

    def __init__(self, config: PromptBenchConfig) -> None:
        super().__init__(config)
        pool = node_names(config.name_pool + len(_WORDS))
        self.names = [name for name in pool if name not in _WORDS][: config.name_pool]

    def wish(self, rng: random.Random, difficulty: DifficultyConfig) -> Wish:
        """A depth, and one of the answers that it can have, each as likely."""
        depth = rng.randint(*difficulty.depth)
        return depth, rng.choice(self.reachable(depth))

    def reachable(self, depth: int) -> list[Truth]:
        """The values that the root of a tree of this depth can have."""
        values = {Truth.TRUE, Truth.FALSE}
        for _ in range(depth - 1):
            values = {
                self._gate(o, operands)
                for o in self.operators
                for operands in product(values, repeat=o.arity)
            }
        return sorted(values)

    def draft(
        self, rng: random.Random, difficulty: DifficultyConfig, wish: Wish | None = None
    ) -> Draft:
        """One random problem of the given difficulty, whatever set it belongs to."""
        return replace(
            super().draft(rng, difficulty, wish), implied=self.config.logic == "deductive"
        )

    def _gate(self, operator: Operator, operands: Iterable[Truth]) -> Truth:
        value = compute(operator, operands)
        return compute(Operator.IF, (value,)) if self.config.logic == "deductive" else value

    def _grow(self, rng: random.Random, depth: int, entries: list[Entry]) -> Truth:
        if depth == 1:
            value = rng.choice((Truth.TRUE, Truth.FALSE))
            entries.append((value, None, ()))
            return value
        operator = rng.choice(self.operators)
        values, positions = [], []
        for _ in range(operator.arity):
            values.append(self._grow(rng, depth - 1, entries))
            positions.append(len(entries) - 1)
        value = self._gate(operator, values)
        entries.append((value, operator, tuple(positions)))
        return value


class Abduction(Logic):
    """Rules as in deduction, with the root's value given: values follow downwards, and a leaf is
    asked for.

    Whatever the question does not need is redundant, so a tree's other branches are, too;
    ``redundant_nodes`` are further ones, below leaves.
    """

    def reachable(self, depth: int) -> list[Truth]:
        """The values that a leaf this deep can have."""
        values = {Truth.TRUE, Truth.FALSE}
        for _ in range(depth - 1):
            values = {
                compute(CAUSES[operator], (value,))
                for operator in self.operators
                for value in values
            }
        return sorted(values)

    def draft(
        self, rng: random.Random, difficulty: DifficultyConfig, wish: Wish | None = None
    ) -> Draft:
        """One random problem of the given difficulty, whatever set it belongs to."""
        depth, wished = wish or self.wish(rng, difficulty)
        asked: list[int] = []
        while not asked:
            entries: list[Entry] = [
                (Truth.TRUE if rng.random() < _TRUE_ROOTS else Truth.FALSE, None, ())
            ]
            rules, level = [[0]], [0]  # the root; then what each rule has as premises, by levels
            for _ in range(depth - 1):
                rules.extend(
                    self._premises(rng.choice(self.operators), parent, entries) for parent in level
                )
                level = [position for rule in rules[-len(level) :] for position in rule]
            asked = [position for position in level if entries[position][0] is wished]
        question, leaves = rng.choice(asked), level
        rest = rng.randint(*difficulty.redundant_nodes)
        while rest > 0:
            operator = rng.choice(self.operators)
            if operator.arity <= rest:
                parent = leaves.pop(rng.randrange(len(leaves)))
                premises = self._premises(operator, parent, entries)
                above = next(i for i, rule in enumerate(rules) if parent in rule)
                rules.insert(rng.randint(above + 1, len(rules)), premises)
                leaves.extend(premises)
                rest -= len(premises)
        order = [position for rule in rules for position in rule]
        return Draft(entries, question, order, rng.sample(self.names, len(entries)))

    def _premises(self, operator: Operator, conclusion: int, entries: list[Entry]) -> list[int]:
        """Append the facts of a new rule, and give their positions."""
        cause, start = CAUSES[operator], len(entries)
        value = compute(cause, (entries[conclusion][0],))
        entries.extend((value, cause, (conclusion,)) for _ in range(operator.arity))
        return list(range(start, len(entries)))
