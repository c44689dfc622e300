"""How dense the code is, in figures with limits: `python tools/house.py`, `--worst` lists where to look first.

Decision points are counted as cyclomatic complexity counts them, per ten lines of code without blank lines,
comments and docstrings. Exits with 1 where a figure is over its limit.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = ("bi_ray", "actors", "serve")
LIMITS = {
    "branches per 10 lines": 1.9,
    "nested comprehensions per 1,000 lines": 2.0,
    "lines over 100 characters, %": 1.0,
    "dict[str, Any] per 1,000 lines": 5.0,
    "functions over 60 lines": 0,
    "loose modules in bi_ray": 3,
}
LONGEST_LINE = 100
LONGEST_FUNCTION = 60
SHOWN = 20  # places of a kind with --worst
_DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DECISIONS = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass
class Counts:
    """What was counted over all files, and where."""

    lines: int = 0  # without blank lines and comments
    code: int = 0  # and without docstrings
    branches: int = 0
    long_lines: list[str] = field(default_factory=list)
    nested: list[str] = field(default_factory=list)
    anonymous: list[str] = field(default_factory=list)
    long_functions: list[str] = field(default_factory=list)
    functions: list[tuple[float, str]] = field(default_factory=list)  # branches per 10 lines, place

    def add(self, path: Path) -> None:
        """Count a file."""
        text = path.read_text()
        tree = ast.parse(text)
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            self.lines += 1
            self.code += 1
            if len(line) > LONGEST_LINE:
                self.long_lines.append(f"{path}:{number}")
            self.anonymous += [f"{path}:{number}"] * len(re.findall(r"dict\[str, Any\]", line))
        self.code -= sum(_docstring_lines(tree))
        self.branches += branches(tree)
        for node in ast.walk(tree):
            if isinstance(node, _COMPREHENSIONS) and _is_nested(node):
                self.nested.append(f"{path}:{node.lineno}")
            if isinstance(node, _FUNCTIONS):
                self._add_function(path, node)

    def _add_function(self, path: Path, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        assert node.end_lineno is not None
        length = node.end_lineno - node.lineno + 1
        place = f"{path}:{node.lineno} {node.name}"
        if length > LONGEST_FUNCTION:
            self.long_functions.append(f"{place}, {length} lines")
        if length > 10:
            self.functions.append((10 * branches(node) / length, place))


def _docstring_lines(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, _DEFINITIONS) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            assert docstring.end_lineno is not None
            yield docstring.end_lineno - docstring.lineno + 1


def branches(tree: ast.AST) -> int:
    """Decision points below a node."""
    total = 0
    for node in ast.walk(tree):
        if isinstance(node, (*_DECISIONS, ast.match_case)):
            total += 1
        elif isinstance(node, ast.BoolOp):
            total += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            total += 1 + len(node.ifs)
    return total


def _is_nested(node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> bool:
    """Whether a comprehension has a second loop or another comprehension inside."""
    if len(node.generators) > 1:
        return True
    return any(isinstance(inner, _COMPREHENSIONS) for inner in ast.walk(node) if inner is not node)


def main(root: Path, show_places: bool) -> int:
    """Print the figures; returns how many are over their limit."""
    counts = Counts()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            counts.add(path.relative_to(root))
    loose = sorted(
        path.name for path in (root / "bi_ray").glob("*.py") if path.name != "__init__.py"
    )
    thousands = counts.code / 1000
    figures = {
        "branches per 10 lines": 10 * counts.branches / counts.code,
        "nested comprehensions per 1,000 lines": len(counts.nested) / thousands,
        "lines over 100 characters, %": 100 * len(counts.long_lines) / counts.lines,
        "dict[str, Any] per 1,000 lines": len(counts.anonymous) / thousands,
        "functions over 60 lines": len(counts.long_functions),
        "loose modules in bi_ray": len(loose),
    }
    print(f"{counts.code} lines of code")
    over = 0
    for name, figure in figures.items():
        verdict = ""
        if figure > LIMITS[name]:
            verdict = "  <- too many"
            over += 1
        print(f"{figure:6.2f}  {name} (at most {LIMITS[name]:g}){verdict}")
    if show_places:
        densest = [
            f"{value:.1f} {place}" for value, place in sorted(counts.functions, reverse=True)
        ]
        _show("Densest functions", densest)
        _show("Nested comprehensions", counts.nested)
        _show("Long lines", counts.long_lines)
        _show("dict[str, Any]", counts.anonymous)
        _show("Long functions", counts.long_functions)
        _show("Loose modules", loose)
    return over


def _show(title: str, places: list[str]) -> None:
    print(f"\n{title}:")
    for place in places[:SHOWN]:
        print(f"  {place}")


if __name__ == "__main__":
    here = Path(__file__).resolve().parent.parent
    sys.exit(min(1, main(here, show_places="--worst" in sys.argv)))
