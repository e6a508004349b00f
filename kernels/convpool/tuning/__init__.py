"""Which plans of a model's calls are the fastest here: `tune` measures, and `choices` keeps what it finds.

Within: `calls` (what a model calls, recorded), `contest` (right first, then fast), `tuned` (the function and its
answer).

Imports `batchnorm`, `choices`, `environment`, `functional`, `fusion`, `geometry`, `module`, `planning`, `protocol`,
`registry`, `testing` and `torch_private`.
"""

from convpool.tuning.tuned import Tuned, tune

__all__ = ["Tuned", "tune"]
