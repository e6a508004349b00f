"""Measure everything that is kept: benchmarks/results, then the README's tables from it.

    python -m benchmarks.record [--threads N]
    python -m benchmarks.record --short FOLDER

Wants the machine for itself for about a quarter of an hour, and MNIST. Results of a machine with a GPU go to
results/gpu, else to results/cpu. `--short` shows within minutes that all of it works: it measures next to nothing, on
the shipped sample, writes to another folder and leaves results and README alone.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.readme_table import README, RESULTS, ROOT, written

SPEEDS = ("--seconds", "3")
TIME_TO = ("--model", "speedrun", "--against", "fast", "--data", "mnist")
TIME_TO += ("--target", "99", "--seeds", "20", "--forms", "channels_last")
LIMITS = ("--seconds", "1")
SHORT_SPEEDS = ("--seconds", "0.01", "--no-compile", "--only", "lenet5-")
SHORT_LIMITS = ("--seconds", "0.01")
SHORT_TIME_TO = ("--model", "lenet5", "--data", "sample", "--target", "90", "--seeds", "1", "--forms", "fused")


def bench(*words: str) -> None:
    """Run `mnistfast bench` in a process of its own, and end with its exit code where that is not 0.

    It runs in the project's folder: the command is kept with the results, and should name no path of this machine.
    """
    print("mnistfast bench", *words, flush=True)
    code = subprocess.run([sys.executable, "-m", "mnistfast.bench", *words], cwd=ROOT).returncode
    if code:
        sys.exit(code)


def limits(*words: str) -> str:
    """The page of what limits each CPU kernel, by benchmarks/cpu_limits.py."""
    command = ("benchmarks/cpu_limits.py", *words)
    print(*command, flush=True)
    table = subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return f"# What limits each CPU kernel\n\n`python {' '.join(command)}`, one thread.\n\n{table}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--short", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    results = options.short.resolve() if options.short else RESULTS
    folder = results / ("gpu" if torch.cuda.is_available() else "cpu")
    out = folder if options.short else folder.relative_to(ROOT)
    shared = ("--threads", str(options.threads), "--out", str(out))
    bench(*(SHORT_SPEEDS if options.short else SPEEDS), *shared)
    bench("time-to", *(SHORT_TIME_TO if options.short else TIME_TO), *shared)
    if folder.name == "cpu":
        (folder / "limits.md").write_text(limits(*(SHORT_LIMITS if options.short else LIMITS)))
    readme = results / README.name if options.short else README
    readme.write_text(written(README.read_text(), results))
    print(f"written {readme}")


if __name__ == "__main__":
    main()
