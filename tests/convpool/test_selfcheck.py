"""What the self-check reports, and with which exit status."""

import json

import torch

from convpool import parity, planning, selfcheck


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


def test_a_wrong_result_fails(monkeypatch, capsys) -> None:
    monkeypatch.setattr(parity, "check", lambda *_, **__: parity.Parity({"y": 2.0}))
    assert selfcheck.main(["--cases", "batch-1"]) == 1
    assert "WRONG" in capsys.readouterr().out
