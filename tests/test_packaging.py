"""What leaves the repository: a wheel and an sdist that train from another folder, with and without Triton."""

import json
import os
import shutil
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


def git_files() -> list[str]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("builds from what git tracks, and this is not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in listing.split("\0") if name and (ROOT / name).exists()]


def build(kind: str, out: Path) -> Path:
    """Build from a copy of what git tracks, so that nothing lies about that a user would not have."""
    source = out / "source"
    for name in git_files():
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
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=folder, env=env, check=True, capture_output=True, text=True
    )
    assert found.stdout.count(str(site)) == 2
    subprocess.run([sys.executable, *arguments], cwd=folder, env=env, check=True)
    return json.loads((folder / "run" / "test.json").read_text())["accuracy"]


def names(archive: Path) -> set[str]:
    if archive.suffix == ".whl":
        return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as tar:
        return {name.partition("/")[2] for name in tar.getnames()}


def sample_files() -> set[str]:
    parts = [f"{split}-{part}.gz" for split in ("train", "t10k") for part in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    return {f"mnistfast/data/sample/{name}" for name in (*parts, "LICENSE.md")}


def test_an_sdist_holds_what_a_build_needs(tmp_path: Path) -> None:
    """The sample with its licence, both source roots, and the C++ sources with their headers."""
    tracked = set(git_files())
    sources = {name for name in tracked if name.startswith(("kernels/convpool/", "mnistfast/"))}
    assert sources | {"README.md", "LICENSE", "setup.py", "pyproject.toml"} | sample_files() <= names(
        build("sdist", tmp_path)
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_trains_from_an_archive_elsewhere(kind: str, tmp_path: Path) -> None:
    archive = build(kind, tmp_path)
    install(archive, tmp_path / "site")
    assert train(tmp_path / "site", tmp_path / "elsewhere", *TRAIN) >= 0.965
    if kind == "wheel":
        held = names(archive)
        assert sample_files() | {"mnistfast/py.typed", "convpool/py.typed", "convpool/__init__.py"} <= held
        assert not any(name.startswith(("kernels", "tests", "benchmarks")) for name in held)
        assert any("_avx2" in name for name in held) == (shutil.which("g++") is not None)
        without = ("-c", NO_TRITON, *TRAIN[1:])
        assert train(tmp_path / "site", tmp_path / "without-triton", *without) >= 0.965
