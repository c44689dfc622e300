"""Random problems: drafts of trees over positions, which become graphs if they are used.

Most drafts fall into another set than the one that is being made, and the hash that decides it
needs only a draft.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain, product
from typing import Any, ClassVar, TypeAlias

from bi_ray.config.tasks import DifficultyConfig, PromptBenchConfig
from bi_ray.reasoning.expression import Operator, Truth, Value, compute
from bi_ray.reasoning.graph import Graph, Node, digest, digest_operation
from bi_ray.tasks.promptbench.wording import CAUSES, node_names

# a node: its value, its operator, and the positions of the earlier entries that the operator takes;
# a plain tuple for speed
Entry: TypeAlias = "tuple[Value, Operator | None, tuple[int, ...]]"
Wish: TypeAlias = "tuple[int, Value | None]"  # depth and answer, None: any
_WORDS = ("and", "not")  # words of the rules, which cannot be names of facts
# share of abductions with a True root, nearly as rare as upstream: nothing is known below one
_TRUE_ROOTS = 0.1


@dataclass(frozen=True, slots=True)
class Draft:
    """A problem before it is a graph.

    Attributes:
        entries: the nodes, each after its parents.
        question: position of the node that is asked for.
        order: the positions in the order of the graph.
        names: names of the entries.
        implied: whether an operator's value is only a premise that implies the node (deduction).
    """

    entries: list[Entry]
    question: int
    order: list[int]
    names: list[str]
    implied: bool = False

    def hash(self) -> str:
        """The hash of ``graph``, without making it."""
        digests: list[str] = []
        used = {self.question}
        for value, operator, parents in self.entries:
            if operator is None:
                digests.append(digest(str(value)))
                continue
            operation = digest_operation(operator, [digests[parent] for parent in parents])
            if self.implied:
                operation = digest(Operator.IF, operation)
            digests.append(operation)
            used.update(parents)
        unused = [one for position, one in enumerate(digests) if position not in used]
        return digest(digests[self.question], *sorted(unused))

    def graph(self) -> Graph:
        """The problem that was drawn."""
        return Graph(map(self._node, self.order), self.names[self.question])

    def _node(self, position: int) -> Node:
        name = self.names[position]
        value, operator, positions = self.entries[position]
        parents = tuple([self.names[parent] for parent in positions])
        if operator is None or not self.implied:
            return Node(name, value, operator, parents)
        expression = (Operator.IF, (operator, *parents))
        return Node(name, value, Operator.IF, parents, expression)


class Trees(ABC):
    """Draws a tree that the question needs, and small ones that it does not."""

    answers_are_wished: ClassVar[bool]  # whether each problem's answer is chosen before it is drawn

    def __init__(self, config: PromptBenchConfig) -> None:
        self.config = config
        self.names = node_names(config.name_pool)
        self.operators = [Operator(name) for name in config.operators]

    @abstractmethod
    def wish(self, rng: random.Random, difficulty: DifficultyConfig) -> Wish:
        """Depth and answer of a problem; all answers that are possible there are equally likely."""

    def draft(
        self, rng: random.Random, difficulty: DifficultyConfig, wish: Wish | None = None
    ) -> Draft:
        """One random problem of the given difficulty, whatever set it belongs to.

        Redundant nodes are further small trees, each as a block at a random position between the
        others.
        """
        depth, wished = wish or self.wish(rng, difficulty)
        entries: list[Entry] = []
        while self._grow(rng, depth, entries) != wished and wished is not None:
            entries.clear()
        question = len(entries) - 1
        blocks = self._redundant(rng, rng.randint(*difficulty.redundant_nodes), entries)
        names = rng.sample(self.names, len(entries))
        order = list(range(question + 1))
        for block in blocks:
            position = rng.randint(0, len(order))
            order[position:position] = block
        return Draft(entries, question, order, names)

    def _redundant(self, rng: random.Random, count: int, entries: list[Entry]) -> list[range]:
        """Append ``count`` entries in trees of one or two levels; returns the trees' positions."""
        blocks: list[range] = []
        while count > 0:
            start = len(entries)
            depth = 1
            if count >= 2 and rng.random() < 0.7:
                depth = 2
            self._grow(rng, depth, entries)
            size = len(entries) - start
            if size > count:
                del entries[start:]
            else:
                blocks.append(range(start, start + size))
                count -= size
        return blocks

    @abstractmethod
    def _grow(self, rng: random.Random, depth: int, entries: list[Entry]) -> Any:
        """Append a tree, its root last; returns the root's value."""


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
            allowed = self._allowed(a, b)
            if not allowed:
                del entries[start:]
                return self._grow(rng, depth, entries)
            operator = rng.choice(allowed)
            value = compute(operator, (a, b))
        entries.append((value, operator, (left, right)))
        return value

    def _allowed(self, a: int, b: int) -> list[Operator]:
        """The operators whose value on two operands is within the limit."""
        allowed: list[Operator] = []
        for operator in self.operators:
            if operator.arity == 2 and abs(compute(operator, (a, b))) <= self.limit:
                allowed.append(operator)
        return allowed


class Logic(Trees):
    """Trees of AND, OR and NOT over True and False; in deduction these only imply their node."""

    answers_are_wished = True

    def __init__(self, config: PromptBenchConfig) -> None:
        super().__init__(config)
        pool = node_names(config.name_pool + len(_WORDS))
        self.names = [name for name in pool if name not in _WORDS][: config.name_pool]

    def wish(self, rng: random.Random, difficulty: DifficultyConfig) -> Wish:
        """A depth, and one of the answers that it can have; all are equally likely."""
        depth = rng.randint(*difficulty.depth)
        return depth, rng.choice(self.reachable(depth))

    def reachable(self, depth: int) -> list[Truth]:
        """The values that the root of a tree of this depth can have."""
        values = {Truth.TRUE, Truth.FALSE}
        for _ in range(depth - 1):
            above: set[Truth] = set()
            for operator in self.operators:
                for operands in product(values, repeat=operator.arity):
                    above.add(self._gate(operator, operands))
            values = above
        return sorted(values)

    def draft(
        self, rng: random.Random, difficulty: DifficultyConfig, wish: Wish | None = None
    ) -> Draft:
        """One random problem of the given difficulty, whatever set it belongs to."""
        draft = super().draft(rng, difficulty, wish)
        return replace(draft, implied=self.config.logic == "deductive")

    def _gate(self, operator: Operator, operands: Iterable[Truth]) -> Truth:
        value: Truth = compute(operator, operands)
        if self.config.logic == "deductive":
            return compute(Operator.IF, (value,))
        return value

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
    """Rules as in deduction, with the root's value given: a leaf is asked for.

    Values follow downwards. Whatever the question does not need is redundant, other branches of the
    tree included; ``redundant_nodes`` are further ones, below leaves.
    """

    def reachable(self, depth: int) -> list[Truth]:
        """The values that a leaf this deep can have."""
        values = {Truth.TRUE, Truth.FALSE}
        for _ in range(depth - 1):
            below: set[Truth] = set()
            for operator in self.operators:
                for value in values:
                    below.add(compute(CAUSES[operator], (value,)))
            values = below
        return sorted(values)

    def draft(
        self, rng: random.Random, difficulty: DifficultyConfig, wish: Wish | None = None
    ) -> Draft:
        """One random problem of the given difficulty, whatever set it belongs to."""
        depth, wished = wish or self.wish(rng, difficulty)
        candidates: list[int] = []
        while not candidates:
            entries, rules, leaves = self._tree(rng, depth)
            candidates = [leaf for leaf in leaves if entries[leaf][0] is wished]
        question = rng.choice(candidates)
        missing = rng.randint(*difficulty.redundant_nodes)
        while missing > 0:
            operator = rng.choice(self.operators)
            if operator.arity <= missing:
                parent = leaves.pop(rng.randrange(len(leaves)))
                premises = self._premises(operator, parent, entries)
                above = next(i for i, rule in enumerate(rules) if parent in rule)
                rules.insert(rng.randint(above + 1, len(rules)), premises)
                leaves.extend(premises)
                missing -= len(premises)
        order = list(chain.from_iterable(rules))
        return Draft(entries, question, order, rng.sample(self.names, len(entries)))

    def _tree(
        self, rng: random.Random, depth: int
    ) -> tuple[list[Entry], list[list[int]], list[int]]:
        """A tree of rules.

        Returns:
            Its entries; the positions of the root, then of each rule's premises, level by level;
            the positions of the leaves.
        """
        root = Truth.TRUE if rng.random() < _TRUE_ROOTS else Truth.FALSE
        entries: list[Entry] = [(root, None, ())]
        rules, level = [[0]], [0]
        for _ in range(depth - 1):
            next_level: list[int] = []
            for parent in level:
                premises = self._premises(rng.choice(self.operators), parent, entries)
                rules.append(premises)
                next_level.extend(premises)
            level = next_level
        return entries, rules, level

    def _premises(self, operator: Operator, conclusion: int, entries: list[Entry]) -> list[int]:
        """Append the facts of a new rule; returns their positions."""
        cause = CAUSES[operator]
        value = compute(cause, (entries[conclusion][0],))
        start = len(entries)
        entries.extend([(value, cause, (conclusion,))] * operator.arity)
        return list(range(start, len(entries)))
