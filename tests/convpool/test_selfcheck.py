"""What the self-check reports, and with which exit status."""

import json

import torch

from convpool import cases, planning, selfcheck, timing


def test_reports_every_backend(tmp_path, capsys) -> None:
    file = tmp_path / "report.json"
    assert selfcheck.main(["--cases", "batch-1", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    verdicts = {result["backend"]: result["verdict"] for result in report["results"]}
    present = [name for name in planning.backend_names() if not planning.backend(name).unavailable()]
    assert verdicts == dict.fromkeys(present, "ok")
    if not torch.cuda.is_available():
        assert report["seconds"] == "not measured"
        assert "no GPU" in capsys.readouterr().out


def test_a_wrong_kernel_fails_and_is_not_timed(monkeypatch, capsys) -> None:
    """A backend that forgets the last image of a case, on a machine that would time what is right."""
    reference, timed = planning.backend("reference"), []
    right = type(reference).forward

    def forgetful(self, x, *rest):
        y, code = right(self, x, *rest)
        if len(x) == 17:
            y[-1] = 0
        return y, code

    monkeypatch.setattr(type(reference), "forward", forgetful)
    monkeypatch.setattr(selfcheck.planning, "backend_names", lambda: ["reference"])
    assert selfcheck.main(["--cases", "batch-1", "batch-17"]) == 1
    verdicts = dict(line.split()[0::3][:2] for line in capsys.readouterr().out.splitlines() if "reference" in line)
    assert verdicts == {"batch-1": "ok", "batch-17": "WRONG"}
    monkeypatch.setattr(
        selfcheck,
        "check_case",
        lambda case, backend, layout, _: selfcheck.Result(
            case.name, layout, backend, "WRONG" if case.name == "cnn-1" else "ok", ""
        ),
    )
    monkeypatch.setattr(selfcheck, "speeds", lambda cases, _: timed.extend(case.name for case in cases) or {})
    monkeypatch.setattr(selfcheck.planning, "backend_names", lambda: ["triton"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(selfcheck, "setting", lambda _: {})
    monkeypatch.setattr(selfcheck, "pin_precision", lambda _: None)
    assert selfcheck.main(["--cases", "cnn-1", "cnn-2"]) == 1
    assert timed == ["cnn-2"]


def test_speeds_are_those_of_torch_and_of_the_kernels(monkeypatch) -> None:
    asked = []

    def compare_layer(inputs, backends):
        asked.append((tuple(inputs.x.shape), backends))
        return {"eager": timing.Timing(2e-6, 1e-6, 3e-6, 7)}

    monkeypatch.setattr(selfcheck, "compare_layer", compare_layer)
    found = selfcheck.speeds([cases.by_name("fast-1"), cases.by_name("batch-1")], torch.device("cpu"))
    assert found == {"fast-1": {"eager": 2e-6}}
    assert asked == [((256, 1, 28, 28), ("triton",))]
