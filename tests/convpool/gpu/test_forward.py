"""The forward kernels: which one runs, how its grid fills a machine, any layer of forward_patch, and no ReLU."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from convpool.geometry import DEAD, Geometry
from convpool.gpu import backend as gpu_backend
from convpool.testing import cases, parity

if not gpu_backend.INTERPRETED:
    pytest.skip("looks into Triton's interpreter, which this process does not run", allow_module_level=True)
if missing := gpu_backend.BACKEND.unavailable():
    pytest.skip(missing, allow_module_level=True)

from convpool.gpu import config, forward_calls, launch
from convpool.gpu.prepared import Launch, ordinary_launches

pytestmark = pytest.mark.triton
H100 = config.architecture_of("cuda", 90)
CASES = (
    cases.Case("overlap", 2, 20, (8, 9), 40, (2, 2), {"pool_kernel_size": 3, "pool_stride": 2, "pool_padding": 1}),
    cases.Case("dilated", 2, 16, (11, 9), 16, (3, 3), {"dilation": (1, 2), "padding": 2, "groups": 1}),
    cases.Case("groups", 1, 36, (9, 8), 10, (3, 2), {"groups": 2, "stride": (2, 1), "padding": (1, 0)}),
    cases.Case("gaps", 2, 17, (12, 12), 5, (3, 3), {"pool_dilation": 2, "pool_stride": 1, "ceil_mode": True}, False),
)


def geometry(name: str, batch: int) -> Geometry:
    return replace(cases.by_name(name).at_full_size(), batch=batch).geometry


def chosen(g: Geometry, *, precision: str = "tf32", itemsize: int = 4, last: bool = True, arch=H100) -> config.Launch:
    return config.forward(g, precision, itemsize, arch, last, last)


def programs(g: Geometry, launch: config.Launch) -> int:
    positions = g.batch * g.pooled_height * g.pooled_width
    return -(-positions // launch.rows) * -(-g.out_channels // (launch.channels or launch.columns))


@pytest.mark.parametrize(
    ("name", "how", "kernel"),
    [
        ("cnn-1", {}, "forward_direct"),
        ("cnn-2", {}, "forward_patch"),
        ("cnn-2", {"last": False}, "forward_patch"),
        ("cnn-2", {"precision": "ieee", "itemsize": 2}, "forward_patch"),
        ("cnn-2", {"precision": "ieee", "itemsize": 2, "last": False}, "forward_dot"),  # no copies of 2 bytes
        ("cnn-2", {"precision": "ieee"}, "forward_dot"),  # not on the matrix unit
        ("lenet5-2", {}, "forward_dot"),  # 6 channels
        ("googlenet-2", {}, "forward_dot"),  # 81 products to unroll
    ],
)
def test_the_kernel_follows_from_layer_and_numbers(name, how, kernel) -> None:
    assert chosen(geometry(name, 128), **how).kernel == kernel


@pytest.mark.parametrize(("stride", "kernel"), [(1, "forward_patch"), (2, "forward_dot")])
def test_pixels_that_are_read_once_anyway_need_no_patch(stride, kernel) -> None:
    case = cases.Case("apart", 2, 32, (9, 9), 32, (2, 2), {"stride": stride})
    assert chosen(case.geometry).kernel == kernel


@pytest.mark.parametrize("arch", [config.architecture_of("cuda", 86), config.architecture_of("hip", "gfx942")])
def test_tiles_fit_shared_memory(arch) -> None:
    """All that forward_patch takes, at the sizes where its tiles are largest."""
    layers = [replace(case, batch=4096).geometry for case in cases.CASES if case.batch]
    found = [(g, chosen(g, arch=arch)) for g in layers]
    assert {"forward_direct", "forward_patch", "forward_dot"} == {tile.kernel for _, tile in found}
    for g, tile in found:
        if tile.kernel == "forward_patch":
            assert config._patch_bytes(g, tile.rows, tile.columns) <= arch.shared_memory, g


@pytest.mark.parametrize(("name", "last"), [("cnn-1", False), ("lenet5-1", False), ("fast-1", False), ("cnn-2", True)])
def test_small_batches_fill_the_machine_and_large_ones_have_large_tiles(name, last) -> None:
    small, large = geometry(name, 128), geometry(name, 4096)
    few, many = chosen(small, last=last), chosen(large, last=last)
    size = {each: each.rows * (each.channels or each.columns) for each in (few, many)}
    assert programs(small, few) >= H100.multiprocessors
    assert programs(large, many) >= 2 * H100.multiprocessors
    assert size[few] <= size[many]
    lone = chosen(small, last=last, arch=replace(H100, multiprocessors=1))
    assert lone == many, "one multiprocessor is full at once"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_forward_patch_serves_any_layer(case, layout) -> None:
    inputs = parity.make_inputs(case, torch.float32, layout, integers=True)
    assert launch.forward_kernel(inputs.x, inputs.weight, inputs.geometry) == "forward_patch"
    found = parity.check(inputs, "triton", exact=True)
    assert found.ok, found


def without_relu(inputs: parity.Inputs, kernel: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """y and code by a kernel, or by the split plan, that is told not to apply ReLU."""
    plan = "split" if kernel == "split" else "fused"
    assert kernel in ("split", launch.forward_kernel(inputs.x, inputs.weight, inputs.geometry))

    def told(function, grid, arguments, options, device) -> Launch:
        return Launch(function, grid, arguments | {"RELU": False}, options, device)

    monkeypatch.setattr(forward_calls, "Launch", told)
    with ordinary_launches():
        return launch.forward(inputs.x, inputs.weight, inputs.bias, inputs.geometry, plan, True)


def pooled_by_torch(inputs: parity.Inputs) -> tuple[Tensor, Tensor]:
    """The maximum of each window, and which conv output it is: its flat index."""
    s = inputs.settings
    z = F.conv2d(inputs.x, inputs.weight, inputs.bias, s.stride, s.padding[::2], s.dilation, s.groups)
    return F.max_pool2d(
        z, s.pool_kernel, s.pool_stride, s.pool_padding, s.pool_dilation, s.ceil_mode, return_indices=True
    )


def indices(code: Tensor, g: Geometry) -> Tensor:
    """Winners as torch counts them."""
    s, position = g.settings, code.long()
    i = torch.arange(g.pooled_height)[:, None] * s.pool_stride[0] - s.pool_padding[0]
    j = torch.arange(g.pooled_width) * s.pool_stride[1] - s.pool_padding[1]
    row = i + position // s.pool_kernel[1] * s.pool_dilation[0]
    return row * g.conv_width + j + position % s.pool_kernel[1] * s.pool_dilation[1]


PLANS = [
    ("cnn-1", "forward_direct"),
    ("groups", "forward_patch"),
    ("overlap", "forward_patch"),
    ("lenet5-2", "forward_dot"),
    ("pool-overlap-padded", "forward_dot"),
    ("ceil-padded", "split"),
]


@pytest.mark.parametrize(("name", "kernel"), PLANS)
@pytest.mark.parametrize("bias", [-1000.0, -torch.inf, torch.nan])
def test_without_relu_y_is_the_maximum(name, kernel, bias, monkeypatch) -> None:
    """Negative maxima, and windows of nothing but -inf, have winners: no window is dead."""
    case = next((case for case in CASES if case.name == name), None) or cases.by_name(name)
    inputs = parity.make_inputs(case, integers=True)
    inputs.bias[::2] += bias
    g = inputs.geometry
    y, code = without_relu(inputs, kernel, monkeypatch)
    expected, at = pooled_by_torch(inputs)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(indices(code, g), at)


@pytest.mark.parametrize(
    ("inputs", "filter_size", "kernel"),
    [
        (1, (3, 3), "forward_direct"),
        (3, (5, 5), "forward_dot"),
        (16, (2, 4), "forward_patch"),
        (1, (3, 3), "split"),
    ],
)
def test_without_relu_a_window_without_conv_outputs_is_dead(inputs, filter_size, kernel, monkeypatch) -> None:
    """Positions -1 and 2 of a map of 2x2: all that a dilated window has beside padding."""
    options = {"pool_kernel_size": 2, "pool_stride": 1, "pool_padding": 1, "pool_dilation": 3}
    size = filter_size[0] + 1, filter_size[1] + 1
    made = parity.make_inputs(cases.Case("hollow", 2, inputs, size, 4, filter_size, options), integers=True)
    y, code = without_relu(made, kernel, monkeypatch)
    assert (code == DEAD).all()
    assert (y == -torch.inf).all()
