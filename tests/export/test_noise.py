"""The noise graph against the integer oracle and the normal distribution."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from export.noise import NOISE_WORDS, build_noise_model
from reference.noise import normals_from_words, philox_words

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


def run(session: ort.InferenceSession, seed: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    feed = {"seed": np.array(seed, np.int64), "shape": np.array([rows, columns], np.int64)}
    noise, words = session.run(None, feed)
    return noise, words


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
