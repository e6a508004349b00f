"""Who computes: names, the environment, contexts, and the words of explain."""

import os
import subprocess
import sys
import threading
from dataclasses import replace
from importlib.util import find_spec
from itertools import product

import pytest
import torch

from convpool import conv_relu_max_pool2d, explain, planning, registry, use_backend
from convpool.gpu import backend as gpu_backend
from convpool.protocol import ORDINARY, Plan, Use
from convpool.testing.cases import by_name
from tests.convpool.own_backend import own_backend

X, WEIGHT = torch.randn(1, 1, 8, 8), torch.randn(2, 1, 3, 3)


def test_a_named_backend_is_explained() -> None:
    with use_backend("reference"):
        plan = explain(X, WEIGHT)
        assert (plan.backend, plan.plan) == ("reference", "reference")
        assert "one byte" in str(plan)
        with use_backend("auto"):
            assert explain(X, WEIGHT).backend != "reference"
    assert planning.requested_backend() == "auto"


def test_torch_and_single_plans_can_be_named() -> None:
    x, w = X.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    found = {}
    for name in ("cpu/fused", "cpu/split", "torch/plain", "torch/channels_last"):
        with use_backend(name):
            assert explain(x, w).call == name
            y = conv_relu_max_pool2d(x, w)
            found[name] = y.detach(), *torch.autograd.grad(y, (x, w), torch.ones_like(y))
    for each in found.values():
        torch.testing.assert_close(each, found["torch/plain"])
    with use_backend("torch"):
        assert explain(x, w).is_torch
    with use_backend("torch"), pytest.warns(torch.jit.TracerWarning):  # what no backend serves is torch's anyway
        torch.jit.trace(lambda x: conv_relu_max_pool2d(x, WEIGHT), X)


def test_a_plan_that_a_backend_has_not_is_refused() -> None:
    with use_backend("cpu/other"), pytest.raises(RuntimeError, match=r"'cpu/other' .* its plans .* fused, split"):
        explain(X, WEIGHT)
    with use_backend("torch/split"), pytest.raises(RuntimeError, match="plain, channels_last"):
        explain(X, WEIGHT)
    with own_backend(), use_backend("own/wide"), pytest.raises(RuntimeError, match="are narrow"):
        explain(X, WEIGHT)
    for name in ("cpu/", "/split", "other/split"):
        with pytest.raises(ValueError, match="must be one of auto, auto-replayed, torch, cpu"), use_backend(name):
            pass


def test_all_plans_of_a_call() -> None:
    geometry, here = by_name("cnn-1").geometry, torch.device("cpu")
    torchs = ["torch/plain", "torch/channels_last"]
    found = [plan.call for plan in planning.plans(geometry, torch.float32, here, ORDINARY)]
    assert found == [*torchs, "cpu/fused", "cpu/split"]
    with own_backend():
        found = [plan.call for plan in planning.plans(geometry, torch.float32, here, ORDINARY)]
        assert found == [*torchs, "own/wide", "cpu/fused", "cpu/split"]
    assert [plan.call for plan in planning.plans(geometry, torch.float64, here, ORDINARY)] == ["torch/plain"]


def test_what_a_plan_may_hang_on(monkeypatch) -> None:
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)
    assert planning.use_of(X, WEIGHT) == Use(threads=torch.get_num_threads())
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    weight = torch.randn(2, 3, 3, 3).requires_grad_()
    assert planning.use_of(x, weight)[:3] == (True, True, False)
    assert planning.use_of(x.requires_grad_(), weight.detach(), requested="auto-replayed")[:3] == (True, True, True)
    assert planning.use_of(x, weight, requested="auto-replayed").replayed
    with torch.no_grad():
        assert planning.use_of(x, weight)[:3] == (True, False, False)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert planning.use_of(x, weight).repeatable


def test_triton_says_what_it_lacks(monkeypatch) -> None:
    """Named by the environment in a process that has no GPU and does not interpret; then without Triton."""
    code = "import torch, convpool; convpool.conv_relu_max_pool2d(torch.ones(1, 1, 8, 8), torch.ones(1, 1, 3, 3))"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"CONVPOOL_BACKEND": "triton", "CUDA_VISIBLE_DEVICES": ""}
    failed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert failed.returncode == 1
    reason = "Triton is not installed" if find_spec("triton") is None else "no GPU that torch can use"
    assert f"RuntimeError: backend 'triton' cannot serve this call: {reason}" in failed.stderr
    monkeypatch.setattr(gpu_backend, "find_spec", lambda _: None)
    with use_backend("triton"), pytest.raises(RuntimeError, match=r"Triton is not installed .*pip install triton"):
        conv_relu_max_pool2d(torch.ones(1, 1, 7, 8), torch.ones(1, 1, 3, 3))


@pytest.mark.parametrize(
    ("triton", "numpy", "words"),
    [
        ("3.5.1", None, "Triton 3.5.1 is too old, the kernels need 3.6 or newer"),
        ("3.6.0", "2.4.1", "the interpreter of Triton 3.6 needs NumPy < 2.4, this is 2.4.1"),
        ("3.6.0", "2.3.5", None),
        ("3.6.0+git9844da95", None, None),
        ("3.10.0", "2.5.0", None),
    ],
)
def test_an_unfit_triton_is_named(triton, numpy, words) -> None:
    found = gpu_backend._unfit(triton, numpy)
    assert found is None if words is None else words in found


@pytest.fixture
def on_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr(gpu_backend, "INTERPRETED", False)
    monkeypatch.setattr(torch.version, "hip", None)


def gpu_plan(case: str, dtype: torch.dtype = torch.float32, **changes: int) -> Plan:
    geometry = replace(by_name(case).at_full_size(), **changes).geometry
    return gpu_backend.BACKEND.serves(geometry, dtype, torch.device("cuda"))


def test_gpus_multiply_few_products_and_leave_many_to_the_vendor(on_a_gpu) -> None:
    for case, batch in product(("cnn-1", "cnn-2", "lenet5-2"), (1, 1024)):
        assert gpu_plan(case, batch=batch).plan == "fused"
    assert gpu_plan("vgg-1").plan == gpu_plan("vgg-5").plan == "split"
    assert gpu_plan("resnet-stem").plan == "split", "each of its conv outputs would be computed 2.25 times"
    assert gpu_plan("cnn-2", torch.float64).plan == "split"


def test_auto_takes_on_a_gpu_what_pays_for_its_launches(on_a_gpu, monkeypatch) -> None:
    assert gpu_plan("vgg-1", batch=32).profitable
    small = gpu_plan("cnn-2")
    assert not small.profitable
    assert "CUDA graph" in str(small)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert not gpu_plan("vgg-1", batch=32).profitable


@pytest.mark.parametrize(
    ("compiler", "capability", "words"),
    [(None, (9, 0), "C compiler"), ("/usr/bin/gcc", (7, 0), "compute capability 7.0"), ("/usr/bin/gcc", (9, 0), None)],
)
def test_an_unfit_machine_is_named(compiler, capability, words, on_a_gpu, monkeypatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(gpu_backend, "which", lambda _: compiler)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: [(9, 0), capability][i])
    found = gpu_backend._unfit_machine()
    assert found is None if words is None else words in found


def test_the_reference_needs_float64() -> None:
    served = registry.backend("reference").serves(by_name("cnn-1").geometry, torch.float32, torch.device("mps"))
    assert served == "device type 'mps' has no float64"


def test_auto_never_picks_the_reference() -> None:
    assert explain(X, WEIGHT).backend != "reference"
    assert explain(X[0], WEIGHT) == explain(X, WEIGHT)


def test_no_backend_for_a_device() -> None:
    plan = explain(X.to("meta"), WEIGHT.to("meta"))
    assert plan.plan == "plain"
    assert "meta" in plan.reason
    assert not plan.keeps_codes


def test_unprofitable_plans_are_left_to_those_who_ask() -> None:
    with own_backend(profitable=False):
        plan = explain(X.double(), WEIGHT.double())
        assert plan.plan == "plain"
        assert plan.reason.startswith("own: dtype torch.float64 is none of ours; cpu: dtype torch.float64")


def test_what_pays_in_a_graph_alone_is_taken_for_one() -> None:
    with own_backend(profitable=False, profitable_replayed=True):
        for asked, backend in (("auto", "cpu"), ("auto-replayed", "own")):
            with use_backend(asked):
                assert explain(X, WEIGHT).backend == backend


def test_the_environment_names_the_default(monkeypatch) -> None:
    monkeypatch.setattr(planning, "_DEFAULT", "reference")
    assert explain(X, WEIGHT).backend == "reference"
    with use_backend("auto"):
        assert explain(X, WEIGHT).backend != "reference"


def test_the_environment_is_read_and_checked() -> None:
    script = "import torch, convpool; convpool.conv_relu_max_pool2d(torch.ones(1, 1, 8, 8), torch.ones(2, 1, 3, 3))"
    environment = os.environ | {"CONVPOOL_BACKEND": "cuddn"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    allowed = "auto, auto-replayed, torch, cpu, triton, reference"
    assert done.stderr.endswith(f"ValueError: CONVPOOL_BACKEND must be one of {allowed}, got 'cuddn'\n")


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="use_backend must be one of auto"), use_backend("fast"):
        pass


def test_the_choice_belongs_to_the_thread() -> None:
    seen = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(planning.requested_backend()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


def test_wrapper_subclasses_stay_with_torch() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    x = TwoTensor(X.clone(), X.clone())
    assert "TwoTensor" in explain(x, WEIGHT).reason
    with use_backend("reference"), pytest.raises(RuntimeError, match="TwoTensor"):
        conv_relu_max_pool2d(x, WEIGHT)
    y = conv_relu_max_pool2d(x, WEIGHT)
    torch.testing.assert_close(y.a, conv_relu_max_pool2d(X, WEIGHT))


def test_a_plan_reads_as_a_sentence() -> None:
    plan = Plan("torch", "plain", "why", keeps_codes=False)
    assert str(plan) == "torch, plain plan: why (keeps what torch's layers keep)"


def test_import_is_cheap() -> None:
    """`import convpool` brings torch and nothing else of the project's requirements, no backend and no device."""
    code = """
import sys, torch.utils.flop_counter
before = set(sys.modules)
import convpool
new = set(sys.modules) - before
assert not {name.split(".")[0] for name in new} & set(sys.argv[1:]), new
assert not any(name.startswith(("convpool.gpu", "convpool.cpu")) for name in new), new
assert not torch.cuda.is_initialized()
"""
    others = [
        "triton",
        "PIL",
        "matplotlib",
        "tqdm",
        "safetensors",
        "torchmetrics",
        "pooch",
        "mnistfast",
    ]
    subprocess.run([sys.executable, "-c", code, *others], check=True)
