"""How a workload is raced and what is reported of it: one row of plain numbers, the same for pytest and for people."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from convpool.testing import candidates, machine, roofline
from convpool.testing.candidates import ParityError
from convpool.testing.timing import Race
from mnistfast.devices import choose_device, environment, use_threads
from mnistfast.errors import UsageError
from mnistfast.measure import load, trust
from mnistfast.measure import page as bench_page
from mnistfast.measure.forms import FUSED, REPLAYED
from mnistfast.measure.layers import NotRecordedError, Workload
from mnistfast.measure.load import Load
from mnistfast.measure.workloads import workloads
from mnistfast.options.commands import BenchOptions
from mnistfast.report.screen import Screen
from mnistfast.text import aligned


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        seconds: of racing a workload, all forms together.
        compile: whether torch.compile takes part.
        everything: compile every form, and the best one with max-autotune too.
    """

    seconds: float = 1.0
    compile: bool = True
    everything: bool = False

    def compiles(self, workload: Workload[Any]) -> bool:
        """Returns whether torch.compile takes part in this workload."""
        return self.compile and (self.everything or workload.worth_compiling)


@dataclass
class Prepared:
    """A workload whose forms all compute what torch computes, warmed up and ready to be raced.

    Attributes:
        compiling: seconds that torch.compile and the check of what it made took, by form.
        missing: what could not take part, and why.
    """

    workload: Workload[Any]
    race: Race
    compiling: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Returns what the race came to, and what there is to know beside it."""
        workload, timings = self.workload, self.race.timings()
        plain = [name for name in timings if not name.startswith(FUSED)]
        ours = [name for name in timings if name.startswith(FUSED)]
        seconds = {name: asdict(value) for name, value in timings.items()}
        row = {
            "group": workload.group,
            "name": workload.name,
            "device": str(workload.device),
            "threads": torch.get_num_threads(),
            "seconds": seconds,
            "unsteady": trust.unsteady(seconds),
            "best_plain": candidates.best_plain(timings, bench_page.plain_forms(timings)),
            "times_faster": {
                mine: {other: trust.times_faster(seconds, mine, other) for other in plain} for mine in ours
            },
            "compiling_seconds": self.compiling,
            "missing": self.missing,
            **workload.facts(),
        }
        return row | _roofline(workload, seconds)


def contenders(workload: Workload[Any], effort: Effort) -> list[str]:
    """Returns by name what will be raced, as far as that is known before: for any number by torch.compile one name."""
    return [*workload.names, *[bench_page.COMPILED] * effort.compiles(workload)]


def prepare(workload: Workload[Any], effort: Effort) -> Prepared:
    """Checks every form of `workload`, compiles what `effort` asks for, and warms everything up.

    Raises:
        ParityError: a form computes something else than torch: nothing is timed.
    """
    machine.pin_precision(workload.device)
    forms, calls, missing = workload.forms(), {}, {}
    for name, form in forms.items():
        try:
            calls[name] = workload.calls(form)
        except NotRecordedError as error:
            missing[name] = str(error)
    race = Race(calls, workload.device, replay=workload.replayable)
    prepared = Prepared(workload, race, missing=missing)
    if not effort.compiles(workload):
        return prepared
    plain = bench_page.plain_forms(calls)
    best = min(plain, key=race.foretold).removesuffix(REPLAYED)
    wanted = [(best, mode) for mode in workload.modes]
    if effort.everything:
        called = [(name, "default") for name in plain if not name.endswith(REPLAYED)]
        wanted = called + [(best, mode) for mode in (*workload.modes, "max-autotune") if mode != "default"]
    torch.compiler.reset()  # all layers are compiled from one function, of which torch keeps eight versions
    for name, mode in wanted:
        label = f"{bench_page.COMPILED} of {name}" + (f", {mode}" if mode != "default" else "")
        began = time.perf_counter()
        try:
            race.add(label, workload.calls(workload.compiled(forms[name], mode)))
            prepared.compiling[label] = time.perf_counter() - began
        except ParityError:
            raise
        except Exception as error:  # no compiler, or one of its many own errors: the rest can be measured without it
            prepared.missing[label] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return prepared


def run(options: BenchOptions, command: str, screen: Screen) -> dict[str, Any]:
    """Measures what `options` ask for and returns the result, ready for JSON; each row is told to `screen`.

    A workload with a wrong result has no row: it is listed under `wrong`.

    Raises:
        UsageError: no workload has the text of `--only` in its name.
        DeviceError: the device is not there.
    """
    use_threads(options.threads)
    device = choose_device(options.device)
    chosen = [each for each in workloads(device, everything=options.all) if (options.only or "") in str(each)]
    if not chosen:
        groups = dict.fromkeys(each.group for each in workloads(device))
        raise UsageError(f"--only {options.only!r} names no workload", f"The groups are: {'; '.join(groups)}")
    effort = Effort(options.seconds, compile=not options.no_compile, everything=options.all)
    machine.keep_freed_memory()
    before = load.now()
    _say_setting(device, before, screen)
    rows, wrong = [], []
    for workload in chosen:
        try:
            row = measure(workload, effort)
        except ParityError as error:
            wrong.append({"workload": str(workload), "why": str(error)})
            screen.warn(f"{workload}: {error}: no speed")
            continue
        rows.append(row)
        screen.say(f"{row['group'] + ': ' + row['name']:<40} {_words(row)}")
        if options.all or row["unsteady"]:
            for line in aligned([["", form, bench_page.quartiles(row, form)] for form in row["seconds"]]):
                screen.say(line)
    return {"command": command, **setting(device, before), "rows": rows, "wrong": wrong}


def setting(device: torch.device, before: Load | None) -> dict[str, Any]:
    """Returns what the figures hold for: hardware, threads, versions, the load before they were taken and now."""
    words, after = machine.setting(device), load.now()
    held = {"environment": environment(device, torch.get_num_threads())}
    if before is None or after is None:
        return {"setting": words, **held}
    averages = {"cpus": before.cpus, "before": before.average, "after": after.average}
    return {"setting": f"{words}, {before} before, {after.average:.1f} after", "load": averages, **held}


def _say_setting(device: torch.device, before: Load | None, screen: Screen) -> None:
    screen.say(machine.setting(device) + (f", {before}" if before else ""))
    threads = torch.get_num_threads() if device.type == "cpu" else 1  # one launches what a GPU computes
    if before and not before.leaves_free(threads):
        screen.warn(f"{before}: other work shares them")


def _words(row: dict[str, Any]) -> str:
    eager, other = (bench_page.times(row, form(row)) for form in (bench_page.eager, bench_page.best_other))
    ours = bench_page.median(row, bench_page.launched(row, FUSED))
    return f"{ours:>16}   times faster than eager: {eager}, than the best other: {other}"


def measure(workload: Workload[Any], effort: Effort) -> dict[str, Any]:
    """Returns the row of `workload`. Raises ParityError: a form computes something else than torch."""
    return raced(workload, effort).row()


def raced(workload: Workload[Any], effort: Effort) -> Prepared:
    """Returns `workload` with its race run. Raises ParityError: a form computes something else than torch."""
    prepared = prepare(workload, effort)
    prepared.race.run(effort.seconds, workload.least_rounds)
    return prepared


def _roofline(workload: Workload[Any], seconds: Mapping[str, trust.Timing]) -> dict[str, Any]:
    work = workload.work()
    if work is None:
        return {}
    peaks = roofline.peaks(workload.device, torch.float32, work.bytes)
    bound = peaks.bound(work)
    return {
        "work": asdict(work),
        "peaks": asdict(peaks),
        "bound_seconds": bound,
        "share_of_roofline": {
            name: bound / timing["median"] if trust.steady(timing) else None for name, timing in seconds.items()
        },
    }
