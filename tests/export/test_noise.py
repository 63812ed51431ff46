"""The noise graph against an integer oracle, the published test vectors and the normal distribution."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from export.noise import NOISE_WORDS, build_noise_model

# From the same integers, float32 here and float64 there: the angle and the logarithm differ by an ulp.
NORMAL_TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def session() -> ort.InferenceSession:
    """The noise graph with its random words as a second output."""
    model = build_noise_model()
    onnx.checker.check_model(model, full_check=True)
    words = onnx.helper.make_tensor_value_info(NOISE_WORDS, onnx.TensorProto.UINT64, ["G", 4])
    model.graph.output.append(words)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def philox_words(seed: int, num_groups: int) -> np.ndarray:
    """Philox4x32-10 in Python integers, uint64 [num_groups, 4]."""
    rows = []
    for group in range(num_groups):
        c0, c1, c2, c3 = group & 0xFFFFFFFF, group >> 32, 0, 0
        k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
        for _ in range(10):
            p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
            c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
            k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
        rows.append([c0, c1, c2, c3])
    return np.array(rows, dtype=np.uint64).reshape(num_groups, 4)


def normals_from_words(words: np.ndarray) -> np.ndarray:
    """Box-Muller in float64."""
    uniform = ((words >> np.uint64(9)).astype(np.float64) + 0.5) / 2**23
    radius = np.sqrt(-2.0 * np.log(uniform[:, 0::2]))
    angle = 2.0 * np.pi * (uniform[:, 1::2] - 0.5)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2).reshape(-1)


def run(session: ort.InferenceSession, seed: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    feed = {"seed": np.array(seed, np.int64), "shape": np.array([rows, columns], np.int64)}
    noise, words = session.run(None, feed)
    return noise, words


def test_the_oracle_gives_the_published_vector() -> None:
    # Random123's known-answer file: philox4x32 10, counter and key zero.
    assert [hex(int(word)) for word in philox_words(0, 1)[0]] == [
        "0x6627e8d5",
        "0xe169c58d",
        "0xbc57ac4c",
        "0x9b00dbd8",
    ]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(-(2**63), 2**63 - 1), rows=st.integers(0, 9), columns=st.integers(1, 67))
def test_words_and_normals_equal_the_oracle(
    session: ort.InferenceSession, seed: int, rows: int, columns: int
) -> None:
    noise, words = run(session, seed, rows, columns)
    expected_words = philox_words(seed, -(-rows * columns // 4))
    np.testing.assert_array_equal(words, expected_words)
    expected = normals_from_words(expected_words)[: rows * columns].reshape(rows, columns)
    assert noise.dtype == np.float32
    np.testing.assert_allclose(noise, expected, atol=NORMAL_TOLERANCE, rtol=0)


def test_a_longer_request_begins_with_the_noise_of_a_shorter_one(session: ort.InferenceSession) -> None:
    short, _ = run(session, 7, 5, 64)
    long, _ = run(session, 7, 50, 64)
    np.testing.assert_array_equal(long[:5], short)


def test_values_are_standard_normal_and_independent(session: ort.InferenceSession) -> None:
    noise, _ = run(session, 1, 4096, 64)
    other, _ = run(session, 2, 4096, 64)
    assert stats.kstest(noise.reshape(-1), "norm").pvalue > 0.01
    assert abs(np.corrcoef(noise.reshape(-1), other.reshape(-1))[0, 1]) < 0.01
    assert np.abs(np.corrcoef(noise.reshape(-1, 4).T) - np.eye(4)).max() < 0.01
