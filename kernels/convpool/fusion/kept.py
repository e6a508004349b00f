"""Values as they were when a forward was recorded: to notice that they changed, and to give them back."""

from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from convpool.torch_private import TABLES

_PLAIN = (bool, int, float, str, bytes, type(None))  # compared by value, all others by identity
_WHOLE = (nn.Module, Tensor, type, FunctionType, BuiltinFunctionType, MethodType, ModuleType)  # not looked into


class _Nothing:
    """Stands for an attribute that a module does not have."""


NOTHING, REGISTERED = _Nothing(), _Nothing()


class Kept:
    """A value and what it holds: the items of a list, tuple, dict or set all the way down; of an object its fields,
    unless it is itself a field (an object that knows a training loop would lead through the whole program).
    """

    __slots__ = ("inside", "value")

    def __init__(self, value: Any, deep: bool = True) -> None:
        self.value = value
        self.inside: Any = None
        kind = type(value)
        if kind in (list, tuple):
            self.inside = [Kept(item, deep) for item in value]
        elif kind is dict:
            self.inside = {key: Kept(item, deep) for key, item in value.items()}
        elif kind is set:
            self.inside = set(value)
        elif deep and kind not in _PLAIN and not isinstance(value, _WHOLE):
            fields = getattr(value, "__dict__", None)
            if type(fields) is dict:
                self.inside = {name: Kept(field, deep=False) for name, field in fields.items()}

    def same(self, now: Any) -> bool:
        """Whether `now` is that value, or one that is equal to it through and through."""
        kind = type(self.value)
        if type(now) is not kind:
            return False
        if kind in _PLAIN:
            return now is self.value or bool(now == self.value)  # a NaN is itself
        if kind in (list, tuple):
            return len(now) == len(self.inside) and all(a.same(b) for a, b in zip(self.inside, now, strict=True))
        if kind is dict:
            return _same_items(self.inside, now)
        if kind is set:
            return bool(now == self.inside)
        return now is self.value and (self.inside is None or _same_items(self.inside, vars(now)))

    def changes(self, now: dict[Any, Any]) -> list[Any]:
        """Keys of the dict that were added, removed or given another value."""
        inside: dict[Any, Kept] = self.inside
        return [k for k in inside | now if k not in now or k not in inside or not inside[k].same(now[k])]

    def restore(self) -> Any:
        """The value, holding again what it held; what has not changed is not touched, for other threads may read it."""
        kind = type(self.value)
        if self.same(self.value):
            return self.value
        if kind is list:
            self.value[:] = [item.restore() for item in self.inside]
        elif kind is tuple:
            for item in self.inside:
                item.restore()
        elif kind is set:
            self.value.clear()
            self.value.update(self.inside)
        elif self.inside is not None:
            held = self.value if kind is dict else vars(self.value)
            items = {key: item.restore() for key, item in self.inside.items()}
            held.clear()
            held.update(items)
        return self.value


def attribute(module: nn.Module, name: str) -> Any:
    """What a forward that reads `module.name` can see of it before it calls it.

    Of what is registered that is whether it exists and is not None: the layers themselves are looked at in each call.
    """
    own = vars(module)
    if name in TABLES:
        return {key: value is None for key, value in own[name].items()}
    if name in own:
        return own[name]
    for table in TABLES:
        if name in own[table]:
            return None if own[table][name] is None else REGISTERED
    return NOTHING


def _same_items(before: dict[Any, Kept], now: dict[Any, Any]) -> bool:
    return before.keys() == now.keys() and all(kept.same(now[key]) for key, kept in before.items())
