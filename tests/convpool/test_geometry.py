"""Sizes against torch's, and refusals that name the argument, its value and what is allowed."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convpool import eager
from convpool.geometry import Geometry, has_empty_windows, make_settings, pooled_size
from convpool.testing import cases

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
small = st.tuples(st.integers(0, 2), st.integers(0, 2))


def test_the_table_has_no_name_twice() -> None:
    names = [case.name for case in cases.CASES]
    assert len(names) >= 60
    assert len(names) == len(set(names))


@pytest.mark.parametrize("case", cases.CASES, ids=str)
def test_sizes_of_the_table(case) -> None:
    x, weight = torch.empty(case.x_shape, device="meta"), torch.empty(case.weight_shape, device="meta")
    z = eager.conv(x, weight, None, case.settings)
    assert z.shape[2:] == (case.geometry.conv_height, case.geometry.conv_width)
    assert eager.pool(z, case.settings).shape == case.geometry.output_shape
    assert case.at_full_size().geometry.reduction == case.geometry.reduction


@given(pairs, pairs, small, pairs, pairs, pairs, small, pairs, st.booleans(), st.integers(4, 13), st.integers(4, 13))
@settings(max_examples=300, deadline=None)
def test_sizes_and_refusals_are_torchs(
    kernel, stride, padding, dilation, window, pool_stride, pool_padding, pool_dilation, ceil_mode, height, width
) -> None:
    """Whatever torch computes has torch's size; whatever torch refuses is refused."""
    x, weight = torch.empty(1, 1, height, width), torch.empty(1, 1, *kernel)
    options = make_settings(
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        pool_kernel_size=window,
        pool_stride=pool_stride,
        pool_padding=pool_padding,
        pool_dilation=pool_dilation,
        ceil_mode=ceil_mode,
    )
    try:
        expected = eager.relu_then_pool(x, weight, None, options).shape
    except RuntimeError:
        with pytest.raises(ValueError):
            Geometry.of(tuple(x.shape), tuple(weight.shape), options)
    else:
        assert Geometry.of(tuple(x.shape), tuple(weight.shape), options).output_shape == expected


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"stride": 1.5}, TypeError, r"stride must be an int, got 1\.5"),
        ({"stride": (1, 2, 3)}, ValueError, r"stride must be an int or a pair of ints, got \(1, 2, 3\)"),
        ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
        ({"padding": "full"}, ValueError, "padding must be .*'same' or 'valid', got 'full'"),
        ({"padding": "same", "stride": 2}, ValueError, r"padding='same' needs stride 1, got stride=\(2, 2\)"),
        ({"dilation": 0}, ValueError, "dilation must be at least 1, got 0"),
        ({"groups": 0}, ValueError, "groups must be at least 1, got 0"),
        ({"groups": True}, TypeError, "groups must be an int, got True"),
        ({"ceil_mode": "no"}, TypeError, "ceil_mode must be True or False, got 'no'"),
        ({"contiguous_output": 1}, TypeError, "contiguous_output must be True or False, got 1"),
        ({"pool_kernel_size": 0}, ValueError, "pool_kernel_size must be at least 1, got 0"),
        ({"pool_stride": (2, 0)}, ValueError, "pool_stride must be at least 1, got 0"),
        ({"pool_padding": -1}, ValueError, "pool_padding must be at least 0, got -1"),
        ({"pool_dilation": 0}, ValueError, "pool_dilation must be at least 1, got 0"),
    ],
)
def test_settings_that_nothing_fits(options, error, words) -> None:
    with pytest.raises(error, match=words):
        make_settings((3, 3), **options)


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "options", "words"),
    [
        ((1, 3, 8, 8), (4, 2, 3, 3), {}, "x has 3 channels, but weight takes 2"),
        ((1, 4, 8, 8), (3, 2, 3, 3), {"groups": 2}, "groups must divide the 3 output channels of weight, got groups=2"),
        ((1, 3, 8, 8), (0, 3, 3, 3), {}, "weight must not be empty"),
        ((1, 3, 2, 8), (4, 3, 3, 3), {}, "weight of height 3 .* does not fit x of height 2"),
        ((1, 3, 8, 4), (4, 3, 3, 3), {"dilation": 2}, r"weight of width 3 \(dilation 2, so 5 positions\).* width 4"),
        ((1, 3, 8, 8), (4, 3, 3, 3), {"pool_kernel_size": 7}, "pool window of height 7 is larger than .* height 6"),
        ((1, 3, 8, 8), (4, 3, 3, 3), {"pool_padding": 2}, "pool_padding must be at most half .* height 2, got 2"),
    ],
)
def test_shapes_that_do_not_fit(x_shape, weight_shape, options, words) -> None:
    with pytest.raises(ValueError, match=words):
        Geometry.of(x_shape, weight_shape, make_settings(tuple(weight_shape[2:]), **options))


def test_empty_windows_are_those_that_hold_nothing() -> None:
    """Each window counted out, over all that torch accepts of these."""
    empty = full_though_dilated_beyond = 0
    ranges = (range(1, 6), range(1, 4), range(1, 6), range(1, 5), (False, True))
    for window, stride, dilation, size, ceil_mode in itertools.product(*ranges):
        for padding in range(window // 2 + 1):
            call = make_settings(
                (1, 1),
                pool_kernel_size=(1, window),
                pool_stride=(1, stride),
                pool_padding=(0, padding),
                pool_dilation=(1, dilation),
                ceil_mode=ceil_mode,
            )
            try:
                _, pooled = pooled_size(call, (3, size))
            except ValueError:
                continue
            held = [sum(0 <= i * stride - padding + a * dilation < size for a in range(window)) for i in range(pooled)]
            assert has_empty_windows(call, (3, size)) == (0 in held), (call, size)
            empty += 0 in held
            full_though_dilated_beyond += 0 not in held and padding > 0 and dilation > size
    assert empty > 30
    assert full_though_dilated_beyond
