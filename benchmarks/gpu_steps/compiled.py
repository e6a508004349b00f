"""Whole training steps by torch.compile, which takes long to compile: last."""

from __future__ import annotations

import time
from functools import partial
from itertools import product
from typing import Any

import torch

from benchmarks.gpu_steps.subjects import FORMS, Bench, Form, Rows, model, precise
from benchmarks.gpu_steps.whole_step import WholeStep

_ORDER = ("pool_first channels_last", "fused channels_last", "eager nchw")


def rows(bench: Bench) -> Rows:
    forms = {form.name: form for form in FORMS}
    for mode, name in bench.some([*product(("default", "reduce-overhead"), _ORDER)]):
        yield {"model": "cnn2", "form": name, "mode": mode, "batch": 128}, partial(_measure, bench, forms[name], mode)


def _measure(bench: Bench, form: Form, mode: str) -> dict[str, Any]:
    precise("tf32")
    began = time.perf_counter()
    how: dict[str, Any] = {"backend": "eager"} if bench.rehearses else {"mode": mode}
    network: Any = torch.compile(model("cnn2", form, bench.device), dynamic=False, **how)
    batch = 8 if bench.rehearses else 128
    step = WholeStep(network, bench.images, batch, bench.device, bf16=False, backend=bench.ours)
    step.body()
    if not bench.rehearses:
        torch.cuda.synchronize()
    compiling = time.perf_counter() - began
    return {"compile_s": round(compiling, 1), **bench.race({"step": step.body}, replay=False)["step"]}
