"""A problem as a directed acyclic graph of quantities.

Nodes are quantities, edges are dependencies, and a right chain of thought is a topological order of
the nodes that the question needs (section 3 of arXiv:2505.18917).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
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
    """State of a node, given the nodes solved so far (section 3 of arXiv:2505.18917)."""

    SOLVED = "solved"
    UNLOCKED = "unlocked"  # every parent is solved: it can be computed now
    LOCKED = "locked"  # a parent is missing


@dataclass(frozen=True, slots=True)
class Node:
    """One quantity. A given one has no operator and no parents.

    Attributes:
        name: its name.
        value: its value.
        operator: the operator on the parents, in their order; with an expression, the outermost.
        parents: the quantities that it is computed from.
        expression: how it is computed, where that takes more than one operator on the parents:
            nested, or with numbers of its own.
    """

    name: str
    value: Value
    operator: Operator | None = None
    parents: tuple[str, ...] = ()
    expression: Expression | None = None

    @classmethod
    def of(cls, name: str, expression: Expression, values: Mapping[str, Value]) -> Node:
        """The node that an expression over known values makes.

        A bare value makes a given node, a bare name one that is the same as another.

        Raises:
            KeyError, TypeError, ZeroDivisionError: the expression has no value.
        """
        value = evaluate(expression, values)
        if type(expression) is str:
            return cls(name, value, Operator.SAME, (expression,))
        if not isinstance(expression, tuple):
            return cls(name, value)
        operator, operands = expression[0], expression[1:]
        if all(type(operand) is str for operand in operands):
            return cls(name, value, operator, operands)
        return cls(name, value, operator, names_in(expression), expression)

    @property
    def formula(self) -> Expression:
        """The expression that gives the value; for a given node the value itself."""
        if self.expression is not None:
            return self.expression
        if self.operator is None:
            return self.value
        return (self.operator, *self.parents)


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
        if node.expression is not None:
            if names_in(node.expression) != node.parents:
                raise ValueError(
                    f"node {node.name!r}: its parents {node.parents} are not those of "
                    "its expression"
                )
        elif not _takes(operator, len(node.parents)):
            raise ValueError(
                f"node {node.name!r}: {operator} does not take {len(node.parents)} parents"
            )
        elif operator is None:
            return
        try:
            if operator is not None and node.expression is None:
                value = compute(operator, map(self.values.__getitem__, node.parents))
            else:
                value = evaluate(node.formula, self.values)
        except (KeyError, TypeError, ZeroDivisionError) as error:
            raise ValueError(f"node {node.name!r}: its parents give no value: {error!r}") from error
        if value != node.value:
            raise ValueError(
                f"node {node.name!r} is given as {node.value}, but its parents give {value}"
            )

    def _ancestors(self, name: str) -> frozenset[str]:
        """The nodes that a node's value depends on, itself among them."""
        ancestors: set[str] = set()
        stack = [name]
        while stack:
            current = stack.pop()
            if current not in ancestors:
                ancestors.add(current)
                stack.extend(self.nodes[current].parents)
        return frozenset(ancestors)

    @property
    def answer(self) -> Value:
        """Value of the node that the question asks for."""
        return self.nodes[self.question].value

    @property
    def needed_order(self) -> list[str]:
        """The needed nodes in the graph's own topological order; the question comes last."""
        return [name for name in self.nodes if name in self.needed]

    def missing_parents(self, name: str, solved: Iterable[str]) -> list[str]:
        """Parents of ``name`` that are not in ``solved``, each once, in the node's order."""
        parents = self.nodes[name].parents
        if not parents:
            return []
        known = _for_lookup(solved)
        missing = [parent for parent in parents if parent not in known]
        if len(missing) > 1:
            return list(dict.fromkeys(missing))
        return missing

    def state(self, name: str, solved: Iterable[str]) -> NodeState:
        """Whether ``name`` is solved, unlocked or locked once ``solved`` is known."""
        known = _for_lookup(solved)
        if name in known:
            return NodeState.SOLVED
        if self.missing_parents(name, known):
            return NodeState.LOCKED
        return NodeState.UNLOCKED

    def hash(self) -> str:
        """Canonical hash of structure, operators and constants, without names (64 bits,
        hexadecimal).

        Operands of a commutative operator are sorted, so that two problems that differ by such a
        swap count as one; redundant parts are hashed as an unordered collection of what no other
        node uses.
        """
        formulas = {node.name: node.formula for node in self.nodes.values()}
        return formula_hash(formulas, self.question)

    def to_json(self) -> str:
        """The graph as one line of JSON; ``from_json`` reads it back."""
        nodes = list(map(_node_to_json, self.nodes.values()))
        return json.dumps({"question": self.question, "nodes": nodes})

    @classmethod
    def from_json(cls, text: str) -> Graph:
        """Read what ``to_json`` wrote, checking it as the constructor does.

        Raises:
            ValueError: the text is not JSON, or not that of a graph that fits together.
        """
        try:
            content = json.loads(text)
            nodes = map(_node_from_json, content["nodes"])
            return cls(list(nodes), content["question"])
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
        except (AttributeError, LookupError, TypeError, OverflowError) as error:
            raise ValueError(f"not the JSON of a graph: {error!r}") from error


def _takes(operator: Operator | None, parents: int) -> bool:
    """Whether an operator takes this number of parents; None, of a given node, takes none."""
    if operator is None:
        return parents == 0
    if operator.takes_more:
        return parents >= operator.arity
    return parents == operator.arity


def _for_lookup(names: Iterable[str]) -> Collection[str]:
    if isinstance(names, (set, frozenset, dict)):
        return names
    return set(names)


def formula_hash(formulas: Mapping[str, Expression], question: str) -> str:
    """``Graph.hash`` of the graph that these formulas would make, without making it.

    Args:
        formulas: by name, in a topological order.
        question: name of the node that is asked for.
    """
    digests: dict[str, str] = {}
    used = {question}
    for name, formula in formulas.items():
        digests[name] = digest_formula(formula, digests)
        used.update(names_in(formula))
    unused = [digests[name] for name in formulas if name not in used]
    return digest(digests[question], *sorted(unused))


def digest_formula(formula: Expression, digests: Mapping[str, str]) -> str:
    """Digest of an expression, given those of the names in it."""
    if not isinstance(formula, tuple):
        return digest(str(formula))
    operands: list[str] = []
    for operand in formula[1:]:
        if type(operand) is str:
            operands.append(digests[operand])
        else:
            operands.append(digest_formula(operand, digests))
    return digest_operation(formula[0], operands)


def digest_operation(operator: Operator, operands: list[str]) -> str:
    """Digest of an operator on operands, given theirs; sorted if the operator commutes."""
    if operator.commutes:
        operands = sorted(operands)
    return digest(operator, *operands)


@lru_cache(maxsize=2**16)  # the same small sub-trees appear again and again
def digest(*parts: str) -> str:
    """A hash of some texts: 64 bits, hexadecimal."""
    return hashlib.blake2b("|".join(parts).encode(), digest_size=8).hexdigest()


def _node_to_json(node: Node) -> dict[str, Any]:
    row = {
        "name": node.name,
        "value": to_json(node.value),
        "operator": node.operator,
        "parents": node.parents,
    }
    if node.expression is not None:
        row["expression"] = to_json(node.expression)
    return row


def _node_from_json(row: Mapping[str, Any]) -> Node:
    name = row["name"]
    if not isinstance(name, str):
        raise ValueError(f"a node's name has to be text, got {name!r:.40}")
    value = from_json(row["value"])
    if isinstance(value, bool) or not isinstance(value, int | Fraction | Truth):
        raise ValueError(
            f"node {name!r}: expected a whole number or a value as `Graph.to_json` writes it, "
            f"got {value!r:.40}"
        )
    expression: Expression | None = None
    if row.get("expression") is not None:
        expression = from_json(row["expression"])
        if _nested_squares(expression) > _MOST_SQUARES:
            raise ValueError(f"node {name!r}: more than {_MOST_SQUARES} squares inside each other")
    operator: Operator | None = None
    if row["operator"]:
        operator = Operator(row["operator"])
    return Node(
        name=name,
        value=value,
        operator=operator,
        parents=tuple(row["parents"]),
        expression=expression,
    )


_MOST_SQUARES = 8  # inside each other: each doubles the digits, and 40 would fill the memory


def _nested_squares(expression: Expression) -> int:
    """The largest number of squares inside each other in an expression."""
    if not isinstance(expression, tuple):
        return 0
    inner = max(map(_nested_squares, expression[1:]), default=0)
    if expression[0] is Operator.SQUARE:
        return inner + 1
    return inner
