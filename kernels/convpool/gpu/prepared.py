"""Launches that were worked out once: a call passes pointers, and reads the stream.

Triton's own launch asks each argument for its type and looks the kernel up by the answers, 10 us for the arguments of
these kernels. They follow from what a `Launch` is made for, but for the pointers' alignment: the compiled kernel that
Triton found is kept for each.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, reduce
from operator import or_
from typing import Any, ParamSpec, TypeAlias, TypeVar

import triton
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")

_ALIGNED = 16  # bytes: a pointer that they divide gets a kernel of its own

_ordinary = 0  # how many ask for ordinary launches; of the process, for backward passes have threads of their own
_RUNTIME, _DRIVERS = triton.knobs.runtime, triton.runtime.driver


@contextmanager
def ordinary_launches() -> Iterator[None]:
    """Inside, every launch is worked out anew and goes through Triton's own `JITFunction.run`, as its tools expect."""
    global _ordinary
    _ordinary += 1
    _forget()
    try:
        yield
    finally:
        _ordinary -= 1
        _forget()


def kept(make: Callable[P, T]) -> Callable[P, T]:
    """`make`, whose answers are kept (the last 4096), but not from within `ordinary_launches` to without."""
    known = lru_cache(4096)(make)
    _kept.append(known)
    return known  # type: ignore[return-value]


def _forget() -> None:
    for function in _kept:
        function.cache_clear()


_kept: list[Any] = []


class Launch:
    """A kernel, its grid and all its arguments but the pointers, for tensors of one kind on one device."""

    def __init__(
        self, function: Any, grid: int, arguments: Mapping[str, Any], options: Mapping[str, Any], device: int
    ) -> None:
        """
        Args:
            function: a kernel, whose first arguments are the pointers, and no others are.
            grid: programs to launch.
            arguments: the others by name, constants included.
            options: what the compiler is told.
            device: the index of the GPU, which will be the current one at each call.
        """
        self._function, self._grid, self._options, self._device = function, grid, options, device
        names = function.arg_names
        self._rest = tuple(arguments[name] for name in names[len(names) - len(arguments) :])
        self._aligned: _Prepared | None = None  # the one that nearly every call is for
        self._others: dict[tuple[bool, ...], _Prepared | None] = {}

    @property
    def name(self) -> str:
        return str(self._function.__name__)

    def __call__(self, *tensors: Tensor) -> None:
        """Launch on tensors of the kind that it was made for, on the device's current stream."""
        pointers = tuple(map(_data_ptr, tensors))
        aligned = not reduce(or_, pointers) % _ALIGNED
        prepared = self._aligned if aligned else self._others.get(_alignments(pointers))
        try:
            hooked = _RUNTIME.launch_enter_hook.calls or _RUNTIME.launch_exit_hook.calls
        except AttributeError:  # no chain of hooks: one
            hooked = True
        if prepared is None or _ordinary or hooked:
            self._launch_ordinarily(tensors, pointers, aligned)
            return
        run, function, metadata = prepared
        stream = _DRIVERS.active.get_current_stream(self._device)
        # Neither hooks nor what they would be told: there are none, and Triton would ask an empty chain of them.
        run(self._grid, 1, 1, stream, function, metadata, None, None, None, *pointers, *self._rest)

    def _launch_ordinarily(self, tensors: tuple[Tensor, ...], pointers: tuple[int, ...], aligned: bool) -> None:
        kernel = self._function[(self._grid,)](*tensors, *self._rest, **self._options)
        if _ordinary:
            return
        if aligned:
            self._aligned = _prepared(kernel)
        else:
            self._others[_alignments(pointers)] = _prepared(kernel)


_Prepared: TypeAlias = tuple[Callable[..., None], Any, Any]


def _prepared(kernel: Any) -> _Prepared | None:
    """What launches a compiled kernel, by what Triton 3.6 to 3.9 offer alike; None where one does not, as its
    interpreter, which gives no kernel."""
    try:
        return kernel.run, kernel.function, kernel.packed_metadata
    except AttributeError:
        return None


def _alignments(pointers: tuple[int, ...]) -> tuple[bool, ...]:
    return tuple(pointer % _ALIGNED == 0 for pointer in pointers)


_data_ptr = Tensor.data_ptr
