"""The floors: imports point down only, and the supervisor needs nothing but the standard library."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ("vfs", "ns", "tasks", "wanixfs")
MODULES = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
SUPERVISOR = ROOT / "tasks/taskd"


def imports(source: str, package: tuple[str, ...]) -> Iterator[str]:
    """Yield the absolute dotted name of every module that `source`, a module of `package`, imports anywhere."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            yield ".".join((*base, *(node.module or "").split("."))).rstrip(".")


def imports_of(path: Path) -> list[str]:
    return list(imports(path.read_text(), path.relative_to(ROOT).parts[:-1]))


def test_imports_are_found_wherever_they_stand() -> None:
    source = "import os.path\nfrom . import a\nfrom ..b import c\ndef f():\n    from ns.table import t\n"
    assert list(imports(source, ("tasks", "taskd"))) == ["os.path", "tasks.taskd", "tasks.b", "ns.table"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_only_its_own_floor_and_those_below(path: Path) -> None:
    floor = FLOORS.index(path.relative_to(ROOT).parts[0])
    above = {name for name in imports_of(path) if name.split(".")[0] in FLOORS[floor + 1 :]}
    assert not above


@pytest.mark.parametrize("path", sorted(SUPERVISOR.rglob("*.py")), ids=lambda path: path.name)
def test_supervisor_imports_only_itself_and_the_standard_library(path: Path) -> None:
    siblings = {module.stem for module in SUPERVISOR.glob("*.py")}
    foreign = {
        name
        for name in imports_of(path)
        if not name.startswith("tasks.taskd")
        and name.split(".")[0] not in siblings
        and name.split(".")[0] not in sys.stdlib_module_names
    }
    assert not foreign
