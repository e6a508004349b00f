"""`fuse(model)`: conv -> [norm] -> ReLU -> max-pool as one op in a model that somebody else wrote.

trace.py   one module's forward as a graph, or why not
kept.py    values as they were, to see whether a graph still holds
find.py    the runs that each module's forward holds
chain.py   what runs at each call: layers in order, with what can be fused at that moment as one op
rewrite.py fuse, unfuse
report.py  fusion_report
verify.py  verify
memory.py  what autograd keeps for a backward pass

Imports `batchnorm`, `functional`, `module`, `planning`, `protocol` and `torch_private`.
"""

from convpool.fusion.report import FusionReport, fusion_report
from convpool.fusion.rewrite import fuse, unfuse
from convpool.fusion.verify import Differences, verify

__all__ = ["Differences", "FusionReport", "fuse", "fusion_report", "unfuse", "verify"]
