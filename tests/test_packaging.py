"""What leaves the repository: a wheel and an sdist that train from another folder, with and without Triton."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRAIN = ("-m", "mnistfast.train", "--data", "sample", "--model", "cnn2", "--seed", "0", "--out", "run", "--quiet")
NO_TRITON = """
import importlib.abc, runpy, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
sys.argv = sys.argv[1:]
runpy.run_module("mnistfast.train", run_name="__main__")
"""


def build(kind: str, out: Path) -> Path:
    """Build from a copy of what git tracks, so that nothing lies about that a user would not have."""
    source = out / "source"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, files.split("\0")):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    hook = f"from setuptools.build_meta import build_{kind} as b; b({str(out)!r})"
    subprocess.run([sys.executable, "-c", hook], cwd=source, check=True, capture_output=True)
    return next(out.glob("*.whl" if kind == "wheel" else "*.tar.gz"))


def install(archive: Path, target: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", target, archive], check=True)


def train(site: Path, folder: Path, *arguments: str) -> float:
    """Test accuracy of a run with nothing but `site` to import the project from."""
    folder.mkdir()
    env = {**os.environ, "PYTHONPATH": str(site), "MNISTFAST_CACHE": str(folder / "cache")}
    env.pop("MNISTFAST_DATA", None)
    where = "import convpool, mnistfast; print(convpool.__file__, mnistfast.__file__)"
    found = subprocess.run([sys.executable, "-c", where], cwd=folder, env=env, check=True, capture_output=True, text=True)
    assert found.stdout.count(str(site)) == 2
    subprocess.run([sys.executable, *arguments], cwd=folder, env=env, check=True)
    return json.loads((folder / "run" / "test.json").read_text())["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_trains_from_an_archive_elsewhere(kind: str, tmp_path: Path) -> None:
    archive = build(kind, tmp_path)
    install(archive, tmp_path / "site")
    assert train(tmp_path / "site", tmp_path / "elsewhere", *TRAIN) >= 0.965
    if kind == "wheel":
        without = ("-c", NO_TRITON, *TRAIN[1:])
        assert train(tmp_path / "site", tmp_path / "without-triton", *without) >= 0.965


def names(archive: Path) -> set[str]:
    if archive.suffix == ".whl":
        return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as tar:
        return {name.partition("/")[2] for name in tar.getnames()}


def test_archives_hold_what_belongs(tmp_path: Path) -> None:
    """The sample, its licence, type markers; the sdist also tests and the second source root."""
    wheel = names(build("wheel", tmp_path / "wheel"))
    sample = {f"mnistfast/data/sample/{kind}-{part}" for kind in ("train", "t10k") for part in FILES}
    assert sample | {"mnistfast/data/sample/LICENSE.md"} <= wheel
    assert {"mnistfast/py.typed", "convpool/py.typed", "convpool/__init__.py"} <= wheel
    assert not any(name.startswith(("kernels", "tests", "benchmarks")) for name in wheel)
    sdist = names(build("sdist", tmp_path / "sdist"))
    assert {"kernels/convpool/__init__.py", "mnistfast/data/sample/LICENSE.md", "README.md"} <= sdist


FILES = ("images-idx3-ubyte.gz", "labels-idx1-ubyte.gz")
