"""One workload's row, and that a wrong kernel has none."""

import json

import pytest
import torch

from convpool import known, registry
from convpool.testing import candidates, normalised
from convpool.testing.cases import BATCH_NORM, by_name
from mnistfast import bench, devices
from mnistfast.measure import suite, workloads
from mnistfast.measure.forms import FORMS, FUSED, FUSED_LAST, REPLAYED
from mnistfast.measure.layers import Layer, NormLayer
from mnistfast.measure.load import Load
from mnistfast.measure.suite import Effort
from mnistfast.measure.workloads import Step
from mnistfast.training import launching

CPU = torch.device("cpu")
BRIEF = Effort(seconds=0.001, compile=False)


@pytest.fixture
def tiny(monkeypatch):
    """Makes one small layer, in training and in inference, all there is to measure."""
    case = by_name("lenet5-1")
    monkeypatch.setattr(suite, "workloads", lambda device, everything: [Layer(case, b, device) for b in (True, False)])
    monkeypatch.setattr(suite.roofline, "peaks", lambda *_: suite.roofline.Peaks(1e11, 1e10))


@pytest.fixture
def wrong_kernel(monkeypatch):
    """Plants a bug: the kernel forgets one channel of its last image."""
    backend = registry.backend("cpu")
    if backend.unavailable():
        pytest.skip(f"the kernel to spoil is not there: {backend.unavailable()}")
    right = backend.forward

    def forward(*arguments):
        y, code = right(*arguments)
        y[-1, -1] = 0
        return y, code

    known.forget()
    monkeypatch.setattr(backend, "bind", None)  # or calls that repeat each other would be computed past it
    monkeypatch.setattr(backend, "forward", forward)


@pytest.fixture
def step(monkeypatch):
    """A training step in two forms as on a GPU, its recordings stood in for: a replay is noted, and calls the step.

    Returns the workload and the replays of each recording.
    """
    replays = []

    class Called:
        def __init__(self, step):
            self.step, self.number = step, len(replays)
            replays.append(0)

        def replay(self):
            replays[self.number] += 1
            self.step()

    monkeypatch.setattr(devices, "can_replay", lambda device: True)
    monkeypatch.setattr(launching.CudaGraphs, "record", lambda _, step: Called(step))
    monkeypatch.setattr(workloads, "FORMS", {form: FORMS[form] for form in (FUSED, "eager")})
    monkeypatch.setattr(Step, "least_rounds", 2)
    monkeypatch.setattr(Step, "graphs", ("off", "on"))
    monkeypatch.setattr(Step, "modes", ("default", "reduce-overhead"))
    return Step("lenet5", CPU, 8), replays


@pytest.mark.usefixtures("tiny", "times")
def test_a_row_is_complete():
    row = suite.measure(suite.workloads(CPU, False)[0], BRIEF)
    assert json.loads(json.dumps(row))["group"] == "layer, training"
    assert set(row["seconds"]) == {FUSED, FUSED_LAST, *candidates.PLAIN}
    assert set(row["times_faster"]) == {FUSED, FUSED_LAST}
    ours, eager = row["seconds"][FUSED]["median"], row["seconds"]["eager"]["median"]
    assert row["times_faster"][FUSED]["eager"] == pytest.approx(eager / ours)
    assert row["best_plain"] in candidates.PLAIN
    assert row["share_of_roofline"][FUSED] == pytest.approx(row["bound_seconds"] / ours)
    outputs = 4 * 6 * 14 * 14
    if not registry.backend("cpu").unavailable():
        assert row["kept_bytes"][FUSED] == outputs  # a byte each
        assert row["plan"].startswith("cpu")
    assert row["kept_bytes"]["eager"] == outputs * 8 + outputs * 4 * 4  # indices, the ReLU's result
    assert row["threads"] == torch.get_num_threads()
    assert row["unsteady"] == {}


@pytest.mark.usefixtures("tiny")
def test_a_time_that_is_not_steady_has_no_ratio(times):
    times[FUSED] = [1e-3, 51.08e-3]
    row = suite.measure(suite.workloads(CPU, False)[0], BRIEF)
    assert json.loads(json.dumps(row, allow_nan=False))["unsteady"] == {FUSED: pytest.approx(25.04)}
    assert row["times_faster"][FUSED] == dict.fromkeys(candidates.PLAIN)
    assert row["times_faster"][FUSED_LAST] == dict.fromkeys(candidates.PLAIN, 1)
    assert row["share_of_roofline"][FUSED] is None
    assert row["share_of_roofline"]["eager"] == pytest.approx(row["bound_seconds"] / 1e-3)


@pytest.mark.parametrize(
    ("effort", "layer", "growing"),
    [
        (Effort(), True, False),
        (Effort(everything=True), True, True),
        (Effort(compile=False), False, False),
        (Effort(compile=False, everything=True), False, False),
    ],
)
def test_what_is_raced_is_known_before(effort, layer, growing):
    case, forms = by_name("lenet5-1"), [FUSED, FUSED_LAST, *candidates.PLAIN]
    workloads = (Layer(case, True, CPU), Layer(case, True, CPU, "growth with batch"))
    for workload, compiled in zip(workloads, (layer, growing), strict=True):
        assert suite.contenders(workload, effort) == [*forms, *["torch.compile"] * compiled]


def test_the_load_is_told_where_it_is_known(monkeypatch):
    monkeypatch.setattr(suite.load, "now", lambda: Load(1.94, 2))
    told = suite.setting(CPU, Load(0.12, 2))
    assert told["setting"].endswith(", load 0.1 on 2 CPUs before, 1.9 after")
    assert told["load"] == {"cpus": 2, "before": 0.12, "after": 1.94}
    monkeypatch.setattr(suite.load, "now", lambda: None)
    nothing = suite.setting(CPU, None)
    assert nothing.keys() == told.keys() - {"load"}
    assert "load" not in nothing["setting"]


def test_a_row_of_a_layer_with_a_norm():
    case = BATCH_NORM[0]
    row = suite.measure(NormLayer(case, True, CPU), BRIEF)
    assert json.loads(json.dumps(row))["group"] == "layer with batch norm, training"
    assert set(row["seconds"]) == {FUSED, FUSED_LAST, *normalised.PLAIN}
    assert row["best_plain"] in normalised.PLAIN
    assert "share_of_roofline" not in row
    outputs, positions = 4 * 32 * 13 * 13, 4 * 32 * 26 * 26
    statistics = 2 * 32 * 4  # mean and deviation, which the norm keeps
    assert row["kept_bytes"]["eager"] == positions * 4 * 2 + outputs * 8 + statistics  # conv, ReLU, indices
    if row["plan"].startswith("cpu"):
        assert row["kept_bytes"][FUSED] < outputs + 20_000


def test_what_cannot_be_compiled_is_named(monkeypatch, tiny):
    def broken(layer, mode):
        raise RuntimeError("no C++ compiler\nand much more")

    monkeypatch.setattr(candidates, "compiled", broken)
    row = suite.measure(suite.workloads(CPU, False)[1], Effort(0.001))
    (label, why), *others = row["missing"].items()
    assert not others
    assert label.startswith("torch.compile of ")
    assert why == "RuntimeError: no C++ compiler"
    assert label not in row["seconds"]


def test_what_is_compiled_takes_part(monkeypatch, tiny):
    monkeypatch.setattr(candidates, "compiled", lambda layer, mode: layer)
    row = suite.measure(suite.workloads(CPU, False)[1], Effort(0.001, everything=True))
    compiled = [name for name in row["seconds"] if name.startswith("torch.compile of ")]
    assert len(compiled) == 4  # each of torch's forms, and the best with max-autotune
    assert compiled[-1].endswith(", max-autotune")
    assert set(row["compiling_seconds"]) == set(compiled)
    assert set(compiled) < set(row["times_faster"][FUSED])


def test_steps_are_called_and_replayed(step):
    workload, replays = step
    row = suite.measure(workload, BRIEF)
    ours, plain = {FUSED, FUSED + REPLAYED}, {"eager", "eager" + REPLAYED}
    assert set(row["seconds"]) == ours | plain
    assert len(replays) == 2
    assert all(replays)
    assert {mine: set(others) for mine, others in row["times_faster"].items()} == dict.fromkeys(ours, plain)
    assert row["best_plain"] == min(plain, key=lambda form: row["seconds"][form]["median"])


def test_what_cannot_be_recorded_is_named(monkeypatch, step):
    def refuse(self, step):
        raise RuntimeError("not while recording\nand much more")

    monkeypatch.setattr(launching.CudaGraphs, "record", refuse)
    row = suite.measure(step[0], BRIEF)
    why = "it cannot be recorded: not while recording"
    assert row["missing"] == {FUSED + REPLAYED: why, "eager" + REPLAYED: why}
    assert set(row["seconds"]) == {FUSED, "eager"}


@pytest.mark.slow
def test_a_compiled_form_is_not_replayed(monkeypatch, step):
    """Each mode has the fastest of torch's forms, however that one is launched."""
    workload, replays = step
    modes = []

    def leave_as_it_is(model, *, mode, **_):
        modes.append(mode)
        return model

    monkeypatch.setattr(torch, "compile", leave_as_it_is)
    monkeypatch.setattr(suite.Race, "foretold", lambda self, name: name != "eager" + REPLAYED)
    row = suite.measure(workload, Effort(0.001))
    assert modes == ["default", "reduce-overhead"]
    assert len(replays) == 2
    labels = ["torch.compile of eager", "torch.compile of eager, reduce-overhead"]
    assert [name for name in row["seconds"] if name.startswith("torch.compile")] == labels
    assert set(row["compiling_seconds"]) == set(labels)


@pytest.mark.usefixtures("tiny", "wrong_kernel")
def test_a_wrong_kernel_has_no_speed(tmp_path, capsys):
    assert bench.main(["--seconds", "0.001", "--no-compile", "--out", str(tmp_path)]) == 8
    result = json.loads((tmp_path / bench.RESULT).read_text())
    assert result["rows"] == []
    assert [each["workload"] for each in result["wrong"]] == ["layer, training: lenet5-1", "layer, inference: lenet5-1"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["REPORT.md", "bench.json"]
    report = (tmp_path / bench.REPORT).read_text()
    assert "Wrong results, so no speeds" in report
    shown = capsys.readouterr()
    for text in (report, shown.out, shown.err):
        assert "times faster than eager" not in text
        assert " ms" not in text


@pytest.mark.usefixtures("wrong_kernel")
@pytest.mark.parametrize("make", [workloads.Step, workloads.Inference, workloads.Epoch])
def test_a_model_on_a_wrong_kernel_has_no_calls(make):
    workload = make("lenet5", CPU)
    with pytest.raises(candidates.ParityError):
        workload.calls(workload.forms()[FUSED])


@pytest.mark.usefixtures("wrong_kernel")
def test_a_layer_with_a_norm_on_a_wrong_kernel_has_no_calls():
    workload = NormLayer(BATCH_NORM[0].at_full_size(), True, CPU)
    with pytest.raises(candidates.ParityError):
        workload.calls(workload.forms()[FUSED])
