"""Hardware counters of our kernels, where Nsight Compute is installed."""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Iterable
from functools import partial
from typing import Any

from benchmarks.gpu_steps.examined import command
from benchmarks.gpu_steps.subjects import Bench, Numbers, Rows

METRICS = {  # by our name; ncu measures nothing at all if it does not know one
    "ns": "gpu__time_duration.sum",
    "sm_pct": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram_read": "dram__bytes_read.sum",
    "dram_written": "dram__bytes_write.sum",
    "l2_bytes": "lts__t_bytes.sum",
    "load_sectors": "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum",
    "load_requests": "l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum",
    "bank_conflicts": "l1tex__data_bank_conflicts_pipe_lsu.sum",
    "warps_pct": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "instructions": "sm__inst_executed.sum",
    "tensor_instructions": "sm__inst_executed_pipe_tensor.sum",
    "registers": "launch__registers_per_thread",
    "blocks_by_registers": "launch__occupancy_limit_registers",
    "blocks_by_shared": "launch__occupancy_limit_shared_mem",
    "stall_long": "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",
    "stall_barrier": "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",
}
_OURS = "regex:forward_direct|forward_patch|forward_dot|weight_grad|sum_partials|input_grad|pool|expand"


EXAMINED: tuple[tuple[int, Numbers], ...] = ((128, "tf32"), (1024, "tf32"), (128, "bf16"))


def rows(bench: Bench) -> Rows:
    for batch, numbers in EXAMINED[:1] if bench.rehearses else EXAMINED:
        yield {"batch": batch, "numbers": numbers}, partial(_launches, bench, batch, numbers)


def _launches(bench: Bench, batch: int, numbers: Numbers) -> dict[str, Any]:
    tool = ["ncu", "--clock-control", "none", "--csv", "--page", "raw", "-k", _OURS]
    tool += ["--metrics", ",".join(METRICS.values())]
    if bench.rehearses:
        tool = []
    elif not shutil.which("ncu"):
        return {"missing": "not installed"}
    found = subprocess.run([*tool, *command(bench, batch, numbers)], capture_output=True, text=True)
    kernels = table(found.stdout.splitlines())
    return {"status": found.returncode, "errors": found.stderr[-600:], "kernels": kernels}


def table(lines: Iterable[str]) -> list[dict[str, Any]]:
    """A launch a row, of what `ncu --csv --page raw` prints: its own remarks, a head, units, then the launches."""
    of_table = (line for line in lines if line.startswith('"'))
    launches = []
    for row in csv.DictReader(of_table):
        if not row["ID"]:
            continue  # the units
        values = {name: _number(row[metric]) for name, metric in METRICS.items() if row.get(metric)}
        launches.append({"kernel": row["Kernel Name"], "grid": row["Grid Size"], **values})
    return launches


def _number(text: str) -> float | str:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return text
