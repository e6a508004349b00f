"""The README's figures are those of the kept results."""

import json
import shutil

import pytest

from benchmarks.readme_table import BEGIN, END, README, RESULTS, written


def test_the_readme_agrees_with_the_kept_results():
    text = README.read_text()
    assert written(text, RESULTS) == text, "run python -m benchmarks.readme_table"


def test_another_figure_is_noticed(tmp_path):
    entrant = {"name": "one", "n": 1, "steps": 2, "seconds": {"median": 1.5, "low": 1, "high": 2}}
    entrant["accuracy"] = {"mean": 0.99, "low": 0.99, "high": 0.99}
    result = {"entrants": [entrant], "training_images": 1, "judged_by": "2", "setting": "s", "command": "c"}
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "time_to.json").write_text(json.dumps(result))
    text = written(f"before\n{BEGIN}\nold\n{END}\nafter", tmp_path)
    assert text.startswith("before\n")
    assert text.endswith("\nafter")
    assert "old" not in text
    assert "1.50 s" in text
    assert written(text, tmp_path) == text
    entrant["seconds"]["median"] = 1.6
    (tmp_path / "cpu" / "time_to.json").write_text(json.dumps(result))
    assert written(text, tmp_path) != text
    shutil.rmtree(tmp_path / "cpu")
    assert "1.50 s" not in written(text, tmp_path)


def test_a_readme_without_marks_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must have the lines"):
        written(f"no table here\n{END}", tmp_path)
