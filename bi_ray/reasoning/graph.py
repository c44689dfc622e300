"""A problem as a directed acyclic graph of quantities.

Nodes are quantities, edges are dependencies, and a right chain of thought is a topological order of the
nodes that the question needs (section 3 of arXiv:2505.18917).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum


class Operator(StrEnum):
    """What turns the values of the parents into the value of a node."""

    ADD = "add"
    SUBTRACT = "subtract"
    MULTIPLY = "multiply"
    SQUARE = "square"

    @property
    def arity(self) -> int:
        """Number of parents that the operator takes."""
        return 1 if self is Operator.SQUARE else 2

    @property
    def commutes(self) -> bool:
        """Whether the order of the parents is of no consequence."""
        return self in (Operator.ADD, Operator.MULTIPLY)


_COMPUTE: dict[Operator, Callable[..., int]] = {
    Operator.ADD: lambda a, b: a + b,
    Operator.SUBTRACT: lambda a, b: a - b,
    Operator.MULTIPLY: lambda a, b: a * b,
    Operator.SQUARE: lambda a: a * a,
}


def compute(operator: Operator, operands: Iterable[int]) -> int:
    """Value of ``operator`` on ``operands``, in the order of the node's parents."""
    return _COMPUTE[operator](*operands)


class NodeState(StrEnum):
    """Where a node stands, given what has been solved (section 3 of arXiv:2505.18917)."""

    SOLVED = "solved"
    UNLOCKED = "unlocked"  # every parent is solved: it can be computed now
    LOCKED = "locked"  # a parent is missing


@dataclass(frozen=True, slots=True)
class Node:
    """One quantity. A constant has no operator and no parents."""

    name: str
    value: int
    operator: Operator | None = None
    parents: tuple[str, ...] = ()


class Graph:
    """An acyclic set of nodes in a topological order, and the node that the question asks for.

    Args:
        nodes: every node after all its parents.
        question: name of the node whose value is asked for.

    Raises:
        ValueError: a parent comes later or is absent, a name occurs twice, an operator has the wrong number of
            parents, a value is not what its operator gives, or the question names no node.
    """

    def __init__(self, nodes: Iterable[Node], question: str) -> None:
        self.nodes: dict[str, Node] = {}
        for node in nodes:
            self._add(node)
        if question not in self.nodes:
            raise ValueError(f"the question asks for {question!r}, which is no node of the graph")
        self.question = question
        self.needed = self._ancestors(question)

    def _add(self, node: Node) -> None:
        if node.name in self.nodes:
            raise ValueError(f"node {node.name!r} is defined twice")
        missing = [parent for parent in node.parents if parent not in self.nodes]
        if missing:
            raise ValueError(f"node {node.name!r} needs {missing}, absent or later: not a topological order")
        if len(node.parents) != (node.operator.arity if node.operator else 0):
            raise ValueError(f"node {node.name!r}: {node.operator} does not take {len(node.parents)} parents")
        if node.operator:
            value = compute(node.operator, (self.nodes[p].value for p in node.parents))
            if value != node.value:
                raise ValueError(f"node {node.name!r} is given as {node.value}, but its parents give {value}")
        self.nodes[node.name] = node

    def _ancestors(self, name: str) -> frozenset[str]:
        found: set[str] = set()
        stack = [name]
        while stack:
            current = stack.pop()
            if current not in found:
                found.add(current)
                stack.extend(self.nodes[current].parents)
        return frozenset(found)

    @property
    def answer(self) -> int:
        """Value of the node that the question asks for."""
        return self.nodes[self.question].value

    @property
    def needed_order(self) -> list[str]:
        """The needed nodes in the graph's own topological order; the question comes last."""
        return [name for name in self.nodes if name in self.needed]

    def missing_parents(self, name: str, solved: Iterable[str]) -> list[str]:
        """Parents of ``name`` that are not in ``solved``, in the order of the node's parents."""
        have = set(solved)
        return [parent for parent in dict.fromkeys(self.nodes[name].parents) if parent not in have]

    def state(self, name: str, solved: Iterable[str]) -> NodeState:
        """Whether ``name`` is solved, unlocked or locked once ``solved`` is known."""
        have = set(solved)
        if name in have:
            return NodeState.SOLVED
        return NodeState.LOCKED if self.missing_parents(name, have) else NodeState.UNLOCKED

    def hash(self) -> str:
        """Canonical hash of structure, operators and constants, without names (64 bits, hexadecimal).

        Operands of a commutative operator are sorted, so that two problems that differ by such a swap count as one;
        redundant parts are hashed as an unordered collection of what no other node uses.
        """
        digests: dict[str, str] = {}
        for node in self.nodes.values():
            operands = [digests[parent] for parent in node.parents]
            if node.operator and node.operator.commutes:
                operands.sort()
            content = "|".join([node.operator or str(node.value), *operands])
            digests[node.name] = hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
        used = {parent for node in self.nodes.values() for parent in node.parents}
        rest = sorted(digests[name] for name in self.nodes if name not in used and name != self.question)
        return hashlib.blake2b("|".join([digests[self.question], *rest]).encode(), digest_size=8).hexdigest()

    def to_json(self) -> str:
        """The graph as one line of JSON; ``from_json`` reads it back."""
        return json.dumps({"question": self.question, "nodes": [asdict(node) for node in self.nodes.values()]})

    @classmethod
    def from_json(cls, text: str) -> Graph:
        """Read what ``to_json`` wrote, checking it as the constructor does."""
        content = json.loads(text)
        nodes = (
            Node(
                name=row["name"],
                value=row["value"],
                operator=Operator(row["operator"]) if row["operator"] else None,
                parents=tuple(row["parents"]),
            )
            for row in content["nodes"]
        )
        return cls(nodes, content["question"])
