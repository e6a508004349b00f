"""Learning rates as pure functions of the step: a resumed run needs no scheduler state."""

from __future__ import annotations

import math


def learning_rate(schedule: str, step: int, steps: int, peak: float) -> float:
    """Returns the learning rate of step `step` of `steps` (0 is the first).

    - `constant`: `peak`.
    - `step`: `peak`, a tenth of it from half-way on, a hundredth in the last quarter.
    - `cosine`: half a cosine from `peak` towards 0 (Loshchilov and Hutter 2017, equation 5, one period).
    - `linear`: from 0 to `peak` over the first 30 %, then to 0, in straight lines; a step's rate is that of its middle.
    - `onecycle`: from peak / 25 to `peak` over the first 30 %, then to peak / 250,000, both along half a cosine
      (Smith and Topin 2018; the values of `torch.optim.lr_scheduler.OneCycleLR` with its defaults). Momentum and betas
      stay as configured.
    """
    if schedule == "step":
        return peak * 0.1 ** ((2 * step >= steps) + (4 * step >= 3 * steps))
    if schedule == "cosine":
        return _cosine(peak, 0.0, step / steps)
    if schedule == "linear":
        share = (step + 0.5) / steps
        return peak * min(share / 0.3, (1 - share) / 0.7)
    if schedule == "onecycle":
        start, end = peak / 25, peak / 25 / 1e4
        top, last = 0.3 * steps - 1, steps - 1
        if step <= top:
            return _cosine(start, peak, step / top if top > 0 else 1.0)
        return _cosine(peak, end, (step - top) / (last - top) if last > top else 1.0)
    return peak


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
