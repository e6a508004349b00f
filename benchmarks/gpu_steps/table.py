"""Which steps there are, in order of value, and how the time is dealt out. Imports nothing that takes time."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: in the result and on the command line.
        rows: "module:function", a generator of rows.
        share: of the time, against the other steps' shares.
        row_seconds: after which a row counts as hung.
    """

    name: str
    rows: str
    share: float
    row_seconds: float = 40.0


def _step(name: str, share: float, row_seconds: float = 40.0, function: str = "rows", module: str = "") -> Step:
    return Step(name, f"benchmarks.gpu_steps.{module or name}:{function}", share, row_seconds)


# Training on MNIST needs no kernels that the steps before it do not, so meanwhile the compilers get ahead of the rest.
STEPS = (
    _step("environment", 3),
    _step("host_cost", 3),
    _step("layers", 17),
    _step("whole_steps", 17),
    _step("mnist", 16),
    _step("parity", 14),
    _step("sweep", 20),
    _step("kernels", 6),
    _step("counters", 8, 60),
    _step("memcheck", 8, 90),
    _step("more_parity", 6, function="more_rows", module="parity"),
    _step("compiled", 6, 120),
)


def box(step: Step, later: Sequence[Step], left: float) -> float:
    """Seconds for a step: its share of the time left, so that what earlier steps did not need is not lost."""
    return left * step.share / (step.share + sum(other.share for other in later))
