"""What fuzzing starts from, and what it found, is read or refused with one line; this needs no fuzzer."""

import pytest

from tests.mnistfast.fuzz.parsers import CORPUS, TARGETS, feed

FILES = [(target, path) for target in TARGETS for path in sorted((CORPUS / target).iterdir())]


@pytest.mark.parametrize(("target", "path"), FILES, ids=[f"{target}-{path.name}" for target, path in FILES])
def test_corpus(target, path, tmp_path):
    feed(target, path.read_bytes(), tmp_path / "file")


def test_the_corpus_goes_both_ways_and_is_small(tmp_path):
    for target in TARGETS:
        lines = [feed(target, path.read_bytes(), tmp_path / "file") for name, path in FILES if name == target]
        assert len(set(lines)) > 4, target
        assert target == "checkpoint" or None in lines, target
    assert sum(path.stat().st_size for _, path in FILES) < 100_000
