"""rope_arithmetic.h on the host: rounding bit for bit, cosines and sines, frequencies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cpp.plugin.kernel_libraries import EmulatedKernel, Rope
from reference.families.editverse import rope_angles

# Rounding of the reduced angle (2^-25 absolute), of the series and of the result.
ROTATION_TOLERANCE = 2.0**-23

ALL_16_BITS = np.arange(1 << 16, dtype=np.uint16)


def floats_around_16_bits(widened: np.ndarray) -> np.ndarray:
    """Every value of the short format, every midpoint of two, and their neighbours among the floats."""
    finite = np.unique(widened[np.isfinite(widened)])
    middles = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    exact = np.concatenate((finite, middles))
    limits = np.array(
        [0.0, -0.0, np.inf, -np.inf, 65519.996, 65520.0, 3.3961776e38, 1e-45, 2**-25], np.float32
    )
    return np.concatenate((exact, np.nextafter(exact, np.inf), np.nextafter(exact, -np.inf), limits)).astype(
        np.float32
    )


def test_fp16_is_widened_exactly(emulated_kernel: EmulatedKernel) -> None:
    widened = emulated_kernel.convert("float_from_fp16", ALL_16_BITS, np.float32)
    np.testing.assert_array_equal(widened, ALL_16_BITS.view(np.float16).astype(np.float32))


def test_bf16_is_widened_exactly(emulated_kernel: EmulatedKernel) -> None:
    widened = emulated_kernel.convert("float_from_bf16", ALL_16_BITS, np.float32)
    expected = torch.from_numpy(ALL_16_BITS.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(widened, expected)


def test_fp16_is_rounded_to_the_nearest_even(emulated_kernel: EmulatedKernel) -> None:
    values = floats_around_16_bits(ALL_16_BITS.view(np.float16).astype(np.float32))
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(emulated_kernel.convert("fp16_from_float", values, np.uint16), expected)


def test_bf16_is_rounded_to_the_nearest_even(emulated_kernel: EmulatedKernel) -> None:
    bfloat16 = torch.from_numpy(ALL_16_BITS.view(np.int16)).view(torch.bfloat16)
    values = floats_around_16_bits(bfloat16.float().numpy())
    expected = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(emulated_kernel.convert("bf16_from_float", values, np.uint16), expected)


@pytest.mark.parametrize("name", ["fp16_from_float", "bf16_from_float"])
def test_what_is_not_a_number_stays_so(emulated_kernel: EmulatedKernel, name: str) -> None:
    values = np.array([0x7F800001, 0x7FC00000, 0xFFC12345], np.uint32).view(np.float32)
    assert emulated_kernel.convert(name, values, np.uint16).tolist() == [0x7FFF] * 3


@settings(deadline=None, max_examples=200)
@given(angles=st.lists(st.floats(-(2.0**31), 2.0**31, width=32), min_size=1, max_size=50))
def test_rotations_equal_the_double_cosine_and_sine(
    emulated_kernel: EmulatedKernel, angles: list[float]
) -> None:
    values = np.array(angles, np.float32)
    cosines, sines = emulated_kernel.rotations_by(values)
    np.testing.assert_allclose(cosines, np.cos(values.astype(np.float64)), atol=ROTATION_TOLERANCE, rtol=0)
    np.testing.assert_allclose(sines, np.sin(values.astype(np.float64)), atol=ROTATION_TOLERANCE, rtol=0)


def test_rotations_around_every_eighth_of_a_turn(emulated_kernel: EmulatedKernel) -> None:
    """Where the quarter changes, and where cosine or sine are smallest."""
    eighths = (np.arange(-4000, 4001) * (np.pi / 4)).astype(np.float32)
    large = np.float32([1e5, 1e6, 1e7, 2**31, 2**40]) * np.float32([[1], [-1]])
    angles = np.concatenate(
        (eighths, np.nextafter(eighths, np.inf), np.nextafter(eighths, -np.inf), large.ravel())
    )
    angles = angles.astype(np.float32)
    cosines, sines = emulated_kernel.rotations_by(angles)
    np.testing.assert_allclose(cosines, np.cos(angles.astype(np.float64)), atol=ROTATION_TOLERANCE, rtol=0)
    np.testing.assert_allclose(sines, np.sin(angles.astype(np.float64)), atol=ROTATION_TOLERANCE, rtol=0)
    at_zero = emulated_kernel.rotations_by(np.zeros(1, np.float32))
    assert (at_zero[0][0], at_zero[1][0]) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("axis_dims", "axis_thetas"),
    [
        ((12, 4, 56, 56), (10000.0,) * 4),
        ((12, 8, 22, 22), (1000.0,) * 4),
        ((12, 4, 56, 56), (10000.0, 160000.0, 42000.5, 23456.789)),
        ((2, 2, 2, 26), (7.0, 1.0, 1e6, 10000.0)),
        ((0, 0, 0, 256), (10000.0,) * 4),
    ],
)
def test_frequencies_equal_the_reference(
    emulated_kernel: EmulatedKernel, axis_dims: Any, axis_thetas: Any
) -> None:
    frequencies, axes = emulated_kernel.frequencies_of(Rope(1, axis_dims, axis_thetas))
    # At position 1 the angle is the frequency. PyTorch's power may differ in the last place.
    expected = rope_angles(torch.ones(4, dtype=torch.int64), axis_dims, axis_thetas).numpy()
    np.testing.assert_allclose(frequencies, expected, rtol=2.0**-23)
    assert axes.tolist() == [axis for axis, dim in enumerate(axis_dims) for _ in range(dim // 2)]
