"""A step recorded and replayed on CPUs as a CUDA graph is on a GPU: the same operators on the same memory, no Python.

What a step changes by other means than tensors stands still in its replays, as it does in a graph's. Stricter than a
graph: what an operator makes is spoilt before each replay, so that nothing is taken over from the one before, and what
a graph refuses is listed. Triton's kernels are recorded where it interprets them. One thing does not show on CPUs: a
copy between devices is none there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
# These reserve memory and leave it as it is. Their results stay spoilt until something else writes them.
ALLOCATIONS = {aten.empty, aten.empty_like, aten.empty_strided, aten.empty_permuted}
ALLOCATIONS |= {aten.new_empty, aten.new_empty_strided}
INDEXING = {aten.index, aten.index_put, aten.index_put_}


@dataclass(frozen=True)
class Launch:
    """A Triton kernel of the interpreter, as an operator: called with its arguments, `grid` among them."""

    run: Callable[..., None]
    name: str
    tags = ()
    overloadpacket = None

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.run(*args, **kwargs)

    def __str__(self) -> str:
        return f"triton.{self.name}"


@dataclass(frozen=True)
class Operation:
    """One call of an operator; tensors are held with their memory, all else as it was.

    Attributes:
        made: for each tensor that it returned, the tensor if its memory is new, None if an argument's or an earlier's.
        written: the arguments that it wrote to, whether its schema says so or not.
        reads_host: whether the host waits for a value of it, or it copies one from there.
    """

    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    made: tuple[Tensor | None, ...]
    written: tuple[Tensor, ...]
    reads_host: bool

    @property
    def new(self) -> list[Tensor]:
        """What it made."""
        return [tensor for tensor in self.made if tensor is not None]

    @property
    def launches(self) -> bool:
        """Whether a device has something to do: views, reserved memory and profilers' marks are Python's."""
        return bool(self.written) or (bool(self.new) and self.operator.overloadpacket not in ALLOCATIONS)

    @property
    def random(self) -> bool:
        """Whether it draws from a generator."""
        return torch.Tag.nondeterministic_seeded in self.operator.tags

    def spoil(self) -> None:
        """Puts into what it made values that cannot pass for results: NaN, whole numbers out of range, the opposite."""
        for tensor in self.new:
            if tensor.dtype == torch.bool:
                tensor.logical_not_()
            else:
                tensor.fill_(torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max)

    def again(self) -> None:
        """Calls the operator; what is new goes where it went before."""
        results = _tensors(self.operator(*self.args, **self.kwargs))
        for before, now in zip(self.made, results, strict=True):
            if before is not None:
                before.copy_(now)


class Recording:
    """What `record` returns: the operations of a step.

    Attributes:
        written: the tensors from outside that the step changes, one for each piece of memory.
        used: the tensors from outside that it reads or changes; one of them that nobody holds would, in a graph, be
            memory that others get.
    """

    def __init__(self, operations: list[Operation], written: list[Tensor], used: list[Tensor]) -> None:
        self._operations, self.written, self.used = operations, written, used
        self._spoil()

    @torch.no_grad()
    def replay(self) -> None:
        """Takes the step again, on the same memory; what is random is drawn anew."""
        self._spoil()
        for operation in self._operations:
            if operation.launches:
                operation.again()

    @torch.no_grad()
    def _spoil(self) -> None:
        for operation in self._operations:
            operation.spoil()

    @property
    def launches(self) -> list[str]:
        """The operators that a GPU would launch kernels for, in their order."""
        return [str(operation.operator) for operation in self._operations if operation.launches]

    @property
    def host_reads(self) -> list[str]:
        """The operators that a graph cannot hold: they ask the device for a value, or make a tensor of Python's."""
        return [str(operation.operator) for operation in self._operations if operation.reads_host]

    @property
    def generators(self) -> list[tuple[str, Generator | None]]:
        """The random operators with their generators, None for the device's own."""
        drawing = [operation for operation in self._operations if operation.random]
        return [(str(operation.operator), operation.kwargs.get("generator")) for operation in drawing]


def record(step: Callable[[], None]) -> Recording:
    """Calls `step` to record it, and puts back what it did to tensors and generators: the first replay is its first.

    The backward pass is recorded with the rest; CPUs make it in the thread that asks for it.
    """
    recorder = _Recorder()
    with torch.random.fork_rng(devices=[]), recorder, recorder.seeing_launches():
        step()
    return recorder.finish()


def unnamed(written: Iterable[Tensor], state: Iterable[Tensor]) -> list[Tensor]:
    """Returns those of the `written` tensors whose memory is none of the `state`'s."""
    named = {address_of(tensor) for tensor in state}
    return [tensor for tensor in written if address_of(tensor) not in named]


def address_of(tensor: Tensor) -> int:
    """Where the memory begins that `tensor` is part of: an integer that tells it from others while it is held."""
    return tensor.untyped_storage().data_ptr()


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._operations: list[Operation] = []
        self._inside: set[int] = set()  # the memory that operators made, by address: it is held, and so stays theirs
        self._outside: dict[int, tuple[Tensor, Tensor]] = {}  # the rest, with its bytes before the step
        self._generators: list[tuple[Generator, Tensor]] = []  # each that is named in a call, as it was before that

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._call(func, args, kwargs or {})

    @contextmanager
    def seeing_launches(self) -> Iterator[None]:
        """Inside, kernels that the step launches itself are seen too. Those within an operator belong to that."""
        interpreter = sys.modules.get("triton.runtime.interpreter")
        if interpreter is None:
            yield
            return
        run = interpreter.InterpretedFunction.run

        def seen(kernel: Any, *args: Any, **kwargs: Any) -> None:
            launch = Launch(partial(run, kernel), kernel.__name__)
            if _get_current_dispatch_mode() is not self:
                launch(*args, **kwargs)
                return
            with _disable_current_modes():  # the interpreter computes with tensors too
                self._call(launch, args, kwargs)

        with patch.object(interpreter.InterpretedFunction, "run", seen):
            yield

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        frozen_args, frozen_kwargs = tree_map_only(Tensor, Tensor.detach, (args, kwargs))
        arguments = {address_of(tensor): tensor for tensor in _tensors((frozen_args, frozen_kwargs))}
        before = {address: _bytes(tensor).clone() for address, tensor in arguments.items()}
        for address, tensor in arguments.items():
            if address not in self._inside:
                self._outside.setdefault(address, (tensor, before[address]))
        generator = frozen_kwargs.get("generator")
        if generator is not None:
            self._generators.append((generator, generator.get_state()))

        returned = func(*args, **kwargs)

        # Schemas do not tell all: native_batch_norm's does not speak of the running statistics.
        declared = set() if isinstance(func, Launch) else _declared_writes(func, frozen_args, frozen_kwargs)
        written = [
            tensor
            for address, tensor in arguments.items()
            if address in declared or not torch.equal(_bytes(tensor), before[address])
        ]
        results = [tensor.detach() for tensor in _tensors(returned)]
        known = arguments.keys() | self._inside | self._outside.keys()
        made = tuple(None if address_of(tensor) in known else tensor for tensor in results)
        reads_host = _reads_host(func, frozen_args, returned)
        operation = Operation(func, frozen_args, frozen_kwargs, made, tuple(written), reads_host)
        self._inside |= set(map(address_of, operation.new))
        self._operations.append(operation)
        return returned

    def finish(self) -> Recording:
        """Returns the recording, with tensors and generators as they were before the step."""
        addresses = {address_of(tensor) for operation in self._operations for tensor in operation.written}
        written = []
        for address, (tensor, before) in self._outside.items():
            if address in addresses:
                written.append(tensor)
                _bytes(tensor).copy_(before)
        for generator, state in reversed(self._generators):
            generator.set_state(state)
        return Recording(self._operations, written, [tensor for tensor, _ in self._outside.values()])


def _reads_host(func: Any, args: Any, returned: Any) -> bool:
    if func.overloadpacket in INDEXING:  # by a mask, whose true values are counted
        return any(index.dtype in (torch.bool, torch.uint8) for index in _tensors(args[1]))
    if torch.Tag.dynamic_output_shape in func.tags or func.overloadpacket is aten.lift_fresh:  # torch.tensor(3)
        return True
    return bool(_tensors(args)) and any(isinstance(value, int | float | complex) for value in tree_leaves(returned))


def _declared_writes(func: Any, args: Any, kwargs: Any) -> set[int]:
    parameters = func._schema.arguments
    given = dict(zip([parameter.name for parameter in parameters], args, strict=False)) | kwargs
    written = [given.get(p.name) for p in parameters if p.alias_info is not None and p.alias_info.is_write]
    return set(map(address_of, _tensors(written)))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> Tensor:
    """The whole memory that `tensor` is part of, uint8."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
