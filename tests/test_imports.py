"""Imports point down, and what promises to be light is light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "pandas", "pyarrow", "rich", "huggingface_hub", "sklearn"}
"""What costs start-up time: imported where it is used, inside functions."""

COMMANDS = ("run_profile", "validation")
NO_TORCH_IN_DESIGN = {
    f"llm_profile.{name}" for name in ("points", "sweep", "measurement", "store.table", "validation.estimate")
}

ROOMS = (
    *("", "store", "serving", "exporters", "models", "layers", "passes"),
    *("timing", "validation", "prediction", "report", "comparison", "cli", "doctor"),
)
"""Sub-packages of llm_profile, the root first: a module imports from its own room and from earlier ones."""

PRIVATE_TO = {
    "store": {"", "store"},
    "serving": {"", "store", "serving"},
    "exporters": {"", "store", "serving", "exporters"},
    "models": {"", "models"},
    "prediction": {"", "store", "prediction"},
    "report": {"", "store", "timing", "validation", "report"},
    "comparison": {"", "store", "timing", "validation", "report", "comparison"},
}
"""Rooms that know fewer than all earlier ones: storing knows nothing of models, and models nothing of tables."""

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in [*(ROOT / f"{command}.py" for command in COMMANDS), *(ROOT / "llm_profile").rglob("*.py")]
}


def imports_of(path: Path, inside_functions: bool = True) -> Iterator[str]:
    """Every module that a file imports, whether it runs at once or in a function; not those for annotations only."""

    def walk(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.FunctionDef) and not inside_functions:
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ([name for name in submodules if name in MODULES] or [node.module])
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    return walk(ast.parse(path.read_text(encoding="utf-8")))


def house_imports(module: str) -> set[str]:
    return {name for name in imports_of(MODULES[module]) if name in MODULES} - {"llm_profile"}


def says_no_torch() -> set[str]:
    """Modules whose first lines promise that importing them imports no torch."""
    promises = ("Imports no torch", "No torch.", "imports no torch")
    docstrings = {name: ast.get_docstring(ast.parse(path.read_text())) or "" for name, path in MODULES.items()}
    return {name for name, text in docstrings.items() if any(promise in text for promise in promises)}


def test_imports_have_no_circles() -> None:
    graph = {name: house_imports(name) for name in MODULES}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or parts[-1] in ROOMS else ""


def test_imports_point_down() -> None:
    assert {room_of(name) for name in MODULES if name not in COMMANDS} == {*ROOMS}
    for module in MODULES.keys() - {*COMMANDS}:
        room = room_of(module)
        allowed = PRIVATE_TO.get(room, {*ROOMS[: ROOMS.index(room) + 1]})
        up = {used for used in house_imports(module) if room_of(used) not in allowed}
        assert not up, module


def test_the_design_names_light_modules() -> None:
    assert says_no_torch() >= NO_TORCH_IN_DESIGN | {
        "llm_profile.store.journal",
        "llm_profile.cli.planning",
        "llm_profile.models.hub",
    }


@pytest.mark.parametrize("modules", [sorted(says_no_torch()), [*COMMANDS]], ids=["those that say so", "commands"])
def test_light_modules_import_nothing_heavy(modules: list[str]) -> None:
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


def test_light_modules_import_only_light_ones_at_once() -> None:
    """Found by reading, so that a module is named and not only its importer."""
    light = says_no_torch() | {*COMMANDS, "llm_profile", "llm_profile.errors", "llm_profile.timing.provenance"}
    light |= {
        name for name in MODULES if name.startswith("llm_profile.timing.backends") and name in imported_by_commands()
    }
    at_once = {name: set(imports_of(MODULES[name], inside_functions=False)) for name in light}
    assert not {name: found for name, used in at_once.items() if (found := {u.split(".")[0] for u in used} & HEAVY)}


def imported_by_commands() -> set[str]:
    """Modules of the house that a command imports when it starts, directly or not."""
    found: set[str] = set()
    queue = list(COMMANDS)
    while queue:
        name = queue.pop()
        for used in imports_of(MODULES[name], inside_functions=False):
            if used in MODULES and used not in found:
                found.add(used)
                queue.append(used)
    return found


def test_commands_import_the_report_only_where_it_is_written() -> None:
    assert not {name for name in imported_by_commands() if room_of(name) == "report"}


def test_no_model_family_is_named_in_a_condition() -> None:
    """What differs between architectures stands in tables."""
    families = ("llama", "opt", "phi", "mixtral", "qwen", "gemma", "mistral", "gpt")
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.If | ast.IfExp | ast.While):
                words = [
                    c.value for c in ast.walk(node.test) if isinstance(c, ast.Constant) and isinstance(c.value, str)
                ]
                assert not [w for w in words if any(w.lower().startswith(family) for family in families)], name
