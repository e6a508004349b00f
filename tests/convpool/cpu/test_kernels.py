"""The rule by which `auto` takes the CPU's kernels: which way layers go that were measured, and what it hangs on."""

import pytest
import torch

from convpool import eager, registry
from convpool.cost import Counts
from convpool.cpu import kernels, native
from convpool.protocol import Use
from convpool.testing.cases import Case, by_name

HERE = torch.device("cpu")
INFERENCE, TRAINING, FIRST = Use(), Use(training=True, dx=True), Use(training=True)

pytestmark = pytest.mark.skipif(bool(registry.backend("cpu").unavailable()), reason="no C++ library here")


def layer(batch: int, inputs: int, size: int, outputs: int, kernel: int = 3, **options: object) -> Case:
    return Case("", batch, inputs, (size, size), outputs, (kernel, kernel), options)


def takes(case: Case, use: Use) -> str:
    """The plan that `auto` takes of this backend, or "torch"."""
    plan = native.BACKEND.serves(case.geometry, torch.float32, HERE, use)
    assert not isinstance(plan, str)
    return plan.plan if plan.profitable else "torch"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["cnn-1", "cnn-2", "lenet5-1", "lenet5-2", "fast-1", "fast-2", "cifar-1", "cifar-2"])
def test_layers_of_small_networks_are_fused(name: str, threads: int) -> None:
    case = by_name(name).at_full_size()
    uses = (INFERENCE, FIRST, *([TRAINING] if case.in_channels > 3 else []))
    for use in uses:
        assert takes(case, use._replace(threads=threads)) == "fused"


@pytest.mark.parametrize("batch", [2, 8])
@pytest.mark.parametrize("size", [2, 4])
def test_weights_that_outweigh_the_maps_are_torchs_in_training(size: int, batch: int) -> None:
    """The last layers of a VGG on CIFAR: 18 ms by our gradients, 6 by torch's."""
    case = layer(batch, 512, size, 512, padding=1)
    for threads in (1, 2):
        assert takes(case, TRAINING._replace(threads=threads)) == "torch"


def test_threads_decide_where_each_fetches_all_weights() -> None:
    case = layer(8, 512, 2, 512, padding=1)
    assert takes(case, INFERENCE) == "fused"
    assert takes(case, INFERENCE._replace(threads=2)) != "fused"


def test_what_the_winners_save_decides_in_training() -> None:
    """A window of two conv outputs leaves half of the products, one of four a quarter."""
    half, quarter = (layer(16, 512, 24, 256, 1, pool_kernel_size=pool) for pool in ((2, 1), 2))
    assert takes(half, TRAINING) == "torch"
    assert takes(quarter, TRAINING) != "torch"


def test_many_products_are_torchs_and_their_pool_is_ours() -> None:
    assert takes(by_name("vgg-5").at_full_size(), INFERENCE) == "fused"  # by transforms
    assert takes(layer(4, 256, 28, 64, 5), TRAINING) == "split"


def test_the_smaller_one_of_x_and_conv_output_is_copied() -> None:
    few, many = layer(3, 512, 31, 32, 4), layer(3, 16, 31, 128, 3)
    assert [kernels.convolves_innermost(case.geometry) for case in (few, many)] == [False, True]
    assert eager.plan(few.geometry, torch.float32, HERE, INFERENCE) == eager.PLAIN
    assert eager.plan(many.geometry, torch.float32, HERE, INFERENCE) == eager.INNERMOST
    assert eager.plan(many.geometry, torch.float32, HERE, Use(channels_last=True)) == eager.PLAIN
    assert eager.plan(many.geometry, torch.float64, HERE, INFERENCE) == eager.PLAIN


def test_the_reason_names_the_use() -> None:
    case = layer(8, 512, 2, 512, padding=1)
    plan = native.BACKEND.serves(case.geometry, torch.float32, HERE, TRAINING._replace(threads=2))
    assert "times as long as torch's own layers in training on 2 threads" in str(plan)


def test_symbolic_sizes_are_hardly_compared() -> None:
    """A compiler makes a guard of each comparison: of the batch none may remain."""

    class Unknown(int):
        def __mul__(self, _: object) -> int:
            raise AssertionError("the batch was counted")

    geometry = by_name("cnn-1").geometry._replace(batch=Unknown(4))
    for use in (INFERENCE, TRAINING):
        plan = native.BACKEND.serves(geometry, torch.float32, HERE, use._replace(symbolic=True))
        assert not isinstance(plan, str)
        assert (plan.plan, plan.profitable) == ("fused", True)
    with pytest.raises(AssertionError):
        native.BACKEND.serves(geometry, torch.float32, HERE, TRAINING)


def test_counts() -> None:
    n = Counts.of(layer(2, 3, 6, 5, padding=1).geometry)
    assert (n.x, n.weights, n.z, n.y) == (2 * 3 * 36, 5 * 27, 2 * 5 * 36, 2 * 5 * 9)
    assert (n.products, n.live, n.thin) == (2 * 16 * 36 * 27, 2 * 5 * 9 * 27, 2 * 16 * 36)
