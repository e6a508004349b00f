"""What changed inside a value is seen, and undone."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from convpool.fusion.kept import NOTHING, REGISTERED, Kept, attribute


def value() -> dict[str, Any]:
    return {
        "number": 1,
        "nan": math.nan,
        "list": [1, [2.0, "a"]],
        "tuple": (1, [2]),
        "set": {1, 2},
        "object": SimpleNamespace(field=1, items=[1]),
        "tensor": torch.zeros(2),
    }


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another number": lambda v: v.update(number=2),
    "True for 1": lambda v: v.update(number=True),
    "an item in a list in a list": lambda v: v["list"][1].append(3),
    "an item in a list in a tuple": lambda v: v["tuple"][1].clear(),
    "a member": lambda v: v["set"].add(3),
    "a field": lambda v: setattr(v["object"], "field", 2),
    "an item in a field": lambda v: v["object"].items.append(2),
    "another object with equal fields": lambda v: v.update(object=SimpleNamespace(field=1, items=[1])),
    "another tensor": lambda v: v.update(tensor=torch.zeros(2)),
    "a key more": lambda v: v.update(more=1),
    "a key less": lambda v: v.pop("number"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen_and_undone(change: str) -> None:
    now = value()
    kept, before = Kept(now), dict(now)
    assert kept.same(now)
    CHANGES[change](now)
    assert not kept.same(now)
    assert kept.restore() is now
    assert kept.same(now)
    assert all(now[key] is before[key] for key in before)
    assert str(now) == str(value())


def test_equal_containers_are_the_same() -> None:
    assert Kept([1, {"a": (2, {3})}]).same([1, {"a": (2, {3})}])


def test_an_object_that_leads_back_to_itself() -> None:
    holder = SimpleNamespace(others=[])
    holder.others.append(holder)
    assert Kept(holder).same(holder)


def test_what_a_module_shows() -> None:
    module = nn.Conv2d(1, 1, 1, bias=False)
    module.note = "seen"
    assert attribute(module, "note") == "seen"
    assert attribute(module, "weight") is REGISTERED
    assert attribute(module, "bias") is None
    assert attribute(module, "_parameters") == {"weight": False, "bias": True}
    assert attribute(module, "absent") is NOTHING
