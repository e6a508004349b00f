"""Which kind of device a name asks for."""

import torch

from mnistfast.options.device import DEVICES, device_type


def test_kinds_of_devices(monkeypatch):
    assert [device_type(name) for name in DEVICES.split(", ")[1:]] == ["cpu", "cuda", "cuda", "mps"]
    for there, kind in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert device_type("auto") == kind
