"""No private name of torch or Triton stands outside `convpool.torch_private`."""

import ast
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
FOLDERS = ("kernels", "mnistfast", "benchmarks")
THE_ONE = Path("kernels/convpool/torch_private.py")

LIBRARIES = ("torch", "triton")
PATH = re.compile(rf"({'|'.join(LIBRARIES)})(\.\w+)*\._[a-z]\w*(\.\w+)*", re.IGNORECASE)


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
    """Collects the private names in a file, with their lines."""

    def __init__(self):
        self.found = []
        self.of_libraries = set()  # what the file's names for modules and objects of the libraries are

    def note(self, node, name):
        self.found.append((node.lineno, name))

    def visit_Import(self, node):
        for alias in node.names:
            if alias.name.split(".")[0] in LIBRARIES:
                self.of_libraries.add(alias.asname or alias.name.split(".")[0])
                if any(map(private, alias.name.split("."))):
                    self.note(node, alias.name)

    def visit_ImportFrom(self, node):
        if node.level == 0 and node.module.split(".")[0] in LIBRARIES:
            for alias in node.names:
                path = f"{node.module}.{alias.name}"
                self.of_libraries.add(alias.asname or alias.name)
                if any(map(private, path.split("."))):
                    self.note(node, path)

    def visit_Attribute(self, node):
        set_on_another = isinstance(node.ctx, ast.Store) and not is_self(node.value)  # for a library to find there
        if private(node.attr) and (self.of_library(node.value) or node.attr in TORCHS or set_on_another):
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
        if isinstance(node.value, str) and (node.value in TORCHS or PATH.fullmatch(node.value)):
            self.note(node, node.value)

    def of_library(self, node):
        """Whether the expression begins with a library's name: `F.conv2d(x).grad_fn` does."""
        while not isinstance(node, ast.Name):
            node = getattr(node, "value", None) or getattr(node, "func", None)
            if node is None:
                return False
        return node.id in self.of_libraries


def is_self(node):
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def private_names(source):
    finder = Finder()
    finder.visit(ast.parse(source))
    return finder.found


def test_none_elsewhere():
    found = {}
    for path in sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")):
        names = private_names(path.read_text())
        if path.relative_to(ROOT) == THE_ONE:
            assert names  # it is looked for at the right place
        elif names:
            found[str(path.relative_to(ROOT))] = names
    assert found == {}


@pytest.mark.parametrize(
    "planted",
    [
        "import torch\ntorch._C._is_tracing()",
        "import torch._dynamo",
        "import torch as t\nt.nn.modules.module._global_forward_hooks",
        "from torch import _foreach_lerp_",
        "from torch.nn.modules.batchnorm import _BatchNorm as Norm",
        "from torch.utils._pytree import tree_map",
        "from torch.autograd import forward_ad\nif forward_ad._current_level >= 0: pass",
        "from torch import nn\nnn.Conv2d(1, 1, 1)._anything",
        "from torch.nn import functional as F\nclass A(F._Base): pass",
        "def call(layer): return layer._forward_hooks",
        "def call(conv): return conv._conv_forward(1, 2, 3)",
        "class Layer:\n    def f(self): self._modules.clear()",
        "class Op:\n    def f(x): return x._version",
        "def mark(function): function._dynamo_marked_constant = True",
        "import torch\ngetattr(torch, '_C')",
        "import torch\nhasattr(torch.nn, 'modules._x')",
        "def call(layer): return getattr(layer, '_buffers')",
        "TABLES = ('_parameters', '_modules')",
        "ERRORS = ('torch._inductor',)",
        "PATH = 'torch.utils._pytree.tree_map'",
        "from triton.runtime.driver import driver\ndriver._active = None",
        "import triton\ntriton.runtime.jit._triton_jit_function_registry",
        "def late():\n    import triton._C",
    ],
)
def test_each_kind_is_found(planted):
    assert private_names(planted)


@pytest.mark.parametrize(
    "allowed",
    [
        "import torch\ntorch.nn.Module().__dict__",
        "class Mine:\n    def f(self): self._cache = self._own()",
        "class Layer:\n    def __prepare_scriptable__(self): pass",
        "from convpool.torch_private import _found\nother._state.x",
        'def f():\n    """As torch._C does."""',
        "import torch\n_x = torch.ones(2)",
    ],
)
def test_own_names_dunders_and_prose_are_not(allowed):
    assert not private_names(allowed)
