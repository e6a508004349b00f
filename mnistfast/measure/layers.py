"""What a workload is, and single layers as workloads: in training and in inference, with and without a norm.

A workload knows its forms by name and turns a form into calls to time, having checked that the form computes what torch
computes in float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch

from convpool import Plan
from convpool.fusion.memory import kept_bytes
from convpool.testing import candidates, normalised, parity
from convpool.testing.candidates import Candidate
from convpool.testing.cases import Case
from convpool.testing.roofline import Work, work
from convpool.testing.timing import Call
from mnistfast.measure.forms import FUSED, FUSED_LAST, backend_for

Form = TypeVar("Form")

KEPT_BY = (FUSED, "eager")  # whose bytes kept between forward and backward are counted


class NotRecordedError(RuntimeError):
    """The steps of a form cannot be replayed; the message says why."""


class Workload(ABC, Generic[Form]):
    """One thing that takes time.

    Attributes:
        group: what it is compared within: "layer, training", "step", ...
        name: within its group.
        device: where it happens.
        least_rounds: rounds that a median needs; fewer where one takes seconds.
        worth_compiling: whether torch.compile takes part unless everything is asked for.
        replayable: whether its calls can be recorded as a graph on a GPU: not where an optimiser counts its steps.
    """

    group: str
    name: str
    device: torch.device
    least_rounds = 7
    worth_compiling = True
    replayable = True

    @abstractmethod
    def forms(self) -> dict[str, Form]:
        """Returns what is raced, by name: `measure.forms.FUSED`, `candidates.PLAIN`'s and perhaps more.

        A name that ends in `measure.forms.REPLAYED` is of a form whose steps are replayed.
        """

    @property
    def names(self) -> list[str]:
        """The names of `forms`, in which no model is built and no device touched."""
        return list(self.forms())

    @abstractmethod
    def calls(self, form: Form) -> list[Call]:
        """Returns the calls to time.

        Raises:
            ParityError: the form computes something else than torch.
            NotRecordedError: its steps were to be replayed, and cannot be.
        """

    @abstractmethod
    def compiled(self, form: Form, mode: str) -> Form:
        """Returns the form by torch.compile, its steps called."""

    @property
    def modes(self) -> tuple[str, ...]:
        """torch.compile's modes that take part. One of them records by itself, which no recording can hold."""
        records = self.device.type == "cuda" and not self.replayable
        return ("default", "reduce-overhead") if records else ("default",)

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Returns what else there is to know: sizes, who computes it, bytes kept for the backward pass."""

    def work(self) -> Work | None:
        """Returns the least work, where there is a formula for it."""
        return None

    def __str__(self) -> str:
        return f"{self.group}: {self.name}"


@dataclass
class Layer(Workload[Candidate]):
    """One layer of the table of shapes, in training (forward and backward) or in inference (forward)."""

    case: Case
    backward: bool
    device: torch.device
    growth: str = ""  # what grows, where the layer is one of a row of sizes
    dtype: torch.dtype = torch.float32

    @property
    def group(self) -> str:  # type: ignore[override]
        return self.growth or f"layer, {'training' if self.backward else 'inference'}"

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.case.name

    @property
    def worth_compiling(self) -> bool:  # type: ignore[override]
        return not self.growth

    @property
    def dx(self) -> bool:
        """Whether x needs a gradient: not where it is an image."""
        return self.case.in_channels > 3

    @cached_property
    def inputs(self) -> parity.Inputs:
        """Random tensors on the device."""
        return parity.make_inputs(self.case, self.dtype, device=self.device)

    def forms(self) -> dict[str, Candidate]:
        layer = candidates.Through(backend_for(self.device))
        return {FUSED: (layer, "nchw"), FUSED_LAST: (layer, "channels_last"), **candidates.PLAIN}

    def calls(self, form: Candidate) -> list[Call]:
        return candidates.layer_calls(self.inputs, *form, dx=self.dx, backward=self.backward)

    def compiled(self, form: Candidate, mode: str) -> Candidate:
        return candidates.compiled(form[0], mode), form[1]

    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"x": self.case.x_shape, "weight": self.case.weight_shape, "plan": str(self.plan())}
        if self.backward:
            facts["kept_bytes"] = {name: self._kept(*self.forms()[name]) for name in KEPT_BY}
        return facts

    def plan(self) -> Plan:
        """Returns who computes it in `convpool`'s forms."""
        return candidates.explained(self.inputs, backend_for(self.device))

    def _kept(self, layer: parity.Layer, layout: parity.Layout) -> int:
        inputs = candidates.in_layout(self.inputs, layout)
        x, *others = inputs.arguments([t.detach().requires_grad_() for t in inputs.tensors])
        return kept_bytes(lambda x: layer(x, *others), x if self.dx else x.detach(), ignore=others)

    def work(self) -> Work | None:
        return work(self.case.geometry, self.dtype, dx=self.dx, backward=self.backward)


class NormLayer(Layer):
    """One layer with a norm in training mode between conv and ReLU, forward and backward."""

    @property
    def group(self) -> str:  # type: ignore[override]
        return "layer with batch norm, training"

    @cached_property
    def inputs(self) -> normalised.NormInputs:
        """Random tensors on the device, the norm's buffers among them."""
        return normalised.make_norm_inputs(self.case, device=self.device)

    def forms(self) -> dict[str, Candidate]:
        layer = normalised.NormThrough(backend_for(self.device))
        return {FUSED: (layer, "nchw"), FUSED_LAST: (layer, "channels_last"), **normalised.PLAIN}

    def calls(self, form: Candidate) -> list[Call]:
        return normalised.norm_calls(self.inputs, *form, dx=self.dx)

    def plan(self) -> Plan:
        return normalised.explained(self.inputs, backend_for(self.device))

    def work(self) -> None:
        """Returns nothing: there is no formula for what the statistics need at least."""
