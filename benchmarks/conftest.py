"""What `pytest benchmarks/` measures: `mnistfast.measure.workloads`, on the CPU and on a GPU where there is one."""

import pytest
import torch

from convpool.testing.machine import keep_freed_memory
from mnistfast.measure.suite import Effort
from mnistfast.measure.workloads import workloads


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="the whole table of shapes, every form, max-autotune")
    parser.addoption(
        "--seconds", type=float, default=Effort.seconds, help="of measuring a workload, all forms together"
    )
    parser.addoption("--no-compile", action="store_true", help="leave torch.compile out")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "workload" not in metafunc.fixturenames:
        return
    no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: not measured")
    everything = metafunc.config.getoption("--all")
    parameters = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        marks = [no_gpu] if device.type == "cuda" else []
        found = workloads(device, everything=everything)
        parameters += [pytest.param(workload, id=f"{device}: {workload}", marks=marks) for workload in found]
    metafunc.parametrize("workload", parameters)


@pytest.fixture(scope="session", autouse=True)
def allocator() -> None:
    keep_freed_memory()


@pytest.fixture
def effort(request: pytest.FixtureRequest) -> Effort:
    option = request.config.getoption
    return Effort(option("--seconds"), compile=not option("--no-compile"), everything=option("--all"))
