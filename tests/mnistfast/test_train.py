"""`mnistfast train` from its options to its last line."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
import yaml

from mnistfast import evaluate, finetune, train
from mnistfast.runs.checkpoint import load_checkpoint
from mnistfast.runs.state import load_state, save_state

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_run_and_summary(options, tmp_path, capsys):
    out = tmp_path / "run"
    assert train.main([*options, "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("lenet5 on tiny: 180 training images, 20 held out; 3 epochs on cpu (1 CPU threads)")
    assert [line.split(":")[0] for line in lines[1:4]] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    scores = json.loads((out / "test.json").read_text())
    low, high = scores["interval"]
    assert low < scores["accuracy"] < high
    expected = (
        f"test accuracy {100 * scores['accuracy']:.2f} % (95 % interval {100 * low:.2f} to {100 * high:.2f} %, n = 50)"
    )
    assert lines[4].startswith(f"{expected} on the 50 test images of tiny (")
    assert lines[-1] == f"next          mnistfast evaluate {out}"
    assert f"**T{expected[1:]}** on the 50 test images of tiny" in (out / "REPORT.md").read_text()
    log = (out / "log.txt").read_text()
    assert "epoch 3/3" in log
    env = json.loads((out / "env.json").read_text())
    assert env["command"].startswith("mnistfast train --model lenet5")
    assert env["torch"] == torch.__version__


def test_saved_config_runs_again(trained, tmp_path, capsys):
    again = tmp_path / "again"
    assert train.main(["--config", str(trained / "config.yaml"), "--out", str(again)]) == 0
    assert (again / "config.yaml").read_text() == (trained / "config.yaml").read_text()
    assert (again / "test.json").read_text() == (trained / "test.json").read_text()


def test_flag_beats_file_beats_preset(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("model: fast\nlr: 0.5\nbatch_size: 7\n")
    # the file is named after the flag on purpose: it is no question of which comes last
    assert train.main(["--lr", "0.25", "--config", str(tmp_path / "a.yaml"), "--print-config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["model"], config["lr"], config["batch_size"]) == ("fast", 0.25, 7)
    assert config["betas"] == [0.7, 0.9]  # the preset of fast
    assert config["seed"] == 0


def test_quiet_and_json(options, tmp_path, capsys):
    assert train.main([*options, "--out", str(tmp_path / "a"), "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert train.main([*options, "--out", str(tmp_path / "b"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["run"] == str(tmp_path / "b")
    assert found["accuracy"] == json.loads((tmp_path / "b" / "test.json").read_text())["accuracy"]


def test_without_validation(options, tmp_path, capsys):
    assert train.main([*options, "--out", str(tmp_path / "run"), "--val", "0"]) == 0
    out = capsys.readouterr().out
    assert "200 training images, none held out (the last epoch counts as the best)" in out
    assert "; validation loss" not in out
    scores = json.loads((tmp_path / "run" / "test.json").read_text())
    assert scores["temperature"] == 1.0


REFUSED = [
    ("--epocs 3", 2, "unknown option --epocs (did you mean '--epochs'?)"),
    ("--model lenet", 2, "unknown model 'lenet' (did you mean 'lenet5'?)"),
    ("--batch-size 0", 2, "--batch-size is 0. It must be at least 1"),
    ("--batch-size 2.5", 2, "--batch-size is 2.5. It must be a whole number"),
    ("--lr -1", 2, "--lr is -1.0. It must be above 0 and finite"),
    ("--lr nan", 2, "--lr is nan. It must be a number"),
    ("--lr 1e999", 2, "--lr is inf. It must be above 0 and finite"),
    ("--lr fast", 2, "--lr is fast. It must be a number"),
    ("--betas 3", 2, "--betas is 3. It must be two numbers"),
    ("--betas [0.9,1]", 2, "--betas is (0.9, 1.0). It must be two numbers in [0, 1)"),
    ("--val 1.5", 2, "--val is 1.5"),
    ("--val 200", 2, "cannot hold out 200 of 200 training images"),
    ("--patience 2 --val 0", 2, "--patience is 2 and --val is 0"),
    ("--precision fp8", 2, "unknown precision 'fp8'. --precision takes fp32, bf16"),
    ("--augment wild", 2, "unknown augment 'wild' (did you mean 'mild'?). --augment takes none, mild, sources"),
    ("--augment objects", 2, "--augment objects mirrors images. The classes of tiny are characters"),
    ("--tune always", 2, "unknown tune 'always'. --tune takes auto, on, off"),
    ("--tune on --deterministic", 2, "--tune on with --deterministic. What a clock chooses may be another next time"),
    ("--ema 1", 2, "--ema is 1.0. It must be at least 0 and below 1"),
    ("--clip -1", 2, "--clip is -1.0. It must be 0 or more"),
    ("--max-steps 0", 2, "--max-steps is 0. It must be at least 1"),
    ("--limit 0", 2, "--limit is 0. It must be at least 1"),
    ("--resize 0", 2, "--resize is 0. It must be from 1 to 1024"),
    ("--config nowhere.yaml", 2, "no configuration file at nowhere.yaml"),
    ("--device gpu", 2, "unknown device 'gpu'"),
    ("--resume nowhere", 4, "no run at nowhere"),
    ("--resume=", 4, "no run at ."),
    ("--resume nowhere --overwrite", 2, "--resume continues in the run's own folder"),
    ("--data nowhere/at/all", 3, "no folder or file nowhere/at/all"),
    ("--model cifar-cnn", 3, "the images of tiny are 28x28x1, model cifar-cnn takes 32x32x3"),
    ("stray", 2, "unexpected argument 'stray'"),
]


@pytest.mark.parametrize(("words", "code", "message"), REFUSED, ids=[row[0] for row in REFUSED])
def test_refused_in_one_line_before_any_work(words, code, message, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = [] if "--data" in words else ["--data", str(tiny)]
    assert train.main([*data, *words.split()]) == code
    error = capsys.readouterr().err
    assert error.startswith(f"mnistfast: error: {message}")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_refused_as_json(capsys):
    assert train.main(["--json", "--lr", "0"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    found = json.loads(captured.err)
    assert (found["code"], found["kind"], found["message"]) == (
        2,
        "usage",
        "--lr is 0.0. It must be above 0 and finite",
    )
    assert set(found) == {"code", "kind", "message", "hint"}


def test_bad_config_file(tmp_path, capsys):
    file = tmp_path / "a.yaml"
    for text, message in (
        ("bach_size: 3", "unknown option 'bach_size' in the configuration file (did you mean 'batch_size'?)"),
        ("out: here", "unknown option 'out' in the configuration file"),
        ("lr: [", "a.yaml is no file of options. while parsing a flow node"),
        ("lr: fast", "--lr is fast. It must be a number"),
    ):
        file.write_text(text)
        assert train.main(["--config", str(file)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_occupied_folder_is_left_alone(trained, capsys):
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    assert train.main(["--data", "sample", "--out", str(trained)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before


def test_overwrite(options, trained, capsys):
    assert train.main([*options, "--out", str(trained), "--overwrite", "--epochs", "1"]) == 0
    assert len((trained / "metrics.jsonl").read_text().splitlines()) == 1


def test_resume_refuses_another_run(trained, capsys):
    assert train.main(["--resume", str(trained), "--lr", "0.5"]) == 2
    assert f"--lr is 0.5, but {trained} was started with 0.005" in capsys.readouterr().err
    assert train.main(["--resume", str(trained), "--data", "sample"]) == 4
    assert "was trained on other images" in capsys.readouterr().err
    assert (trained / "STATUS").read_text() == "finished\n"


def test_resume_warns_of_another_machine(trained, capsys):
    env = json.loads((trained / "env.json").read_text())
    (trained / "env.json").write_text(json.dumps(env | {"torch": "1.0"}))
    assert train.main(["--resume", str(trained)]) == 0
    assert f"bits may differ from an uninterrupted run: torch 1.0 is now {torch.__version__}" in capsys.readouterr().err


def test_resume_of_a_finished_run_changes_nothing(trained, capsys):
    def state():
        model, info = load_checkpoint(trained)
        weights = {name: weight.tolist() for name, weight in model.state_dict().items()}
        return weights, info, [(trained / name).read_bytes() for name in ("test.json", "metrics.jsonl", "config.yaml")]

    before = state()
    assert train.main(["--resume", str(trained)]) == 0
    assert state() == before


def test_help_needs_no_torch():
    code = (
        "import sys; from mnistfast import train; code = train.main(['--help']);"
        "heavy = {'torch', 'matplotlib', 'torchmetrics', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--batch-size" in found.stdout


DAMAGES = {
    "env.json": (None, "env.json is missing or damaged"),
    "metrics.jsonl": (b"[1]\n", "metrics.jsonl is missing or damaged"),
    "state.pt": (5000, "state.pt is damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_run_is_not_resumed(name, trained, capsys):
    damage, message = DAMAGES[name]
    content = (trained / name).read_bytes()
    (trained / name).unlink()
    if damage is not None:
        (trained / name).write_bytes(content[:damage] if isinstance(damage, int) else damage)
    assert train.main(["--resume", str(trained), "--quiet"]) == 4
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_run_of_another_command_names_it(finished, tiny, tmp_path, no_pictures, capsys):
    other = tmp_path / "other"
    assert finetune.main(f"--from {finished} --data {tiny} --epochs 1 --threads 1 --quiet --out {other}".split()) == 0
    assert train.main(["--resume", str(other)]) == 4
    assert f"is no run of mnistfast train. FIX: mnistfast finetune --resume {other}" in capsys.readouterr().err
    assert finetune.main(["--resume", str(finished)]) == 4
    assert f"FIX: mnistfast train --resume {finished}" in capsys.readouterr().err


def test_files_of_another_run_are_noticed(trained, options, tmp_path, capsys):
    other = tmp_path / "other"
    assert train.main([*options, "--model", "cnn2", "--epochs", "1", "--out", str(other), "--quiet"]) == 0
    for names, message in (
        (["state.pt"], "state.pt is another run's. "),
        (["state.pt", "env.json"], "config.yaml does not fit state.pt. Its "),
    ):
        for name in names:
            shutil.copy(other / name, trained)
        assert train.main(["--resume", str(trained), "--quiet"]) == 4
        assert message in capsys.readouterr().err
    shutil.copy(other / "best.safetensors", trained / "last.safetensors")
    assert evaluate.main([str(trained), "--quiet"]) == 4
    assert "best.safetensors is another run's" in capsys.readouterr().err
    assert evaluate.main([str(trained / "last.safetensors"), "--quiet"]) == 4
    assert "last.safetensors was written as best.safetensors" in capsys.readouterr().err


IMPOSSIBLE = {
    "no model": lambda state: state.pop("model"),
    "a model that is none": lambda state: state.update(model=5),
    "a weight that is no number": lambda state: state["model"]["head.0.bias"].fill_(float("nan")),
    "a weight kept that is no number": lambda state: state["best_weights"]["head.0.bias"].fill_(float("inf")),
    "weights of another model": lambda state: state["best_weights"].pop("head.0.bias"),
    "too many steps": lambda state: state.update(step=10**9),
    "a step that is none": lambda state: state.update(step="7"),
    "losses of other steps": lambda state: state.update(losses=torch.zeros(2)),
    "a record in a record": lambda state: state["best"].update(x={}),
    "an optimizer that is none": lambda state: state["optimizer"].update(param_groups=[{}]),
    "plans that are none": lambda state: state["chosen"].update(choices={"format": 1, "choices": {"x": 5}}),
    "plans of nothing": lambda state: state.update(chosen=None),
    "a generator that is none": lambda state: state.update(rng=torch.zeros(3)),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_states_that_cannot_be(name, trained, capsys):
    state = load_state(trained / "state.pt")
    IMPOSSIBLE[name](state)
    save_state(trained / "state.pt", state)
    assert train.main(["--resume", str(trained), "--quiet"]) == 4
    error = capsys.readouterr().err
    assert (error.startswith(f"mnistfast: error: {trained}/state.pt is damaged"), error.count("\n")) == (True, 1), error
    assert (trained / "STATUS").read_text() == "finished\n"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("env.json", lambda text: "[" * 100_000),
        ("env.json", lambda text: "[1]"),
        ("env.json", lambda text: text.replace("command", "comnand")),
        ("env.json", lambda text: text.replace("hashes", "ashes")),
        ("metrics.jsonl", lambda text: text[text.index("\n") + 1 :]),
        ("metrics.jsonl", lambda text: text.replace('"step": 10', '"step": "x"')),
        ("metrics.jsonl", lambda text: text + "[" * 100_000 + "\n"),
    ],
)
def test_other_files_that_resuming_needs(name, change, trained, no_pictures, capsys):
    (trained / name).write_text(change((trained / name).read_text()))
    code = train.main(["--resume", str(trained), "--quiet"])
    error = capsys.readouterr().err
    if code:
        assert (code, f"{name} is" in error and "damaged" in error, error.count("\n")) == (4, True, 1), error
    else:  # what a crash may leave after the last whole line
        assert name == "metrics.jsonl"
        assert error == ""


@pytest.mark.parametrize("name", ["plain", "caf\u00e9", "\udcff"])
def test_out_of_any_name_and_a_limit_near_all(name, tiny, tmp_path):
    words = f"--model lenet5 --data {tiny} --epochs 1 --limit 195 --val 20 --threads 1 --quiet"
    assert train.main([*words.split(), "--out", str(tmp_path / name)]) == 0
    assert "| training images | 175 of" in (tmp_path / name / "REPORT.md").read_text()
