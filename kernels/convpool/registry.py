"""The backends by name: the project's own, imported at first use, and those that a user registers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from convpool.protocol import Backend
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
TORCH = "torch"  # its own layers: no backend, but it can be named
_loaded: dict[str, Backend] = {}
_running: dict[str, tuple[Backend, str]] = {}
_forgetting: list[Callable[[], None]] = [_running.clear]


def register_backend(name: str, load: Callable[[], Backend], devices: Sequence[str] = ()) -> None:
    """Let `use_backend(name)` and CONVPOOL_BACKEND name a backend of your own; a later one takes an earlier one's name.

    Args:
        name: of letters, digits, "-" and "_"; the plans that it makes must carry it.
        load: returns the backend (see `convpool.Backend`); called at its first use.
        devices: types of device, as "cuda", for whose calls `auto` asks it, before those registered earlier.

    Raises:
        ValueError: `name` is another word, or one that has a meaning of its own: "auto", "auto-replayed", "torch".
    """
    if not name.replace("-", "_").isidentifier() or name in (AUTO, AUTO_REPLAYED, TORCH):
        raise ValueError(f"name must be a word of letters, digits, '-' and '_', not 'auto' or 'torch', got {name!r}")
    unregister_backend(name)
    _registered[name] = _Registered(load, tuple(devices))


def unregister_backend(name: str) -> None:
    """Forget the backend `name`, if there is one; calls that were planned for it can no longer be computed."""
    _registered.pop(name, None)
    _loaded.pop(name, None)
    forget_plans()


def forget_plans() -> None:
    """Have every call planned anew; those that were planned compute on."""
    for forget in _forgetting:
        forget()


def when_backends_change(forget: Callable[[], None]) -> None:
    """Have `forget` called when a name may mean another backend, or a call get another plan, than before."""
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


def asked_on(device: torch.device) -> list[str]:
    """The backends that `auto` asks for calls on such a device, in its order."""
    return [name for name in reversed(_registered) if device.type in _registered[name].devices]


@constant_when_compiled
def unavailable(name: str) -> str | None:
    return backend(name).unavailable()
