"""The training state: what comes back, and what is refused with which words."""

import io
import tracemalloc
import zipfile

import pytest
import torch

from mnistfast.errors import CheckpointError
from mnistfast.runs.integrity import FORMAT_VERSION
from mnistfast.runs.state import check_plain, load_state, save_state


def test_state_round_trip(tmp_path):
    path = tmp_path / "state.pt"
    state = {"step": 3, "best": None, "rng": torch.get_rng_state(), "model": {"w": torch.rand(2)}, "seconds": 1.5}
    save_state(path, state)
    again = load_state(path)
    assert torch.equal(again["model"]["w"], state["model"]["w"])
    assert (again["step"], again["best"], again["seconds"]) == (3, None, 1.5)
    assert torch.load(path, weights_only=True)["step"] == 3


def test_state_missing_damaged_newer(tmp_path):
    path = tmp_path / "state.pt"
    with pytest.raises(CheckpointError, match="nothing to resume"):
        load_state(path)
    save_state(path, {"step": 1, "x": torch.rand(100)})
    whole = path.read_bytes()
    for damaged in (b"", whole[:-50], whole[:100], b"garbage", whole + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is damaged"):
            load_state(path)
    torch.save({"format_version": FORMAT_VERSION + 1}, path)
    with pytest.raises(CheckpointError, match="has format 3"):
        load_state(path)


class Evil:
    def __reduce__(self):
        return (print, ("run by the pickle",))


def test_state_runs_no_code(tmp_path, capsys):
    torch.save({"format_version": 1, "x": Evil()}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=r"is damaged. It is not what a run saves. FIX: train anew"):
        load_state(tmp_path / "state.pt")
    assert capsys.readouterr().out == ""


def test_one_from_before_digests_is_read_and_said_once(tmp_path, caplog):
    torch.save({"format_version": 1, "step": 7}, tmp_path / "state.pt")
    for _ in range(2):
        assert load_state(tmp_path / "state.pt")["step"] == 7
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/state.pt was written before files had a digest: damage in it would not be noticed"
    ]


@pytest.mark.parametrize("version", [2, 0, -1, True, 1.5, "2", None, torch.tensor(1), float("nan"), [1]])
def test_odd_versions_and_a_new_one_without_its_digest(tmp_path, version):
    torch.save({"format_version": version}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="has lost its digest" if version == 2 else "Its format's version is"):
        load_state(tmp_path / "state.pt")


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(1).expand(10**6, 10**6),
        torch.zeros(3).as_strided((2, 3), (0, 1)),
        torch.zeros(2, device="meta"),
        torch.zeros(2, 2).to_sparse(),
        {1: [b"bytes"]},
        [torch.float32],
    ],
    ids=["huge", "rows that are one", "meta", "sparse", "bytes", "dtype"],
)
def test_what_no_state_holds(tmp_path, value):
    torch.save({"format_version": 1, "x": [0, (value,)]}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=r"is damaged. It holds a"):
        load_state(tmp_path / "state.pt")


def test_views_and_lists_within_themselves_pass(tmp_path):
    again = [torch.zeros(4, 3, 2, 2).to(memory_format=torch.channels_last), torch.zeros(5)[2:4], torch.zeros(0)]
    again.append(again)
    check_plain(again, tmp_path)


def test_a_small_file_that_comes_to_a_large_one(tmp_path):
    buffer = io.BytesIO()
    torch.save({"format_version": 1, "x": torch.zeros(1_000_000)}, buffer)
    with zipfile.ZipFile(buffer) as stored, zipfile.ZipFile(tmp_path / "state.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with pytest.raises(CheckpointError, match=r"is damaged. It is not what a run saves"):
        load_state(tmp_path / "state.pt")


def test_saving_takes_the_memory_of_one_copy(tmp_path):
    sizes = []
    tracemalloc.start()
    save_state(tmp_path / "state.pt", {"x": torch.zeros(1_000_000)}, lambda path, content: sizes.append(len(content)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.3 * sizes[0]  # a BytesIO grows by an eighth at a time
