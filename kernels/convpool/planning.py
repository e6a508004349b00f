"""Which backend and plan a call gets, and why: asks the backends in order, torch's own layers being the last resort.

A call is planned once. What is planned travels with it as the name of its plan, "cpu/fused", from which `running`
finds the backend again.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from convpool.checks import check_alike, check_shapes
from convpool.geometry import Geometry, Settings, make_settings
from convpool.protocol import Backend, Plan
from convpool.torch_private import constant_when_compiled


@dataclass(frozen=True)
class _Registered:
    """`load` imports the backend, at its first use; `auto` asks it for calls on these types of device."""

    load: Callable[[], Backend]
    devices: tuple[str, ...] = ()


def _cpu() -> Backend:
    from convpool.cpu.native import BACKEND

    return BACKEND


def _reference() -> Backend:
    from convpool.torch_ops import BACKEND

    return BACKEND


def _triton() -> Backend:
    from convpool.gpu.backend import BACKEND

    return BACKEND


_registered: dict[str, _Registered] = {  # `auto` asks the last one first
    "cpu": _Registered(_cpu, ("cpu",)),
    "triton": _Registered(_triton, ("cuda",)),
    "reference": _Registered(_reference),
}
# What is asked for where no backend is named; the second where a CUDA graph replays the calls, so that launching them
# costs nothing.
AUTO, AUTO_REPLAYED = "auto", "auto-replayed"
_loaded: dict[str, Backend] = {}
_running: dict[str, tuple[Backend, str]] = {}
_forgetting: list[Callable[[], None]] = [_running.clear]

# Read at import: to look for an absent name in os.environ takes as long as all other checks of a call together.
_DEFAULT = os.environ.get("CONVPOOL_BACKEND") or "auto"
chosen_backend: ContextVar[str | None] = ContextVar("convpool_backend", default=None)  # by `use_backend`


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Compute the calls made inside by the backend `name`; a call it cannot serve raises.

    "auto" leaves the choice to each call; "auto-replayed" too, for calls that a CUDA graph records: replayed, more of
    them are faster on a GPU, where Python's launching costs more than small kernels take.

    The choice belongs to the current thread or task. A forward's choice holds for its backward, wherever that runs.
    Outside, the environment variable CONVPOOL_BACKEND, as it was at import, names the backend; without it the choice
    is "auto".

    Raises:
        ValueError: `name` is not "auto", "auto-replayed" or a backend's name.
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


def register_backend(name: str, load: Callable[[], Backend], devices: Sequence[str] = ()) -> None:
    """Let `use_backend(name)` and CONVPOOL_BACKEND name a backend of your own; a later one takes an earlier one's name.

    Args:
        name: of letters, digits, "-" and "_"; the plans that it makes must carry it.
        load: returns the backend (see `convpool.Backend`); called at its first use.
        devices: types of device, as "cuda", for whose calls `auto` asks it, before those registered earlier.

    Raises:
        ValueError: `name` is another word, or one that has a meaning of its own: "auto", "auto-replayed", "torch".
    """
    if not name.replace("-", "_").isidentifier() or name in (AUTO, AUTO_REPLAYED, "torch"):
        raise ValueError(f"name must be a word of letters, digits, '-' and '_', not 'auto' or 'torch', got {name!r}")
    unregister_backend(name)
    _registered[name] = _Registered(load, tuple(devices))


def unregister_backend(name: str) -> None:
    """Forget the backend `name`, if there is one; calls that were planned for it can no longer be computed."""
    _registered.pop(name, None)
    _loaded.pop(name, None)
    for forget in _forgetting:
        forget()


def when_backends_change(forget: Callable[[], None]) -> None:
    """Have `forget` called when a name may mean another backend than before."""
    _forgetting.append(forget)


def backend(name: str) -> Backend:
    """The backend of that name, imported at first use."""
    if name not in _loaded:  # no functools.cache: torch's compiler warns where it meets one
        _loaded[name] = _registered[name].load()
    return _loaded[name]


def backend_names() -> list[str]:
    return list(_registered)


def running(call: str) -> tuple[Backend, str]:
    """The backend and the plan's word for a `Plan.call`.

    Raises:
        ValueError: it is none, or of a backend that is not registered.
        RuntimeError: the backend cannot run in this process: the call was planned in another one.
    """
    found = _running.get(call)
    return found or _start(call)


def _start(call: str) -> tuple[Backend, str]:
    name, _, plan = call.partition("/")
    if name not in _registered or not plan:
        raise ValueError(f"backend must be one of {', '.join(_registered)}, and '/' and its plan, got {call!r}")
    missing = backend(name).unavailable()
    if missing:
        raise RuntimeError(f"backend {name!r} cannot serve this call: {missing}")
    _running[call] = backend(name), plan
    return _running[call]


def as_it_is(backend: Backend, geometry: Geometry, dtype: torch.dtype, device: torch.device) -> Plan | str:
    """The question of a call of `conv_relu_max_pool2d`: the backend's plan, or in words why it has none."""
    return backend.serves(geometry, dtype, device)


def normalised(backend: Backend, geometry: Geometry, dtype: torch.dtype, device: torch.device) -> Plan | str:
    """The question of a call whose conv output is normalised by its own statistics, and whose x has no gradient."""
    return _normalised(backend, geometry, dtype, device, False)


def normalised_with_dx(backend: Backend, geometry: Geometry, dtype: torch.dtype, device: torch.device) -> Plan | str:
    """As `normalised`, where x has a gradient."""
    return _normalised(backend, geometry, dtype, device, True)


def _normalised(backend: Backend, geometry: Geometry, dtype: torch.dtype, device: torch.device, dx: bool) -> Plan | str:
    plan = backend.serves(geometry, dtype, device)
    if isinstance(plan, str):
        return plan
    batch_statistics = getattr(backend, "batch_statistics", None)
    return "it takes no batch statistics" if batch_statistics is None else batch_statistics(geometry, plan, dx)


Question: TypeAlias = Callable[[Backend, Geometry, torch.dtype, torch.device], Plan | str]


def decide(
    shapes: tuple[torch.Size, torch.Size, torch.Size | None],
    dtypes: tuple[torch.dtype, ...],
    devices: tuple[torch.device, ...],
    requested: str,
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
    return choose(batched, weight_shape, settings, dtypes[0], devices[0], requested, ask)


decide_once = lru_cache(4096)(decide)
when_backends_change(decide_once.cache_clear)


def choose(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    settings: Settings,
    dtype: torch.dtype,
    device: torch.device,
    requested: str,
    ask: Question = as_it_is,
) -> tuple[Geometry, Plan]:
    """Geometry and plan of a call on batched tensors that fit each other in type and device.

    Raises:
        ValueError: the shapes do not fit each other.
        RuntimeError: the backend named by `requested` cannot serve the call.
    """
    geometry = Geometry.of(x_shape, weight_shape, settings)
    return geometry, (_auto if names_none(requested) else _named)(geometry, dtype, device, requested, ask)


def plan_for(x: Tensor, weight: Tensor, settings: Settings, requested: str, ask: Question = as_it_is) -> Plan:
    """The plan of a call on batched tensors; raises as `choose`."""
    return choose(tuple(x.shape), tuple(weight.shape), settings, x.dtype, x.device, requested, ask)[1]


def plain(reason: str) -> Plan:
    """The plan of last resort, under torch's own autograd."""
    return Plan("torch", "plain", reason, keeps_codes=False)


def _named(geometry: Geometry, dtype: torch.dtype, device: torch.device, name: str, ask: Question) -> Plan:
    plan = _asked(name, geometry, dtype, device, ask)
    if isinstance(plan, str):
        raise RuntimeError(f"backend {name!r} cannot serve this call: {plan}")
    return plan


def _auto(geometry: Geometry, dtype: torch.dtype, device: torch.device, requested: str, ask: Question) -> Plan:
    reasons = []
    for name in reversed([name for name, entry in _registered.items() if device.type in entry.devices]):
        plan = _asked(name, geometry, dtype, device, ask)
        if isinstance(plan, Plan) and (plan.profitable or (plan.profitable_replayed and requested == AUTO_REPLAYED)):
            return plan
        reasons.append(f"{name}: {plan if isinstance(plan, str) else plan.reason}")
    return plain("; ".join(reasons) or f"no backend for device type {device.type!r}")


def _asked(name: str, geometry: Geometry, dtype: torch.dtype, device: torch.device, ask: Question) -> Plan | str:
    return geometry.obstacle or _unavailable(name) or ask(backend(name), geometry, dtype, device)


@constant_when_compiled
def _unavailable(name: str) -> str | None:
    return backend(name).unavailable()


def names_none(requested: str) -> bool:
    """Whether what is asked for is no backend by its name."""
    return requested in (AUTO, AUTO_REPLAYED)


def _check_name(name: str, source: str) -> str:
    if not names_none(name) and name not in _registered:
        allowed = ", ".join([AUTO, AUTO_REPLAYED, *_registered])
        raise ValueError(f"{source} must be one of {allowed}, got {name!r}")
    return name
