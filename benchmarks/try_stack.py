"""The test suite on a stack of its own: an environment with the named Python, torch and Triton, made and thrown away.

    python benchmarks/try_stack.py --python python3.12 --torch 2.11.0 [--triton 3.6.0] [--with 'numpy<2.4' ...]
        [--log FOLDER] [-- pytest's arguments]

An environment takes up to 6 GB and some minutes, so one is made at a time and never in CI. What is tested is the last
commit, from a clone. The log, FOLDER/torch-2.11.0-triton-3.6.0-python-3.12.log, holds the installed packages and what
pytest printed. The exit status is pytest's, or pip's where the stack cannot be installed.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="interpreter to make the environment with")
    parser.add_argument("--torch", required=True, metavar="VERSION")
    parser.add_argument("--triton", metavar="VERSION", help="default: the one that this torch asks for")
    parser.add_argument("--with", dest="extra", nargs="+", default=[], metavar="REQUIREMENT")
    parser.add_argument("--log", type=Path, default=Path(), metavar="FOLDER")
    parser.add_argument("pytest", nargs="*", metavar="-- ARGUMENT", help="for pytest; default: -q")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return _try(options, Path(folder))


def _try(options: argparse.Namespace, folder: Path) -> int:
    python = folder / "venv" / "bin" / "python"
    sources = folder / "sources"
    log = folder / "log"

    def run(*command: object, check: bool = True, cwd: Path = folder) -> int:
        with log.open("a") as out:
            out.write(f"\n$ {' '.join(map(str, command))}\n")
            out.flush()
            code = subprocess.run([str(c) for c in command], cwd=cwd, stdout=out, stderr=out).returncode
        if check and code:
            raise SystemExit(f"{log.read_text()[-2000:]}\n{command[0]} failed with {code}")
        return code

    run(options.python, "-m", "venv", folder / "venv")
    run("git", "clone", "-q", ROOT, sources)
    # torch first: its release decides the rest, and the project's own range would let pip take another.
    run(python, "-m", "pip", "install", "-q", f"torch=={options.torch}")
    run(python, "-m", "pip", "install", "-q", "-e", f"{sources}[test]", f"torch=={options.torch}", *options.extra)
    if options.triton:  # against what torch asks for, if need be
        run(python, "-m", "pip", "install", "-q", "--no-deps", f"triton=={options.triton}")
    run(python, "-m", "pip", "freeze")
    began = time.monotonic()
    code = run(python, "-m", "pytest", *(options.pytest or ["-q"]), check=False, cwd=sources)
    versions = "import platform, torch, triton; print(torch.__version__, triton.__version__, platform.python_version())"
    found = subprocess.run([str(python), "-c", versions], capture_output=True, text=True, check=True).stdout.split()
    kept = options.log / "torch-{}-triton-{}-python-{}.log".format(*found)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(log.read_text())
    print(f"{log.read_text().splitlines()[-1]} ({time.monotonic() - began:.0f} s; exit status {code}; log: {kept})")
    return code


if __name__ == "__main__":
    sys.exit(main())
