"""python -m tests.mnistfast.fuzz --target csv --minutes 6: coverage-guided fuzzing of one parser, with atheris.

It needs `pip install -e '.[fuzz]'` (Linux, Python 3.11 or later) and prints libFuzzer's lines: `cov` is the branches
seen, `exec/s` the files a second. It ends with an error at the first finding, which lies in `--findings` as a file:
once mended, add it to corpus/, which the tests replay.
"""

import argparse
import hashlib
import os
import sys
from pathlib import Path

import atheris

from tests.mnistfast.fuzz.parsers import CORPUS, TARGETS, feed

MAX_LEN = 4096  # bytes of a file: a fault of a parser needs no more, and short ones are read quickly
SECONDS, MEGABYTES = 10, 1500  # for one file; Python and torch are counted


def main() -> None:
    """Fuzzes until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--target", choices=TARGETS, required=True)
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--corpus", type=Path, required=True, help="a folder that what was found goes to")
    parser.add_argument("--findings", type=Path, default=Path())
    given = parser.parse_args()
    given.corpus.mkdir(parents=True, exist_ok=True)
    given.findings.mkdir(parents=True, exist_ok=True)
    parsers = ["mnistfast", "zipfile", "tarfile", "gzip", "numpy.lib", "torch._weights_only_unpickler"]
    with atheris.instrument_imports(include=parsers):
        import mnistfast.data.formats
        import mnistfast.runs.checkpoint
        import mnistfast.runs.state  # noqa: F401
    options = [
        f"-max_total_time={given.minutes * 60:.0f}",
        f"-artifact_prefix={given.findings}/",
        *(f"-max_len={MAX_LEN}", f"-timeout={SECONDS}", f"-rss_limit_mb={MEGABYTES}", "-print_final_stats=1"),
        *map(str, (given.corpus, CORPUS / given.target)),
    ]
    path = Path(f"/proc/self/fd/{os.memfd_create('fuzz')}")  # a file in memory: a disk would be waited for

    def one(content: bytes) -> None:
        try:
            feed(given.target, content, path)
        except Exception:
            (given.findings / f"{given.target}-{hashlib.md5(content).hexdigest()[:8]}").write_bytes(content)
            raise

    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
