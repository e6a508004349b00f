"""The Triton kernels beyond the shared oracle tests: addresses, large offsets, what is called, any geometry."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from convpool import cases, parity, planning
from convpool.autograd import ConvReLUMaxPool2dFunction
from convpool.gpu import backend as gpu_backend

if not gpu_backend.INTERPRETED:
    pytest.skip("looks into Triton's interpreter, which this process does not run", allow_module_level=True)

from triton.runtime import interpreter

from convpool.gpu import launch


@contextmanager
def guarded() -> Iterator[None]:
    """Every address that a kernel reads or writes must lie in the storage of one of its arguments."""
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, initialise = builder.create_masked_load, builder.create_masked_store, executor._init_args_hst
    storages: list[tuple[int, int]] = []

    def arguments(self: Any, args: Any, kwargs: Any) -> Any:
        on_host = initialise(self, args, kwargs)
        tensors = [t for t in (*on_host[0], *on_host[1].values()) if hasattr(t, "data_ptr")]
        starts = [(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) for t in tensors]
        storages[:] = sorted({(start, start + size) for start, size in starts})
        return on_host

    def check(pointer: Any, mask: Any) -> None:
        size = max(pointer.get_element_ty().primitive_bitwidth // 8, 1)
        at = pointer.data[np.broadcast_to(mask.data, pointer.data.shape).astype(bool)].astype(np.int64)
        inside = np.zeros(at.shape, bool)
        for start, end in storages:
            inside |= (at >= start) & (at + size <= end)
        if not inside.all():
            raise IndexError(f"{(~inside).sum()} of {at.size} addresses out of bounds")

    def checked_load(self: Any, pointer: Any, mask: Any, *rest: Any) -> Any:
        check(pointer, mask)
        return load(self, pointer, mask, *rest)

    def checked_store(self: Any, pointer: Any, value: Any, mask: Any, *rest: Any) -> Any:
        check(pointer, mask)
        return store(self, pointer, value, mask, *rest)

    builder.create_masked_load, builder.create_masked_store = checked_load, checked_store
    executor._init_args_hst = arguments
    try:
        yield
    finally:
        builder.create_masked_load, builder.create_masked_store, executor._init_args_hst = load, store, initialise


def run(inputs: parity.Inputs) -> list[torch.Tensor]:
    x, weight = inputs.x.requires_grad_(), inputs.weight.requires_grad_()
    y, code = ConvReLUMaxPool2dFunction.apply(x, weight, inputs.bias, inputs.settings, "triton")
    return [y, code, *torch.autograd.grad(y, (x, weight), inputs.dy)]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["channels-5-7", "pool-overlap-padded", "ceil-padded"])
def test_addresses_stay_inside(name: str) -> None:
    inputs = parity.make_inputs(cases.by_name(name))
    with guarded():
        run(inputs)


def test_the_guard_sees_one_step_too_far(monkeypatch) -> None:
    inputs = parity.make_inputs(cases.by_name("batch-1"))
    monkeypatch.setattr(launch, "_reads_inside", lambda geometry: True)
    padded = inputs.settings._replace(padding=(1, 1, 1, 1))
    with guarded(), pytest.raises(Exception, match="out of bounds"):
        run(parity.Inputs(inputs.x, inputs.weight, inputs.bias, torch.ones(1, 4, 4, 4), padded))


@pytest.mark.parametrize("name", ["cnn-2", "depthwise"])
def test_pool_and_expand_serve_the_split_plan(name: str) -> None:
    case = cases.by_name(name)
    inputs = parity.make_inputs(case)
    g = case.geometry
    plan = planning.backend("triton").serves(g, torch.float32, torch.device("cpu"))
    assert plan.plan == "fused"
    split = type(plan)("triton", "split", "", "")
    y, code = launch.forward(inputs.x, inputs.weight, inputs.bias, g, split, True)
    dx, dw, db = launch.backward(
        inputs.dy, code, inputs.x, inputs.weight, g, split, (True, True, inputs.bias is not None)
    )
    grads = {"dx": dx, "dw": dw} | ({} if inputs.bias is None else {"db": db})
    found = parity.compare(inputs, y, code, grads)
    assert found.ok, found


class Calls(TorchDispatchMode):
    """What torch is asked for: names, and the elements of new tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.new: list[tuple[tuple[int, ...], torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.append(func.__name__)
        if func.__name__.startswith(("empty", "new_empty")):
            self.new.append((tuple(result.shape), result.dtype))
        return result


def test_nothing_waits_for_the_device_and_only_results_are_allocated() -> None:
    inputs = parity.make_inputs(cases.by_name("cnn-2"))
    g = inputs.geometry
    plan = planning.backend("triton").serves(g, torch.float32, torch.device("cpu"))
    launch.forward(inputs.x, inputs.weight, inputs.bias, g, plan, True)
    called: list[str] = []
    with pytest.MonkeyPatch.context() as patch, Calls() as calls:
        for kernel in ("forward_direct", "forward_dot", "weight_grad", "sum_partials", "input_grad"):
            patch.setattr(launch, kernel, _Recorder(called, kernel))
        _, code = launch.forward(inputs.x, inputs.weight, inputs.bias, g, plan, True)
        launch.backward(inputs.dy, code, inputs.x, inputs.weight, g, plan, (True, True, True))
    assert called == ["forward_dot", "weight_grad", "sum_partials", "input_grad"]
    assert all(name.startswith(("empty", "new_empty", "view", "detach")) for name in calls.names), calls.names
    shapes = [shape for shape, _ in calls.new if shape != (0,)]
    assert shapes[:2] == [g.output_shape, g.output_shape]
    assert sorted(shapes[2:5]) == sorted([g.x_shape, g.weight_shape, (g.out_channels,)])
    columns = shapes[5][1]
    assert len(shapes) == 6
    assert columns == inputs.weight.numel() + g.out_channels


class _Recorder:
    def __init__(self, called: list[str], name: str) -> None:
        self.called, self.name = called, name

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *_, **__: self.called.append(self.name)


def test_offsets_beyond_32_bits() -> None:
    """Two images 2^31 elements apart touch two pages of a large virtual allocation."""
    dense = parity.make_inputs(cases.by_name("batch-1"))
    x = torch.empty_strided((2, 3, 9, 9), ((1 << 31) + 5, 81, 9, 1), dtype=torch.float16)
    assert x.stride(0) > 1 << 31
    x.copy_(torch.randn(2, 3, 9, 9))
    weight = dense.weight.half()
    near, far = (
        ConvReLUMaxPool2dFunction.apply(t, weight, dense.bias.half(), dense.settings, "triton")[0]
        for t in (x.contiguous(), x)
    )
    assert torch.equal(near, far)


axis = st.tuples(
    st.integers(1, 3), st.integers(1, 2), st.integers(0, 1), st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)
)


@pytest.mark.exhaustive
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    rows=axis,
    columns=axis,
    groups=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    ceil=st.booleans(),
)
def test_any_geometry(rows, columns, groups, channels, ceil) -> None:
    kernel, stride, padding, dilation, pool, pool_stride = zip(rows, columns, strict=True)
    size = tuple((k - 1) * d + 1 + 7 for k, d in zip(kernel, dilation, strict=True))
    options = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "pool_kernel_size": pool,
        "pool_stride": pool_stride,
        "ceil_mode": ceil,
    }
    case = cases.Case("drawn", 2, channels[0] * groups, size, channels[1] * groups, kernel, options)
    with guarded():
        found = parity.check(parity.make_inputs(case, integers=True), "triton", exact=True)
    assert found.ok, (case, found)
