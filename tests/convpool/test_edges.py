"""The edges of the contract: ties, zeros, NaN, infinities, positions nobody looks at, and tensors of odd strides."""

import math

import pytest
import torch
from torch.nn import functional as F

from convpool import conv_relu_max_pool2d, eager, explain, planning
from convpool.geometry import DEAD, make_settings
from convpool.protocol import ORDINARY
from convpool.testing import cases, parity
from convpool.torch_ops import winner_values
from tests.convpool.samples import apply

SHAPES = ("cnn-1", "cnn-2", "lenet5-2", "vgg-1", "resnet-stem", "depthwise", "pool-overlap", "stride-2", "ceil-padded")
IDENTITY = torch.ones(1, 1, 1, 1)  # z is x itself


def run(backend, x, weight, bias=None, dy=None, **options):
    """y, code, and the gradients of x, weight and bias for dy (ones by default)."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    settings = make_settings(tuple(weight.shape[2:]), **options)
    y, code = apply(*leaves, settings, backend)
    grads = torch.autograd.grad(y, [t for t in leaves if t is not None], torch.ones_like(y) if dy is None else dy)
    return y.detach(), code, grads


def window(*values: float) -> torch.Tensor:
    side = math.isqrt(len(values))
    return torch.tensor(values, dtype=torch.float32).view(1, 1, side, side)


@pytest.mark.parametrize(
    ("values", "y", "code"),
    [
        ((1, 3, 2, 0), 3, 1),
        ((3, 3, 3, 3), 3, 0),
        ((1, 2, 2, 2), 2, 1),
        ((0, 0, 0, 0), 0, DEAD),
        ((-1, -2, 0, -3), 0, DEAD),
        ((-1, -0.0, -0.0, -3), 0, DEAD),
        ((-4, -2, -1, -3), 0, DEAD),
        ((1, math.nan, 2, 3), math.nan, 1),
        ((math.nan, 5, math.nan, 1), math.nan, 2),
        ((math.nan, math.nan, math.nan, math.nan), math.nan, 3),
        ((math.nan, math.inf, 1, 2), math.nan, 0),
        ((-math.inf, math.inf, math.inf, 0), math.inf, 1),
        ((-math.inf, -math.inf, -math.inf, -math.inf), 0, DEAD),
        ((-math.inf, -math.inf, 1e-30, -math.inf), 1e-30, 2),
    ],
)
@pytest.mark.quick_interpreted
def test_one_window(values, y, code, backend) -> None:
    got, winner, (dx, _) = run(backend, window(*values), IDENTITY)
    torch.testing.assert_close(got.flatten(), torch.tensor([float(y)]), equal_nan=True)
    assert winner.item() == code
    expected = torch.zeros(4)
    if code != DEAD:
        expected[code] = 1
    torch.testing.assert_close(dx.flatten(), expected)


@pytest.mark.parametrize("bias", [math.nan, math.inf, -math.inf, -3.0, 2.5])
@pytest.mark.quick_interpreted
def test_bias_counts_before_the_comparison(bias, backend) -> None:
    x, b = window(1, 3, 2, 0), torch.tensor([bias])
    y, code, _ = run(backend, x, IDENTITY, b)
    best, position = torch.nn.functional.max_pool2d(x + bias, 2, return_indices=True)
    torch.testing.assert_close(y, best.relu(), equal_nan=True)
    assert code.item() == (DEAD if best.item() <= 0 else position.item())


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.minutes_interpreted  # sums that are not finite are formed again winner by winner
def test_nan_and_infinite_inputs_give_torchs_values(name, backend) -> None:
    """A handful of non-finite entries each: every window that sees one must answer as torch does."""
    inputs = parity.make_inputs(cases.by_name(name), integers=True)
    generator = torch.Generator().manual_seed(1)
    for value in (math.nan, math.inf, -math.inf):
        spots = torch.randint(inputs.x.numel(), (3,), generator=generator)
        inputs.x.view(-1)[spots] = value
    y, code, grads = run(backend, inputs.x, inputs.weight, inputs.bias, inputs.dy, **cases.by_name(name).options)
    # integer data: float64 has the same sums, and the same NaN where an infinity meets its opposite or a zero weight
    expected = eager.relu_then_pool(
        inputs.x.double(),
        inputs.weight.double(),
        None if inputs.bias is None else inputs.bias.double(),
        inputs.settings,
    )
    torch.testing.assert_close(y.double(), expected, equal_nan=True)
    assert torch.equal(code == DEAD, expected <= 0)
    assert grads[0].isfinite().all(), "dx depends on winners and weight alone"


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("wanted", [2, 3], ids=["weight", "all"])
@pytest.mark.minutes_interpreted
def test_what_goes_back_into_a_dead_window_is_lost(name, value, wanted, backend) -> None:
    """Whatever gradients are asked for: a network's first layer has kernels of its own."""
    case = cases.by_name(name)
    inputs = parity.make_inputs(case, integers=True)
    bias = torch.zeros(case.out_channels)
    bias[0] = -1e6  # its channel is dead

    def gradients(dy):
        leaves = [t.clone().requires_grad_() for t in (bias, inputs.weight, inputs.x)[:wanted]]
        x = leaves[2] if wanted == 3 else inputs.x
        y, _ = apply(x, leaves[1], leaves[0], inputs.settings, backend)
        return torch.autograd.grad(y, leaves, dy)

    spoilt = inputs.dy.clone()
    spoilt[:, 0] = value
    for a, b in zip(gradients(spoilt), gradients(inputs.dy), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.minutes_interpreted
def test_dead_neighbours_of_an_infinity_contribute_nothing(name, backend) -> None:
    """x = -inf where it kills windows: eager's dense weight gradient is NaN from 0 * inf, ours sums the live ones."""
    case = cases.by_name(name)
    inputs = parity.make_inputs(case, integers=True)
    inputs.x[:, :, -1] = -math.inf
    weight = inputs.weight.abs() + 1
    _, code, (dx, dw, *_) = run(backend, inputs.x, weight, inputs.bias, inputs.dy, **case.options)
    plan = plan_of(case, backend)
    assert dx.isfinite().all()
    if plan != "split":  # the split plan hands dz to the vendor's dense gradient
        finite_x = inputs.x.clone().masked_fill_(inputs.x.isinf(), 0).double()
        w64 = weight.double().requires_grad_()
        value = winner_values(finite_x, w64, None, code, inputs.geometry)
        torch.testing.assert_close(dw.double(), torch.autograd.grad(value, w64, inputs.dy.double())[0])


@pytest.mark.parametrize(
    ("channels", "size", "kernel"), [(1, 4, 3), (17, 2, 3), (3, 2, 5)], ids=["direct", "by-channels", "flattened"]
)
@pytest.mark.parametrize("where", ["x", "weight", "dy"])
def test_infinities(channels, size, kernel, where, backend) -> None:
    """A value is torch's, 0 * inf of the padding included. A gradient sums over winners alone: what is infinite reaches
    its factors there, and nothing beside them by a masked lane or a dead window."""
    options = {"padding": kernel // 2}
    case = cases.Case("infinite", 1, channels, (size, size), 2, (kernel, kernel), options)
    inputs = parity.make_inputs(case, integers=True)
    getattr(inputs, where).view(-1)[3 if where == "weight" else 0] = -math.inf if where == "x" else math.inf
    y, code, (dx, dw, db) = run(backend, inputs.x, inputs.weight, inputs.bias, inputs.dy, **options)
    expected = eager.relu_then_pool(*(t.double() for t in inputs.tensors), inputs.settings)
    if backend != "reference":  # which asks torch in float32: that skips the padding's products in some shapes
        torch.testing.assert_close(y.double(), expected, equal_nan=True)
        assert torch.equal(code == DEAD, expected <= 0)
    if plan_of(case, backend) == "split":  # the vendor's gradients multiply the zeros of dz too
        return
    padding = kernel // 2
    x = torch.nn.functional.pad(inputs.x, [padding] * 4)
    wanted_x, wanted_weight, wanted_bias = torch.zeros_like(x), torch.zeros_like(dw), torch.zeros_like(db)
    for _, o, i, j in (code != DEAD).nonzero().tolist():
        row, column = 2 * i + code[0, o, i, j].item() // 2, 2 * j + code[0, o, i, j].item() % 2
        seen = (0, slice(None), slice(row, row + kernel), slice(column, column + kernel))
        wanted_x[seen] += inputs.dy[0, o, i, j] * inputs.weight[o]
        wanted_weight[o] += inputs.dy[0, o, i, j] * x[seen]
        wanted_bias[o] += inputs.dy[0, o, i, j]
    inside = slice(padding, padding + size)
    for ours, wanted in ((dx, wanted_x[..., inside, inside]), (dw, wanted_weight), (db, wanted_bias)):
        torch.testing.assert_close(ours, wanted, equal_nan=True)


def verdicts(op, tensors, scale) -> tuple[bool, bool]:
    """Whether GradScaler skips the step of an optimiser of all tensors, and whether anomaly detection raises."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale(8 * op(*leaves).sum()).backward()
    scaler.step(torch.optim.SGD(leaves, lr=1e-3))
    scaler.update()
    raised = False
    with torch.autograd.detect_anomaly():
        try:
            (8 * op(*leaves).sum() * scale).backward()
        except RuntimeError as error:
            raised = "returned nan values" in str(error)
    return scaler.get_scale() < scale, raised


@pytest.mark.parametrize(
    ("where", "place", "value", "scale", "torchs", "fused"),
    [
        pytest.param("x", (..., 12, 4), math.nan, 1.0, (True, True), (False, False), id="uncovered"),
        pytest.param("x", (..., 1, 4), -math.inf, 1.0, (True, True), (False, False), id="dead-by-x"),
        pytest.param("weight", (0, 0, 1, 1), -math.inf, 1.0, (True, True), (False, False), id="dead-by-weight"),
        pytest.param("x", (..., 5, 5), math.nan, 1.0, (True, True), (True, True), id="winner-nan"),
        pytest.param("x", (..., 5, 5), math.inf, 1.0, (True, True), (True, False), id="winner-inf"),
        pytest.param("x", (..., 5, 5), 1.0, 2.0**127, (True, False), (True, False), id="overflow"),
        pytest.param("weight", (..., 1, 1), 0.0, 2.0**127, (True, True), (True, True), id="overflow-times-0"),
    ],
)
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled", "ignore:Error detected in")
@pytest.mark.minutes_interpreted
def test_grad_scaler_and_anomaly_detection(where, place, value, scale, torchs, fused, backend) -> None:
    """As docs/fuse.md has it. All else is positive, and of 13 rows (11 of z, 5 of y) no window reads the last."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.rand(shape, generator=generator) + 0.1
        for name, shape in (("x", (2, 2, 13, 13)), ("weight", (4, 2, 3, 3)), ("bias", (4,)))
    }
    tensors[where][place] = value
    assert verdicts(lambda x, w, b: F.max_pool2d(F.relu(F.conv2d(x, w, b)), 2), tensors.values(), scale) == torchs
    dense = explain(**tensors).plan == "split"  # it hands dz to the vendor's gradient
    assert verdicts(conv_relu_max_pool2d, tensors.values(), scale) == (torchs if dense else fused)


def plan_of(case, backend) -> str:
    device = torch.device("cpu")
    return planning.choose(case.x_shape, case.weight_shape, case.settings, torch.float32, device, ORDINARY, backend)[
        1
    ].plan


def test_rows_and_columns_that_no_window_covers(backend) -> None:
    """13 -> 11 -> 5: the last conv row and column feed nothing, so x's last row gets no gradient through them."""
    x, weight = torch.randn(2, 3, 13, 13), torch.randn(4, 3, 3, 3)
    _, _, (dx, _) = run(backend, x, weight)
    assert dx[..., 12, :].eq(0).all()
    assert dx[..., :, 12].eq(0).all()
    assert dx[..., 11, :].ne(0).any()


@pytest.mark.quick_interpreted
def test_overlapping_windows_add_their_gradients(backend) -> None:
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 2] = 1  # in all four 3x3 windows of stride 2
    _, code, (dx, _) = run(backend, x, IDENTITY, pool_kernel_size=3, pool_stride=2)
    assert code.flatten().tolist() == [8, 6, 2, 0]
    assert dx[0, 0, 2, 2] == 4
    assert dx.sum() == 4


@pytest.mark.quick_interpreted
def test_pool_padding_never_wins(backend) -> None:
    x = torch.full((1, 1, 4, 4), -1.0)
    y, code, (dx, *_) = run(
        backend, x, IDENTITY, torch.tensor([1.5]), pool_kernel_size=3, pool_stride=2, pool_padding=1
    )
    assert y.eq(0.5).all()
    assert code.flatten().tolist() == [4, 3, 1, 0], "the first position inside the map"
    assert dx.sum() == 4


@pytest.mark.quick_interpreted
def test_empty_batch(backend) -> None:
    y, code, (dx, dw, db) = run(backend, torch.empty(0, 3, 9, 9), torch.randn(4, 3, 3, 3), torch.randn(4))
    assert y.shape == code.shape == (0, 4, 3, 3)
    assert dx.shape == (0, 3, 9, 9)
    assert dw.eq(0).all()
    assert db.eq(0).all()


@pytest.mark.parametrize("name", ["cnn-2", "cnn-1", "resnet-stem", "groups-2"])
def test_odd_strides(name, backend) -> None:
    """Expanded, sliced, transposed and offset tensors give what their contiguous copies give."""
    case = cases.by_name(name)
    inputs = parity.make_inputs(case)
    y, code, grads = run(backend, inputs.x, inputs.weight, inputs.bias, **case.options)
    odd_x = torch.stack([inputs.x, inputs.x], dim=-1)[..., 1]
    odd_weight = inputs.weight.transpose(2, 3).contiguous().transpose(2, 3)
    odd_bias = None if inputs.bias is None else torch.stack([inputs.bias, inputs.bias], 1)[:, 0]
    dy = torch.ones(1).expand(y.shape)
    again = run(backend, odd_x, odd_weight, odd_bias, dy, **case.options)
    assert not odd_x.is_contiguous()
    torch.testing.assert_close(again[0], y)
    assert torch.equal(again[1], code)
    for a, b in zip(again[2], grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_one_row_expanded_over_the_batch(backend) -> None:
    x, weight = torch.randn(1, 4, 10, 10).expand(3, -1, -1, -1), torch.randn(8, 4, 3, 3)
    y = run(backend, x, weight)[0]
    torch.testing.assert_close(y, run(backend, x.contiguous(), weight)[0])


@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 0)])
@pytest.mark.parametrize("name", ["cnn-2", "fast-1", "mixed-1"])
def test_each_gradient_alone(name, needs, backend) -> None:
    case = cases.by_name(name)
    inputs = parity.make_inputs(case, integers=True)
    everything = run(backend, inputs.x, inputs.weight, inputs.bias, inputs.dy, **case.options)[2]
    leaves = [
        t.clone().requires_grad_(bool(n)) for t, n in zip((inputs.x, inputs.weight, inputs.bias), needs, strict=True)
    ]
    y, _ = apply(*leaves, inputs.settings, backend)
    y.backward(inputs.dy)
    for leaf, needed, full in zip(leaves, needs, everything, strict=True):
        assert (leaf.grad is not None) == bool(needed)
        if needed:
            assert torch.equal(leaf.grad, full)


def test_offsets_beyond_32_bits(backend) -> None:
    """Two images 2**31 elements apart: 8 GiB of address space, of which two pages are touched."""
    torch.use_deterministic_algorithms(False)  # poisoning would touch every page
    storage = torch.empty_strided((2, 1, 6, 6), (2**31, 36, 6, 1))
    x = storage.copy_(torch.randn(2, 1, 6, 6)).requires_grad_()
    weight = torch.randn(3, 1, 3, 3, requires_grad=True)
    y, _ = apply(x, weight, None, make_settings((3, 3)), backend)
    near = run(backend, x.detach().contiguous(), weight.detach())
    torch.testing.assert_close(y, near[0])
    for a, b in zip(torch.autograd.grad(y.sum(), (x, weight)), near[2], strict=True):
        torch.testing.assert_close(a, b)
