"""`fusion_report`: the runs of a model in a table, fused or not and why, and what they save for an input."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from convpool.fusion.chain import Run
from convpool.fusion.find import Survey, runs_in_order
from convpool.fusion.memory import kept_bytes
from convpool.fusion.rewrite import checked, is_fused
from convpool.fusion.trace import Traced


@dataclass(frozen=True)
class ReportRow:
    """One run found in a model.

    Attributes:
        layers: paths of its layers in the model; functions by their name.
        owner: path of the module whose forward holds it.
        reason: why it is not fused in the model's present mode, or None.
        plan: with an input: backend, plan and kernel, as `explain` words them.
        bytes_eager, bytes_fused: with an input: what autograd keeps for this run besides its input and parameters.
    """

    layers: tuple[str, ...]
    owner: str
    reason: str | None
    plan: str | None = None
    bytes_eager: int | None = None
    bytes_fused: int | None = None
    run: Run = field(repr=False, compare=False, kw_only=True)

    @property
    def fused(self) -> bool:
        return self.reason is None

    @property
    def bytes_saved(self) -> int | None:
        return None if self.bytes_eager is None or self.bytes_fused is None else self.bytes_eager - self.bytes_fused


@dataclass(frozen=True)
class FusionReport:
    """What `fuse` finds in a model, in the mode (training or not) the model is in; `str()` gives a table.

    Attributes:
        rows: the runs, in the order of the model's modules.
        untraceable: modules with convolutions whose own forward could not be followed, and why.
        applied: whether the model has been through `fuse`.
    """

    rows: tuple[ReportRow, ...]
    untraceable: tuple[tuple[str, str], ...]
    applied: bool
    model: nn.Module = field(repr=False, compare=False)

    @property
    def fused(self) -> list[ReportRow]:
        """The rows that are fused, or would be by `fuse(model)`."""
        return [row for row in self.rows if row.fused]

    def for_input(self, *example: Any) -> "FusionReport":
        """The report with plan and bytes saved for `model(*example)`, measured on a copy of the model.

        Each fused run is computed as torch's layers and as one op on the input that reaches it, and what autograd keeps
        is added up over distinct storages.
        """
        model = deepcopy(self.model)
        rows = fusion_report(model).rows
        inputs: dict[nn.Module, list[Tensor]] = {}
        convs = {row.run.conv for row in rows if row.fused}
        hooks = [conv.register_forward_pre_hook(_collector(inputs.setdefault(conv, []))) for conv in convs]
        with torch.enable_grad(), torch.random.fork_rng():
            model(*example)
        for hook in hooks:
            hook.remove()
        return replace(self, rows=tuple(_measured(row, inputs[row.run.conv]) if row.fused else row for row in rows))

    def __str__(self) -> str:
        verb = "fused" if self.applied else "fusable"
        measured = any(row.plan for row in self.rows)
        table = [["layers", verb, *(["MiB kept by torch", "MiB kept fused", "plan"] if measured else []), "why not"]]
        for row in self.rows:
            line = [" > ".join(row.layers), "yes" if row.fused else "no"]
            if measured:
                line += [_mebibytes(row.bytes_eager), _mebibytes(row.bytes_fused), row.plan or ""]
            table.append([*line, row.reason or ""])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in table]
        if not self.rows:
            lines = ["no conv2d > ReLU > max-pool found"]
        lines += [f"not looked into: {name or 'the model'}: {reason}" for name, reason in self.untraceable]
        mode = "training" if self.model.training else "eval"
        return "\n".join([*lines, f"{len(self.fused)} of {len(self.rows)} runs {verb} in {mode} mode"])


def fusion_report(model: nn.Module) -> FusionReport:
    """What `fuse(model)` fuses, or has fused, in the mode the model is in, and what it leaves alone and why.

    Raises:
        TypeError: `model` is not an nn.Module, or is a ScriptModule.
    """
    checked("fusion_report", model)
    survey = Survey(model)
    rows, untraceable = [], []
    for owner in survey.owners():
        if runs_in_order(owner) or isinstance(survey.traced(owner, owner.training), Traced):
            rows += [
                ReportRow(found.names, found.owner, found.reason, run=found.run)
                for found in survey.found(owner, owner.training)
            ]
        else:
            untraceable.append((survey.names[owner], str(survey.traced(owner, owner.training))))
    return FusionReport(tuple(rows), tuple(untraceable), any(map(is_fused, model.modules())), model)


def _collector(inputs: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor]], None]:
    return lambda _, args: inputs.append(args[0].detach().requires_grad_(args[0].requires_grad))


def _measured(row: ReportRow, inputs: list[Tensor]) -> ReportRow:
    """The row with plan and bytes. Rows that share a conv take its inputs in turn; a run not reached has none."""
    if not inputs:
        return row
    x = inputs.pop(0) if len(inputs) > 1 else inputs[0]
    parameters = [p for layer in row.run.layers if isinstance(layer, nn.Module) for p in layer.parameters()]
    return replace(
        row,
        plan=str(row.run.explain(x)),
        bytes_eager=kept_bytes(row.run.one_by_one, x, ignore=parameters),
        bytes_fused=kept_bytes(row.run.fused, x, ignore=parameters),
    )


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.2f}"
