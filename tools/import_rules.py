"""Check which room imports which: `python tools/import_rules.py` prints what breaks the rules.

Imports are read from the syntax tree. Rooms stand on floors and import only from floors below their
own. Besides:
- tasks, learning and readiness do not know each other,
- bi_ray imports neither ray nor vllm, actors nor serve; only bi_ray.cli does, inside its functions,
- nothing imports bi_ray.cli, and bi_ray.config imports no torch.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FLOORS = (  # from the roof to the ground; a room of several modules is a package
    "tests",
    "benchmarks",
    "tools",
    "bi_ray.cli",
    "serve",
    "actors",
    "actors.learners",
    "actors.driver",
    "actors.rollout",
    "actors.weights",
    "actors.environment",
    "actors.logs",
    "bi_ray.report",
    "bi_ray.pretraining",
    "bi_ray.planning",
    "bi_ray.api",
    "bi_ray.learning",
    "bi_ray.readiness",
    "bi_ray.batches",
    "bi_ray.injection",
    "bi_ray.verification",
    "bi_ray.data",
    "bi_ray.tasks",
    "bi_ray.answers",
    "bi_ray.isolation",
    "bi_ray.rows",
    "bi_ray.policy",
    "bi_ray.reasoning",
    "bi_ray.tracking",
    "bi_ray.runs",
    "bi_ray.config",
    "bi_ray.intervals",
    "bi_ray.reward_functions",
    "bi_ray.files",
)
PACKAGES = ("bi_ray", "actors", "serve", "benchmarks")
STRANGERS = ("bi_ray.tasks", "bi_ray.learning", "bi_ray.readiness")
CLUSTER = ("ray", "vllm", "actors", "serve")
CLI = "bi_ray.cli"


class Import(NamedTuple):
    """One imported module.

    Attributes:
        module: dotted name; of `from a import b`, both readings are listed: `a` and `a.b`.
        line: line number.
        late: the statement is inside a function, or for type checkers alone.
    """

    module: str
    line: int
    late: bool


def imports_of(path: Path, package: str) -> list[Import]:
    """Every import of a file, those inside functions too; relative ones start from ``package``."""
    return list(_walk(ast.parse(path.read_text()), package, late=False))


def _walk(node: ast.AST, package: str, late: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, late)
        elif isinstance(child, ast.ImportFrom):
            base = _base_of(child, package)
            for alias in child.names:
                yield Import(f"{base}.{alias.name}", child.lineno, late)
        else:
            yield from _walk(child, package, late or _is_late(child))


def _base_of(node: ast.ImportFrom, package: str) -> str:
    """The absolute name of the module that a `from ... import` names."""
    parents: list[str] = []
    if node.level:
        pieces = package.split(".")
        parents = pieces[: len(pieces) - node.level + 1]
    if node.module:
        parents = [*parents, node.module]
    return ".".join(parents)


def _is_late(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))


def room_of(module: str) -> str | None:
    """The room that a module is in, None where it is in none of ``FLOORS``."""
    pieces = module.split(".")
    for length in range(len(pieces), 0, -1):
        name = ".".join(pieces[:length])
        if name in FLOORS:
            return name
    return None


def violations(root: Path) -> list[str]:
    """A line per import that breaks a rule."""
    broken: list[str] = []
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            file = path.relative_to(root)
            for imported in imports_of(path, ".".join(file.parts[:-1])):
                if reason := _broken_rule(file, imported):
                    broken.append(f"{file}:{imported.line}: imports {imported.module}: {reason}")
    return broken + _torch_in_config(root)


def _broken_rule(file: Path, imported: Import) -> str | None:
    module = ".".join(file.with_suffix("").parts)
    if module == "bi_ray.__init__":
        return None  # the package's own face: the Python API, loaded on first use
    room, target = room_of(module), room_of(imported.module)
    if room is None:
        return (
            f"{file} is in none of the rooms of tools/import_rules.py"
            if module.startswith("bi_ray")
            else None
        )
    if file.parts[0] == "bi_ray" and imported.module.split(".")[0] in CLUSTER:
        if room != CLI:
            return "bi_ray runs without a cluster"
        if not imported.late:
            return "bi_ray runs without a cluster: import it inside the command"
    if target is None or target == room:
        return None
    if target == CLI:
        return "nothing imports the command line"
    if room in STRANGERS and target in STRANGERS:
        return f"{room.rpartition('.')[2]} and {target.rpartition('.')[2]} do not know each other"
    if FLOORS.index(target) < FLOORS.index(room):
        return f"arrows point down, from {target} to {room}"
    return None


def _torch_in_config(root: Path) -> list[str]:
    """A line if bi_ray.config imports torch, directly or through other files of this repository."""
    waiting = []
    for path in (root / "bi_ray/config").glob("*.py"):
        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        waiting.append((module, module))
    seen: set[str] = set()
    while waiting:
        module, chain = waiting.pop()
        path = _file_of(root, module)
        if path is None or module in seen:
            continue
        seen.add(module)
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for imported in imports_of(path, package):
            if imported.late:
                continue
            if imported.module.split(".")[0] == "torch":
                return [
                    f"{chain} imports torch: the configuration is read where torch is not installed"
                ]
            pieces = imported.module.split(".")
            for end in range(1, len(pieces) + 1):
                name = ".".join(pieces[:end])
                waiting.append((name, f"{chain} -> {name}"))
    return []


def _file_of(root: Path, module: str) -> Path | None:
    """The file of a module of this repository; None for any other, and for a name in a module."""
    base = root.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


if __name__ == "__main__":
    broken = violations(Path(__file__).parent.parent)
    print("\n".join(broken))
    sys.exit(bool(broken))
