"""The op as a function: the edges of the contract, running statistics, what it refuses, and who computes it."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from convpool import conv_bn_relu_max_pool2d, explain, use_backend
from tests.convpool.batchnorm.layers import by_each_backend

pytestmark = pytest.mark.usefixtures("one_thread")

GEOMETRY = {"padding": 1, "groups": 2}
NAMES = "x", "weight", "bias", "gamma", "beta"


def made(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Arguments of the op; the first three of six channels make one of two groups, and two have a gamma of 0."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (3, 4, 9, 8), "weight": (6, 2, 3, 3), "bias": (6,), "beta": (6,)}
    tensors = {name: torch.randn(shape, dtype=dtype, generator=generator) for name, shape in shapes.items()}
    tensors["gamma"] = torch.tensor([1.0, -1.0, 0.0, 0.5, -2.0, 0.0], dtype=dtype)
    return tensors | {"running_mean": torch.ones(6, dtype=dtype), "running_var": torch.ones(6, dtype=dtype)}


def op(x, weight, bias, gamma, beta, running_mean, running_var, momentum: float | Tensor = 0.1) -> Tensor:
    norm = gamma, beta, running_mean, running_var
    return conv_bn_relu_max_pool2d(x, weight, bias, *norm, training=True, momentum=momentum, **GEOMETRY)


def layers(x, weight, bias, gamma, beta, running_mean, running_var, momentum: float = 0.1) -> Tensor:
    z = F.conv2d(x, weight, bias, **GEOMETRY)
    return F.max_pool2d(F.relu(F.batch_norm(z, running_mean, running_var, gamma, beta, True, momentum)), 2)


def run(function, tensors: dict[str, Tensor], **options) -> dict[str, Tensor]:
    """y, the running statistics afterwards, and each gradient."""
    tensors = {name: t.clone() for name, t in tensors.items()}
    leaves = {name: tensors[name].requires_grad_() for name in NAMES if name in tensors}
    y = function(**{name: tensors.get(name) for name in (*NAMES, "running_mean", "running_var")}, **options)
    dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    grads = dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), dy), strict=True))
    moving = {name: tensors[name] for name in ("running_mean", "running_var") if name in tensors}
    return {"y": y.detach()} | moving | {f"gradient of {name}": grad for name, grad in grads.items()}


def assert_same(tensors: dict[str, Tensor], tolerance: float = 1e-5, **options) -> dict[str, Tensor]:
    ours, theirs = run(op, tensors, **options), run(layers, tensors, **options)
    for name, expected in theirs.items():
        if name != "gradient of bias":  # which is 0 but for torch's rounding
            within = tolerance * float(expected.abs().nan_to_num().max())
            torch.testing.assert_close(
                ours[name], expected, rtol=0, atol=within, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}"
            )
    return ours


# Edges.


@by_each_backend
def test_gamma_of_either_sign_and_zero(backend) -> None:
    """Under a gamma of 0 all positions tie, and the first one wins, as in torch."""
    ours = assert_same(made())
    assert ours["gradient of gamma"].all()
    assert not ours["gradient of bias"].any()


@by_each_backend
@pytest.mark.parametrize(
    "missing", [("bias",), ("gamma", "beta"), ("beta",), ("gamma",), ("running_mean", "running_var")]
)
def test_without_some_of_the_tensors(missing, backend) -> None:
    assert_same({name: t for name, t in made().items() if name not in missing})


@by_each_backend
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_spoils_the_channels_that_read_it(value, backend) -> None:
    tensors = made()
    tensors["x"][1, 0, 3, 3] = value
    ours = assert_same(tensors)
    assert ours["y"].isnan().all((0, 2, 3)).tolist() == [True] * 3 + [False] * 3
    assert not ours["gradient of bias"].any()


@by_each_backend
def test_constant_input(backend) -> None:
    """Without padding the variance is 0, and what is left of x - mean is rounding times 1 / sqrt(eps)."""
    tensors = made()
    tensors["x"] = torch.full_like(tensors["x"], 3.0)
    moving = tensors["running_mean"], tensors["running_var"]
    norm = tensors["gamma"], tensors["beta"], *moving
    y = conv_bn_relu_max_pool2d(tensors["x"], tensors["weight"], tensors["bias"], *norm, training=True, groups=2)
    expected = tensors["beta"].relu()[:, None, None].expand_as(y)
    torch.testing.assert_close(y, expected, rtol=0, atol=2e-3)
    torch.testing.assert_close(moving[1], torch.full((6,), 0.9))
    assert_same(tensors)


@by_each_backend
def test_an_empty_batch_leaves_the_running_statistics(backend) -> None:
    tensors = made() | {"x": torch.empty(0, 4, 9, 8)}
    ours = run(op, tensors)
    assert ours["y"].shape == (0, 6, 4, 4)
    assert torch.equal(ours["running_mean"], torch.ones(6))
    assert torch.equal(ours["running_var"], torch.ones(6))
    assert not any(t.any() for name, t in ours.items() if name.startswith("gradient"))
    assert torch.equal(run(op, tensors, momentum=torch.tensor(0.3))["running_var"], torch.ones(6))


@by_each_backend
def test_one_value_a_channel_is_refused_as_by_torch(backend) -> None:
    norm = nn.BatchNorm2d(4)
    with pytest.raises(ValueError, match="more than 1 value per channel") as theirs:
        norm(torch.randn(1, 4, 1, 1))
    with pytest.raises(ValueError) as ours:
        conv_bn_relu_max_pool2d(torch.randn(1, 2, 3, 3), torch.randn(4, 2, 3, 3), training=True, pool_kernel_size=1)
    assert str(ours.value) == str(theirs.value)
    y = conv_bn_relu_max_pool2d(torch.randn(2, 2, 3, 3), torch.randn(4, 2, 3, 3), training=True, pool_kernel_size=1)
    assert y.shape == (2, 4, 1, 1)


# Running statistics.


@by_each_backend
@pytest.mark.parametrize("momentum", [0.0, 0.3, 1.0])
def test_momentum(momentum, backend) -> None:
    assert_same(made(), momentum=momentum)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_momentum_as_a_tensor(dtype) -> None:
    """By whoever `auto` takes."""
    tensors = made(dtype)
    ours, theirs = run(op, tensors, momentum=torch.tensor(0.3, dtype=dtype)), run(layers, tensors, momentum=0.3)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(ours[name], theirs[name])


@by_each_backend
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_statistics_move_all_the_same(mode, backend) -> None:
    tensors = made()
    expected = run(layers, tensors)
    with mode():
        y = op(**tensors)
    assert not y.requires_grad
    for got, name in ((y, "y"), (tensors["running_mean"], "running_mean"), (tensors["running_var"], "running_var")):
        torch.testing.assert_close(got, expected[name], rtol=1e-4, atol=1e-5)


@by_each_backend
def test_running_statistics_normalise_outside_training(backend) -> None:
    """gamma and beta learn there too, and nothing moves."""
    tensors = made()

    def evaluated(x, weight, bias, gamma, beta, running_mean, running_var) -> Tensor:
        norm = gamma, beta, running_mean, running_var
        return conv_bn_relu_max_pool2d(x, weight, bias, *norm, training=False, **GEOMETRY)

    def by_layers(x, weight, bias, gamma, beta, running_mean, running_var) -> Tensor:
        z = F.batch_norm(F.conv2d(x, weight, bias, **GEOMETRY), running_mean, running_var, gamma, beta)
        return F.max_pool2d(F.relu(z), 2)

    ours, theirs = run(evaluated, tensors), run(by_layers, tensors)
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(ours["running_mean"], torch.ones(6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_what_no_kernel_serves_is_torchs_layers(dtype) -> None:
    tensors = {name: t.to(dtype) for name, t in made().items()}
    assert_same(tensors, tolerance=0)


# Who computes it.


def test_explain_tells_who_computes() -> None:
    x, weight = torch.randn(2, 4, 9, 9), torch.randn(6, 4, 3, 3, requires_grad=True)
    with use_backend("reference"):
        plan = explain(x, weight, batch_statistics=True)
    assert (plan.backend, plan.keeps_codes, plan.kernels) == (
        "reference",
        True,
        ("patch_moments", "torch's own operations"),
    )
    left = explain(x.half(), weight.half(), batch_statistics=True)
    assert (left.backend, left.plan) == ("torch", "plain")
    assert "float16" in left.reason


def test_a_named_backend_that_does_not_serve_raises() -> None:
    tensors = made()
    with use_backend("triton"), pytest.raises(RuntimeError, match="backend 'triton' cannot serve this call"):
        op(**tensors)
    with (
        use_backend("cpu"),
        pytest.raises(RuntimeError, match=r"backend 'cpu' cannot serve this call: dtype torch\.float64"),
    ):
        op(**made(torch.float64))
    assert torch.equal(tensors["running_mean"], torch.ones(6))


@by_each_backend
def test_the_forwards_backend_serves_its_backward(backend) -> None:
    tensors = made()
    y = op(**(tensors | {"weight": tensors["weight"].requires_grad_()}))
    with use_backend("auto"):
        (ours,) = torch.autograd.grad(y.sum(), tensors["weight"])
    (theirs,) = torch.autograd.grad(layers(**tensors).sum(), tensors["weight"])
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


# Torch functions and tracers.


def test_torch_function_modes_see_the_call() -> None:
    seen = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    class Named(Tensor):
        pass

    tensors = made()
    with Mode():
        y = op(**(tensors | {"x": tensors["x"].as_subclass(Named)}))
    assert conv_bn_relu_max_pool2d in seen
    assert type(y) is Named
    torch.testing.assert_close(y.as_subclass(Tensor), layers(**made()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["x", "weight", "gamma", "running_mean"])
def test_any_tensor_may_have_a_torch_function(name) -> None:
    class Overriding(Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function is conv_bn_relu_max_pool2d:
                return args, kwargs
            return super().__torch_function__(function, types, args, kwargs or {})

    tensors = made()
    args, kwargs = op(**(tensors | {name: tensors[name].as_subclass(Overriding)}))
    assert [type(t) is Overriding for t in args].count(True) == 1
    assert kwargs["training"] is True
    assert (kwargs["momentum"], kwargs["eps"], kwargs["groups"], kwargs["pool_kernel_size"]) == (0.1, 1e-5, 2, 2)


@by_each_backend
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit")
def test_torchscript_cannot_trace_it(training, backend) -> None:
    tensors = made()

    def call(x: Tensor, weight: Tensor) -> Tensor:
        moving = tensors["running_mean"], tensors["running_var"]
        return conv_bn_relu_max_pool2d(x, weight, None, None, None, *moving, training=training, **GEOMETRY)

    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace cannot record .* ConvBNReLUMaxPool2d"):
        torch.jit.trace(call, (tensors["x"], tensors["weight"]))


def test_momentum_as_a_tensor_is_not_waited_for(monkeypatch) -> None:
    """Neither by the layers of torch nor by ours."""

    def waits(_: Tensor) -> float:
        raise AssertionError("asked for the number")

    for name in ("__float__", "item"):
        monkeypatch.setattr(Tensor, name, waits)
    for dtype in (torch.float32, torch.float64):
        op(**made(dtype), momentum=torch.tensor(0.3, dtype=dtype))


# Refusals.

WRONG = {
    "x of 3 dimensions": ({"x": torch.zeros(4, 9, 8)}, ValueError, r"x must be \(N, C, H, W\), got shape \(4, 9, 8\)"),
    "gamma as a list": ({"gamma": [1.0] * 6}, TypeError, "gamma must be a Tensor, got list"),
    "integer beta": (
        {"beta": torch.ones(6).int()},
        TypeError,
        "beta must be of a floating-point type, got torch.int32",
    ),
    "long gamma": ({"gamma": torch.ones(7)}, ValueError, r"gamma must have shape \(6,\) to go with weight, got \(7,\)"),
    "mean elsewhere": (
        {"running_mean": torch.ones(6, device="meta")},
        ValueError,
        "running_mean must have the device of weight, cpu, got meta",
    ),
    "half of the statistics": ({"running_var": None}, ValueError, "given both or not at all"),
    "momentum as text": ({"momentum": "0.1"}, TypeError, "momentum must be a number or a Tensor, got str"),
    "two momenta": ({"momentum": torch.ones(2)}, ValueError, r"momentum must have one element, got shape \(2,\)"),
    "eps as text": ({"eps": "1e-5"}, TypeError, "eps must be a number, got str"),
    "no eps": ({"eps": 0.0}, ValueError, r"eps must be positive with training=True, got 0\.0"),
    "no statistics": (
        {"training": False, "running_mean": None, "running_var": None},
        ValueError,
        "training=False needs running_mean and running_var, got None",
    ),
    "pool of 0": ({"pool_kernel_size": 0}, ValueError, "pool_kernel_size must be at least 1, got 0"),
    "other dtype": ({"weight": torch.ones(6, 2, 3, 3).double()}, TypeError, "weight must have the dtype of x"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_named(case) -> None:
    change, error, words = WRONG[case]
    arguments = made() | {"training": True} | GEOMETRY | change
    with pytest.raises(error, match=words):
        conv_bn_relu_max_pool2d(**arguments)


def test_freed_storage_is_refused() -> None:
    tensors = made()
    tensors["x"].untyped_storage().resize_(0)
    with use_backend("reference"), pytest.raises(RuntimeError, match=r"x of shape .* has no memory"):
        op(**tensors)
