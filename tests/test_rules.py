"""Rules for tests, read off their syntax: none is decided by how fast a machine is, none patches a private name.

Deadlines that end a hang are no assertions: `while not done and time.monotonic() < deadline`, then `assert done`.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
CLOCKS = {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time", "time", "time_ns"}
PATCHES = {"setattr", "setitem", "delattr", "delitem", "patch", "object"}

# File and private name, with the reason why there is no seam in its place.
ALLOWED = {
    ("convpool/test_planning.py", "_DEFAULT"): "CONVPOOL_BACKEND is read when convpool is imported",
}


def _reads_clock(tree: ast.AST, derived: set[str]) -> bool:
    return any(
        (isinstance(node, ast.Attribute) and node.attr in CLOCKS and ast.unparse(node.value) == "time")
        or (isinstance(node, ast.Name) and node.id in derived)
        for node in ast.walk(tree)
    )


def _pairs(node: ast.Assign | ast.AugAssign | ast.AnnAssign) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    """Each target with its value; those of `a, b = c, d` one by one."""
    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield from zip(target.elts, node.value.elts, strict=False)
        else:
            yield target, node.value


def timed_assertions(source: str) -> Iterator[str]:
    """The assertions on what a clock said, directly or by way of a variable of the same function."""
    tree = ast.parse(source)
    for scope in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)] or [tree]:
        derived: set[str] = set()
        assigned = [node for node in ast.walk(scope) if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign)]
        for node in sorted(assigned, key=lambda node: node.lineno):
            for target, value in _pairs(node):
                if value is not None and _reads_clock(value, derived):
                    derived |= {name.id for name in ast.walk(target) if isinstance(name, ast.Name)}
        for node in ast.walk(scope):
            if isinstance(node, ast.Assert) and _reads_clock(node.test, derived):
                yield f"{node.lineno}: {ast.unparse(node)}"


def patched_private_names(source: str) -> Iterator[str]:
    """The private names that monkeypatch or mock replaces: an attribute's, or a part of a dotted path."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in PATCHES:
            for argument in node.args[:2]:
                texts = [
                    n.value for n in ast.walk(argument) if isinstance(n, ast.Constant) and isinstance(n.value, str)
                ]
                texts += [n.attr for n in ast.walk(argument) if isinstance(n, ast.Attribute)]
                for part in (part for text in texts for part in text.split(".")):
                    if part.startswith("_") and not part.startswith("__"):
                        yield part


def scripts(source: str) -> Iterator[str]:
    """The source, and the programs for other processes that stand in it as texts."""
    yield source
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "import " in node.value:
            try:
                ast.parse(node.value)
            except SyntaxError:  # prose, or a part of a program
                continue
            yield node.value


def sources() -> dict[str, str]:
    return {path.relative_to(TESTS).as_posix(): path.read_text() for path in sorted(TESTS.rglob("*.py"))}


def test_no_assertion_on_a_clock() -> None:
    for name, source in sources().items():
        found = [line for text in scripts(source) for line in timed_assertions(text)]
        assert not found, name


def test_no_private_name_is_patched() -> None:
    found = {(name, private) for name, source in sources().items() for private in patched_private_names(source)}
    assert found <= ALLOWED.keys(), found - ALLOWED.keys()
    assert found == ALLOWED.keys(), f"no longer patched, so no longer allowed: {ALLOWED.keys() - found}"


@pytest.mark.parametrize(
    ("body", "caught"),
    [
        ("began = time.monotonic()\n    work()\n    assert time.monotonic() - began < 3", True),
        ("a = time.time()\n    b: float = work() - a\n    assert b < 3", True),
        ("took = time.perf_counter() - 1\n    assert max(took, 2) < 3", True),
        ("until = time.monotonic() + 9\n    while work() and time.monotonic() < until: pass\n    assert work()", False),
        ("until, answer = time.time() + 9, work()\n    assert answer", False),
        ("clock = 3\n    assert clock < 4", False),
    ],
)
def test_the_rule_sees_a_timed_assertion(body: str, caught: bool) -> None:
    assert bool(list(timed_assertions(f"import time\ndef test():\n    {body}\n"))) == caught


@pytest.mark.parametrize(
    ("call", "names"),
    [
        ('monkeypatch.setattr(module, "_x", 1)', ["_x"]),
        ('monkeypatch.setattr("package._module.name", 1)', ["_module"]),
        ('patch.setattr(thing._inner, "name", 1)', ["_inner"]),
        ('monkeypatch.setitem(module._TABLE, "key", 1)', ["_TABLE"]),
        ('mock.patch("package.name._y")', ["_y"]),
        ('monkeypatch.setattr(Run, "__init__", 1)', []),
        ('monkeypatch.setattr(module, "name", _mine)', []),
    ],
)
def test_the_rule_sees_a_patched_private_name(call: str, names: list[str]) -> None:
    assert list(patched_private_names(call)) == names
