"""How the code is laid out: short functions, and one name for each thing."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PRODUCT = [ROOT / "run_profile.py", ROOT / "validation.py", *sorted((ROOT / "llm_profile").rglob("*.py"))]
SCRIPTS = [*sorted((ROOT / "bench").rglob("*.py")), *sorted((ROOT / "constraints").rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))

MOST_LINES = 50
"""Lines of a function's body, its docstring left out. Tables stand outside functions."""

OF_EVERY_COMMAND = {"build_parser", "main", "run"}

TWO_MEANINGS = {
    "FloatArray",  # the same type alias, in two rooms
    "learned_positions",  # by a config.json, and by a model that ran
}
"""Public names that two modules may define."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the first statement behind the docstring to the last."""
    body = function.body[ast.get_docstring(function) is not None :]
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", [*PRODUCT, *SCRIPTS, *TESTS], ids=name_of)
def test_functions_are_short(path: Path) -> None:
    assert not {function.name: lines for function in functions(path) if (lines := lines_of(function)) > MOST_LINES}


def test_the_docstring_does_not_count() -> None:
    (function,) = ast.parse(
        'def f():\n    """One.\n\n    Two.\n    """\n    a = (\n        1\n    )\n\n    return a\n'
    ).body
    assert isinstance(function, ast.FunctionDef) and lines_of(function) == 5


def public_names(path: Path) -> Iterator[str]:
    """What a module defines at its top level for others, imports left out."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
        else:
            names = []
        yield from (name for name in names if not name.startswith("_"))


def test_a_public_name_means_one_thing() -> None:
    defined: dict[str, set[str]] = defaultdict(set)
    for path in PRODUCT:
        for name in public_names(path):
            defined[name].add(name_of(path))
    twice = {name: where for name, where in defined.items() if len(where) > 1}
    assert twice.keys() - OF_EVERY_COMMAND == TWO_MEANINGS, twice
