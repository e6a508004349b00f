"""`tune`: measure the plans of a model's calls, and let `auto` take the fastest ones from now on."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import torch
from torch import Tensor, nn

from convpool import choices
from convpool.choices import Choice, Choices
from convpool.environment import device_name, environment
from convpool.fusion.rewrite import checked
from convpool.registry import AUTO, AUTO_REPLAYED
from convpool.tuning.calls import Recorded, recorded
from convpool.tuning.contest import Limit, Outcome, contest, right_ones


@dataclass(frozen=True)
class Tuned:
    """What `tune` found; `str()` is its report.

    Attributes:
        choices: of the calls that were reached, also where the plan stays what it was.
        lines: what became of each call, and what of all.
        seconds: that it took.
        excluded: plans that are wrong or raise, each with its call and why.
    """

    choices: Choices
    lines: tuple[str, ...]
    seconds: float
    excluded: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([*(f"excluded: {line}" for line in self.excluded), *self.lines])


def tune(
    model: nn.Module,
    example: Tensor | tuple[Any, ...],
    *,
    seconds: float = 30.0,
    replayed: bool = False,
    store: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> Tuned:
    """Measure by which plan each of a model's calls is the fastest here, for `auto` to take it from now on.

    The model is run once, as a copy, in its present mode: in training mode with gradients, else without. A model that
    was not fused is tuned as `fuse` makes it. A plan must first compute what torch computes in float64; then the one
    that `auto` takes now stays, unless another is faster by 3 % in three races. What holds is written to the user's
    cache (`choices`), for this process and later ones. A call counts with its sizes, the batch rounded up to a power
    of two, its types and memory format, with gradients or without, and with the number of threads.

    Not tuned: `conv_bn_relu_max_pool2d` in training mode, calls by a named backend, and anything where torch's
    deterministic algorithms are asked for; they keep the rule.

    Args:
        example: the model's argument, or all of them; on the model's device, requiring a gradient where it does later.
        seconds: for everything; a call that is not reached keeps its plan. A call that runs is not interrupted.
        replayed: for calls that a CUDA graph records (`use_backend("auto-replayed")`): time their replay.
        store: let the choices hold, and write them; False only returns them, for `choices.use`.
        clock: seconds since any moment.

    Raises:
        TypeError: `model` is no nn.Module or a ScriptModule; `example` is neither a tensor nor a tuple.
        ValueError: `seconds` is not more than 0; `replayed`, and a call is not on a GPU.
        RuntimeError: a CUDA graph is being captured.
    """
    checked("tune", model)
    if not isinstance(example, Tensor | tuple):
        raise TypeError(f"example must be a tensor or a tuple of arguments, got {type(example).__name__}")
    if not seconds > 0:
        raise ValueError(f"seconds must be more than 0, got {seconds!r}")
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("tune cannot measure while a CUDA graph is captured: call it before")
    if torch.are_deterministic_algorithms_enabled():
        return _nothing("torch's deterministic algorithms are asked for, so plans go by rule, not by a clock")
    limit = Limit(clock, clock() + seconds)
    arguments = example if isinstance(example, tuple) else (example,)
    calls = list(recorded(model, arguments, AUTO_REPLAYED if replayed else AUTO).values())
    elsewhere = [call.device for call in calls if call.device.type != "cuda"]
    if replayed and elsewhere:
        raise ValueError(f"replayed needs calls on a GPU, got one on {elsewhere[0]}")
    if not calls:
        return _nothing("the model calls no fused layer that auto plans: see convpool.fusion_report")
    judged = [_judged(call, replayed, limit.shared(len(calls) - place)) for place, call in enumerate(calls)]
    stored = [*_stored(judged)] if store else []
    took = seconds - limit.left
    return Tuned(
        Choices({one.call.key: one.choice for one in judged if one.choice}),
        (*(f"{one.call.key}: {one.text}" for one in judged), _summary(judged, took), *stored),
        took,
        tuple(f"{one.call.key}: {plan}: {why}" for one in judged for plan, why in one.excluded.items()),
    )


def _nothing(why: str) -> Tuned:
    return Tuned(Choices(), (f"nothing tuned: {why}",), 0.0)


@dataclass(frozen=True)
class _Judged:
    """What became of a call."""

    call: Recorded
    text: str
    choice: Choice | None = None
    excluded: dict[str, str] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        return self.choice is not None and self.choice.plan != self.call.plan


def _judged(call: Recorded, replayed: bool, limit: Limit) -> _Judged:
    if len(call.plans()) < 2 or not environment(call.device):
        return _Judged(call, f"{call.plan} is its only plan")
    found = right_ones(call, limit)
    right, excluded = found or ({}, {})
    outcome = contest(right, call.plan, call.device, replayed, limit) if right else None
    if outcome is None:
        reason = "no plan of it is right" if excluded and not right else "not reached"
        return _Judged(call, f"{reason}: {call.plan} as before", excluded=excluded)
    choice = Choice(outcome.winner, outcome.seconds, date.today().isoformat(), device_name(call.device))
    return _Judged(call, _words(outcome, call.plan), choice, excluded)


def _words(outcome: Outcome, before: str) -> str:
    figures = {plan: f"{plan} {seconds * 1e3:.3g} ms" for plan, seconds in outcome.seconds.items()}
    if outcome.winner == before:
        others = [text for plan, text in figures.items() if plan != before]
        return f"{figures[before]} stays" + (f" ({', '.join(others)})" if others else "")
    return f"{figures[outcome.winner]} instead of {figures.get(before, f'{before}, which is excluded')}"


def _summary(judged: list[_Judged], seconds: float) -> str:
    tuned = sum(one.choice is not None for one in judged)
    changed = sum(one.changed for one in judged)
    missed = sum(one.text.startswith("not reached") for one in judged)
    text = f"tuned {tuned} call{'s' * (tuned != 1)} in {seconds:.1f} s: {changed} changed"
    return f"{text}; {missed} not reached" if missed else text


def _stored(judged: list[_Judged]) -> list[str]:
    """Lets the choices hold, device by device; in words, where they are."""
    lines = []
    for device in dict.fromkeys(one.call.device for one in judged):
        found = {one.call.key: one.choice for one in judged if one.choice and one.call.device == device}
        path = choices.keep(device, Choices(found)) if found else None
        if path:
            lines.append(f"stored in {path}")
        elif found:
            lines.append("not stored")
    return lines
