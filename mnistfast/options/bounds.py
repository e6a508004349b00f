"""What the numbers of options may be. NaN is within none of them."""

from __future__ import annotations

import math

from mnistfast.options.fields import Bound

AT_LEAST_1 = Bound(lambda value: value >= 1, "at least 1")
NOT_NEGATIVE = Bound(lambda value: 0 <= value < math.inf, "0 or more")
POSITIVE = Bound(lambda value: 0 < value < math.inf, "above 0 and finite")
BELOW_1 = Bound(lambda value: 0 <= value < 1, "at least 0 and below 1")
SHARE_OR_COUNT = Bound(
    lambda value: 0 <= value < 1 or (value < math.inf and value == int(value)), "a share below 1 or a count"
)


def between(low: int, high: int) -> Bound:
    """Returns the numbers from `low` to `high`, both included."""
    return Bound(lambda value: low <= value <= high, f"from {low} to {high}")


def fraction(kind: str) -> Bound:
    """Returns the numbers from 0 to 1, which are a `kind`."""
    return Bound(lambda value: 0 <= value <= 1, f"a {kind} between 0 and 1")
