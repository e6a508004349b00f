"""Which backend and plan a call gets, and why: asks the backends in order, torch's own layers being the last resort."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import torch

from convpool.geometry import Geometry, Settings
from convpool.protocol import Backend, Plan
from convpool.torch_private import constant_when_compiled


def _cpu() -> Backend:
    from convpool.cpu.native import BACKEND

    return BACKEND


def _reference() -> Backend:
    from convpool.torch_ops import BACKEND

    return BACKEND


def _triton() -> Backend:
    from convpool.gpu.backend import BACKEND

    return BACKEND


# Imported at first use.
_BACKENDS: dict[str, Callable[[], Backend]] = {"cpu": _cpu, "triton": _triton, "reference": _reference}
_AUTO: dict[str, tuple[str, ...]] = {"cpu": ("cpu",), "cuda": ("triton",)}  # by device type: whom `auto` asks

# Read at import: to look for an absent name in os.environ takes as long as all other checks of a call together.
_DEFAULT = os.environ.get("CONVPOOL_BACKEND") or "auto"
_chosen: ContextVar[str | None] = ContextVar("convpool_backend", default=None)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Compute the calls made inside by the backend `name`; a call it cannot serve raises.

    The choice belongs to the current thread or task. A forward's choice holds for its backward, wherever that runs.
    Outside, the environment variable CONVPOOL_BACKEND, as it was at import, names the backend; without it the choice
    is "auto".

    Raises:
        ValueError: `name` is not "auto" or a backend's name.
    """
    token = _chosen.set(_check_name(name, "use_backend"))
    try:
        yield
    finally:
        _chosen.reset(token)


def requested_backend() -> str:
    """The name in force: `use_backend`'s, else CONVPOOL_BACKEND's, else "auto"."""
    return _chosen.get() or _check_name(_DEFAULT, "CONVPOOL_BACKEND")


if torch.__version__ < "2.14":  # its compiler cannot trace ContextVar.get: the choice at compile time then holds
    constant_when_compiled(requested_backend)


def choose(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    settings: Settings,
    dtype: torch.dtype,
    device: torch.device,
    requested: str,
) -> tuple[Geometry, Plan]:
    """Geometry and plan of a call on batched tensors.

    Raises:
        ValueError: the shapes do not fit each other.
        RuntimeError: the backend named by `requested` cannot serve the call.
    """
    # The compiler's symbolic sizes do not hash, and it must see the comparisons it has to guard on.
    symbolic = torch.compiler.is_compiling() or any(type(n) is not int for n in x_shape)
    return (_choose if symbolic else _choose_once)(x_shape, weight_shape, settings, dtype, device, requested)


def plain(reason: str) -> Plan:
    """The plan of last resort, under torch's own autograd."""
    return Plan("torch", "plain", "torch's own layers", reason, keeps_codes=False)


_loaded: dict[str, Backend] = {}


def backend(name: str) -> Backend:
    """The backend of that name, imported at first use."""
    if name not in _loaded:  # no functools.cache: torch's compiler warns where it meets one
        _loaded[name] = _BACKENDS[name]()
    return _loaded[name]


def backend_names() -> list[str]:
    return list(_BACKENDS)


def _choose(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    settings: Settings,
    dtype: torch.dtype,
    device: torch.device,
    requested: str,
) -> tuple[Geometry, Plan]:
    geometry = Geometry.of(x_shape, weight_shape, settings)
    return geometry, (_auto if requested == "auto" else _named)(geometry, dtype, device, requested)


_choose_once = lru_cache(4096)(_choose)


def _named(geometry: Geometry, dtype: torch.dtype, device: torch.device, name: str) -> Plan:
    plan = _ask(name, geometry, dtype, device)
    if isinstance(plan, str):
        raise RuntimeError(f"backend {name!r} cannot serve this call: {plan}")
    return plan


def _auto(geometry: Geometry, dtype: torch.dtype, device: torch.device, _: str) -> Plan:
    reasons = []
    for name in _AUTO.get(device.type, ()):
        plan = _ask(name, geometry, dtype, device)
        if isinstance(plan, Plan) and plan.profitable:
            return plan
        reasons.append(f"{name}: {plan if isinstance(plan, str) else plan.reason}")
    return plain("; ".join(reasons) or f"no backend for device type {device.type!r}")


def _ask(name: str, geometry: Geometry, dtype: torch.dtype, device: torch.device) -> Plan | str:
    return geometry.obstacle or _unavailable(name) or backend(name).serves(geometry, dtype, device)


@constant_when_compiled
def _unavailable(name: str) -> str | None:
    return backend(name).unavailable()


def _check_name(name: str, source: str) -> str:
    if name != "auto" and name not in _BACKENDS:
        allowed = ", ".join(["auto", *_BACKENDS])
        raise ValueError(f"{source} must be one of {allowed}, got {name!r}")
    return name
