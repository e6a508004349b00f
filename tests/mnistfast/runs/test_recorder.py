"""What is written down of a training, in which order, and what is refused when it is taken up again."""

import pytest
import torch

from mnistfast.errors import CheckpointError
from mnistfast.models.zoo import build
from mnistfast.runs.checkpoint import CheckpointInfo, load_checkpoint
from mnistfast.runs.integrity import read_json
from mnistfast.runs.recorder import Recorder, begin_recording, check_metrics, environment_of, known_of, take_up
from mnistfast.runs.run_folder import RunFolder

OPTIONS = {"lr": 0.1}
NOTED = {"torch": "2", "data": {"hashes": {"train": "1"}}, "command": "mnistfast train"}


@pytest.fixture
def model():
    return build("lenet5")


@pytest.fixture
def info(model):
    return CheckpointInfo("lenet5", model.arguments, tuple("0123456789"), (0.1,), (0.3,), model.input_size)


@pytest.fixture
def folder(tmp_path):
    with RunFolder.create(str(tmp_path / "run"), "lenet5", 0) as made:
        made.start()
        yield made


def state_of(model, step, best=None):
    return {"step": step, "best": best, "last_record": best, "best_weights": model.state_dict() if best else {}}


@pytest.fixture
def begun(folder, info, model):
    return begin_recording(folder, info, NOTED, OPTIONS, "lr: 0.1\n", state_of(model, 0), model.state_dict())


def test_a_folder_is_a_run_when_all_is_there(folder, info, model, monkeypatch):
    written, write = [], folder.write
    monkeypatch.setattr(folder, "write", lambda path, content: written.append(path.name) or write(path, content))
    recorder = begin_recording(folder, info, NOTED, OPTIONS, "lr: 0.1\n", state_of(model, 0), model.state_dict())
    assert written == ["env.json", "state.pt", "last.safetensors", "config.yaml"]
    assert recorder.last_good == f"{folder / 'last.safetensors'} (step 0)"
    assert environment_of(folder)["run"] == recorder.info.run == load_checkpoint(folder / "last.safetensors")[1].run
    assert read_json(folder / "env.json") | {"run": ""} == NOTED | {"run": ""}


def test_the_best_weights_are_written_once(begun, folder, model):
    best = {"epoch": 1, "step": 5}
    begun.save(state_of(model, 5, best), model.state_dict(), best)
    (folder / "best.safetensors").unlink()
    begun.save(state_of(model, 7, best), model.state_dict())
    assert not (folder / "best.safetensors").exists()
    assert load_checkpoint(folder / "last.safetensors")[1].metrics == {"step": 7}
    again, state = take_up(folder, begun.info, begun.info.run, OPTIONS)  # which cannot know what is on the disk
    again.save(state, model.state_dict())
    assert load_checkpoint(folder / "best.safetensors")[1].metrics == best
    assert [record["step"] for record in folder.metrics()] == [5]


def test_what_is_known_of_weights():
    record = {"epoch": 1, "step": 5}
    assert known_of({"step": 5, "last_record": record}) == record
    assert known_of({"step": 6, "last_record": record}) == {"step": 6}
    assert known_of({"step": 0, "last_record": None}) == {"step": 0}


def test_another_runs_state_and_other_options_are_refused(begun, folder, info):
    with pytest.raises(CheckpointError, match="is another run's"):
        take_up(folder, info, "0123", OPTIONS)
    with pytest.raises(CheckpointError, match=r"Its lr is 0\.2, the run was trained with 0.1"):
        take_up(folder, info, begun.info.run, {"lr": 0.2})
    recorder, state = take_up(folder, info, begun.info.run, {"lr": 0.1, "newer": 1})
    assert (recorder.info.run, recorder.last_good, state["step"]) == (begun.info.run, "none yet", 0)


def test_records_that_are_missing(begun, folder, model):
    for step in (5, 10):
        begun.save(state_of(model, step), model.state_dict(), {"step": step})
    check_metrics(folder, 10, 2)
    check_metrics(folder, 7, 1)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl is missing or damaged"):
        check_metrics(folder, 7, 2)


def test_a_checkpoint_says_how_it_is_calibrated(folder, info, model):
    recorder = Recorder(folder, info, OPTIONS)
    written = recorder.export("last.safetensors", model.state_dict(), {"step": 3}, 1.5)
    assert written == load_checkpoint(folder / "last.safetensors")[1]
    assert (written.temperature, written.metrics) == (1.5, {"step": 3})
    assert torch.equal(load_checkpoint(folder / "last.safetensors")[0].last.weight, model.last.weight)
