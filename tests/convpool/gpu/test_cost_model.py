"""The cost model's arithmetic, on launches and machine code made up for it: nothing is compiled."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.triton
ROOT = Path(__file__).parents[3]


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module(name)


@pytest.fixture
def machine_code(monkeypatch) -> ModuleType:
    return benchmark("gpu_machine_code", monkeypatch)


@pytest.fixture
def terms(monkeypatch) -> ModuleType:
    return benchmark("gpu_cost_terms", monkeypatch)


@pytest.fixture
def model(monkeypatch) -> ModuleType:
    return benchmark("gpu_cost_model", monkeypatch)


def assembly(*lines: str | tuple[str, dict[str, int]]) -> str:
    """As nvdisasm prints it: a line ending in a colon is a label, any other an instruction, with its control bits."""
    found = []
    for at, line in enumerate(lines):
        text, control = (line, {}) if isinstance(line, str) else line
        if text.endswith(":"):
            found.append(text)
            continue
        waits = 1 << control["waits"] if "waits" in control else 0
        bits = waits << 11 | control.get("sets", 7) << 5 | control.get("stall", 1)
        found.append(f"        /*{16 * at:04x}*/                   {text} ;   /* 0x{at:016x} */")
        found.append(f"                                            /* 0x{bits << 41:016x} */")
    return "\n".join(found)


LOOP = ".L_x_0:"
BACK = "@P0 BRA `(.L_x_0)"
ENDS = ("EXIT", ".L_x_1:", "BRA `(.L_x_1)")


def cycles(machine_code: ModuleType, *lines: Any, trips: int = 1) -> int:
    return machine_code.Code.read(assembly(*lines, *ENDS)).cycles(trips, 1)


def test_a_warp_stalls_as_the_compiler_says(machine_code) -> None:
    assert cycles(machine_code, ("FFMA R0, R0, R0, R0", {"stall": 4})) == 4 + 2
    assert cycles(machine_code, LOOP, ("FFMA R0, R0, R0, R0", {"stall": 4}), BACK, trips=10) == 10 * 5 + 2


def test_a_load_costs_its_latency_where_it_is_waited_for(machine_code) -> None:
    load = ("@P1 LDG.E R0, desc[UR4][R2.64]", {"sets": 2})
    use = ("FFMA R1, R0, R0, R1", {"waits": 2})
    other = "FFMA R3, R3, R3, R3"
    latency = machine_code.L2_LATENCY
    assert cycles(machine_code, load, use) == latency + 1 + 2
    assert cycles(machine_code, LOOP, load, use, BACK, trips=5) == 5 * (latency + 2) + 2
    # The load of the next trip, behind the use: whatever lies between them comes off the latency.
    ahead = cycles(machine_code, LOOP, use, load, *[other] * 99, BACK, trips=5)
    assert ahead == 4 * (latency + 1) + 1 + 1 + 99 + 1 + 2
    assert cycles(machine_code, ("LDS R0, [R2]", {"sets": 2}), use) == machine_code.SHARED_LATENCY + 1 + 2


def test_asynchronous_copies_hide_behind_trips(machine_code) -> None:
    def trip(under_way: int) -> tuple[str, ...]:
        wait = f"DEPBAR.LE SB0, {under_way:#x}"
        return LOOP, wait, *["FFMA R0, R0, R0, R0"] * 96, "LDGSTS.E [R1], desc[UR4][R2.64]", "LDGDEPBAR", BACK

    waited, hidden = (cycles(machine_code, *trip(under_way), trips=50) for under_way in (0, 3))
    assert hidden == 50 * 100 + 2
    assert waited == pytest.approx(50 * (machine_code.L2_LATENCY + 99), rel=0.05)


def test_barriers_and_products_take_their_time(machine_code) -> None:
    assert cycles(machine_code, "BAR.SYNC.DEFER_BLOCKING 0x0") == machine_code.SHARED_LATENCY + 1 + 2
    product = "HGMMA.64x64x8.F32.TF32 R24, gdesc[UR4], R24"
    pair = (product, f"{product}, gsb0", "WARPGROUP.DEPBAR.LE gsb0, 0x0")
    assert cycles(machine_code, *pair) == 2 * 64 * 64 * 8 // 1024 + 1 + 2
    assert machine_code.Code.read(assembly(*pair, *ENDS)).products(1, 1) == 2 * 64 * 64 * 8 // 4  # of one warp


def test_only_the_main_loop_and_the_one_around_it_are_walked(machine_code) -> None:
    code = machine_code.Code.read(
        assembly(
            ".L_x_0:", "IADD3 R0", ".L_x_1:", "HMMA.16816.F32 R0, R0, R0, R0", "@P0 BRA `(.L_x_1)",
            "@P1 BRA `(.L_x_0)", ".L_x_2:", "FADD R0", "FADD R1", "FADD R2", "@P2 BRA `(.L_x_2)", "EXIT",
        )
    )  # fmt: skip
    assert code.nested
    assert code.products(3, 5) == 3 * 5 * 16 * 8 * 16
    assert code.issued(3, 5) == 1 + 3 * (2 + 5 * 2)
    assert code.cycles(3, 5) == code.issued(3, 5)


def test_a_loop_without_products_is_not_the_main_one_of_a_kernel_with_some(machine_code) -> None:
    code = machine_code.Code.read(
        assembly("HMMA.16816.F32 R0, R0, R0, R0", ".L_x_0:", "FFMA R0", "@P2 BRA `(.L_x_0)", "EXIT")
    )
    assert code.products(9, 1) == 16 * 8 * 16
    assert code.issued(9, 1) == code.cycles(9, 1) == 2


def cost(terms: ModuleType, **changed: float) -> Any:
    """A launch of one program a multiprocessor, whose 4 warps issue for 1 us."""
    numbers = {"issue": 1.0, "matrix": 0.0, "l2": 0.0, "dram": 0.0, "chain": 0.0, "last_block": 0.0}
    counted = {"programs": 132, "resident": 2, "warps": 4, "instructions": 132 * 4 * 1755, "registers": 0, "shared": 0}
    return terms.Cost("kernel", **(numbers | counted | changed))


def test_the_busiest_multiprocessor_decides(terms) -> None:
    assert cost(terms).modelled == pytest.approx(terms.NODE_US + 1, abs=0.01)
    one_more = cost(terms, programs=133, instructions=133 * 4 * 1755)
    assert (one_more.busiest, one_more.old) == (2, 1)
    assert one_more.modelled == pytest.approx(terms.NODE_US + 2, abs=0.01)
    # Of a program with one warp only one scheduler has work.
    assert cost(terms, warps=1, instructions=132 * 1755).issue_balanced == pytest.approx(1)
    assert cost(terms, programs=66, matrix=3.0).matrix_balanced == pytest.approx(6)


def test_the_longest_term_counts_and_the_last_block_comes_after(terms) -> None:
    assert cost(terms, l2=5.0, dram=4.0).modelled == pytest.approx(terms.NODE_US + 5, abs=0.01)
    assert cost(terms, l2=5.0, last_block=2.0).modelled == pytest.approx(terms.NODE_US + 7, abs=0.01)
    assert cost(terms, l2=5.0, last_block=2.0).old == 5


def test_programs_that_do_not_fit_at_once_follow_one_another(terms) -> None:
    for programs, waves in ((132, 1), (264, 1), (265, 2), (528, 2), (529, 3)):
        launched = cost(terms, programs=programs, chain=10.0, instructions=programs)
        assert launched.waves == waves
        assert launched.modelled == pytest.approx(terms.NODE_US + 10 * waves, abs=0.01)


def test_one_program_adds_rows_as_fast_as_they_come(terms) -> None:
    waiting = terms.added_by_one(50, 1 << 10, 4)  # 64 cycles of bytes a trip, less than the latency
    assert waiting == 13 * terms.L2_LATENCY + 2 * terms.L2_LATENCY
    flowing = terms.added_by_one(50, 1 << 15, 4)
    assert flowing == 13 * 4 * (1 << 15) / 64 + 2 * terms.L2_LATENCY


def test_only_a_kernel_with_counters_has_a_last_block(terms) -> None:
    arguments = {"ranges": 50, "BLOCK_O": 64, "BLOCK_C": 32, "BLOCK_R": 4}
    assert terms.last_block(terms.Launched(None, 450, arguments)) == 0
    counting = terms.Launched(None, 450, arguments | {"counters_ptr": object()})
    assert terms.last_block(counting) == terms.added_by_one(50, 64 * 32 * 4, 4)


@pytest.mark.parametrize(
    ("warps", "registers", "shared", "blocks"),
    [
        # What an H200's profiler says of registers: results/gpu/nvidia-h200/REPORT.md, counters.
        *[(8, 91, 0, 2), (8, 80, 0, 3), (4, 105, 0, 4), (4, 136, 0, 3), (2, 190, 0, 4), (2, 254, 0, 4)],
        *[(4, 20, 0, 16), (1, 20, 0, 32), (8, 32, 73728, 3), (4, 32, 16384, 13)],  # threads, blocks, shared memory
    ],
)
def test_programs_share_a_multiprocessor(warps, registers, shared, blocks, monkeypatch) -> None:
    multiprocessors = benchmark("gpu_multiprocessors", monkeypatch)
    found = multiprocessors.Resources(registers, 0, shared)
    assert multiprocessors.resident("sm_90", warps, found) == blocks


def row(layer: str, kernel: str, us: float, batch: int = 128) -> dict[str, Any]:
    about = {"layer": layer, "batch": batch, "numbers": "tf32", "kernel": kernel}
    return about | {"modelled_us": us, "old_us": us / 2}


def test_a_step_leaves_out_what_it_does_not_launch(model) -> None:
    table = [row("cnn-1", "forward_direct", 4), row("cnn-1", "input_grad", 100), row("cnn-2", "input_grad", 8)]
    table += [row("cnn-2", "forward_dot", 50, batch=1024), row("vgg-1", "pool", 70)]
    assert model.steps(table) == {"tf32": (12, 6)}


def test_a_comparison_names_what_got_slower(model) -> None:
    before = [row("cnn-2", "weight_grad", 8), row("cnn-2", "sum_partials", 2), row("cnn-1", "forward_direct", 4)]
    now = [row("cnn-2", "weight_grad", 9), row("cnn-1", "forward_direct", 3)]
    found = model.comparison(now, before).splitlines()
    assert [line for line in found if line.startswith("- slower")] == [
        "- slower: cnn-2 128 tf32 weight_grad: 9 us after 8"
    ]
    assert "| cnn-2 | 128 | tf32 | 9.0 / 10.0 | 4.5 / 5.0 | 0.90 | 0.90 |" in found
    assert "| a step of cnn2 | 128 | tf32 | 12.0 / 14.0 | 6.0 / 7.0 | 0.86 | 0.86 |" in found


def test_measured_times_are_held_to_modelled_ones(terms, monkeypatch) -> None:
    measured = benchmark("gpu_cost_measured", monkeypatch)
    modelled = {l2: cost(terms, l2=l2) for l2 in (9.0, 3.0, 1.5)}
    ratios = zip(modelled.values(), (1, 2, 3), strict=True)
    found = [measured.Pair("cnn-1", 128, "tf32", each.modelled * ratio, each) for each, ratio in ratios]
    cells = measured.table(found).splitlines()[2].split(" | ")
    assert cells[:6] == ["| all", "3", f"{6 ** (1 / 3):.2f}", "1.20", "2.80", "1.00"]
    in_old_terms = (found[0].measured * found[1].measured * found[2].measured / (9.0 * 3.0 * 1.5)) ** (1 / 3)
    assert cells[6] == f"{in_old_terms:.2f}"


def test_ranks_are_compared(monkeypatch) -> None:
    measured = benchmark("gpu_cost_measured", monkeypatch)
    assert measured.rank_correlation([1, 2, 3], [10, 20, 900]) == pytest.approx(1)
    assert measured.rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert measured.rank_correlation([1, 2, 2, 3], [1, 2, 2, 3]) == pytest.approx(1)
