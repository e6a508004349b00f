"""Loads each data set that a line of standard input names, in a fork of this process, and answers with what it took.

An answer is JSON: the one line of the refusal (`line`, with its `kind`), or `line` null where the data were read;
`bytes`, the most memory that was held beyond what the imports take.
"""

import json
import os
import resource
import signal
import sys

from PIL import Image

from mnistfast.data import formats, images  # noqa: F401  # what is imported here is not counted
from mnistfast.data.sources import load
from mnistfast.errors import MnistfastError

ROOM = 2 << 30  # of addresses, beyond the imports': a reader that wants more fails, and spares the machine


def held(entry):
    """Returns bytes of memory by the entry of /proc/self/status; a fork's VmHWM begins at what it holds then."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(entry))


def answer(path, patience):
    signal.alarm(patience)  # whose default action ends a process that waits for a pipe too
    resource.setrlimit(resource.RLIMIT_AS, (held("VmSize") + ROOM,) * 2)
    before = held("VmRSS")
    found = {"line": None, "kind": None}
    try:
        load(path, offline=True)
    except MnistfastError as error:
        found = {"line": str(error), "kind": error.kind}
    except BaseException as error:
        found = {"line": repr(error)[:1000], "kind": type(error).__name__}
    return found | {"bytes": held("VmHWM") - before}


if __name__ == "__main__":
    Image.init()
    for request in sys.stdin:
        if not (child := os.fork()):
            print(json.dumps(answer(*json.loads(request))), flush=True)
            os._exit(0)
        if status := os.waitpid(child, 0)[1]:
            died = os.waitstatus_to_exitcode(status)
            print(json.dumps({"line": f"died of {died}", "kind": "died", "bytes": 0}), flush=True)
