"""One training step of torchvision's VGG16, as it comes and fused: time, activations kept, peak memory.

    python benchmarks/vgg16_fuse.py [--batch 4] [--size 224] [--threads 2] [--repeats 5]

The models take turns, so that a slow phase of the machine hits all of them; medians and ranges are over `repeats`.
Peak memory is that of a process that ran two steps of the one model. Nothing is reported if gradients are off.
"""

import argparse
import copy
import json
import multiprocessing as mp
import resource
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn

import convpool
from convpool.fusion.memory import kept_bytes


def build(form: str) -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.vgg16(weights=None, init_weights=False)  # torch's own initialisation: quicker
    if "fused" in form:
        convpool.fuse(model, inplace=True)
    return model.to(memory_format=torch.channels_last) if "channels_last" in form else model


FORMS = ("eager", "eager channels_last", "fused")


def data(form: str, batch: int, size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, size, size, generator=generator)
    if "channels_last" in form:
        x = x.contiguous(memory_format=torch.channels_last)
    return x, torch.arange(batch)


def gradient_errors(models: dict[str, nn.Module], size: int) -> dict[str, float]:
    """Distance of all gradients to those of the original in float64, relative to their norm.

    Float32 rounding alone decides some pool windows differently, and then gradients move to another position: so the
    fused model is held to eager's own distance, not to a fixed one.
    """
    gradients = {}
    for form, model in {"float64": copy.deepcopy(models["eager"]).double(), **models}.items():
        x, labels = data(form, 1, size)
        loss = nn.functional.cross_entropy(model.eval()(x.to(next(model.parameters()).dtype)), labels)
        gradients[form] = [g.double() for g in torch.autograd.grad(loss, list(model.parameters()))]
    exact = gradients.pop("float64")
    norm = sum(g.square().sum() for g in exact) ** 0.5
    return {
        form: float(sum((a - b).square().sum() for a, b in zip(ours, exact, strict=True)) ** 0.5 / norm)
        for form, ours in gradients.items()
    }


def make_step(form: str, model: nn.Module, batch: int, size: int) -> Callable[[], float]:
    x, labels = data(form, batch, size)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step() -> float:
        begin = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
        return time.perf_counter() - begin

    return step


def peak_memory(form: str, arguments: argparse.Namespace) -> int:
    """Bytes of resident memory at the highest point of two steps, in this process."""
    torch.set_num_threads(arguments.threads)
    step = make_step(form, build(form), arguments.batch, arguments.size)
    step()
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    with mp.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = {form: pool.apply(peak_memory, (form, arguments)) for form in FORMS}

    models = {form: build(form) for form in FORMS}
    errors = gradient_errors(models, arguments.size)
    if errors["fused"] > 2 * errors["eager"]:
        raise SystemExit(f"the fused model's gradients are further from float64's than eager's: {errors}")
    kept = {}
    for form, model in models.items():
        x, _ = data(form, arguments.batch, arguments.size)
        kept[form] = kept_bytes(model.train(), x, ignore=model.parameters())

    steps = {form: make_step(form, model, arguments.batch, arguments.size) for form, model in models.items()}
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    for repeat in range(arguments.repeats + 1):
        for form, step in steps.items():
            seconds = step()
            if repeat:  # the first is a warm-up
                times[form].append(seconds)

    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {json.dumps(vars(arguments))}")
    print("| form | step, median (range) | activations kept | peak resident memory | gradients against float64 |")
    print("| --- | --- | --- | --- | --- |")
    for form in FORMS:
        low, middle, high = min(times[form]), statistics.median(times[form]), max(times[form])
        memory = f"{kept[form] / 2**20:.1f} MiB | {peaks[form] / 2**20:.0f} MiB"
        print(f"| {form} | {middle:.3f} s ({low:.3f}-{high:.3f}) | {memory} | {errors[form]:.1e} |")


if __name__ == "__main__":
    main()
