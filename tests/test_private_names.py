"""No private name of torch or Triton stands outside `convpool.torch_private`."""

import ast
import re
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
FOLDERS = ("kernels", "mnistfast", "benchmarks")
THE_ONE = Path("kernels/convpool/torch_private.py")

LIBRARIES = ("torch", "triton")


def private(name):
    """Dunder names are protocols, which a library asks its users for."""
    return name.startswith("_") and not name.startswith("__")


def torchs_own():
    """The private attributes of what users of torch hold in their hands, as this torch has them."""
    held = [getattr(nn, name) for name in dir(nn) if isinstance(getattr(nn, name), type)]
    held += [nn.Module(), nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), Tensor, torch.Size, torch.dtype, torch.device]
    held += [torch.autograd.Function, torch.autograd.function.FunctionCtx, torch.optim.Optimizer, torch.fx.Graph]
    return {name for each in held for name in dir(each) if private(name)}


TORCHS = torchs_own()


class Finder(ast.NodeVisitor):
    """Collects (line, name) of private names in one file, whose own attributes are `own`."""

    def __init__(self, tree):
        self.found = []
        self.aliases = {}  # local name: the module or object of a library that it stands for
        self.own = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value)
        } | {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        self.own -= TORCHS
        self.visit(tree)

    def note(self, node, name):
        self.found.append((node.lineno, name))

    def visit_Import(self, node):
        for alias in node.names:
            if alias.name.split(".")[0] in LIBRARIES:
                self.aliases[alias.asname or alias.name.split(".")[0]] = alias.name
                if any(map(private, alias.name.split("."))):
                    self.note(node, alias.name)

    def visit_ImportFrom(self, node):
        if node.level == 0 and node.module.split(".")[0] in LIBRARIES:
            for alias in node.names:
                path = f"{node.module}.{alias.name}"
                self.aliases[alias.asname or alias.name] = path
                if any(map(private, path.split("."))):
                    self.note(node, path)

    def visit_Attribute(self, node):
        if private(node.attr) and (self.of_library(node.value) or node.attr in TORCHS):
            self.note(node, node.attr)
        self.generic_visit(node)

    def visit_Call(self, node):
        if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr", "setattr", "delattr"):
            target, name = node.args[:2]
            if isinstance(name, ast.Constant) and any(
                private(part) and (self.of_library(target) or part in TORCHS) for part in str(name.value).split(".")
            ):
                self.note(node, name.value)
        self.generic_visit(node)

    def visit_Constant(self, node):
        if isinstance(node.value, str) and (node.value in TORCHS or re.fullmatch(PATH, node.value)):
            self.note(node, node.value)

    def of_library(self, node):
        """Whether the expression begins with a library's name: `F.conv2d(x).grad_fn` does."""
        while not isinstance(node, ast.Name):
            node = getattr(node, "value", None) or getattr(node, "func", None)
            if node is None:
                return False
        return node.id in self.aliases


PATH = rf"(?:{'|'.join(LIBRARIES)})(?:\.\w+)*\._[a-z]\w*(?:\.\w+)*"


def is_self(node):
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def private_names(source):
    return Finder(ast.parse(source)).found


def test_none_elsewhere():
    found = {}
    for path in sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")):
        names = private_names(path.read_text())
        if names and path.relative_to(ROOT) != THE_ONE:
            found[str(path.relative_to(ROOT))] = names
    assert found == {}
