"""Mean and scatter of the patches of x, from which the statistics follow: every backend's against their definition."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from convpool import eager, registry
from convpool.batchnorm import fold
from convpool.geometry import Geometry
from convpool.protocol import Moments
from convpool.testing.cases import Case, by_name
from convpool.testing.parity import Layout, make_inputs
from tests.convpool.batchnorm.oracle import NORMALISED, error, on_backends, refusal
from tests.convpool.samples import VIEWS

LAYOUTS = ("nchw", "channels_last")
A_FEW = ("cnn-1", "lenet5-2", "resnet-stem", "same-even-dilated", "stride-3-kernel-2", "groups-2", "depthwise")

pytestmark = pytest.mark.usefixtures("one_thread")


def moments(backend: str, x: Tensor, geometry: Geometry) -> Moments:
    found = registry.backend(backend).patch_moments(x, geometry)
    assert found.mean.dtype == found.scatter.dtype == torch.float64
    return found


def by_definition(x: Tensor, geometry: Geometry) -> Moments:
    """A conv by the unit matrix gives the patches."""
    groups, reduction = geometry.settings.groups, geometry.reduction
    units = torch.eye(reduction, dtype=torch.float64).view(reduction, -1, *geometry.kernel).repeat(groups, 1, 1, 1)
    patches = eager.conv(x.double(), units, None, geometry.settings).transpose(0, 1).reshape(groups, reduction, -1)
    mean = patches.mean(2)
    centred = patches - mean[..., None]
    return Moments(mean, torch.einsum("gkm,glm->gkl", centred, centred))


def equal(a: Moments, b: Moments) -> bool:
    return torch.equal(a.mean, b.mean) and torch.equal(a.scatter, b.scatter)


@pytest.mark.parametrize("case", NORMALISED)
@on_backends(torch.float32)
def test_every_geometry(case: Case, backend: str) -> None:
    if refusal(backend, case, torch.float32):
        return
    for layout in LAYOUTS:
        x = make_inputs(case, layout=layout).x + 2  # a mean that has to be taken away
        found, expected = moments(backend, x, case.geometry), by_definition(x, case.geometry)
        assert error(found.mean, expected.mean) < 1e-12
        assert error(found.scatter, expected.scatter) < 1e-12
        assert error(found.scatter.mT, found.scatter) < 1e-12


@pytest.mark.parametrize("name", A_FEW)
@on_backends(torch.float32)
def test_strides(name: str, backend: str) -> None:
    """The moments are those of the numbers, however they lie in memory."""
    case = by_name(name)
    for view, change in VIEWS.items():
        x = change(make_inputs(case).x)
        found, expected = moments(backend, x, case.geometry), by_definition(x, case.geometry)
        assert error(found.mean, expected.mean) < 1e-12, view
        assert error(found.scatter, expected.scatter) < 1e-12, view


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["direct", "stem", "groups"])
@on_backends(torch.float32)
def test_batches(name: str, layout: Layout, backend: str) -> None:
    """Of 1 to 20 images: kernels may take several at once, and the rest one by one."""
    case = {
        "direct": Case("direct", 1, 1, (9, 11), 5, (3, 3)),
        "stem": Case("stem", 1, 3, (12, 10), 8, (5, 5), {"stride": 2, "padding": 2}),
        "groups": Case("groups", 1, 4, (7, 9), 6, (3, 2), {"groups": 2, "padding": 1}),
    }[name]
    for batch in range(1, 21):
        of_batch = replace(case, batch=batch)
        x = make_inputs(of_batch, layout=layout).x + 2
        found, expected = moments(backend, x, of_batch.geometry), by_definition(x, of_batch.geometry)
        assert error(found.mean, expected.mean) < 1e-12, batch
        assert error(found.scatter, expected.scatter) < 1e-12, batch


def readers(geometry: Geometry) -> Tensor:
    """(height, width): how many positions of the conv output read a pixel, by how many of their taps."""
    plane = torch.zeros(1, geometry.group_channels, geometry.height, geometry.width, requires_grad=True)
    ones = torch.ones(1, geometry.group_channels, *geometry.kernel)
    z = eager.conv(plane, ones, None, geometry.settings._replace(groups=1))
    return torch.autograd.grad(z.sum(), plane)[0][0, 0]


UNREAD = Case("unread", 2, 4, (11, 12), 6, (2, 2), {"stride": 3, "groups": 2})


@pytest.mark.parametrize("layout", LAYOUTS)
@on_backends(torch.float32)
def test_nan_that_no_position_reads_does_not_matter(layout: Layout, backend: str) -> None:
    """Between the patches, and in the last columns."""
    x, read = make_inputs(UNREAD, layout=layout).x, readers(UNREAD.geometry) > 0
    assert not read[2, 2]
    assert not read[0, -1]
    expected = by_definition(torch.where(read, x, 0), UNREAD.geometry)
    found = moments(backend, x.masked_fill(~read, torch.nan), UNREAD.geometry)
    assert error(found.mean, expected.mean) < 1e-12
    assert error(found.scatter, expected.scatter) < 1e-12


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["depthwise", "groups-2", "mixed-2", "cifar-1"])
@on_backends(torch.float32)
def test_nan_that_is_read_takes_its_group(name: str, layout: Layout, value: float, backend: str) -> None:
    """Wherever it stands, in a corner too, which one tap reads. The other groups' statistics do not change."""
    case = by_name(name)
    inputs, groups = make_inputs(case, layout=layout), case.geometry.settings.groups
    read = (readers(case.geometry) > 0).nonzero().tolist()

    def of_groups(x: Tensor) -> tuple[Tensor, Tensor]:
        found = fold.statistics(inputs.weight, moments(backend, x, case.geometry), fold.positions(case.geometry))
        return found.mean.view(groups, -1), found.variance.view(groups, -1)

    before = of_groups(inputs.x)
    for row, column in (read[0], read[len(read) // 2], read[-1]):
        x = inputs.x.clone()
        x[-1, -1, row, column] = value  # in the last group
        mean, variance = of_groups(x)
        assert not mean[-1].isfinite().any()
        assert variance[-1].isnan().all()
        assert torch.equal(mean[:-1], before[0][:-1])
        assert torch.equal(variance[:-1], before[1][:-1])


@pytest.mark.parametrize("batch", [2, 17])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", A_FEW)
@on_backends(torch.float32)
def test_repeats_and_threads_change_no_bit(name: str, layout: Layout, batch: int, backend: str) -> None:
    case = replace(by_name(name), batch=batch)
    x = make_inputs(case, layout=layout).x
    expected = moments(backend, x, case.geometry)
    for threads in (1, 1 if backend == "reference" else 2):  # its sums are torch's, which have a part for each thread
        torch.set_num_threads(threads)
        assert equal(moments(backend, x, case.geometry), expected)
