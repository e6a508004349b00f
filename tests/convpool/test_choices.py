"""Measured choices: what they are, where they lie, and what becomes of tables that cannot be trusted or written."""

import json
import multiprocessing as mp
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import filelock
import pytest
import torch

from convpool import cache, choices, conv_relu_max_pool2d, environment, explain, planning, use_backend
from convpool.choices import Choice, Choices
from convpool.protocol import Use
from tests.convpool.tables import CPU, OTHER, SECONDS, key_of, table, tensors


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the test's own, in ordinary mode: choices that hang on a clock do not count in deterministic mode."""
    monkeypatch.setenv("CONVPOOL_CACHE", str(tmp_path / "cache"))
    torch.use_deterministic_algorithms(False)
    choices.forget()
    yield tmp_path / "cache"
    choices.forget()


def plan(batch: int = 2) -> str:
    return explain(*tensors(batch)).call


def file() -> Path:
    found = choices.file_of(CPU)
    assert found is not None
    return found


def test_a_choice_that_is_kept_holds_and_is_found_again() -> None:
    assert plan() == "cpu/fused"
    assert choices.keep(CPU, table()) == file()
    assert plan() == OTHER
    choices.forget()
    found = explain(*tensors())
    assert found.measured
    threads = torch.get_num_threads()
    where = f"a processor, {threads} thread{'s' * (threads != 1)}, called"
    assert found.reason == f"measured 2026-11-27 on {where}: 0.41 ms, cpu/fused 0.63 ms"
    assert choices.in_force(CPU) == table()
    choices.clear(CPU)
    assert not file().exists()
    assert plan() == "cpu/fused"
    assert choices.clear(CPU) is None


def test_a_new_process_follows_it() -> None:
    """Whether the cache is off is seen in each process alike: `test_off_is_off`."""
    choices.keep(CPU, table())
    script = f"""
import torch, convpool
torch.set_num_threads({torch.get_num_threads()})
print(convpool.explain(torch.ones(2, 1, 12, 12), torch.ones(4, 1, 3, 3)).call)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{OTHER}\n"


def test_the_table_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(cache, "read", lambda path: (read.append(path), json.loads(path.read_text()))[1])
    choices.keep(CPU, table())
    choices.forget()
    read.clear()
    for batch in (2, 3, 4):
        plan(batch)
    assert read == [file()]


def test_off_is_off(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    choices.keep(CPU, table())
    monkeypatch.setenv("CONVPOOL_CACHE", "off")
    choices.forget()
    assert plan() == "cpu/fused"
    assert choices.keep(CPU, table()) is None
    assert plan() == "cpu/fused"
    assert len(list(folder.glob("*.json"))) == 1


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache.folder() == Path(os.environ["CONVPOOL_CACHE"])
    monkeypatch.delenv("CONVPOOL_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "convpool"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.folder() == Path.home() / ".cache/convpool"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache.folder() == tmp_path / "local/convpool"


def test_choices_of_a_context_hold_alone() -> None:
    choices.keep(CPU, table())
    with choices.use(None):
        assert plan() == "cpu/fused"
        with choices.use(table("cpu/split")):
            assert plan() == "cpu/split"
            assert choices.in_force(CPU) == table("cpu/split")
        assert plan() == "cpu/fused"
    assert plan() == OTHER


def test_known_calls_are_decided_anew() -> None:
    """The call computes by another plan inside, though it was met outside: torch's keeps the conv output."""
    x, weight = tensors()
    weight.requires_grad_()
    call = key_of(x, weight)
    for _ in range(2):
        assert "ConvReLU" in conv_relu_max_pool2d(x, weight).grad_fn.name()
    with choices.use(table(call=call)):
        for _ in range(2):
            assert "ConvReLU" not in conv_relu_max_pool2d(x, weight).grad_fn.name()
    assert "ConvReLU" in conv_relu_max_pool2d(x, weight).grad_fn.name()


def test_what_the_table_never_decides() -> None:
    with choices.use(table()):
        torch.use_deterministic_algorithms(True)
        assert plan() == "cpu/fused"
        torch.use_deterministic_algorithms(False)
        assert plan() == OTHER
        with use_backend("cpu"):
            assert plan() == "cpu/fused"
    for gone in ("own/wide", "torch/other", "reference/reference"):
        with choices.use(table(gone)):
            assert not explain(*tensors()).measured


def test_batches_are_rounded_up() -> None:
    with choices.use(table(call=key_of(*tensors(64)))):
        plans = {batch: plan(batch) for batch in (32, 33, 50, 64, 65)}
    assert plans == {32: "cpu/fused", 33: OTHER, 50: OTHER, 64: OTHER, 65: "cpu/fused"}
    assert "x=0x1x12x12" in key_of(torch.empty(0, 1, 12, 12), tensors()[1])


def test_what_makes_another_key() -> None:
    x, _ = tensors()
    geometry = choices.Geometry.of((2, 3, 12, 12), (4, 3, 3, 3), choices.make_settings((3, 3)))
    cuda = torch.device("cuda", 0)
    used = [
        Use(),
        Use(channels_last=True),
        Use(training=True),
        Use(training=True, dx=True),
        Use(threads=2),
        Use(replayed=True),
    ]
    on_cpu = {choices.key(geometry, x.dtype, CPU, use) for use in used}
    assert len(on_cpu) == 5, "a CPU replays nothing"
    assert len({choices.key(geometry, x.dtype, cuda, use) for use in used}) == 5, "a GPU has no threads of ours"
    strided = geometry._replace(settings=geometry.settings._replace(stride=(2, 1), ceil_mode=True))
    assert "stride=2,1 ceil_mode=1" in choices.key(strided, x.dtype, CPU, Use())
    assert choices.key(geometry, torch.bfloat16, cuda, Use()).startswith("cuda bfloat16 x=2x3x12x12 weight=4x3x3x3")
    before = choices.key(geometry, torch.float32, cuda, Use())
    conv = torch.backends.cudnn.conv
    precision, conv.fp32_precision = conv.fp32_precision, "tf32" if conv.fp32_precision != "tf32" else "ieee"
    try:
        assert choices.key(geometry, torch.float32, cuda, Use()) != before
    finally:
        conv.fp32_precision = precision


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_compiler_follows_the_table_where_sizes_are_numbers(dynamic: bool) -> None:
    met: list[object] = []

    def backend(module: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        met.extend(node.target for node in module.graph.nodes if node.op == "call_function")
        return module

    torch.compiler.reset()
    compiled = torch.compile(
        lambda *given: conv_relu_max_pool2d(*given), fullgraph=True, dynamic=dynamic, backend=backend
    )
    with choices.use(table()):
        compiled(*tensors())
    ours = [target for target in met if "convpool" in str(target)]
    assert bool(ours) is dynamic
    torch.compiler.reset()


# Files that cannot be trusted or written ------------------------------------------------------------------------------


def damaged() -> dict[str, str]:
    choices.keep(CPU, table())
    text = file().read_text()
    whole = json.loads(text)

    def with_(**changes: object) -> str:
        call, choice = next(iter(whole["choices"].items()))
        return json.dumps(whole | {"choices": {call: choice | changes}})

    return {
        "empty": "",
        "truncated": text[: len(text) // 2],
        "not JSON": "cpu/fused",
        "nested": "[" * 100_000,
        "no table": "[]",
        "no choices": json.dumps(whole | {"choices": 3}),
        "too new": json.dumps(whole | {"format": choices.FORMAT + 1}),
        "foreign": json.dumps(whole | {"environment": whole["environment"] | {"torch": "1.0"}}),
        "a plan": with_(plan="../cpu"),
        "no plan": with_(plan=3),
        "seconds": with_(seconds={OTHER: "1"}),
        "endless": with_(seconds={OTHER: float("inf")}),
        "no number": with_(seconds={OTHER: float("nan")}),
        "a truth": with_(seconds={OTHER: True}),
        "no seconds": with_(seconds=[]),
        "date": with_(date="yesterday"),
        "device": with_(device="\x1b[31m"),
        "one field more": with_(also=1),
        "no choice": json.dumps(whole | {"choices": {"call": "cpu/fused"}}),
    }


def test_a_table_that_cannot_be_trusted_is_ignored_said_once_and_replaced() -> None:
    for what, text in damaged().items():
        file().write_text(text)
        choices.forget()
        choices._said.clear()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert plan() == "cpu/fused", what
            choices.forget()
            plan()
        assert [str(one.message).startswith(f"convpool: measured choices in {file()} ") for one in said] == [True], what
    choices.keep(CPU, table())
    choices.forget()
    assert plan() == OTHER


def test_a_table_that_is_no_file_is_ignored() -> None:
    file().mkdir(parents=True)
    with pytest.warns(UserWarning, match="ignored: .* is no file"):
        assert plan() == "cpu/fused"


@pytest.mark.filterwarnings("error")
def test_where_nothing_can_be_written_choices_hold_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everywhere: the refusal is the system call's."""

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cache.tempfile, "mkstemp", refused)
    with pytest.warns(UserWarning, match="cannot be written"):
        assert choices.keep(CPU, table()) is None
    assert choices.keep(CPU, table()) is None, "said once: a warning is an error here"
    assert plan() == OTHER
    assert not file().exists()


def test_whoever_dies_while_writing_leaves_the_old_table(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    choices.keep(CPU, table())

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cache.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        choices.keep(CPU, table("cpu/split"))
    choices.forget()
    assert plan() == OTHER
    assert [path.suffix for path in folder.iterdir() if path.suffix != ".lock"] == [".json"]


def test_a_lock_that_nobody_gives_back_is_waited_for_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MOST_SECONDS", 0.01)
    file().parent.mkdir()
    with filelock.FileLock(f"{file()}.lock"), pytest.warns(UserWarning, match="cannot be written"):
        assert choices.keep(CPU, table()) is None


def _write(count: int, start: object, own: str) -> None:
    start.wait()  # type: ignore[attr-defined]
    for number in range(count):
        choices.keep(CPU, table(call=f"{own} {number}"))


def test_two_processes_that_write_at_once_lose_nothing() -> None:
    context = mp.get_context("fork")
    start = context.Barrier(2)
    writers = [context.Process(target=_write, args=(20, start, own)) for own in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    choices.forget()
    assert choices.in_force(CPU).by_call.keys() == {f"{own} {number}" for own in "ab" for number in range(20)}


# What they hold for ---------------------------------------------------------------------------------------------------


def test_other_kernels_have_another_table(monkeypatch: pytest.MonkeyPatch) -> None:
    choices.keep(CPU, table())
    monkeypatch.setattr(environment, "digest", lambda _: "0123456789abcdef")
    choices.forget()
    assert plan() == "cpu/fused"


def test_a_digest_sees_names_and_bytes(tmp_path: Path) -> None:
    a, b = tmp_path / "a.py", tmp_path / "b.py"
    found = set()
    for texts in (("1", "2"), ("2", "1"), ("12", ""), ("", "12")):
        a.write_text(texts[0])
        b.write_text(texts[1])
        found.add(environment.digest([a, b]))
        assert environment.digest([b, a]) in found
    assert len(found) == 4


def test_the_environment_of_a_cpu() -> None:
    found = environment.environment(CPU)
    assert found.keys() == {"device", "instructions", "library", "torch", "onednn", "kernels"}
    assert all(found.values())
    assert environment.environment(torch.device("meta")) == {}
    assert planning.use_of(*tensors()).threads == torch.get_num_threads()


def test_choices_are_plain_data() -> None:
    for value in (table(), Choices()):
        assert Choices.from_json(json.loads(json.dumps(value.to_json()))) == value
    newer = table("cpu/split", "another").merged(table("cpu/split"))
    merged = table().merged(newer)
    assert {choice.plan for choice in merged.by_call.values()} == {"cpu/split"}
    assert len(merged) == 2
    with pytest.raises(ValueError, match="a plan must be two words"):
        Choice("fused", SECONDS, "2026-11-27", "a processor")
    with pytest.raises(ValueError, match="format is None"):
        Choices.from_json({"choices": {}})
