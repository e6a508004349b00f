"""The fused layers in a recorded step: operators, which a CUDA graph's step does without, and which launch the same."""

import pytest
import torch
from torch import Tensor, nn

from convpool import ConvBNReLUMaxPool2d, ConvReLUMaxPool2d, planning, registry
from convpool.cpu import native
from tests.mnistfast.training.recording import Recording, record

LAYERS = {
    "fused": lambda: [ConvReLUMaxPool2d(1, 4, 3), ConvReLUMaxPool2d(4, 8, 3)],
    "split": lambda: [ConvReLUMaxPool2d(1, 170, 1), ConvReLUMaxPool2d(170, 4, 3)],
    "batch statistics": lambda: [ConvBNReLUMaxPool2d(1, 4, 3)],
}


@pytest.fixture
def heard(monkeypatch) -> list[tuple[object, ...]]:
    """The calls of the C++ library: the function, what it was worked out to do (by address), and what it is given."""
    if registry.backend("cpu").unavailable():
        pytest.skip(registry.backend("cpu").unavailable())
    library, calls = native.library(), []
    for name in ("convpool_forward", "convpool_backward", "convpool_pool", "convpool_patch_moments"):
        function = getattr(library, name)

        def listen(problem, *memory, name=name, function=function):
            calls.append((name, problem, *(address is not None for address in memory)))
            return function(problem, *memory)

        monkeypatch.setattr(library, name, listen)
    return calls


@pytest.fixture
def heard_by_triton(monkeypatch) -> list[tuple[object, ...]]:
    """The launches of Triton's kernels: what was worked out, and the shapes and strides that it is given."""
    prepared = pytest.importorskip("convpool.gpu.prepared")
    launch, calls = prepared.Launch.__call__, []

    def listen(self, *tensors: Tensor) -> None:
        calls.append((self, *((tensor.shape, tensor.stride()) for tensor in tensors)))
        launch(self, *tensors)

    monkeypatch.setattr(prepared.Launch, "__call__", listen)
    return calls


def check_launches(layers: list[nn.Module], memory_format: torch.memory_format, heard: list[object]) -> None:
    """A recorded step launches what one launches that nothing looks at, which takes another way through the layers."""
    model = nn.Sequential(*layers).to(memory_format=memory_format)
    x = torch.randn(4, 1, 12, 12).to(memory_format=memory_format)

    def step() -> None:
        model.zero_grad()
        model(x).square().sum().backward()

    def launches_during(act) -> list[object]:
        heard.clear()
        act()
        return heard.copy()

    first, called = launches_during(step), launches_during(step)
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    recordings: list[Recording] = []
    recorded = launches_during(lambda: recordings.append(record(step)))
    (recording,) = recordings
    assert len(first) >= 2
    assert first == called == recorded == launches_during(recording.replay)
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        assert torch.equal(gradient, parameter.grad)
    fused = [name for name in recording.launches if name.startswith("convpool.")]
    assert len(fused) == 2 * len(layers)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("layers", LAYERS)
def test_the_library_is_called_alike(layers, memory_format, heard) -> None:
    with planning.use_backend("cpu"):
        check_launches(LAYERS[layers](), memory_format, heard)


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.parametrize("layers", ["fused", "split"])
def test_kernels_are_launched_alike(layers, heard_by_triton) -> None:
    with planning.use_backend("triton"):
        check_launches(LAYERS[layers](), torch.channels_last, heard_by_triton)
