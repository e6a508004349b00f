"""Tools that show whether a layer computes what torch computes, and how fast it is: ours, or anyone's own.

Importing this imports torch and convpool's layers, starts nothing and asks no device anything.

A layer of one's own is a function of x, weight, bias and the options of the call. `check_layer` holds it against
torch's layers in float64, and `layer_calls` does so before it gives anything to time:

>>> from torch.nn import functional as F
>>> from convpool.testing import by_name, check_layer, compare, layer_calls, make_inputs
>>> def mine(x, weight, bias, settings):
...     return F.max_pool2d(F.conv2d(x, weight, bias), settings.pool_kernel).relu()
>>> inputs = make_inputs(by_name("cnn-1"))
>>> check_layer(inputs, mine, integers=True).ok
True
>>> calls = {"mine": layer_calls(inputs, mine, "nchw", dx=False, backward=True)}
>>> compare(calls, inputs.x.device, seconds=0.001)["mine"].rounds
7

The promise: the names in `__all__` stay, with the arguments and attributes that their docstrings name; a case keeps its
name and its shapes; what `check`, `check_layer` and `check_results` call wrong is off by more than rounding explains.
Not promised: that no case is added, what a seed draws, the texts, the speed of these tools, and every other name.

Within: `cases` (the table of shapes), `parity` (right or wrong), `timing` (rounds and the clock), `candidates` (what is
timed), `normalised` (that for layers with a norm), `machine` (what figures hold for), `roofline` (what a machine
could do), `isolated` (calls that may crash), `ahead` (compiling on idle cores), `selfcheck`. Nothing in convpool
imports these but `tuning` and the door `python -m convpool.selfcheck`.

Imports `autograd`, `batchnorm`, `eager`, `environment`, `functional`, `geometry`, `gpu`, `layout`, `planning`,
`protocol`, `registry` and `torch_ops`.
"""

from convpool.testing.candidates import PLAIN, ParityError, Through, best_plain, compare_layer, layer_calls
from convpool.testing.cases import CASES, Case, by_name
from convpool.testing.machine import keep_freed_memory, pin_precision, setting
from convpool.testing.parity import Inputs, Layer, Layout, Parity, check, check_layer, check_results, make_inputs
from convpool.testing.timing import Race, Timing, compare

__all__ = [
    "CASES",
    "PLAIN",
    "Case",
    "Inputs",
    "Layer",
    "Layout",
    "Parity",
    "ParityError",
    "Race",
    "Through",
    "Timing",
    "best_plain",
    "by_name",
    "check",
    "check_layer",
    "check_results",
    "compare",
    "compare_layer",
    "keep_freed_memory",
    "layer_calls",
    "make_inputs",
    "pin_precision",
    "setting",
]
