"""A training step of which the host launches one graph: batch, forward, loss, backward and optimiser."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.gpu_steps.subjects import Images
from convpool import use_backend

_MEAN, _STD = 0.1307, 0.3081  # of MNIST's pixels
_MOST_STEPS = 4096
_WARM_UP = 0.3  # of the steps, over which the rate rises before it falls to zero
_BETAS = (0.7, 0.9)


class WholeStep:
    """The images lie on the device as uint8; their order, the learning rates and the step's number are tensors there.

    So a replay takes the next batch and the next rate by itself. Without a GPU the same Python runs step by step.
    """

    def __init__(self, model: nn.Module, images: Images, batch: int, device: str, *, bf16: bool, backend: str) -> None:
        """`backend`: who computes the fused layers."""
        self._model, self._device, self._bf16, self._backend = model, device, bf16, backend
        self._images = torch.from_numpy(images.train.images).to(device)
        self._labels = torch.from_numpy(images.train.labels).to(device)
        self._order = torch.randperm(len(self._labels)).to(device)
        self._offsets = torch.arange(batch, device=device)
        self._cursor, self._step = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(2))
        self._rates = torch.full((_MOST_STEPS,), 1e-3, device=device)
        self._rate = torch.tensor(1e-3, device=device)
        gpu = device == "cuda"
        self._optimizer = torch.optim.Adam(
            model.parameters(), lr=self._rate if gpu else 1e-3, betas=_BETAS, fused=True, capturable=gpu
        )
        self.graph: torch.cuda.CUDAGraph | None = None

    def body(self) -> None:
        """One step, launch by launch."""
        self._optimizer.zero_grad()
        self._rate.copy_(self._rates.index_select(0, self._step[None])[0])
        index = self._order.index_select(0, (self._offsets + self._cursor) % len(self._order))
        x, y = self._normal(self._images.index_select(0, index)), self._labels.index_select(0, index)
        with use_backend(self._backend), torch.autocast(self._device, torch.bfloat16, enabled=self._bf16):
            logits = self._model(x)
        F.cross_entropy(logits.float(), y).backward()
        self._optimizer.step()
        self._cursor.add_(len(self._offsets))
        self._step.add_(1)

    def capture(self) -> float:
        """Record a step as a graph; the seconds that it took."""
        began = time.perf_counter()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.body()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.body()
        torch.cuda.synchronize()
        return round(time.perf_counter() - began, 4)

    def launch(self) -> None:
        """The step as the host launches it best."""
        if self.graph is None:
            self.body()
        else:
            self.graph.replay()

    def learn(self, images: Images, steps: int, peak: float, seed: int) -> tuple[float, float]:
        """Seconds from uint8 on the host to final weights, and the share of test images known afterwards."""
        self._reset(seed, steps, peak)
        self._wait()
        began = time.perf_counter()
        self._images.copy_(torch.from_numpy(images.train.images))
        self._labels.copy_(torch.from_numpy(images.train.labels))
        self._order.copy_(torch.randperm(len(self._order), device=self._device))
        for _ in range(steps):
            self.launch()
        self._wait()
        return round(time.perf_counter() - began, 5), self._score(images.test)

    @torch.no_grad()
    def _reset(self, seed: int, steps: int, peak: float) -> None:
        torch.manual_seed(seed)
        for module in self._model.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        for state in self._optimizer.state.values():
            for value in state.values():
                value.zero_()
        share = (torch.arange(_MOST_STEPS) + 0.5) / steps
        self._rates.copy_(peak * torch.minimum(share / _WARM_UP, (1 - share) / (1 - _WARM_UP)).clamp_min(0))
        self._cursor.zero_()
        self._step.zero_()

    def _score(self, split: Any) -> float:
        right = 0
        self._model.eval()
        with torch.inference_mode(), use_backend(self._backend):
            for at in range(0, len(split.labels), 2000):
                x = self._normal(torch.from_numpy(split.images[at : at + 2000]).to(self._device))
                right += int((self._model(x).argmax(1).cpu() == torch.from_numpy(split.labels[at : at + 2000])).sum())
        self._model.train()
        return right / len(split.labels)

    def _normal(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float().mul_(1 / (255 * _STD)).sub_(_MEAN / _STD)

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()
