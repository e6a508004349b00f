"""As much evidence as a few minutes on a GPU can give, in order of value: each step in its time box, every row kept.

    PYTHONPATH=kernels:. python -m benchmarks.gpu_evidence --minutes 9 --out FOLDER [--data FOLDER_WITH_IDX_FILES]
    PYTHONPATH=kernels:. python -m benchmarks.gpu_evidence --rehearse --out FOLDER

Needs torch, Triton and NumPy, and nothing else: no installation of this project. Steps run in children, which may hang,
abort or lose the GPU without ending the rest. The result, FOLDER/evidence.json, is whole whenever it is read;
FOLDER/log.txt has what the children printed. `benchmarks/gpu_tables.py` makes pages of it, `benchmarks/gpu_rank.py`
ranks the launches that were tried.

Other CPU cores compile meanwhile what the steps are about to launch. `--rehearse` needs no GPU: it runs all of the
Python on next to nothing.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.gpu_steps.children import Run, Setting
from benchmarks.gpu_steps.compilers import compiling
from benchmarks.gpu_steps.result import Result
from benchmarks.gpu_steps.table import STEPS, Step

REHEARSED_ARCH = 90
_SPARED_CORES = 2  # for the child that measures and for its driver


def take(steps: Sequence[Step], options: argparse.Namespace) -> Path:
    """Run the steps and return the file with the result."""
    out: Path = options.out.resolve()
    head = {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "minutes": options.minutes,
        "rehearsal": options.rehearse,
        "data": bool(options.data),
        "workers": options.workers,
    }
    result = Result(out / "evidence.json", head)
    until = time.monotonic() + options.minutes * 60
    data = str(options.data.resolve()) if options.data else ""
    log = out / "log.txt"
    log.write_bytes(b"")
    with ExitStack() as stack:
        claims = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        arch = REHEARSED_ARCH if options.rehearse else _capability()
        stack.enter_context(compiling(steps, arch, options.workers, claims, log))
        Run(steps, Setting("cpu" if options.rehearse else "cuda", data, until), result, log, _say).run()
        _say(f"{len(list(claims.iterdir()))} pieces of work were compiled ahead")
    result.finish()
    return out / "evidence.json"


def _capability() -> int:
    """The GPU's compute capability, 90 for 9.0, asked without the seconds that torch takes to start."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader", "-i", "0"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.replace(".", ""))


def _say(words: str) -> None:
    print(words, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9, help="after which everything is over")
    parser.add_argument("--out", type=Path, default=Path("evidence"), metavar="FOLDER")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="with MNIST's four IDX files")
    parser.add_argument("--steps", nargs="+", choices=[step.name for step in STEPS], metavar="STEP", help="only these")
    parser.add_argument("--workers", type=int, default=max(1, cores - _SPARED_CORES), help="compile ahead")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU")
    options = parser.parse_args(arguments)
    if not options.rehearse and not shutil.which("nvidia-smi"):
        parser.error("no nvidia-smi here: without a GPU there is --rehearse")
    wanted = [step for step in STEPS if not options.steps or step.name in options.steps]
    print(f"written {take(wanted, options)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
