"""What `convpool.testing` promises: its names, its example, and that importing it starts nothing."""

import doctest
import inspect
import subprocess
import sys

import convpool.testing


def test_the_example_runs() -> None:
    found = doctest.testmod(convpool.testing)
    assert found.attempted >= 6
    assert found.failed == 0


def test_every_promised_name_is_there_and_says_what_it_is() -> None:
    for name in convpool.testing.__all__:
        promised = getattr(convpool.testing, name)
        if inspect.isclass(promised) or inspect.isfunction(promised):
            assert promised.__doc__, name


def test_importing_it_asks_no_device_and_loads_no_backend() -> None:
    script = """
import sys
import torch.utils.flop_counter  # which may import Triton

before = set(sys.modules)

def asked(*_):
    raise AssertionError("a device was asked")

for name in ("is_available", "device_count", "init", "get_device_properties", "current_device"):
    setattr(torch.cuda, name, asked)
import convpool.testing
assert not torch.cuda.is_initialized()
loaded = [name for name in set(sys.modules) - before if name.startswith(("convpool.cpu", "convpool.gpu", "triton"))]
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_layers_come_without_it() -> None:
    script = "import sys, convpool; sys.exit(any(name.startswith('convpool.testing') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
