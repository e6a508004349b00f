"""The house: imports run one way, files are short, and each folder says what is in it.

A floor imports floors below it, and its own files without a circle; imports within functions count as any others.
"""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {"convpool": ROOT / "kernels/convpool", "mnistfast": ROOT / "mnistfast"}
MOST_LINES = 350

# From the ground up; what stands on one line does not import each other.
FLOORS = {
    "convpool": (
        "geometry torch_private",
        "layout checks protocol cost",
        "eager",
        "torch_ops cpu gpu",
        "registry environment cache",
        "choices",
        "planning",
        "operators known",
        "autograd",
        "functional",
        "module",
        "batchnorm",
        "fusion",
        "testing",
        "tuning",
        "__init__ selfcheck tuning_command",
        "tune",
    ),
    "mnistfast": (
        "__init__ text terminal stop",
        "errors",
        "files",
        "options",
        "ops",
        "data models devices",
        "training",
        "runs report",
        "results",
        "tasks measure",
        "web",
        "training_command",
        "train finetune search evaluate predict export bench demo",
        "__main__",
    ),
}


def modules(package: str) -> dict[str, Path]:
    """The files of a package by the names that they are imported by; "convpool" itself is "convpool.__init__"."""
    folder = SOURCES[package]
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        inner = parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts
        found[".".join((package, *inner))] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules among `known` that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else node.module for name in inner]
        else:
            continue
        for name in names:
            if name in known:
                yield name
            elif f"{name}.__init__" in known:
                yield f"{name}.__init__"


def floor_of(module: str) -> int:
    package, first, *_ = module.split(".")
    found = [level for level, line in enumerate(FLOORS[package]) if first in line.split()]
    assert found, f"{module} stands on no floor: give {first} a place in FLOORS"
    return found[0]


def offences(package: str, known: dict[str, Path]) -> Iterator[str]:
    """In words, each import that runs up or across."""
    for module, path in known.items():
        room, level = module.split(".")[1], floor_of(module)
        for target in imported(path, known):
            if target.split(".")[1] != room and floor_of(target) >= level:
                yield f"{module} imports {target}"


@pytest.mark.parametrize("package", SOURCES)
def test_imports_run_one_way(package: str) -> None:
    known = modules(package)
    assert list(offences(package, known)) == []


@pytest.mark.parametrize("package", SOURCES)
def test_no_file_imports_itself_by_a_detour(package: str) -> None:
    known = modules(package)
    graph = {module: set(imported(path, known)) - {module} for module, path in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_convpool_knows_nothing_of_mnistfast() -> None:
    both = modules("convpool") | modules("mnistfast")
    for path in modules("convpool").values():
        assert not [name for name in imported(path, both) if name.startswith("mnistfast")], path


def test_an_import_up_is_seen(tmp_path: Path) -> None:
    """Planted: one within a function, and a circle of two."""
    up = tmp_path / "errors.py"
    up.write_text("def late():\n    from mnistfast.tasks import run\n    import mnistfast.web.server\n")
    known = modules("mnistfast") | {"mnistfast.errors": up}
    assert [line for line in offences("mnistfast", known) if line.startswith("mnistfast.errors ")] == [
        "mnistfast.errors imports mnistfast.tasks.run",
        "mnistfast.errors imports mnistfast.web.server",
    ]


@pytest.mark.parametrize("package", SOURCES)
def test_no_file_is_long(package: str) -> None:
    lines = {module: len(path.read_text().splitlines()) for module, path in modules(package).items()}
    assert {module: count for module, count in lines.items() if count > MOST_LINES} == {}


FOLDERS = [
    (package, path.parent)
    for package, source in SOURCES.items()
    for path in sorted(source.rglob("__init__.py"))
    if path.parent != source
]


@pytest.mark.parametrize(("package", "folder"), FOLDERS, ids=lambda value: Path(value).name)
def test_a_folder_says_what_it_imports(package: str, folder: Path) -> None:
    """And what is in it; the rooms that its docstring names after "Imports" are those that its files import."""
    known = modules(package)
    words = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    _, _, said = words.rpartition("Imports ")
    targets = {target for path in known.values() if path.parent == folder for target in imported(path, known)}
    rooms = {target.split(".")[1] for target in targets} - {folder.name, "__init__"}
    assert set(re.findall(r"`(\w+)`", said)) == rooms
