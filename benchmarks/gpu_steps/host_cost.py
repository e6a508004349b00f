"""Where the host's microseconds of a launch go, part by part: cnn2's second layer at batch 128."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.gpu_steps.subjects import Bench, Layer, Rows, precise
from convpool import conv_relu_max_pool2d, use_backend


def rows(bench: Bench) -> Rows:
    precise("tf32")
    layer = Layer("cnn-2", 2 if bench.rehearses else 128, "tf32", "channels_last")
    i = layer.inputs(bench.device)
    leaves = [t.detach().requires_grad_() for t in i.tensors]

    def op(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        with use_backend(bench.ours):
            return conv_relu_max_pool2d(x, w, b)

    def plain(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(F.relu(F.conv2d(x, w, b)), 2)

    def infer() -> torch.Tensor:
        with torch.inference_mode():
            return op(*i.tensors)

    def infer_plain() -> torch.Tensor:
        with torch.inference_mode():
            return plain(*i.tensors)

    calls: dict[str, Callable[[], object]] = {
        "torch's add_": lambda: i.dy.add_(0),
        "torch's conv2d": lambda: F.conv2d(i.x, i.weight, i.bias),
        "op, inference": infer,
        "op, forward": lambda: op(*leaves),
        "op, forward and backward": lambda: torch.autograd.grad(op(*leaves), leaves, i.dy),
        "three layers, inference": infer_plain,
        "three layers, forward": lambda: plain(*leaves),
        "three layers, forward and backward": lambda: torch.autograd.grad(plain(*leaves), leaves, i.dy),
    }
    if not bench.rehearses:
        from convpool.gpu import launch

        g, needs = i.geometry, (True, True, True)
        _, code = launch.forward(i.x, i.weight, i.bias, g, "fused", True)
        calls |= {
            "device guard": lambda: _guard(i.x.device),
            "launch.forward, 1 kernel": lambda: launch.forward(i.x, i.weight, i.bias, g, "fused", True),
            "launch.backward, 3 kernels": lambda: launch.backward(i.dy, code, i.x, i.weight, g, "fused", needs),
        }
    for name, call in calls.items():
        yield {"part": name}, partial(_timed, bench, call)


def _timed(bench: Bench, call: Callable[[], object]) -> dict[str, Any]:
    return bench.race({"host": call}, replay=False)["host"]


def _guard(device: torch.device) -> None:
    with torch.cuda.device(device):
        pass
