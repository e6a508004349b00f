"""Processes that train together do what one would: the same losses step by step, one folder, one decision to stop."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mnistfast import train
from mnistfast.training.ranks import Ranks

ROOTS = [str(path) for path in map(Path, sys.path) if (path / "mnistfast").is_dir() or (path / "convpool").is_dir()]

WORKER = """
import os
import sys
from pathlib import Path

import torch
from mnistfast.options.learning import TrainConfig
from mnistfast.data.datasets import Split
from mnistfast.data.loader import DeviceData
from mnistfast.data.sources import load
from mnistfast.data.statistics import channel_stats
from mnistfast.training.ranks import Ranks
from mnistfast.training.trainer import Trainer
from mnistfast.models.zoo import build

torch.set_num_threads(1)
cpu, ranks = torch.device("cpu"), Ranks.of_environment()
config = TrainConfig(
    model="lenet5", batch_size=48, dropout=0.3, augment="mild", clip=1.0, ema=0.9, label_smoothing=0.1, lr=5e-3,
    max_steps=100, epochs=10,
)
train = load("sample").train
images = Split(train.images[:481], train.labels[:481])  # ten steps an epoch and one of a single image


def learned():
    torch.manual_seed(3)
    model = build("lenet5", dropout=0.3)
    data = DeviceData(images, cpu, *channel_stats(train.images))
    trainer = Trainer(model, data, data, config, ranks)
    losses = []
    for record in trainer.run():
        slot = (trainer.step - 1) % trainer.plan.steps_per_epoch
        losses.append(trainer.tally.state(slot + 1)["losses"][-1].item())
    return {"losses": losses, "best": trainer.best, "weights": trainer.best_weights}


with ranks.joined(cpu):
    result = learned()  # the trainer, which has the group, ends first
if sys.platform == "linux":
    threads = [Path(f"/proc/self/task/{thread}/comm").read_text() for thread in os.listdir("/proc/self/task")]
    assert not [name for name in threads if "gloo" in name], threads
if ranks.first:
    torch.save(result, sys.argv[1])
"""

CHOOSER = """
import json
import sys

import convpool
import torch
from mnistfast.options.learning import TrainConfig
from mnistfast.data.loader import DeviceData
from mnistfast.data.sources import load
from mnistfast.training.ranks import Ranks
from mnistfast.training.trainer import Trainer
from mnistfast.models.zoo import build
from tests.mnistfast.training.measuring import Measuring

cpu, ranks = torch.device("cpu"), Ranks.of_environment()
convpool.tune = Measuring("torch/plain" if ranks.first else "cpu/split")  # as if by clocks that disagree
with ranks.joined(cpu):
    data = DeviceData(load("sample").train, cpu, [0.1], [0.3])
    trainer = Trainer(build("lenet5"), data, None, TrainConfig(model="lenet5", batch_size=48, max_steps=2), ranks)
    trainer.choose(5.0)
    with trainer.chosen.in_force():
        list(trainer.run())
    found = {"chosen": trainer.chosen.state(), "sizes": [len(images) for images in convpool.tune.examples]}
    del trainer
with open(f"{sys.argv[1]}.{ranks.rank}", "w") as file:
    json.dump(found, file)
"""


def environment(**more):
    return os.environ | {"PYTHONPATH": os.pathsep.join(ROOTS), "OMP_NUM_THREADS": "1"} | more


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


def work(script, path, world):
    where = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    command = [sys.executable, "-c", script, str(path)]
    started = [subprocess.Popen(command, env=environment(RANK=str(rank), **where)) for rank in range(world)]
    assert [process.wait(timeout=300) for process in started] == [0] * world


def learned(path, world):
    work(WORKER, path, world)
    return torch.load(path, weights_only=True)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path):
    """With dropout, augmentation, clipping and an average; every eleventh batch has one image for two processes."""
    alone, together = (learned(tmp_path / f"{world}.pt", world) for world in (1, 2))
    assert len(alone["losses"]) == len(together["losses"]) == 100
    torch.testing.assert_close(torch.tensor(together["losses"]), torch.tensor(alone["losses"]), rtol=0, atol=1e-4)
    assert alone["losses"][-12] < 0.5 * alone["losses"][0]  # it is learning that is compared
    assert together["best"]["epoch"] == alone["best"]["epoch"]
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(together["weights"][name], weight, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_all_follow_the_plans_that_the_first_process_measured(tmp_path):
    work(CHOOSER, tmp_path / "found", 2)
    first, second = (json.loads((tmp_path / f"found.{rank}").read_text()) for rank in (0, 1))
    assert first["chosen"] == second["chosen"]
    assert {each["plan"] for each in first["chosen"]["choices"]["choices"].values()} == {"torch/plain"}
    assert (first["sizes"], second["sizes"]) == ([24], [])  # on its slice of the batch


def torchrun(words, **options):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    return subprocess.Popen([*command, "-m", "mnistfast.train", *words], env=environment(), text=True, **options)


def records(folder):
    timed = ("seconds", "images_per_s")
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in timed} for record in found]


@pytest.mark.slow
def test_torchrun(options, tmp_path, capsys):
    options = [*options, "--augment", "mild", "--ema", "0.9"]
    together = torchrun([*options, "--out", str(tmp_path / "two")], stdout=subprocess.PIPE)
    said = together.communicate(timeout=300)[0]
    assert together.returncode == 0
    assert said.count("test accuracy") == said.count("epoch 2/3") == 1
    assert train.main([*options, "--out", str(tmp_path / "one"), "--quiet"]) == 0
    one, two = records(tmp_path / "one"), records(tmp_path / "two")
    assert len(one) == len(two) == 3
    for mine, theirs in zip(one, two, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    assert json.loads((tmp_path / "two" / "env.json").read_text())["processes"] == 2
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


@pytest.mark.slow
def test_signal_stops_all_and_the_run_is_resumed_by_one(options, tmp_path):
    out = tmp_path / "run"
    words = [*options[:4], "--epochs", "100", "--val", "20", "--out", str(out)]
    running = torchrun(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not (out / "metrics.jsonl").is_file():
        time.sleep(0.2)
        assert running.poll() is None
    running.send_signal(signal.SIGTERM)
    said = running.communicate(timeout=120)[1]
    assert "mnistfast: stopped at step" in said
    assert said.count("mnistfast: stopped") == 1
    assert (out / "STATUS").read_text() == "interrupted\n"
    assert train.main(["--resume", str(out), "--quiet"]) == 0
    assert len(records(out)) == 100


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 7, 128])
def test_shares_fit_together(world, count):
    shares = [Ranks(rank, world).share(count) for rank in range(world)]
    assert [row for share in shares for row in range(count)[share]] == list(range(count))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_alone_nothing_is_exchanged():
    ranks, losses = Ranks(), torch.arange(3.0)
    assert ranks.first
    assert ranks.total(losses) is losses
    assert (ranks.any(True), ranks.any(False)) == (True, False)
    assert ranks.of_first(lambda: 3) == ranks.after_first(lambda: 3) == 3
    model = torch.nn.Linear(2, 2)
    assert ranks.team(model) is model
