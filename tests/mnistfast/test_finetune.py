"""`mnistfast finetune` from its options to its last line."""

import json

import pytest

from mnistfast import finetune

REFUSED = [
    ("--data DATA", 2, "--from is missing. It takes a run's folder, a checkpoint, or one of vgg16, resnet50"),
    ("--from RUN", 2, "--data is missing"),
    ("--from nowhere --data DATA", 4, "no checkpoint at nowhere"),
    ("--from RUN/state.pt --data DATA", 4, "RUN/state.pt is a pickle file: refused"),
    ("--from RUN --data nowhere/at/all", 3, "no folder or file nowhere/at/all"),
    ("--from RUN --data DATA --method lore:3", 2, "unknown method 'lore' (did you mean 'lora'?)"),
    ("--from RUN --data DATA --method lora", 2, "--method is lora. It takes full, head, last:K, bias, lora:R, scratch"),
    ("--from RUN --data DATA --method head:2", 2, "--method is head:2"),
    ("--from RUN --data DATA --method last:0", 2, "--method is last:0"),
    ("--from RUN --data DATA --method last:9", 2, "--method last:9. lenet5 has 5 layers"),
    ("--from RUN --data DATA --unfreeze-at 3,2", 2, "--unfreeze-at is 3,2. It takes rising epochs from 1"),
    ("--from RUN --data DATA --unfreeze-at 9 --epochs 2", 2, "--unfreeze-at names epoch 9. There are 2"),
    ("--from RUN --data DATA --replay DATA:2", 2, "--replay is DATA:2. It must be OLD:fraction, up to 1"),
    ("--from RUN --data DATA --replay DATA --method head", 2, "--replay with --method head"),
    ("--from RUN --data DATA --replay DATA --drop-old-head", 2, "--replay with --drop-old-head"),
    ("--from RUN --data DATA --old-data fashion-mnist --offline", 7, "no fashion-mnist"),
    ("--from RUN --data DATA --shots 1000", 2, "--shots is 1000. A class has 20 training images"),
    ("--from RUN --data DATA --shots 0", 2, "--shots is 0. It must be at least 1"),
    ("--from RUN --data DATA --lr-mult 0", 2, "--lr-mult is 0.0. It must be above 0"),
    ("--from RUN --data DATA --classes 5,x", 2, "tiny has no class 'x'. It has 0, 1,"),
    ("--from RUN --data DATA --weights w.pth", 2, "--weights is for a backbone"),
    ("--from RUN --data DATA --model lenet5", 2, "unknown option --model"),
    ("--from RUN --merge x", 2, "--merge needs --from and --out"),
]


@pytest.mark.parametrize(("words", "code", "message"), REFUSED, ids=[row[0] for row in REFUSED])
def test_refused_in_one_line_before_any_work(words, code, message, finished, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if "fashion" in words:  # which a distribution may have installed
        monkeypatch.setattr("mnistfast.data.obtain._at_hand", lambda name, found: None)
    words, message = (text.replace("RUN", str(finished)).replace("DATA", str(tiny)) for text in (words, message))
    assert finetune.main(words.split()) == code
    error = capsys.readouterr().err
    assert error.startswith(f"mnistfast: error: {message}")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_data_check_trains_nothing(finished, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = finetune.main(["--from", str(finished), "--data", str(tiny), "--data-check", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == (3 if found["wrong"] else 0)
    assert not list(tmp_path.iterdir())


def test_summary_and_json(finished, tiny, tmp_path, no_pictures, capsys):
    words = f"--from {finished} --data {tiny} --classes 8,9 --epochs 1 --threads 1"
    assert finetune.main([*words.split(), "--out", str(tmp_path / "a")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("new accuracy    ") and " before, " in line for line in lines)
    assert any(line.startswith("old accuracy    ") for line in lines)
    assert any("of 61,876 parameters in" in line for line in lines)
    assert "left out 0 training images that are in the source's test set" in lines
    assert lines[-1] == f"next            mnistfast evaluate {tmp_path / 'a'}"
    assert finetune.main([*words.split(), "--out", str(tmp_path / "b"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["new"]["after"]["n"] == 10
    assert found["method"] == "full"


def test_several_processes_are_refused(finished, tiny, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert finetune.main(["--from", str(finished), "--data", str(tiny)]) == 2
    assert "finetune works in one process" in capsys.readouterr().err
