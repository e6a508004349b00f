"""fuse and unfuse: same values, same gradients, same model; and nothing fused that must not be."""

import copy
import io
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import convpool
from convpool.fusion import chain


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of the inputs that reach the op: one entry for each run that was really fused."""
    shapes: list[tuple[int, ...]] = []
    op = chain.conv_relu_max_pool2d

    def counting(x: Tensor, *args: object, **kwargs: object) -> Tensor:
        shapes.append(tuple(x.shape))
        return op(x, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(chain, "conv_relu_max_pool2d", counting)
    return shapes


def assert_same(model: nn.Module, fused: nn.Module, *example: Tensor) -> None:
    """1e-11 of each tensor's scale: float64 rounding (2e-16) through a dozen layers, sums of some thousand terms."""
    differences = convpool.verify(model, fused, example)
    assert differences.within(1e-11), str(differences)


def test_same_values_gradients_and_buffers(model: nn.Module, example: Tensor) -> None:
    with convpool.use_backend("reference"):
        assert_same(model, convpool.fuse(model), example)


def test_same_on_every_backend(model: nn.Module, example: Tensor, backend: str) -> None:
    """In float32, which all of them have. There rounding alone decides some windows (1 in 50,000) differently, and a
    gradient moves to another position: so gradients are compared by norm, where that is far below 5 % and a bug is not.
    """
    gradients = []
    for m in (model, convpool.fuse(model)):
        y = m.float().eval()(example.float())
        gradients.append(torch.autograd.grad(y.square().sum(), list(m.parameters())))
    for expected, got in zip(*gradients, strict=True):
        assert (got - expected).norm() <= 0.05 * expected.norm()
    torch.testing.assert_close(convpool.fuse(model)(example.float()), model(example.float()), rtol=1e-4, atol=1e-5)


def test_same_under_auto(model: nn.Module, example: Tensor) -> None:
    assert_same(model, convpool.fuse(model), example)


def test_every_run_calls_the_op(
    model: nn.Module, expected_runs: int, example: Tensor, calls: list[tuple[int, ...]]
) -> None:
    convpool.fuse(model).eval()(example)
    assert len(calls) == expected_runs


@pytest.mark.parametrize("fused_in_training", [True, False])
def test_mode_at_fuse_does_not_matter(model: nn.Module, example: Tensor, fused_in_training: bool) -> None:
    fused = convpool.fuse(model.train(fused_in_training))
    for training in (not fused_in_training, fused_in_training):
        outputs = []
        for m in (model, fused):
            torch.manual_seed(3)
            outputs.append(m.train(training)(example))
        torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-11, atol=1e-11)


def test_state_dict_modules_and_class_stay(model: nn.Module, style: type[nn.Module]) -> None:
    fused = convpool.fuse(model)
    assert list(fused.state_dict()) == list(model.state_dict())
    assert [n for n, _ in fused.named_modules()] == [n for n, _ in model.named_modules()]
    assert isinstance(fused, style)
    assert type(fused).__name__ == style.__name__
    assert "fused by convpool" in repr(fused)


def test_a_copy_unless_inplace(model: nn.Module, example: Tensor, calls: list[tuple[int, ...]]) -> None:
    fused = convpool.fuse(model)
    assert not {id(p) for p in fused.parameters()} & {id(p) for p in model.parameters()}
    model.eval()(example)
    assert not calls
    assert convpool.fuse(model, inplace=True) is model
    model(example)
    assert calls


def test_fusing_twice_changes_nothing(model: nn.Module, example: Tensor, expected_runs: int, calls: list) -> None:
    once = convpool.fuse(model)
    twice = convpool.fuse(once)
    assert [type(m) for m in twice.modules()] == [type(m) for m in once.modules()]
    twice.eval()(example)
    assert len(calls) == expected_runs
    assert_same(model, twice, example)


def test_unfuse_gives_the_model_back(model: nn.Module, example: Tensor, calls: list) -> None:
    fused = convpool.fuse(model)
    with torch.no_grad():
        next(fused.parameters()).add_(1)
    plain = convpool.unfuse(fused)
    assert [type(m) for m in plain.modules()] == [type(m) for m in model.modules()]
    assert [vars(m).keys() for m in plain.modules()] == [vars(m).keys() for m in model.modules()]
    torch.testing.assert_close(next(plain.parameters()), next(model.parameters()) + 1)
    plain(example)
    assert not calls
    assert convpool.unfuse(fused, inplace=True) is fused
    assert [type(m) for m in fused.modules()] == [type(m) for m in model.modules()]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), "torch.save"])
def test_copies_stay_fused(model: nn.Module, example: Tensor, expected_runs: int, calls: list, copied: object) -> None:
    fused = convpool.fuse(model)
    if copied == "torch.save":
        file = io.BytesIO()
        torch.save(fused, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = copied(fused)  # type: ignore[operator]
    other.eval()(example)
    assert len(calls) == expected_runs
    assert_same(model, other, example)


def test_fused_model_moves_dtype(model: nn.Module, example: Tensor) -> None:
    fused = convpool.fuse(model).float().eval()
    torch.testing.assert_close(fused(example.float()), model.float().eval()(example.float()), rtol=1e-4, atol=1e-5)


def test_tied_weights_and_modules_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.b.weight = self.a.weight
            self.c = self.a

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(F.relu(self.a(x)), 2)
            x = F.max_pool2d(F.relu(self.b(x)), 2)
            return F.max_pool2d(F.relu(self.c(x)), 3) + self.a(x).mean()

    model = Tied().double()
    fused = convpool.fuse(model)
    assert fused.b.weight is fused.a.weight
    assert fused.c is fused.a
    assert len(convpool.fusion_report(fused).fused) == 3
    assert_same(model, fused, torch.randn(2, 4, 16, 16, dtype=torch.float64))


def test_batch_norm_trains_to_the_same_parameters(backend: str) -> None:
    """50 steps, each fifth with frozen norms: running statistics, gamma and beta, everything arrives at the same place.

    float32 rounding (6e-8) grows over the steps: about 1e-6 was seen; a wrong gradient gives 1e-1.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.MaxPool2d(2), nn.ReLU(inplace=True)),
        *(nn.Flatten(), nn.Linear(200, 4)),
    )
    fused = convpool.fuse(model)
    x, labels = torch.randn(32, 1, 28, 28), torch.randint(4, (32,))
    for m in (model, fused):
        optimizer = torch.optim.SGD(m.parameters(), lr=0.02, momentum=0.9)
        for step in range(50):
            m.train(step % 5 != 0)
            optimizer.zero_grad()
            F.cross_entropy(m(x), labels).backward()
            optimizer.step()
    for (name, expected), got in zip(model.state_dict().items(), fused.state_dict().values(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_hook_on_an_inner_layer_sees_what_it_would(model: nn.Module, example: Tensor) -> None:
    fused = convpool.fuse(model).eval()
    model.eval()
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.ReLU | nn.MaxPool2d | nn.BatchNorm2d):
            continue
        seen: list[list[Tensor]] = [[], []]
        for m, outputs in zip((model, fused), seen, strict=True):
            hook = m.get_submodule(name).register_forward_hook(
                lambda _, args, y, outputs=outputs: outputs.append(y.clone())
            )
            m(example)
            hook.remove()
        assert len(seen[0]) == len(seen[1]) > 0
        for expected, got in zip(*seen, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_global_hooks_see_every_layer(model: nn.Module, example: Tensor) -> None:
    names: list[str] = []
    hook = nn.modules.module.register_module_forward_hook(lambda m, args, y: names.append(type(m).__name__))
    try:
        model.eval()(example)
        expected, names[:] = list(names), []
        convpool.fuse(model)(example)
    finally:
        hook.remove()
    assert names == expected


def test_old_style_weight_norm_keeps_its_hook(example: Tensor) -> None:
    """Its weight exists only from one call of the hook to the next; torch cannot copy such a layer, hence inplace."""
    outputs = []
    for fuse in (lambda m: m, lambda m: convpool.fuse(m, inplace=True)):
        torch.manual_seed(0)
        with pytest.warns(FutureWarning):
            conv = nn.utils.weight_norm(nn.Conv2d(3, 4, 3).double())
        model = fuse(nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2)))
        with torch.no_grad():
            conv.weight_g.mul_(2)
        outputs.append(model(example))
    torch.testing.assert_close(outputs[1], outputs[0])


def test_layers_replaced_after_fuse_are_used(example: Tensor, calls: list) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu, self.pool = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(self.relu(self.conv(x))).sqrt()

    for make in (Net, lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))):
        fused = convpool.fuse(make().double())
        relu = "relu" if isinstance(fused, Net) else "1"
        setattr(fused, relu, nn.Softplus())
        expected = make().double()
        expected.load_state_dict(fused.state_dict())
        setattr(expected, relu, nn.Softplus())
        torch.testing.assert_close(fused(example), expected(example))
    assert not calls


def test_a_fused_sequential_is_still_a_list_of_layers(example: Tensor, calls: list) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3)).double()
    fused = convpool.fuse(model)
    for edit in (lambda m: m[:2], lambda m: m[1:], lambda m: m[::2], lambda m: m.append(nn.Tanh()), lambda m: m[:3]):
        sliced = edit(fused)
        x = example if sliced[0] is fused[0] else torch.randn(2, 4, 8, 8, dtype=torch.float64)
        expected = x
        for layer in sliced:
            expected = layer(expected)
        torch.testing.assert_close(sliced(x), expected)
    assert len(calls) == 2  # append and [:3]; the others hold no whole run


def test_flags_changed_after_fuse_are_obeyed(example: Tensor, calls: list) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.doubled, self.head = nn.Conv2d(3, 4, 3), False, None

        def forward(self, x: Tensor, shift: float = 0.0, *, scale: Tensor | None = None) -> Tensor:
            x = F.max_pool2d(F.relu(self.conv(x)), 2) + shift
            if self.head is not None:
                x = self.head(x)
            if scale is not None:
                x = x * scale
            return 2 * x if self.doubled else x

    fused = convpool.fuse(Net().double())
    plain = convpool.unfuse(fused)
    for change in (
        lambda m: m(example),
        lambda m: m(x=example),
        lambda m: m(example, 1.0),
        lambda m: m(example, scale=torch.tensor(3.0)),
        lambda m: setattr(m, "doubled", True) or m(example),
        lambda m: setattr(m, "head", nn.Tanh()) or m(example),
    ):
        torch.testing.assert_close(change(fused), change(plain))
    assert len(calls) == 2  # the calls that go the way that was traced


def test_dropout_between_conv_and_pool_fuses_where_it_is_idle(example: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout2d(), nn.MaxPool2d(2), nn.Identity(), nn.ReLU()).double()
    assert [row.reason for row in convpool.fusion_report(model).rows] == ["Dropout2d is active (training mode)"]
    assert convpool.fusion_report(model.eval()).rows[0].fused
    assert_same(model, convpool.fuse(model), example)


def test_order_of_operations_stays(example: Tensor) -> None:
    """Between conv and pool, x is changed in place: the conv must have read it before."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x * 1
            z = self.conv(x)
            with_change = x.mul_(2)
            return F.max_pool2d(F.relu(z), 2).sum() + with_change.sum()

    model = Net().double().requires_grad_(False)
    fused = convpool.fuse(model)
    assert len(convpool.fusion_report(fused).fused) == 1
    torch.testing.assert_close(fused(example), model(example))


class Rich(nn.Module):
    """Methods, hooks, a buffer, a child that cannot be traced, and a block beside it that can."""

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.block = nn.Conv2d(4, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.MaxPool2d(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x) if x.sum() > 0 else F.max_pool2d(F.relu(self.conv(x)), 2)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.branching = self.Branching()
        self.register_buffer("calls", torch.zeros(()))

    def features(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(self.conv(x)), 2)

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.branching(self.features(x))


def test_methods_hooks_and_untraceable_children_stay(example: Tensor, calls: list) -> None:
    model = Rich().double()
    seen: list[Tensor] = []
    model.register_forward_hook(lambda m, args, y: seen.append(y))
    fused = convpool.fuse(model)
    torch.testing.assert_close(fused.features(example), model.features(example))
    calls.clear()
    y = fused(example)
    assert seen[-1] is y
    torch.testing.assert_close(y, model(example))
    assert fused.calls == 1
    assert len(calls) in (1, 2)  # the run of Rich, and the branch's block if its condition chose it
    report = convpool.fusion_report(model)
    assert [row.layers for row in report.fused] == [
        ("conv", "relu", "max_pool2d"),
        ("branching.block.0", "branching.block.1", "branching.block.2"),
    ]
    assert [name for name, _ in report.untraceable] == ["branching"]


def test_freezing_one_block_keeps_its_mode(example: Tensor) -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
    ).double()
    model[1].eval()
    assert [row.fused for row in convpool.fusion_report(model).rows] == [True, False]
    fused = convpool.fuse(model)
    torch.testing.assert_close(fused(example), model(example))
    torch.testing.assert_close(fused[5].running_mean, model[5].running_mean)
    assert (fused[1].running_mean == 0).all()


def test_unfuse_refuses_a_class_derived_since() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.max_pool2d(F.relu(self.conv(x)), 2) * self.scale

    fused = convpool.fuse(Net())
    nn.utils.parametrize.register_parametrization(fused, "scale", nn.Identity())
    with pytest.raises(ValueError, match="derived from after fuse"):
        convpool.unfuse(fused)
    nn.utils.parametrize.remove_parametrizations(fused, "scale")
    assert type(convpool.unfuse(fused)) is Net


@pytest.mark.parametrize("function", [convpool.fuse, convpool.unfuse, convpool.fusion_report])
def test_wrong_types_are_refused(function: object) -> None:
    scripted = torch.jit.trace(nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 2, 2))
    for wrong, name in ((F.relu, "function"), (None, "NoneType"), (scripted, "ScriptModule")):
        with pytest.raises(TypeError, match=name):
            function(wrong)  # type: ignore[operator]


def test_instances_made_from_a_rewritten_class_are_whole(example: Tensor) -> None:
    """By `type(model)()`, as teachers and averaged models are made, and by slicing an nn.Sequential."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.max_pool2d(F.relu(self.conv(x)), 2)

    twin = type(convpool.fuse(Net()))().double()
    slice_ = convpool.fuse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()).double())[:3]
    for model in (twin, slice_):
        plain = convpool.unfuse(model)
        assert_same(plain, model, example)
        assert_same(plain, convpool.fuse(model, inplace=True), example)
        assert_same(plain, convpool.unfuse(model, inplace=True), example)
        assert not hasattr(type(model), "convpool_base")


def test_other_ways_of_calling_are_kept(example: Tensor) -> None:
    class Twice(nn.Sequential):
        def __call__(self, x: Tensor) -> Tensor:
            return 2 * super().__call__(x)

    layers = [nn.Conv2d(3, 4, 3), nn.ReLU()]
    for model in (Twice(*layers, nn.MaxPool2d(2)), nn.Sequential(Twice(*layers), nn.MaxPool2d(2))):
        assert not convpool.fusion_report(model).rows
        assert_same(model.double(), convpool.fuse(model), example)
    fused = convpool.fuse(nn.Sequential(nn.Sequential(*layers), nn.MaxPool2d(2)))
    fused[0] = Twice(*layers)
    assert_same(model, fused, example)


def test_a_convolution_patched_after_fuse(example: Tensor) -> None:
    fused = convpool.fuse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)).double())
    fused[0]._conv_forward = lambda x, weight, bias: F.conv2d(F.pad(x, (1, 1, 1, 1), "circular"), weight, bias)
    torch.testing.assert_close(fused(example), convpool.unfuse(fused)(example))
    assert fused(example).shape[-1] == example.shape[-1] // 2


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(self.conv(x)), 2)


@pytest.mark.parametrize("kind", ["functional", "in order", "inside another"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit")
def test_torchscript_takes_the_unfused_model_alone(kind: str, example: Tensor) -> None:
    """torch.jit.script would look up the names in a user's forward where ours is written."""
    in_order = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
    fused = convpool.fuse((in_order if kind == "in order" else Functional()).double())
    model = nn.Sequential(nn.Identity(), fused) if kind == "inside another" else fused
    with pytest.raises(RuntimeError, match=r"torch.jit.script cannot .* call convpool.unfuse\(model\) first"):
        torch.jit.script(model)
    with convpool.use_backend("reference"), pytest.raises(RuntimeError, match=r"trace convpool.unfuse\(model\)"):
        torch.jit.trace(model, example)
    plain = convpool.unfuse(model)
    for scripted in (torch.jit.script(plain), torch.jit.trace(plain, example), torch.jit.trace(model, example)):
        torch.testing.assert_close(scripted(example), plain(example))  # the last: auto gives float64 to torch's layers
