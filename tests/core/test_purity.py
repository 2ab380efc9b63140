"""The core does no IO, reads no clock and throws no dice: no module in it imports what could.

import-linter says the same of the modules' top level and of what they import in turn
(``make lint``); this test reads every import statement, also those inside functions, and the
calls that need none.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import nlbfarm.core

CORE = Path(nlbfarm.core.__file__).parent
MODULES = sorted(CORE.rglob("*.py"))

# What a pure core may need, rather than what it must not: a new import is a decision.
ALLOWED = frozenset(
    {
        "__future__",
        "abc",
        "bisect",
        "collections",
        "dataclasses",
        "enum",
        "fractions",
        "functools",
        "hashlib",
        "heapq",
        "hmac",
        "ipaddress",
        "itertools",
        "math",
        "re",
        "operator",
        "struct",
        "types",
        "typing",
    }
)
ALLOWED_OF_OURS = ("nlbfarm.core", "nlbfarm.errors")
FORBIDDEN_CALLS = frozenset(
    {"open", "print", "input", "__import__", "eval", "exec", "breakpoint", "hash", "id"}
)


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield node.lineno, node.module or ""


def is_allowed(name: str) -> bool:
    if name.split(".", maxsplit=1)[0] == "nlbfarm":
        return any(name == ours or name.startswith(f"{ours}.") for ours in ALLOWED_OF_OURS)
    return name.split(".", maxsplit=1)[0] in ALLOWED


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(CORE).as_posix())
def test_imports_nothing_impure(module: Path) -> None:
    tree = ast.parse(module.read_text(encoding="utf-8"), filename=str(module))
    assert [f"line {line}: {name}" for line, name in imports(tree) if not is_allowed(name)] == []


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(CORE).as_posix())
def test_calls_nothing_impure(module: Path) -> None:
    """``hash`` and ``id`` differ from one process to the next; the others are IO or worse."""
    tree = ast.parse(module.read_text(encoding="utf-8"), filename=str(module))
    calls = [
        f"line {node.lineno}: {node.func.id}()"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS
    ]
    assert calls == []


def test_finds_an_import_inside_a_function() -> None:
    tree = ast.parse("def f():\n    import time as t\n    from os.path import join\n")
    assert [name for _, name in imports(tree) if not is_allowed(name)] == ["time", "os.path"]


def test_looks_at_something() -> None:
    assert {"buckets.py", "policy.py", "wire.py"} <= {path.name for path in MODULES}
