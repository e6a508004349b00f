"""Run as a program: the op, `fuse` and what else stands on private names, where torch lacks one of them.

A name is taken from torch before convpool is imported and given back afterwards, for torch itself cannot do without
it: convpool asks once, at import, and has to get along with what it found then. Each name has a process to itself,
forked from one that has imported torch and run nothing.

Arguments: names as `torch_private` lists them, joined by "+" where they are to be missing together. The exit code
counts those with which something went wrong.
"""

import os
import sys
import traceback
from copy import deepcopy
from operator import attrgetter

import pytest
import torch
import torch.fx
import torch.utils.flop_counter
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.testing import assert_close

# What `unseen` asks; whether it answers yes at all.
ASKED_OF_A_CALL = {
    *("torch._C._is_tracing", "torch._C._are_functorch_transforms_active", "torch._C._len_torch_dispatch_stack"),
    *("torch._C._dispatch_keys", "torch._C.DispatchKey", "torch._C.DispatchKeySet", "torch._C.DispatchKeySet.raw_repr"),
    *(f"torch._C.DispatchKey.{name}" for name in ("CPU", "AutocastCPU", "AutogradCPU", "ADInplaceOrView")),
    *(f"torch._C.DispatchKey.{name}" for name in ("CUDA", "AutocastCUDA", "AutogradCUDA")),
    "torch.autograd.forward_ad._current_level",
}


# convpool imports no more of torch than is imported here, while torch is whole.


def take(name):
    """Deletes the name from torch, or keeps a method of nn.Module from filling its table; returns what undoes it."""
    table = name.startswith("table that ")
    path = name.removeprefix("table that ").removesuffix(" fills")
    owner_path, _, attribute = path.removeprefix("torch.").rpartition(".")
    owner = attrgetter(owner_path)(torch) if owner_path else torch
    value = vars(owner)[attribute]
    if table:
        setattr(owner, attribute, lambda *_: None)
    else:
        delattr(owner, attribute)
    return lambda: setattr(owner, attribute, value)


def eager(x, w, b):
    return F.max_pool2d(F.relu(F.conv2d(x, w, b)), 2)


def inputs():
    torch.manual_seed(0)
    shapes = (3, 2, 9, 10), (4, 2, 3, 3), (4,)
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def check_gradients(op):
    """First and second derivatives, and none."""
    found = []
    for function in (op, eager):
        x, w, b = inputs()
        y = function(x, w, b)
        with torch.no_grad():
            assert_close(function(x, w, b), y)
        grads = torch.autograd.grad(y.square().sum(), (x, w, b), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in grads), (x, w, b))
        x, w, b = inputs()
        function(x, w, b).square().sum().backward()
        found.append((y, grads, second, x.grad, w.grad, b.grad))
    assert_close(*found, rtol=1e-4, atol=1e-3)


def check_autocast(op):
    x, w, b = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        y = op(x, w, b)
        y.sum().backward()
        assert_close(y, eager(x, w, b), rtol=2e-2, atol=2e-2)
    assert y.dtype == torch.bfloat16
    assert w.grad.dtype == torch.float32


def check_transforms(op):
    from convpool import eager as layers
    from convpool.geometry import Geometry, make_settings

    x, w, b = inputs()

    def per_image(function):
        def loss(w, b, image):
            return function(image[None], w, b).square().sum()

        return torch.func.vmap(torch.func.grad(loss, (0, 1)), (None, None, 0))(w, b, x)

    assert_close(per_image(op), per_image(eager), rtol=1e-4, atol=1e-4)
    settings = make_settings((3, 3), stride=(1, 2), pool_kernel_size=(2, 1))
    one_column = torch.stack([x, -x])[..., :3]  # torch's own layers, by a way around a fault of theirs
    geometry = Geometry.of(one_column.shape[1:], w.shape, settings)
    y = torch.func.vmap(lambda x: layers.planned(x, w, b, geometry, layers.INNERMOST))(one_column)
    assert_close(y[1], F.max_pool2d(F.relu(F.conv2d(-x[..., :3], w, b, (1, 2))), (2, 1)))


def check_forward_mode(op):
    """A tangent of any of the arguments, one that comes after the forward pass, and under torch.func."""
    from convpool import use_backend

    for which in range(3):
        tangents = []
        for function in (op, eager):
            arguments = [t.detach() for t in inputs()]
            with forward_ad.dual_level():
                arguments[which] = forward_ad.make_dual(arguments[which], torch.ones_like(arguments[which]))
                tangents.append(forward_ad.unpack_dual(function(*arguments)).tangent)
                if function is op:
                    with use_backend("reference"), pytest.raises(RuntimeError, match="forward-mode"):
                        op(*arguments)
        assert_close(*tangents)
    late = []
    for function in (op, eager):
        x, w, b = inputs()
        y = function(x, w, b)
        with forward_ad.dual_level():
            dy = forward_ad.make_dual(torch.ones_like(y), y.detach())
            grads = torch.autograd.grad(y, (x, w, b), dy)
            late.append([forward_ad.unpack_dual(g).tangent for g in grads])
    assert_close(*late, rtol=1e-4, atol=1e-4)
    x, w, b = (t.detach() for t in inputs())
    assert_close(*(torch.func.jvp(lambda w, f=f: f(x, w, b), (w,), (w,)) for f in (op, eager)), rtol=1e-4, atol=1e-4)


def check_fuse(convpool):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(4)),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, (2, 3), padding="same", padding_mode="reflect"),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ).eval()
    x = inputs()[0].detach()
    fused = convpool.fuse(model)
    assert_close(fused(x), model(x), rtol=1e-4, atol=1e-4)
    assert convpool.verify(model, fused, x, dtype=torch.float64).within(1e-9)
    other = deepcopy(model)
    nn.init.zeros_(other[3].weight)
    assert not convpool.verify(model, other, x).within(1e-2)
    calls = []
    for run in (nn.modules.module.register_module_forward_hook, fused[1].register_forward_hook):
        hook = run(lambda layer, *_: calls.append(type(layer)) if isinstance(layer, nn.ReLU) else None)
        fused(x)
        hook.remove()
        assert nn.ReLU in calls, run
        calls.clear()
    layer = deepcopy(fused)  # as nothing was registered, nothing is lost
    fused[0] = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Identity())
    assert not torch.equal(fused(x)[..., :1, :1], layer(x)[..., :1, :1])


def check_average():
    from mnistfast.models.zoo import build
    from mnistfast.training.average import Average

    model = build("lenet5")
    average = Average(model, 0.5, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    average.update(model)
    for kept, latest in zip(average.module.parameters(), model.parameters(), strict=True):
        assert_close(kept, latest)


def check_compile(convpool, op):
    from convpool import registry

    del registry.unavailable._dynamo_marked_constant  # as if the compiler looked for another mark
    x, w, b = inputs()
    assert_close(torch.compile(op, backend="aot_eager")(x, w, b), eager(x, w, b))


def check(names):
    undo = [take(name) for name in sorted(names, key=len, reverse=True)]  # what lies in another one first
    import convpool
    from convpool import torch_private

    for each in reversed(undo):
        each()
    op = convpool.conv_relu_max_pool2d
    missing = torch_private.missing()
    assert set(missing) == set(names) & set(torch_private._asked)  # in a name that is missing none is asked for
    assert missing or not names
    said = str(convpool.explain(*inputs()))
    assert ("a fast path is off" in said) == bool(names)
    assert all(name in said for name in missing)
    assert torch_private.unseen(*inputs()) == names.isdisjoint(ASKED_OF_A_CALL)
    check_gradients(op)
    check_autocast(op)
    check_transforms(op)
    check_forward_mode(op)
    check_fuse(convpool)
    check_average()
    if len(names) > 1:
        check_compile(convpool, op)


def start(job):
    """The process id of a child that runs the checks of a job, and says on stderr what went wrong."""
    pid = os.fork()
    if pid:
        return pid
    try:
        check(set(filter(None, job.split("+"))))
    except BaseException:
        print(f"Without {job}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def main(jobs):
    torch.set_num_threads(1)
    failed = running = 0
    for job in jobs:
        if running == (os.cpu_count() or 1):
            failed += os.wait()[1] != 0
            running -= 1
        start(job)
        running += 1
    return failed + sum(os.wait()[1] != 0 for _ in range(running))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
