"""Whole training steps by torch.compile, which takes long to compile: last."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import torch

from benchmarks.gpu_steps.subjects import FORMS, Bench, Form, Rows, model, precise
from benchmarks.gpu_steps.trainers import Steps, now, on_device, preset, ready

_ORDER = ("pool_first channels_last", "fused channels_last", "eager nchw")


def rows(bench: Bench) -> Rows:
    forms = {form.name: form for form in FORMS}
    for mode, name in bench.some([*product(("default", "reduce-overhead"), _ORDER)]):
        yield {"model": "cnn2", "form": name, "mode": mode, "batch": 128}, partial(_measure, bench, forms[name], mode)


def _measure(bench: Bench, form: Form, mode: str) -> dict[str, Any]:
    precise("tf32")
    how: dict[str, Any] = {"backend": "eager"} if bench.rehearses else {"mode": mode}
    network: Any = torch.compile(model("cnn2", form, bench.device), dynamic=False, **how)
    data = on_device(bench, bench.images.train)
    step = Steps(bench, ready(bench, network, data, preset(bench, "cnn2", batch_size=128, graph="off")))
    began = now(bench)
    step()
    compiling = now(bench) - began
    return {"compile_s": round(compiling, 1), **bench.race({"step": step}, replay=False)["step"]}
