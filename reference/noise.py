"""The noise of a request in integers: Philox4x32-10 (Salmon et al., SC 2011), then Box-Muller in float64.

Ours; the paper only says x_0 ~ N(0, 1). A counter instead of a state makes value i depend on the seed and on
i alone, so that every host and device draws the same.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["draw_noise", "normals_from_words", "philox_words"]

WORD = 0xFFFFFFFF


def philox_words(seed: int, num_groups: int) -> np.ndarray:
    """Four random words for each group of four values, uint64 [num_groups, 4].

    The key is the seed (its low and high 32 bits), the counter the index of the group.
    """
    low = np.uint64(WORD)
    half = np.uint64(32)
    counter = np.arange(num_groups, dtype=np.uint64)
    c0, c1 = counter & low, counter >> half
    c2 = c3 = np.zeros_like(counter)
    k0, k1 = seed & WORD, (seed >> 32) & WORD
    for _ in range(10):
        # Products of two 32-bit words: 64 bits hold them.
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1 = (p1 >> half) ^ c1 ^ np.uint64(k0), p1 & low
        c2, c3 = (p0 >> half) ^ c3 ^ np.uint64(k1), p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return np.stack((c0, c1, c2, c3), axis=1)


def normals_from_words(words: np.ndarray) -> np.ndarray:
    """Box-Muller, float64 [4 * groups]: words 0 and 1 of a group give two values, words 2 and 3 two more."""
    uniform = ((words >> np.uint64(9)).astype(np.float64) + 0.5) / 2**23
    radius = np.sqrt(-2.0 * np.log(uniform[:, 0::2]))
    angle = 2.0 * np.pi * (uniform[:, 1::2] - 0.5)
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=2).reshape(-1)


def draw_noise(seed: int, num_rows: int, num_columns: int) -> Tensor:
    """The noise of a request: float32 [num_rows, num_columns], the same for the same seed."""
    total = num_rows * num_columns
    values = normals_from_words(philox_words(seed, -(-total // 4)))[:total]
    return torch.from_numpy(values.astype(np.float32)).reshape(num_rows, num_columns)
