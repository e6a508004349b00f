"""The rows of `samples` through `auto` and every backend: values, derivatives, and what must be refused."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from convpool import conv_relu_max_pool2d, explain
from convpool.geometry import DEAD
from convpool.protocol import BAD_CODES
from convpool.testing import parity
from tests.convpool import samples

QUICK_VIEWS = ("contiguous", "channels-last-strides", "slice-of-channels", "misaligned", "one-number")
QUICK_LAYERS = ("winograd", "overlap", "one-column")
LAYERS = {layer.name: layer for layer in samples.LAYERS}
some_layers = pytest.mark.parametrize(
    "name",
    ["direct", "overlap", *(pytest.param(name, marks=pytest.mark.slow) for name in ("images", "winograd", "split"))],
)
each_layer = pytest.mark.parametrize("case", samples.LAYERS, ids=str)


def torchs_layers(x: Tensor, weight: Tensor, bias: Tensor | None, case) -> Tensor:
    """The definition, by torch alone. torch's backward crashes where a window is empty, unless z is padded first."""
    s, g = case.settings, case.geometry
    top, bottom, left, right = s.padding
    z = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, s.stride, 0, s.dilation, s.groups).relu()
    rows, columns = (
        (pooled - 1) * s.pool_stride[i] + (s.pool_kernel[i] - 1) * s.pool_dilation[i] + 1
        for i, pooled in enumerate((g.pooled_height, g.pooled_width))
    )
    above, before = s.pool_padding
    z = F.pad(z, (before, columns - before - g.conv_width, above, rows - above - g.conv_height), value=-torch.inf)
    return F.max_pool2d(z, s.pool_kernel, s.pool_stride, 0, s.pool_dilation)


def op(x: Tensor, weight: Tensor, bias: Tensor | None, case) -> Tensor:
    return conv_relu_max_pool2d(x, weight, bias, **case.options)


def layers_and_views() -> list:
    """All pairs; the quick ones are all layers in a few views and a few layers in all views."""
    return [
        pytest.param(case, view, id=f"{case}-{view}", marks=() if quick else pytest.mark.slow)
        for case in samples.LAYERS
        for view in samples.VIEWS
        for quick in [case.name in QUICK_LAYERS or (view in QUICK_VIEWS and case.name != "one-column-split")]
    ]


def layers_and_codes() -> list:
    """Numbers that are no position of a window, and of a window in the padding the first position, which lies there."""
    return [
        pytest.param(name, code, marks=() if name in ("direct", "overlap") else pytest.mark.slow)
        for name in ("direct", "overlap", "images", "winograd", "split")
        for code in ("window", 17, 254, *(("outside",) if name == "overlap" else ()))
    ]


def leaves_of(inputs: parity.Inputs, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [t.to(dtype, copy=True).requires_grad_() for t in inputs.tensors]


def three(leaves: list[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    return leaves[0], leaves[1], leaves[2] if len(leaves) == 3 else None


def assert_equal(ours: tuple[Tensor, ...], torchs: tuple[Tensor, ...]) -> None:
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=0)


def value_and_gradients(layer, case, inputs: parity.Inputs, dtype: torch.dtype, of_x, of_weight) -> tuple[Tensor, ...]:
    leaves = leaves_of(inputs, dtype)
    x, weight, bias = three(leaves)
    y = layer(of_x(x), of_weight(weight), bias, case)
    return y.detach(), *torch.autograd.grad(y, leaves, inputs.dy.to(dtype))


@pytest.mark.parametrize(("case", "view"), layers_and_views())
def test_values_and_gradients(case, view, requested) -> None:
    """On integers, so to the last bit; x and weight each as the view lies, through which their gradients go back."""
    inputs = parity.make_inputs(case, integers=True)
    changed, kept = samples.VIEWS[view], samples.VIEWS["contiguous"]
    for of_x, of_weight in ((changed, kept), (kept, changed)):
        ours = value_and_gradients(op, case, inputs, torch.float32, of_x, of_weight)
        assert_equal(ours, value_and_gradients(torchs_layers, case, inputs, torch.float64, of_x, of_weight))


@each_layer
def test_second_gradients(case, requested) -> None:
    inputs = parity.make_inputs(case, integers=True)

    def second(layer, dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves, dy = leaves_of(inputs, dtype), inputs.dy.to(dtype).requires_grad_()
        y = layer(*three(leaves), case)
        first = torch.autograd.grad(y, leaves[:2], dy, create_graph=True)
        return torch.autograd.grad(sum((g * (i % 3 - 1)).sum() for i, g in enumerate(first)), [*leaves[:2], dy])

    assert_equal(second(op, torch.float32), second(torchs_layers, torch.float64))


@each_layer
def test_vmap(case, requested) -> None:
    inputs = parity.make_inputs(case, integers=True)
    x = torch.stack([inputs.x, -inputs.x, inputs.x + 1])
    got = torch.vmap(lambda each: op(each, inputs.weight, inputs.bias, case))(x)
    bias = None if inputs.bias is None else inputs.bias.double()
    expected = [torchs_layers(each.double(), inputs.weight.double(), bias, case) for each in x]
    assert_equal((got,), (torch.stack(expected),))


@each_layer
@pytest.mark.parametrize("view", ["contiguous", "channels-last-strides", "batch-innermost"])
def test_fake_tensors(case, view, requested) -> None:
    inputs, changed = parity.make_inputs(case), samples.VIEWS[view]
    x = changed(inputs.x)
    real = op(x, inputs.weight, inputs.bias, case)
    with FakeTensorMode() as mode:
        fake = op(*(None if t is None else mode.from_tensor(t) for t in (x, inputs.weight, inputs.bias)), case)
    assert (fake.shape, fake.stride(), fake.dtype, fake.device) == (real.shape, real.stride(), real.dtype, real.device)


def test_meta_tensors() -> None:
    case = LAYERS["direct"]
    x, weight, bias = (t.to("meta") for t in parity.make_inputs(case).tensors)
    assert op(x, weight, bias, case).shape == case.geometry.output_shape


@pytest.mark.parametrize("name", ["direct", "one-column"])
def test_compiled(name, requested) -> None:
    torch.compiler.reset()
    compiled, case = torch.compile(op, backend="aot_eager", fullgraph=True), LAYERS[name]
    inputs, kept = parity.make_inputs(case, layout="channels_last", integers=True), samples.VIEWS["contiguous"]
    ours = value_and_gradients(compiled, case, inputs, torch.float32, kept, kept)
    assert_equal(ours, value_and_gradients(torchs_layers, case, inputs, torch.float64, kept, kept))


def test_one_column_of_a_slice(requested) -> None:
    """As it was met: oneDNN was 1e8 off."""
    x, weight = torch.randn(5, 3, 12, 5)[:, :1], torch.randn(17, 1, 3, 3)
    case = LAYERS["one-column"]
    expected = torchs_layers(x.double(), weight.double(), None, case)
    torch.testing.assert_close(op(x, weight, None, case).double(), expected, rtol=1e-5, atol=1e-5)


# Windows without a conv output. Where this is wrong, torch's backward ends the process: in one of its own.

EMPTY = """
import sys
import torch
from convpool import ConvReLUMaxPool2d, conv_relu_max_pool2d, eager
from convpool.testing import parity
from tests.convpool import samples
from tests.convpool.test_everywhere import assert_equal, op, torchs_layers, value_and_gradients
torch.use_deterministic_algorithms(True)
def plain(x, weight, bias, case):
    return eager.relu_then_pool(x, weight, bias, case.settings)
kept = samples.VIEWS["contiguous"]
for case in samples.EMPTY_WINDOWS:
    assert case.geometry.empty_windows
    for layout in ("nchw", "channels_last"):
        inputs = parity.make_inputs(case, layout=layout, integers=True)
        expected = value_and_gradients(torchs_layers, case, inputs, torch.float64, kept, kept)
        assert expected[0].isneginf().any()
        for layer in (op, plain):
            assert_equal(value_and_gradients(layer, case, inputs, torch.float32, kept, kept), expected)
            torch.func.jvp(lambda x: layer(x, inputs.weight, inputs.bias, case), (inputs.x,), (inputs.x,))
print("right")
"""


@pytest.mark.slow
def test_windows_without_a_conv_output() -> None:
    """torch's value, -inf, and no gradient; a named backend says why it does not serve."""
    path = os.pathsep.join(sys.path)
    run = subprocess.run(
        [sys.executable, "-c", EMPTY], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (0, "right\n"), run.stderr[-2000:]


@pytest.mark.parametrize("case", samples.EMPTY_WINDOWS, ids=str)
def test_named_backends_refuse_windows_without_a_conv_output(case, backend) -> None:
    inputs = parity.make_inputs(case)
    with pytest.raises(RuntimeError, match="a pool window holds no conv output at all"):
        op(inputs.x, inputs.weight, inputs.bias, case)


# Saved tensors.


def saved_by(case, hook, layout: parity.Layout = "nchw") -> tuple[Tensor, ...]:
    """Value and gradients with a hook between, of leaves whose saved selves go through it."""
    inputs, kept = parity.make_inputs(case, layout=layout, integers=True), samples.VIEWS["contiguous"]
    leaves = leaves_of(inputs)
    with saved_tensors_hooks(lambda t: t, hook):
        y = op(*three([kept(t) for t in leaves]), case)
        return y.detach(), *torch.autograd.grad(y, leaves, inputs.dy)


def keeps_codes(case) -> bool:
    inputs = parity.make_inputs(case)
    return explain(inputs.x, inputs.weight, inputs.bias, **case.options).keeps_codes


@some_layers
@pytest.mark.parametrize("change", samples.REFUSED)
def test_changed_saved_tensors_are_refused(name, change, requested) -> None:
    if not keeps_codes(LAYERS[name]):
        pytest.skip("torch's layers serve here, and judge what they saved themselves")
    concerns, changed = samples.REFUSED[change]
    with pytest.raises((RuntimeError, ValueError), match=r"as the forward pass left it|has no memory"):
        saved_by(LAYERS[name], lambda t: changed(t) if concerns(t) else t)


@some_layers
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("change", samples.ACCEPTED)
def test_the_same_values_elsewhere_are_taken(name, layout, change, requested) -> None:
    case = LAYERS[name]
    expected = saved_by(case, lambda t: t, layout)
    moved = saved_by(case, lambda t: samples.ACCEPTED[change](t) if t.dim() == 4 else t, layout)
    assert_equal(moved, tuple(t.double() for t in expected))


def test_offloading_and_checkpoints(requested) -> None:
    case = LAYERS["overlap"]
    inputs, kept = parity.make_inputs(case, layout="channels_last", integers=True), samples.VIEWS["contiguous"]
    expected = value_and_gradients(torchs_layers, case, inputs, torch.float64, kept, kept)
    with save_on_cpu():
        assert_equal(value_and_gradients(op, case, inputs, torch.float32, kept, kept), expected)

    def again(*args) -> Tensor:
        return checkpoint(op, *args, use_reentrant=False)

    assert_equal(value_and_gradients(again, case, inputs, torch.float32, kept, kept), expected)


@pytest.mark.parametrize("which", [0, 1], ids=["x", "weight"])
def test_data_assigned_between(which, requested) -> None:
    """Version counters do not tell."""
    case = LAYERS["direct"]
    if not keeps_codes(case):
        pytest.skip("torch's layers serve here")
    inputs = parity.make_inputs(case)
    leaves = leaves_of(inputs)
    y = op(*three(leaves), case)
    leaves[which].data = leaves[which].data[:, :, :2].clone()
    with pytest.raises(RuntimeError, match="as the forward pass left it"):
        y.sum().backward()


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(("name", "code"), layers_and_codes())
@pytest.mark.minutes_interpreted  # gpu/test_kernels.py has a few
def test_bad_codes(name, code, create_graph, needs, backend) -> None:
    """One code of many. On CPUs it raises; on GPUs, to which Triton's kernels belong, it counts as dead."""
    case = LAYERS[name]
    value = {"window": case.geometry.window, "outside": 0}.get(code, code)
    inputs = parity.make_inputs(case, integers=True)

    def gradients(value: int) -> tuple[Tensor, ...]:
        def spoil(t: Tensor) -> Tensor:
            if t.dtype == torch.uint8:
                t = t.clone()
                t[-1, -1, 0, 0] = value
            return t

        x, weight, bias = leaves_of(inputs)
        x.requires_grad_(needs[0])
        weight.requires_grad_(needs[1])
        with saved_tensors_hooks(lambda t: t, spoil):
            y = op(x, weight, bias, case)
            return torch.autograd.grad(
                y, [t for t in (x, weight, bias) if t.requires_grad], inputs.dy, None, create_graph
            )

    if backend != "triton":
        with pytest.raises(RuntimeError, match=BAD_CODES):
            gradients(value)
    elif code != "outside":
        assert_equal(gradients(value), tuple(t.double() for t in gradients(DEAD)))
