"""Launches that were worked out once: a call passes pointers, and reads the stream.

Triton's own launch asks each argument for its type and looks the kernel up by the answers, 10 us for the arguments of
these kernels. They follow from what a `Launch` is made for, but for the pointers' alignment: the compiled kernel that
Triton found is kept for each.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, ParamSpec, TypeVar

import triton
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")

_ALIGNED = 16  # bytes: a pointer that they divide gets a kernel of its own

_ordinary = 0  # how many ask for ordinary launches; of the process, for backward passes have threads of their own
_RUNTIME = triton.knobs.runtime


@contextmanager
def ordinary_launches() -> Iterator[None]:
    """Inside, every launch is worked out anew and goes through Triton's own `JITFunction.run`, as its tools expect."""
    global _ordinary
    _ordinary += 1
    try:
        yield
    finally:
        _ordinary -= 1


def kept(make: Callable[P, T]) -> Callable[P, T]:
    """`make`, whose answers are kept (the last 4096), but for those that ordinary launches ask for."""
    known = lru_cache(4096)(make)

    def get(*key: P.args, **_: P.kwargs) -> T:
        return make(*key) if _ordinary else known(*key)

    return get


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
        self._prepared: dict[tuple[bool, ...], Callable[..., None] | None] = {}
        self._aligned: Callable[..., None] | None = None  # the one that nearly every call is for

    def __call__(self, *tensors: Tensor) -> None:
        """Launch on tensors of the kind that it was made for, on the device's current stream."""
        pointers = tuple(map(_data_ptr, tensors))
        together = 0
        for pointer in pointers:
            together |= pointer
        aligned = together % _ALIGNED == 0
        launch = self._aligned if aligned else self._prepared.get(_alignments(pointers))
        if launch is None or _ordinary or _hooked():
            self._launch_ordinarily(tensors, pointers, aligned)
        else:
            launch(triton.runtime.driver.active.get_current_stream(self._device), pointers)

    def _launch_ordinarily(self, tensors: tuple[Tensor, ...], pointers: tuple[int, ...], aligned: bool) -> None:
        kernel = self._function[(self._grid,)](*tensors, *self._rest, **self._options)
        if _ordinary or (key := _alignments(pointers)) in self._prepared:
            return
        self._prepared[key] = _prepared(kernel, self._grid, self._rest)
        if aligned:
            self._aligned = self._prepared[key]


def _prepared(kernel: Any, grid: int, rest: tuple[Any, ...]) -> Callable[..., None] | None:
    """`launch(stream, pointers)` of a compiled kernel, by what Triton 3.6 to 3.9 offer alike; None where one does not,
    as its interpreter."""
    try:
        run, function, metadata = kernel.run, kernel.function, kernel.packed_metadata
    except AttributeError:
        return None

    def launch(stream: int, pointers: tuple[int, ...]) -> None:
        # Neither metadata for hooks nor hooks: there are none, and Triton would ask an empty chain of them.
        run(grid, 1, 1, stream, function, metadata, None, None, None, *pointers, *rest)

    return launch


def _hooked() -> bool:
    """Whether somebody listens to launches: a chain of hooks that is not empty, or a hook."""
    enter, leave = _RUNTIME.launch_enter_hook, _RUNTIME.launch_exit_hook
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


def _alignments(pointers: tuple[int, ...]) -> tuple[bool, ...]:
    return tuple(pointer % _ALIGNED == 0 for pointer in pointers)


_data_ptr = Tensor.data_ptr
