"""Which backend and plan a call gets, and why: what was measured (`choices`), else the backends' own rules, asked in
order, torch's own layers being the last resort.

A call is planned once. What is planned travels with it as the name of its plan, "cpu/fused", from which `running`
finds the backend again.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from convpool import choices, eager
from convpool.checks import check_alike, check_shapes
from convpool.geometry import Geometry, Settings, make_settings
from convpool.layout import has_channels_last_strides
from convpool.protocol import Backend, Plan, Use
from convpool.registry import (
    AUTO,
    AUTO_REPLAYED,
    TORCH,
    asked_on,
    backend,
    backend_names,
    unavailable,
    when_backends_change,
)
from convpool.torch_private import are_static, constant_when_compiled

# Read at import: to look for an absent name in os.environ takes as long as all other checks of a call together.
_DEFAULT = os.environ.get("CONVPOOL_BACKEND") or "auto"
chosen_backend: ContextVar[str | None] = ContextVar("convpool_backend", default=None)  # by `use_backend`


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Compute the calls made inside by the backend `name`; a call it cannot serve raises.

    "auto" leaves the choice to each call; "auto-replayed" too, for calls that a CUDA graph records: replayed, more of
    them are faster on a GPU, where Python's launching costs more than small kernels take. "torch" names torch's own
    layers, and "cpu/split" one of a backend's plans (as `explain` names them), whatever the backend itself would take.

    The choice belongs to the current thread or task. A forward's choice holds for its backward, wherever that runs.
    Outside, the environment variable CONVPOOL_BACKEND, as it was at import, names the backend; without it the choice
    is "auto".

    Raises:
        ValueError: `name` is not "auto", "auto-replayed", "torch" or a backend's name, or such a name, "/" and a plan.
    """
    token = chosen_backend.set(_check_name(name, "use_backend"))
    try:
        yield
    finally:
        chosen_backend.reset(token)


def requested_backend() -> str:
    """The name in force: `use_backend`'s, else CONVPOOL_BACKEND's, else "auto"."""
    return chosen_backend.get() or _check_name(_DEFAULT, "CONVPOOL_BACKEND")


if torch.__version__ < "2.14":  # its compiler cannot trace ContextVar.get: the choice at compile time then holds
    constant_when_compiled(requested_backend)


def use_of(x: Tensor, weight: Tensor, bias: Tensor | None = None, requested: str = AUTO) -> Use:
    """What the plan of a call on these tensors hangs on besides sizes and types."""
    training = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or _learns(bias))
    return Use(
        channels_last=x.layout is torch.strided and x.dim() == 4 and has_channels_last_strides(x),
        training=training,
        dx=training and x.requires_grad,
        threads=_threads(),
        replayed=requested == AUTO_REPLAYED,
        repeatable=torch.are_deterministic_algorithms_enabled(),
        symbolic=torch.compiler.is_compiling() or any(type(n) is not int for n in x.shape),
    )


def _learns(bias: Tensor | None) -> bool:
    return bias is not None and bias.requires_grad


@constant_when_compiled
def _threads() -> int:
    return torch.get_num_threads()


def as_it_is(backend: Backend, geometry: Geometry, dtype: torch.dtype, device: torch.device, use: Use) -> Plan | str:
    """The question of a call of `conv_relu_max_pool2d`: the backend's plan, or in words why it has none."""
    return backend.serves(geometry, dtype, device, use)


def normalised(backend: Backend, geometry: Geometry, dtype: torch.dtype, device: torch.device, use: Use) -> Plan | str:
    """The question of a call whose conv output is normalised by its own statistics."""
    plan = backend.serves(geometry, dtype, device, use)
    if isinstance(plan, str):
        return plan
    batch_statistics = getattr(backend, "batch_statistics", None)
    return "it takes no batch statistics" if batch_statistics is None else batch_statistics(geometry, plan, use.dx)


Question: TypeAlias = Callable[[Backend, Geometry, torch.dtype, torch.device, Use], Plan | str]


def decide(
    shapes: tuple[torch.Size, torch.Size, torch.Size | None],
    dtypes: tuple[torch.dtype, ...],
    devices: tuple[torch.device, ...],
    requested: str,
    use: Use,
    options: tuple[Any, ...],
    _: tuple[type, ...],
    ask: Question,
) -> tuple[Geometry, Plan]:
    """Geometry and plan of a call on x, weight and bias, of which everything that can be wrong is looked at first.

    The last argument but one, the types of the options, keeps apart in a cache what is equal but not alike: 1 is a
    stride, True is not.

    Raises:
        TypeError, ValueError: what is given does not fit.
        RuntimeError: the backend named by `requested` cannot serve the call.
    """
    x_shape, weight_shape = tuple(shapes[0]), tuple(shapes[1])
    check_shapes(x_shape, weight_shape, None if shapes[2] is None else tuple(shapes[2]))
    settings = make_settings(weight_shape[2:], *options)
    if len(x_shape) == 3:
        settings = settings._replace(contiguous_output=True)  # as torch's max-pool of three dimensions
    check_alike("dtype", TypeError, dtypes)
    check_alike("device", ValueError, devices)
    batched = x_shape if len(x_shape) == 4 else (1, *x_shape)
    return choose(batched, weight_shape, settings, dtypes[0], devices[0], use, requested, ask)


decide_once = lru_cache(4096)(decide)
when_backends_change(decide_once.cache_clear)


def choose(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    settings: Settings,
    dtype: torch.dtype,
    device: torch.device,
    use: Use,
    requested: str,
    ask: Question = as_it_is,
) -> tuple[Geometry, Plan]:
    """Geometry and plan of a call on batched tensors that fit each other in type and device.

    Raises:
        ValueError: the shapes do not fit each other.
        RuntimeError: the backend named by `requested` cannot serve the call.
    """
    geometry = Geometry.of(x_shape, weight_shape, settings)
    return geometry, (_auto if names_none(requested) else _named)(geometry, dtype, device, use, requested, ask)


def plan_for(x: Tensor, weight: Tensor, settings: Settings, requested: str, ask: Question = as_it_is) -> Plan:
    """The plan of a call on batched tensors; raises as `choose`."""
    use = use_of(x, weight, requested=requested)
    return choose(tuple(x.shape), tuple(weight.shape), settings, x.dtype, x.device, use, requested, ask)[1]


def plain(reason: str, plan: str = eager.PLAIN) -> Plan:
    """A plan of torch's own layers, under torch's own autograd."""
    return Plan(TORCH, plan, reason, keeps_codes=False)


def plans(geometry: Geometry, dtype: torch.dtype, device: torch.device, use: Use) -> Iterator[Plan]:
    """All plans by which a call of `conv_relu_max_pool2d` can be computed here, torch's own first.

    Those of a backend that `auto` does not ask on such a device are not among them.
    """
    for word in eager.plans(dtype, device):
        yield plain("torch's own layers", word)
    for name in asked_on(device):
        served = _asked(name, geometry, dtype, device, use, as_it_is)
        if isinstance(served, Plan):
            for word in _words(backend(name), served, geometry, dtype):
                yield served if word == served.plan else replace(served, plan=word, reason="not its own choice")


def _words(backend: Backend, served: Plan, geometry: Geometry, dtype: torch.dtype) -> Sequence[str]:
    """The plans that a backend has for a call which it serves."""
    words: Callable[..., Sequence[str]] | None = getattr(backend, "plans", None)
    return words(geometry, dtype) if words else (served.plan,)


def _named(geometry: Geometry, dtype: torch.dtype, device: torch.device, use: Use, name: str, ask: Question) -> Plan:
    who, _, word = name.partition("/")
    if who == TORCH:
        return _named_word(name, plain("named outright", word or eager.plan(geometry, dtype, device, use)), eager.PLANS)
    plan = _asked(who, geometry, dtype, device, use, ask)
    if isinstance(plan, str):
        raise RuntimeError(f"backend {name!r} cannot serve this call: {plan}")
    if word in ("", plan.plan):
        return plan
    named = replace(plan, plan=word, reason="named outright")
    return _named_word(name, named, _words(backend(who), plan, geometry, dtype))


def _named_word(name: str, plan: Plan, words: Sequence[str]) -> Plan:
    if plan.plan not in words:
        raise RuntimeError(f"backend {name!r} cannot serve this call: its plans for it are {', '.join(words)}")
    return plan


def _auto(geometry: Geometry, dtype: torch.dtype, device: torch.device, use: Use, _: str, ask: Question) -> Plan:
    measured = _measured(geometry, dtype, device, use) if ask is as_it_is else None
    return measured or _by_rule(geometry, dtype, device, use, ask)


def _measured(geometry: Geometry, dtype: torch.dtype, device: torch.device, use: Use) -> Plan | None:
    """The plan that was the fastest when it was measured, if the call has it still."""
    sizes = geometry.x_shape + geometry.weight_shape
    if use.repeatable or not are_static(sizes):
        return None
    found = choices.find(sizes, geometry.settings.pack(), dtype, device, tuple(use))
    if found is None:
        return None
    for plan in plans(geometry, dtype, device, use):
        if plan.call == found[0]:
            return replace(plan, reason=found[1], measured=True)
    return None


def _by_rule(geometry: Geometry, dtype: torch.dtype, device: torch.device, use: Use, ask: Question) -> Plan:
    reasons = []
    for name in asked_on(device):
        plan = _asked(name, geometry, dtype, device, use, ask)
        if isinstance(plan, Plan) and (plan.profitable or (plan.profitable_replayed and use.replayed)):
            return plan
        reasons.append(f"{name}: {plan if isinstance(plan, str) else plan.reason}")
    reason = "; ".join(reasons) or f"no backend for device type {device.type!r}"
    return plain(reason, eager.plan(geometry, dtype, device, use) if ask is as_it_is else eager.PLAIN)


def _asked(
    name: str, geometry: Geometry, dtype: torch.dtype, device: torch.device, use: Use, ask: Question
) -> Plan | str:
    return geometry.obstacle or unavailable(name) or ask(backend(name), geometry, dtype, device, use)


def names_none(requested: str) -> bool:
    """Whether what is asked for is no backend by its name."""
    return requested in (AUTO, AUTO_REPLAYED)


def allows_torch(requested: str) -> bool:
    """Whether torch's own layers may compute where that is asked for."""
    return names_none(requested) or requested.partition("/")[0] == TORCH


def _check_name(name: str, source: str) -> str:
    who, slash, plan = name.partition("/")
    if not names_none(name) and (who not in (TORCH, *backend_names()) or (slash and not plan)):
        allowed = ", ".join([AUTO, AUTO_REPLAYED, TORCH, *backend_names()])
        raise ValueError(f"{source} must be one of {allowed}, got {name!r}")
    return name
