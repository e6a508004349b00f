"""random_geometries.py with two faults planted, for its children to run: see test_random_geometries."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import random_geometries

WRONG, FATAL = 5, 7  # the numbers of the calls

judge, right_op = random_geometries.judge, random_geometries._op


def planted(call: random_geometries.Call, backend: str) -> str:
    number = int(call.case.name.partition("/")[2])
    if number == FATAL:
        os.kill(os.getpid(), signal.SIGKILL)
    random_geometries._op = (lambda *call: right_op(*call) + 1) if number == WRONG else right_op
    return judge(call, backend)


if __name__ == "__main__":
    random_geometries.judge = planted
    sys.exit(random_geometries.main())
