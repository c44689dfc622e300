"""A problem as a directed acyclic graph of quantities.

Nodes are quantities, edges are dependencies, and a right chain of thought is a topological order of
the nodes that the question needs (section 3 of arXiv:2505.18917).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from typing import Any

from bi_ray.reasoning.expression import (
    Expression,
    Operator,
    Truth,
    Value,
    compute,
    evaluate,
    from_json,
    names_in,
    to_json,
)

__all__ = ["Graph", "Node", "NodeState", "Operator", "compute"]


class NodeState(StrEnum):
    """Where a node stands, given what has been solved (section 3 of arXiv:2505.18917)."""

    SOLVED = "solved"
    UNLOCKED = "unlocked"  # every parent is solved: it can be computed now
    LOCKED = "locked"  # a parent is missing


@dataclass(frozen=True, slots=True)
class Node:
    """One quantity. A given one has no operator and no parents.

    Attributes:
        name: what it is called.
        value: what it is.
        operator: of its parents, in their order; the outermost one where an expression says more.
        parents: the quantities that it is computed from.
        expression: how, where that is more than one operator on the parents: nested, or with
            numbers of its own.
    """

    name: str
    value: Value
    operator: Operator | None = None
    parents: tuple[str, ...] = ()
    expression: Expression | None = None

    @classmethod
    def of(cls, name: str, expression: Expression, values: Mapping[str, Value]) -> Node:
        """The node that an expression over known values makes; a bare value is given, a bare name
        the same as it.

        Raises:
            KeyError, TypeError, ZeroDivisionError: the expression has no value.
        """
        value = evaluate(expression, values)
        if type(expression) is str:
            return cls(name, value, Operator.SAME, (expression,))
        if not isinstance(expression, tuple):
            return cls(name, value)
        if all(type(operand) is str for operand in expression[1:]):
            return cls(name, value, expression[0], expression[1:])
        return cls(name, value, expression[0], names_in(expression), expression)

    @property
    def formula(self) -> Expression:
        """The expression that gives the value: its own, the operator on the parents, or the value
        itself.
        """
        if self.expression is not None:
            return self.expression
        return (self.operator, *self.parents) if self.operator else self.value


class Graph:
    """An acyclic set of nodes in a topological order, and the node that the question asks for.

    Attributes:
        nodes, values: every node, and its value, by its name.
        question: name of the node that is asked for.
        needed: the nodes that its value depends on, itself among them.

    Args:
        nodes: every node after all its parents.
        question: name of the node whose value is asked for.

    Raises:
        ValueError: a parent comes later or is absent, a name occurs twice, an operator has the
            wrong number of parents, a value is not what its operator gives, or the question names
            no node.
    """

    def __init__(self, nodes: Iterable[Node], question: str) -> None:
        self.nodes: dict[str, Node] = {}
        self.values: dict[str, Value] = {}
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
            raise ValueError(
                f"node {node.name!r} needs {missing}, absent or later: not a topological order"
            )
        self._check_formula(node)
        self.nodes[node.name] = node
        self.values[node.name] = node.value

    def _check_formula(self, node: Node) -> None:
        operator = node.operator
        if node.expression is None:
            count = len(node.parents)
            if count < (least := operator.arity if operator else 0) or (
                count > least and not (operator and operator.takes_more)
            ):
                raise ValueError(f"node {node.name!r}: {operator} does not take {count} parents")
            if operator is None:
                return
        elif names_in(node.expression) != node.parents:
            raise ValueError(
                f"node {node.name!r}: its parents {node.parents} are not those of its expression"
            )
        try:
            if node.expression is None and operator is not None:
                value = compute(operator, [self.values[parent] for parent in node.parents])
            else:
                value = evaluate(node.formula, self.values)
        except (KeyError, TypeError, ZeroDivisionError) as error:
            raise ValueError(f"node {node.name!r}: its parents give no value: {error!r}") from error
        if value != node.value:
            raise ValueError(
                f"node {node.name!r} is given as {node.value}, but its parents give {value}"
            )

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
    def answer(self) -> Value:
        """Value of the node that the question asks for."""
        return self.nodes[self.question].value

    @property
    def needed_order(self) -> list[str]:
        """The needed nodes in the graph's own topological order; the question comes last."""
        return [name for name in self.nodes if name in self.needed]

    def missing_parents(self, name: str, solved: Iterable[str]) -> list[str]:
        """Parents of ``name`` that are not in ``solved``, in the order of the node's parents."""
        parents = self.nodes[name].parents
        if not parents:
            return []
        have = solved if isinstance(solved, _QUICK) else set(solved)
        missing = [parent for parent in parents if parent not in have]
        return list(dict.fromkeys(missing)) if missing else missing

    def state(self, name: str, solved: Iterable[str]) -> NodeState:
        """Whether ``name`` is solved, unlocked or locked once ``solved`` is known."""
        have = solved if isinstance(solved, _QUICK) else set(solved)
        if name in have:
            return NodeState.SOLVED
        return NodeState.LOCKED if self.missing_parents(name, have) else NodeState.UNLOCKED

    def hash(self) -> str:
        """Canonical hash of structure, operators and constants, without names (64 bits,
        hexadecimal).

        Operands of a commutative operator are sorted, so that two problems that differ by such a
        swap count as one; redundant parts are hashed as an unordered collection of what no other
        node uses.
        """
        return formula_hash(
            {node.name: node.formula for node in self.nodes.values()}, self.question
        )

    def to_json(self) -> str:
        """The graph as one line of JSON; ``from_json`` reads it back."""
        return json.dumps(
            {
                "question": self.question,
                "nodes": [_node_to_json(node) for node in self.nodes.values()],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Graph:
        """Read what ``to_json`` wrote, checking it as the constructor does.

        Raises:
            ValueError: it is not the JSON of a graph, whatever else it may be, or not that of one
                that fits together.
        """
        try:
            content = json.loads(text)
            nodes = [_node_from_json(row) for row in content["nodes"]]
            return cls(nodes, content["question"])
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
        except (AttributeError, LookupError, TypeError, OverflowError) as error:
            raise ValueError(f"not the JSON of a graph: {error!r}") from error


_QUICK = (set, frozenset, dict)  # to look something up in


def formula_hash(formulas: Mapping[str, Expression], question: str) -> str:
    """``Graph.hash`` of the graph that these formulas, in a topological order, would make; no graph
    is needed.
    """
    digests: dict[str, str] = {}
    for name, formula in formulas.items():
        digests[name] = digest_formula(formula, digests)
    used = {name for formula in formulas.values() for name in names_in(formula)}
    rest = sorted([digests[name] for name in formulas if name not in used and name != question])
    return digest(digests[question], *rest)


def digest_formula(formula: Expression, digests: Mapping[str, str]) -> str:
    """Of an expression, from those of the names in it."""
    if not isinstance(formula, tuple):
        return digest(str(formula))
    operands = [digests[o] if type(o) is str else digest_formula(o, digests) for o in formula[1:]]
    return digest_operation(formula[0], operands)


def digest_operation(operator: Operator, operands: list[str]) -> str:
    """Of an operator on operands of which the digests are given; their order counts where the
    operator says so.
    """
    return digest(operator, *(sorted(operands) if operator.commutes else operands))


@lru_cache(maxsize=2**16)  # small sub-trees come again and again
def digest(*parts: str) -> str:
    """64 bits of a hash, hexadecimal."""
    return hashlib.blake2b("|".join(parts).encode(), digest_size=8).hexdigest()


def _node_to_json(node: Node) -> dict[str, Any]:
    row = {
        "name": node.name,
        "value": to_json(node.value),
        "operator": node.operator,
        "parents": node.parents,
    }
    return row if node.expression is None else row | {"expression": to_json(node.expression)}


def _node_from_json(row: Mapping[str, Any]) -> Node:
    if not isinstance(row["name"], str):
        raise ValueError(f"the name {row['name']!r:.40} has to be text")
    value, written = from_json(row["value"]), row.get("expression")
    if isinstance(value, bool) or not isinstance(value, int | Fraction | Truth):
        raise ValueError(
            f"node {row['name']!r}: the value {value!r:.40} has to be a whole number, or as `to_json` has it"
        )
    expression = None if written is None else from_json(written)
    if _squares_within(expression) > _MOST_SQUARES:
        raise ValueError(
            f"node {row['name']!r}: its expression nests more than {_MOST_SQUARES} squares"
        )
    return Node(
        name=row["name"],
        value=value,
        operator=Operator(row["operator"]) if row["operator"] else None,
        parents=tuple(row["parents"]),
        expression=expression,
    )


_MOST_SQUARES = 8  # within one another: each doubles the digits, and 40 would fill the memory


def _squares_within(expression: Expression | None) -> int:
    """How many squares are nested in an expression, at most."""
    if not isinstance(expression, tuple):
        return 0
    inner = max(map(_squares_within, expression[1:]), default=0)
    return inner + (expression[0] is Operator.SQUARE)
