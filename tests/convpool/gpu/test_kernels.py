"""The Triton kernels beyond the shared oracle tests: addresses, large offsets, what is called, any geometry."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from convpool import conv_relu_max_pool2d, planning
from convpool.geometry import DEAD
from convpool.gpu import backend as gpu_backend
from convpool.testing import cases, parity

if not gpu_backend.INTERPRETED:
    pytest.skip("looks into Triton's interpreter, which this process does not run", allow_module_level=True)
if missing := gpu_backend.BACKEND.unavailable():
    pytest.skip(missing, allow_module_level=True)

from triton.runtime import interpreter

from convpool.gpu import backward_calls, config, forward_calls, launch
from convpool.gpu.prepared import ordinary_launches
from tests.convpool.samples import apply

pytestmark = pytest.mark.triton
FUSED = "fused"


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
    y, code = apply(x, weight, inputs.bias, inputs.settings, "triton")
    return [y, code, *torch.autograd.grad(y, (x, weight), inputs.dy)]


# Small cases that between them launch every kernel in each of its forms: direct, by patches, from flattened taps and by
# channels; padded, strided, dilated; one output channel and several; overlapping windows.
SMALL = ("channels-17-33", "one-channel-each", "batch-1", "one-window", "same-even-dilated", "pool-overlap-padded")


@pytest.mark.parametrize("name", SMALL)
def test_addresses_stay_inside(name: str) -> None:
    inputs = parity.make_inputs(cases.by_name(name))
    with guarded():
        run(inputs)
        split_results(inputs)


def test_the_guard_sees_one_step_too_far(monkeypatch) -> None:
    inputs = parity.make_inputs(cases.by_name("batch-1"))
    for module in (forward_calls, backward_calls):
        monkeypatch.setattr(module, "reads_inside", lambda geometry: True)
    padded = inputs.settings._replace(padding=(1, 1, 1, 1))
    with ordinary_launches(), guarded(), pytest.raises(Exception, match="out of bounds"):
        run(parity.Inputs(inputs.x, inputs.weight, inputs.bias, torch.ones(1, 4, 4, 4), padded))


def split_results(inputs: parity.Inputs) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """y, code and gradients of the split plan, whatever the planner would choose."""
    g, plan = inputs.geometry, "split"
    y, code = launch.forward(inputs.x, inputs.weight, inputs.bias, g, plan, True)
    needs = (True, True, inputs.bias is not None)
    grads = launch.backward(inputs.dy, code, inputs.x, inputs.weight, g, plan, needs)
    return y, code, {name: grad for name, grad, need in zip(("dx", "dw", "db"), grads, needs, strict=True) if need}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "plan", "where"),
    [
        ("one-channel-each", "fused", "x"),
        ("one-channel-each", "fused", "weight"),
        ("batch-1", "fused", "nowhere"),
        ("batch-1", "split", "nowhere"),
        ("pool-overlap-padded", "fused", "nowhere"),
    ],
)
def test_codes_that_name_no_position_are_dead(name: str, plan: str, where: str) -> None:
    """Whatever came back in their place, no address leaves its tensor; an infinity takes the way of single winners."""
    inputs, generator = parity.make_inputs(cases.by_name(name), integers=True), torch.Generator().manual_seed(0)
    if where != "nowhere":
        getattr(inputs, where).view(-1)[0] = torch.inf
    g, window = inputs.geometry, inputs.geometry.window
    codes = torch.randint(0, 256, g.output_shape, generator=generator, dtype=torch.uint8)

    def gradients(codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with guarded():
            return launch.backward(inputs.dy, codes, inputs.x, inputs.weight, g, plan, (True, True, True))

    for ours, dead in zip(gradients(codes), gradients(torch.where(codes < window, codes, DEAD)), strict=True):
        torch.testing.assert_close(ours, dead, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("name", [*SMALL, "depthwise", "pool-dilated-overlap", "ceil-padded", "mixed-3"])
def test_pool_and_expand_serve_the_split_plan(name: str, layout: parity.Layout) -> None:
    for dtype, integers in ((torch.float32, True), (torch.bfloat16, False)):
        inputs = parity.make_inputs(cases.by_name(name), dtype, layout, integers=integers)
        found = parity.check_results(inputs, *split_results(inputs), exact=integers)
        assert found.ok, (dtype, found)


@pytest.mark.parametrize("plan", ["fused", "split"])
def test_the_device_is_asked_under_its_guard(plan, monkeypatch) -> None:
    """Where GPUs differ, the limits are those of the tensors' device, not of the one that happens to be current."""
    current: list[int] = []

    @contextmanager
    def guard(device: int) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    asked = []
    monkeypatch.setattr(torch.cuda, "device", guard)
    monkeypatch.setattr(launch, "is_current", lambda device: device in current)
    for module in (forward_calls, backward_calls):
        monkeypatch.setattr(module, "architecture", lambda: asked.append(current[-1]) or config.INTERPRETER)
    inputs = parity.make_inputs(cases.by_name("one-channel-each"))
    g = inputs.geometry
    with ordinary_launches():
        _, code = launch.forward(inputs.x, inputs.weight, inputs.bias, g, plan, True)
        launch.backward(inputs.dy, code, inputs.x, inputs.weight, g, plan, (True, True, True))
    assert len(asked) >= 2


class Calls(TorchDispatchMode):
    """What torch is asked for: names, and the elements of new tensors that have memory."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.new: list[tuple[tuple[int, ...], torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.append(func.__name__)
        if func.__name__.startswith(("empty", "new_empty")) and result.device.type != "meta":
            self.new.append((tuple(result.shape), result.dtype))
        return result


@pytest.mark.parametrize(
    ("name", "forward"), [("cnn-1", "forward_direct"), ("cnn-2", "forward_patch"), ("lenet5-2", "forward_dot")]
)
def test_nothing_waits_for_the_device_and_only_results_are_allocated(name, forward, monkeypatch) -> None:
    inputs = parity.make_inputs(cases.by_name(name))
    g = inputs.geometry
    with recorded_launches(monkeypatch) as called, Calls() as calls:
        _, code = launch.forward(inputs.x, inputs.weight, inputs.bias, g, FUSED, True)
        launch.backward(inputs.dy, code, inputs.x, inputs.weight, g, FUSED, (True, True, True))
    assert called == [forward, "weight_grad", "sum_partials", "input_grad"]
    assert all(name.startswith(("empty", "new_empty", "view", "detach")) for name in calls.names), calls.names
    shapes = [shape for shape, _ in calls.new if shape != (0,)]
    assert shapes[:2] == [g.output_shape, g.output_shape]
    assert sorted(shapes[2:5]) == sorted([g.x_shape, g.weight_shape, (g.out_channels,)])
    columns = shapes[5][1]
    assert len(shapes) == 6
    assert columns == inputs.weight.numel() + g.out_channels


def test_the_op_reads_nothing_back(monkeypatch) -> None:
    """As above through autograd and autocast: what would wait is a value's copy to the host."""
    inputs = parity.make_inputs(cases.by_name("cnn-1"))
    leaves = [t.requires_grad_() for t in inputs.tensors]
    with (
        recorded_launches(monkeypatch) as called,
        Calls() as calls,
        planning.use_backend("triton"),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        y = conv_relu_max_pool2d(*leaves)
        y.backward(inputs.dy.bfloat16())
    assert y.dtype == torch.bfloat16
    assert called == ["forward_direct", "weight_grad", "sum_partials", "input_grad"]
    assert not [name for name in calls.names if name.startswith(("_local_scalar_dense", "item", "nonzero", "copy_"))]
    assert {name for name in calls.names if name.startswith("_to_copy")} == {"_to_copy.default"}, "autocast's"


@contextmanager
def recorded_launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Inside, kernels are named in the list instead of being run."""
    called: list[str] = []
    for module, kernels in (
        (forward_calls, ("forward_direct", "forward_patch", "forward_dot")),
        (backward_calls, ("weight_grad", "sum_partials", "input_grad")),
    ):
        for kernel in kernels:
            monkeypatch.setattr(module, kernel, _Recorder(called, getattr(module, kernel)))
    with ordinary_launches():
        yield called


class _Recorder:
    def __init__(self, called: list[str], kernel: Any) -> None:
        self.called, self.kernel, self.arg_names = called, kernel, kernel.arg_names

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *_, **__: self.called.append(self.kernel.__name__)


@pytest.mark.parametrize(("name", "channels"), [("batch-1", 3), ("channels-17-33", 17)])
def test_offsets_beyond_32_bits(name, channels) -> None:
    """Two images 2^31 elements apart touch two pages of a large virtual allocation."""
    dense = parity.make_inputs(cases.by_name(name))
    x = torch.empty_strided((2, channels, 9, 9), ((1 << 31) + 5, 81, 9, 1), dtype=torch.float16)
    assert x.stride(0) > 1 << 31
    x.copy_(torch.randn(2, channels, 9, 9))
    weight = dense.weight.half()
    near, far = (apply(t, weight, dense.bias.half(), dense.settings, "triton")[0] for t in (x.contiguous(), x))
    assert torch.equal(near, far)


def sides(least: int, most: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(least, most), st.integers(least, most))


@st.composite
def drawn_cases(draw: st.DrawFn, most: int) -> cases.Case:
    """Any small layer that torch accepts, with kernels, pools and groups up to `most`: time grows with all of them."""
    kernel, pool = draw(sides(1, most)), draw(sides(1, most))
    dilation, pool_dilation = draw(sides(1, 2)), draw(sides(1, 2))
    groups = draw(st.integers(1, most))
    options = {
        "stride": draw(sides(1, 2)),
        "padding": draw(sides(0, 2)),
        "dilation": dilation,
        "groups": groups,
        "pool_kernel_size": pool,
        "pool_stride": draw(sides(1, most)),
        "pool_padding": tuple(draw(st.integers(0, side // 2)) for side in pool),
        "pool_dilation": pool_dilation,
        "ceil_mode": draw(st.booleans()),
    }
    spans = zip(kernel, dilation, pool, pool_dilation, strict=True)
    height, width = (draw(st.integers(1, 6)) + (k - 1) * d + 2 * (p - 1) * e for k, d, p, e in spans)
    batch, inputs, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    bias = draw(st.booleans())
    return cases.Case("drawn", batch, inputs * groups, (height, width), outputs * groups, kernel, options, bias)


def check_drawn(case: cases.Case, dtype: torch.dtype, layout: parity.Layout) -> None:
    integers = dtype.itemsize >= 4  # half types round large integers
    inputs = parity.make_inputs(case, dtype, layout, integers=integers)
    with guarded():
        found = parity.check(inputs, "triton", exact=integers)
    assert found.ok, found


def any_layer(most: int) -> Any:
    return given(
        case=drawn_cases(most),
        dtype=st.sampled_from((torch.float32, torch.float16, torch.bfloat16, torch.float64)),
        layout=st.sampled_from(("nchw", "channels_last")),
    )


unhurried = {  # each example takes a second, so one that fails is not made smaller
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "derandomize": True,
    "phases": (Phase.generate,),
}


@settings(max_examples=2, **unhurried)
@any_layer(most=2)
def test_a_few_geometries(case, dtype, layout) -> None:
    check_drawn(case, dtype, layout)


@pytest.mark.slow
@settings(max_examples=25, **unhurried)
@any_layer(most=3)
def test_any_geometry(case, dtype, layout) -> None:
    check_drawn(case, dtype, layout)
