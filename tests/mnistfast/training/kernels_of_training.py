"""Prints the Triton kernels that a training of each preset compiles, as JSON: {preset: [kernel, ...]}.

Run by test_kernels.py in a process that does not interpret. A short training and a scoring run on the CPU and show what
every fused layer is given, the last, smaller batch included; the real launchers then take tensors of device "meta" for
a GPU that is not here, under a stand-in for Triton's driver and its compiler.
"""

import json
import sys
from collections import defaultdict
from dataclasses import replace

import torch
import triton
from triton.backends.compiler import GPUTarget

from convpool import ConvBNReLUMaxPool2d, ConvReLUMaxPool2d, planning
from convpool.geometry import Geometry, make_settings
from convpool.gpu import backend, backward_calls, epilogue, forward_calls, launch
from convpool.gpu.offline import compiled_launches
from convpool.module import conv_arguments, pool_options
from mnistfast.data.datasets import Split
from mnistfast.data.loader import DeviceData
from mnistfast.models.zoo import FUSED_LAYERS
from mnistfast.options.learning import TrainConfig
from mnistfast.training.inference import predict
from mnistfast.training.recipe import built
from mnistfast.training.trainer import Trainer

KERNELS = [forward_calls.forward_direct, forward_calls.forward_patch, forward_calls.forward_dot]
KERNELS += [backward_calls.weight_grad, backward_calls.sum_partials, backward_calls.input_grad]
KERNELS += [epilogue.pool, epilogue.expand]


def noise(count: int, size: tuple[int, int, int]) -> DeviceData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, *size), dtype=torch.uint8, generator=generator)
    split = Split(images.numpy(), (torch.arange(count) % 10).numpy())
    return DeviceData(split, torch.device("cpu"), (0.13,) * size[0], (0.31,) * size[0])


def calls_of_training(preset: str) -> dict[str, list[tuple[torch.Tensor, torch.nn.Module, bool, bool]]]:
    """By layer: x without numbers, the layer, and whether dx and dw are asked for; a call of each shape."""
    config = replace(TrainConfig(model=preset, device="cuda"), max_steps=None, epochs=1)
    model = built(config, 10, torch.device("cpu")).to(memory_format=torch.channels_last)  # as on a GPU
    calls: dict[str, list] = defaultdict(list)

    def keep(name, layer, arguments) -> None:
        if isinstance(layer, ConvBNReLUMaxPool2d):
            if layer.training:  # torch's layers: Triton's kernels take no statistics of a batch
                return
            layer = standing_for(layer)
        x = arguments[0]
        like = torch.empty_strided(x.shape, x.stride(), device="meta", dtype=x.dtype)
        grad = torch.is_grad_enabled()
        calls[name].append((like, layer, grad and x.requires_grad, grad and layer.weight.requires_grad))

    for name, layer in model.named_modules():
        if isinstance(layer, FUSED_LAYERS):
            layer.register_forward_pre_hook(lambda layer, arguments, name=name: keep(name, layer, arguments))
    trainer = Trainer(model, noise(config.batch_size + 3, model.input_size), None, config)
    for _ in trainer.run():
        pass
    predict(trainer.judged, noise(model.scoring_batch + 100, model.input_size))
    return calls


def standing_for(layer: ConvBNReLUMaxPool2d) -> ConvReLUMaxPool2d:
    """The layer that it is in eval mode, but for the numbers: its norm is part of weight and bias."""
    options = conv_arguments(layer.conv) | pool_options(layer.pool) | {"bias": True}
    return ConvReLUMaxPool2d(**options, contiguous_output=layer.contiguous_output)


def compiled(preset: str) -> list[str]:
    """A kernel's name for each time that Triton's compiler is called, in order; every fused layer launches some."""
    names: list[str] = []
    triton.compiler.compile = lambda source, **_: names.append(source.fn.__name__) or object()
    for kernel in KERNELS:  # which keep what was compiled, and the compiler they met first
        kernel.device_caches.clear()
    for layer_name, calls in calls_of_training(preset).items():
        with torch.no_grad(), compiled_launches(GPUTarget("cuda", 90, 32)) as launches:
            for x, layer, needs_x, needs_weight in calls:
                weight, bias = layer.weight.to("meta"), layer.bias.to("meta")
                settings = make_settings(layer.kernel_size, padding=layer.padding, **layer._options())
                geometry = Geometry.of(tuple(x.shape), tuple(weight.shape), settings)
                plan = backend.BACKEND.serves(geometry, x.dtype, torch.device("cuda"))
                training = needs_x or needs_weight
                y, code = launch.forward(x, weight, bias, geometry, plan.plan, training)
                if training:
                    launch.backward(y, code, x, weight, geometry, plan.plan, (needs_x, needs_weight, needs_weight))
        assert launches, f"{preset}: {layer_name} launched nothing"
    return names


if __name__ == "__main__":
    with planning.use_backend("auto"):
        print(json.dumps({preset: compiled(preset) for preset in sys.argv[1:]}))
