"""The methods of fine-tuning, one entry each. `models.adapters` has by the same name what learns."""

from __future__ import annotations

from dataclasses import dataclass

from mnistfast.errors import UsageError
from mnistfast.options.fields import one_of


@dataclass(frozen=True)
class Method:
    """A way to fine-tune.

    Attributes:
        name: what --method calls it, without a number.
        number: the letter that stands for its number in messages, "" where it takes none.
        words: what --method's help says after its name, "" where the name says it.
        frozen_body: nothing below the head learns, so that it makes the same of an image in every epoch.
        fresh: it takes the source's network without its weights and its heads.
        adapter: what it learns is small, and written to a file of its own too.
    """

    name: str
    number: str = ""
    words: str = ""
    frozen_body: bool = False
    fresh: bool = False
    adapter: bool = False

    @property
    def form(self) -> str:
        """How it is written: `full`, `last:K`."""
        return f"{self.name}:{self.number}" if self.number else self.name

    @property
    def can_forget(self) -> bool:
        """Whether what it does may spoil the source's task, which old samples can prevent."""
        return not (self.frozen_body or self.fresh)


DEFAULT = "full"
_ALL = (
    Method(DEFAULT),
    Method("head", frozen_body=True),
    Method("last", number="K", words="the last K layers"),
    Method("bias"),
    Method("lora", number="R", words="updates of rank R", adapter=True),
    Method("scratch", words="the same network from random weights, to compare with", fresh=True),
)
METHODS = {method.name: method for method in _ALL}


def help_text() -> str:
    """Returns the help of --method."""
    return "what learns: " + "; ".join(", ".join(filter(None, (one.form, one.words))) for one in METHODS.values())


def method_of(text: str) -> tuple[Method, int]:
    """Returns the method that `text`, the value of --method, names, and its number, 0 where it takes none.

    Raises:
        UsageError: there is no such method, or it lacks its number, or takes none.
    """
    name, _, count = text.partition(":")
    one_of("method", name, METHODS)
    method, number = METHODS[name], int(count) if count.isdecimal() else 0
    if bool(method.number) != (number > 0):
        raise UsageError(f"--method is {text}", f"It takes {', '.join(one.form for one in METHODS.values())}")
    return method, number
