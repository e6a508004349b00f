"""What a call takes on a CPU by torch's own layers, estimated in nanoseconds: one side of the rule of `auto`.

Each term is a count times what one of it takes on one core; more threads share the work but not what goes before it.
The factors were fitted to random layers (docs/measurements.md). They hold for one machine, but both sides of a
comparison grow and shrink together on others.
"""

from typing import NamedTuple

from convpool.geometry import Geometry

PRODUCT = 7.5e-3  # of a convolution by oneDNN, one multiplication and one addition

_LANES = 16


class Counts(NamedTuple):
    """How many there are of what a call reads, writes and multiplies."""

    x: int
    weights: int
    z: int  # the conv output
    y: int
    products: (
        int  # summed into z, whose channels are filled up to the 16 of a vector (one alone is a product of its own)
    )
    live: int  # that y's gradients go back through: those of one conv output a window
    thin: int  # conv outputs, filled up likewise, that sum so few input channels that oneDNN waits for memory

    @classmethod
    def of(cls, g: Geometry) -> "Counts":
        z = g.batch * g.out_channels * g.conv_height * g.conv_width
        y = g.batch * g.out_channels * g.pooled_height * g.pooled_width
        x = g.batch * g.in_channels * g.height * g.width
        filled = 4 * z if g.group_outputs == 1 else z // g.group_outputs * -(-g.group_outputs // _LANES) * _LANES
        thin = filled if g.group_channels <= 4 else 0
        return cls(x, g.out_channels * g.reduction, z, y, filled * g.reduction, y * g.reduction, thin)


def torch_calls(threads: int) -> float:
    """What three calls take besides their work, and to wake threads, each of them anew."""
    return 12e3 if threads == 1 else 24e3


def _backward_calls(threads: int) -> float:
    return 31e3 if threads == 1 else 70e3


def torch_forward(n: Counts, threads: int, *, channels_last: bool, innermost: bool) -> float:
    """Convolution, pool and ReLU. `innermost`: x is brought to channels_last first, where it is not `channels_last`."""
    if channels_last:
        rest = 0.25 * n.weights + 0.25 * n.x + 0.33 * n.z + 1.8 * n.y
    elif innermost:
        rest = 0.75 * n.weights + 0.78 * n.x + 0.22 * n.z + 0.5 * n.y
    else:
        rest = 0.4 * n.weights + 0.3 * n.x + 1.5 * n.z + 11 * n.y
    return torch_calls(threads) + (PRODUCT * n.products + 0.5 * n.thin + rest) / threads


def torch_backward(n: Counts, threads: int, *, dx: bool) -> float:
    """The gradients of weight and bias, and of x where that has one."""
    if dx:
        return _backward_calls(threads) + (16.7e-3 * n.products + 1.5 * n.weights + 0.9 * n.x + 1.4 * n.z) / threads
    return _backward_calls(threads) + (9.5e-3 * n.products + 1.3 * n.weights + 0.7 * n.z) / threads


def torch_layers(n: Counts, threads: int, *, channels_last: bool, innermost: bool, training: bool, dx: bool) -> float:
    """A forward pass, and in training a backward pass."""
    forward = torch_forward(n, threads, channels_last=channels_last, innermost=innermost)
    return forward + torch_backward(n, threads, dx=dx) if training else forward
