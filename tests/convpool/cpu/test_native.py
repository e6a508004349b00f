"""What only the native backend promises: libraries, the same bits for any number of threads, callers side by side."""

import os
import platform
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from convpool import conv_relu_max_pool2d, explain
from convpool.cpu import native
from convpool.protocol import Plan
from convpool.testing import cases
from convpool.testing.cases import Case
from convpool.testing.parity import Inputs, Layout, make_inputs

HERE = torch.device("cpu")
missing = native.BACKEND.unavailable()
needs_library = pytest.mark.skipif(missing is not None, reason=f"cpu: {missing}")
PER_KERNEL = (
    "cnn-1",
    "cnn-2",
    "lenet5-1",
    "lenet5-2",
    "cifar-1",
    "mixed-1",
    "resnet-stem",
    "dilation-2",
    "products-1568",
)


@pytest.fixture
def threads() -> Iterator[None]:
    """The test may change torch's thread count."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def results(inputs: Inputs) -> list[Tensor]:
    """y, code, dx, dw, db straight from the backend."""
    geometry = inputs.geometry
    plan = native.BACKEND.serves(geometry, torch.float32, HERE)
    assert isinstance(plan, Plan)
    y, code = native.BACKEND.forward(inputs.x, inputs.weight, inputs.bias, geometry, plan.plan, True)
    dy = torch.empty_like(y).copy_(inputs.dy)
    every = native.BACKEND.backward(dy, code, inputs.x, inputs.weight, geometry, plan.plan, (True, True, True))
    first = native.BACKEND.backward(dy, code, inputs.x, inputs.weight, geometry, plan.plan, (False, True, True))
    return [y, code, *every, *first[1:]]


def test_libraries_are_built_where_a_compiler_is() -> None:
    """`optional=True` hides a compile error from the install; it must not hide it from us."""
    if platform.machine() not in ("x86_64", "AMD64") or not shutil.which("g++"):
        pytest.skip("no C++ compiler for x86-64")
    built = list(Path(native.__file__).parent.glob("_avx*.so"))
    assert {path.name.split(".")[0] for path in built} == {"_avx512", "_avx2"}


@needs_library
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("batch", [16, 17])  # a full vector of images, which two threads may leave to another kernel
@pytest.mark.parametrize("name", PER_KERNEL)
def test_thread_count_changes_no_bit(name: str, batch: int, layout: Layout, threads: None) -> None:
    inputs = make_inputs(replace(cases.by_name(name), batch=batch), layout=layout)
    torch.set_num_threads(1)
    expected = results(inputs)
    torch.set_num_threads(2)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(expected, results(inputs), strict=True))


@needs_library
def test_two_python_threads_at_once(threads: None) -> None:
    torch.set_num_threads(2)
    jobs = [make_inputs(cases.by_name(name)) for name in ("cnn-2", "lenet5-2")]
    expected = [results(job) for job in jobs]
    wrong = [0, 0]

    def work(i: int) -> None:
        torch.set_num_threads(2)
        for _ in range(30):
            if not all(torch.equal(a, b) for a, b in zip(expected[i], results(jobs[i]), strict=True)):
                wrong[i] += 1

    workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == [0, 0]


FORCED = """
import sys
from convpool.testing import cases
from convpool.testing.cases import Case
from convpool.cpu import native
from convpool.testing.parity import check, make_inputs
assert "_avx2" in native.library()._name, native.library()
for name in sys.argv[1:]:
    for layout in ("nchw", "channels_last"):
        for integers in (False, True):
            parity = check(make_inputs(cases.by_name(name), layout=layout, integers=integers), "cpu", exact=integers)
            assert parity.ok, (name, layout, integers, str(parity))
"""


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], env=env, capture_output=True, text=True, timeout=120
    )


@needs_library
@pytest.mark.slow
def test_avx2_computes_the_same() -> None:
    result = run(
        FORCED,
        *PER_KERNEL,
        "channels-17-33",
        "pool-overlap",
        "batch-19-padded",
        "batch-33-groups",
        CONVPOOL_CPU_ISA="avx2",
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_unknown_instruction_set_is_named() -> None:
    script = "from convpool.cpu import native; print(native.BACKEND.unavailable())"
    result = run(script, CONVPOOL_CPU_ISA="sse9")
    assert "CONVPOOL_CPU_ISA must be one of avx512, avx2, got 'sse9'" in result.stdout


FORKED = """
import os, torch
from convpool.testing import cases
from convpool.testing.cases import Case
from convpool.testing.parity import check, make_inputs
inputs = make_inputs(cases.by_name("cnn-2"))
torch.set_num_threads(2)
assert check(inputs, "cpu").ok
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    os._exit(0 if check(inputs, "cpu").ok else 1)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.slow
@needs_library
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_computes_with_one_thread() -> None:
    result = run(FORKED)
    assert result.returncode == 0, result.stderr


@needs_library
@pytest.mark.parametrize(
    ("layer", "dx", "reason"),
    [
        (Case("cnn", 128, 1, (28, 28), 32, (3, 3)), False, None),
        (Case("stem", 8, 3, (224, 224), 64, (7, 7), {"stride": 2, "padding": 3}), False, None),
        (Case("dx", 128, 1, (28, 28), 32, (3, 3)), True, "x has a gradient, which takes two dense convolutions more"),
        (Case("small", 4, 1, (28, 28), 32, (3, 3)), False, "with 86528 conv outputs torch's norm takes less time"),
        (Case("deep", 128, 32, (13, 13), 64, (3, 3)), False, "the moments of its patches cost 3.9 convolutions"),
        (Case("one-image", 1, 3, (224, 224), 64, (7, 7), {"stride": 2}), False, "the moments of its patches cost 4."),
        (Case("wide", 8, 256, (28, 28), 64, (3, 3)), False, "patches of 2304 values, more than 1024"),
    ],
    ids=lambda value: str(value) if isinstance(value, Case) else None,
)
def test_batch_statistics_are_served_where_they_pay(layer: Case, dx: bool, reason: str | None) -> None:
    x, weight = (torch.empty(shape, device="cpu") for shape in (layer.x_shape, layer.weight_shape))
    plan = explain(x.requires_grad_(dx), weight, batch_statistics=True, **layer.options)
    assert plan.call == ("torch/plain" if reason else "cpu/fused")
    assert (reason or "") in plan.reason


def test_other_dtypes_are_refused() -> None:
    assert "float32" in str(native.BACKEND.serves(cases.by_name("cnn-1").geometry, torch.float64, HERE))


@needs_library
def test_a_tile_that_is_not_finite_is_computed_directly() -> None:
    """Winograd would give inf - inf to windows beside an infinity; eager gives them numbers."""
    inputs = make_inputs(cases.by_name("cnn-2"))
    needs = (False, False, False)
    assert native.BACKEND.kernels(inputs.x, inputs.weight, inputs.geometry, "fused", needs) == ("forward_winograd",)
    x = inputs.x.clone()
    x[0, 3, 5, 5] = torch.inf
    x[1, 0, 2, 9] = torch.nan
    y = native.BACKEND.forward(x, inputs.weight, inputs.bias, inputs.geometry, "fused", False)[0]
    expected = torch.nn.functional.max_pool2d(torch.nn.functional.conv2d(x, inputs.weight, inputs.bias).relu(), 2)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.isinf(), expected.isinf())
    torch.testing.assert_close(y, expected, equal_nan=True)


GROWTH = """
import random, resource, time
from convpool.testing import cases
from convpool.testing.cases import Case
from convpool.testing.parity import make_inputs
from convpool.autograd import ConvReLUMaxPool2dFunction
from convpool.planning import plan_for
import torch
torch.set_num_threads(2)
layers = [make_inputs(case) for case in cases.CASES if case.batch][:40]
def step(i):
    leaves = [t.detach().requires_grad_() for t in i.tensors]
    call = plan_for(i.x, i.weight, i.settings, "cpu").call
    y = ConvReLUMaxPool2dFunction.apply(*leaves, *[None] * (3 - len(leaves)), i.settings, call)[0]
    torch.autograd.grad(y, leaves, i.dy)
def resident():
    with open("/proc/self/statm") as f: return int(f.read().split()[1]) * resource.getpagesize()
draw = random.Random(0)
def run(seconds):
    end = time.time() + seconds
    while time.time() < end: step(draw.choice(layers))
run(30)
before = resident()
run(180)
print((resident() - before) / 2**20)
"""


@pytest.mark.slow
@needs_library
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_alternating_shapes_do_not_grow_the_process() -> None:
    # Large blocks go back to the system as they are freed, for what glibc keeps of them is no leak of ours.
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command, env = [sys.executable, "-c", GROWTH], os.environ | allocator
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 5  # MB


@needs_library
def test_images_beyond_32_bits_apart(tmp_path: Path) -> None:
    """Images of a memory-mapped video, say: their places among 2**31 elements and more are no 32-bit offsets."""
    apart = 600_000_000
    file = torch.from_file(str(tmp_path / "sparse"), shared=True, size=3 * apart + 16 * 64)  # holes take no room
    torch.manual_seed(0)
    x = file.as_strided((4, 16, 8, 8), (apart, 1, 128, 16)).copy_(torch.randn(4, 16, 8, 8))
    weight, dy = torch.randn(32, 16, 3, 3), torch.randn(4, 32, 3, 3)
    near = x.clone(memory_format=torch.channels_last)
    results = []
    for inputs in (x, near):
        leaves = [inputs.requires_grad_(), weight.requires_grad_()]
        results.append(torch.autograd.grad(conv_relu_max_pool2d(*leaves), leaves, dy))
    for far, expected in zip(*results, strict=True):
        torch.testing.assert_close(far, expected, rtol=1e-5, atol=1e-5)
