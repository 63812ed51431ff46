"""The noise oracle against the published vectors, and against Philox in Python's unbounded integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.noise import draw_noise, normals_from_words, philox_words


def philox_in_python(counter: list[int], key: list[int]) -> list[int]:
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


# The known-answer vectors of Random123, philox4x32 with 10 rounds.
VECTORS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), VECTORS)
def test_the_rounds_give_the_published_vectors(counter: list[int], key: list[int], words: list[int]) -> None:
    assert philox_in_python(counter, key) == words


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), num_groups=st.integers(0, 20))
def test_words_equal_those_of_unbounded_integers(seed: int, num_groups: int) -> None:
    key = [seed & 0xFFFFFFFF, seed >> 32]
    expected = [philox_in_python([group, 0, 0, 0], key) for group in range(num_groups)]
    words = philox_words(seed, num_groups)
    np.testing.assert_array_equal(words, np.array(expected, np.uint64).reshape(-1, 4))


def test_normals_follow_from_the_words() -> None:
    quarter, most = 1 << 30, 0xFFFFFFFF
    values = normals_from_words(np.array([[most, quarter, quarter, 0]], np.uint64))
    # A radius word of all ones is a radius next to 0; an angle word of a quarter is an angle of -pi / 2.
    assert np.abs(values[:2]).max() < 1e-3
    radius = np.sqrt(-2 * np.log(0.25 + 0.5 / 2**23))
    np.testing.assert_allclose(values[2:], [-radius, 0], atol=1e-5)


def test_noise_is_cut_to_the_rows_and_columns_asked_for() -> None:
    noise = draw_noise(3, 5, 7)
    assert noise.shape == (5, 7)
    assert noise.dtype == torch.float32
    assert torch.equal(draw_noise(3, 3, 7), noise[:3])
