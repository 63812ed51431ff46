"""The small models that ask ONNX Runtime what it does here."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest

from editverse_rt.backends.ort_probes import (
    _integer_product_model,
    free_idle_memory,
    saturates_integers,
    starts_provider,
)


def test_the_cpu_starts() -> None:
    """On the CPU the probe's model must run, or the probe would refuse every GPU."""
    assert starts_provider(onnxruntime, "CPUExecutionProvider")
    assert not starts_provider(onnxruntime, "NoSuchExecutionProvider")


def test_idle_memory_is_freed_without_an_error() -> None:
    free_idle_memory(onnxruntime, onnxruntime.SessionOptions())


def test_the_product_of_the_probe_is_a_product_of_integers() -> None:
    session = onnxruntime.InferenceSession(_integer_product_model(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    # Sums of pairs below 2 * 100 * 50 fit 16 bits, so that they are exact on every processor.
    a, b = rng.integers(0, 100, (4, 16), np.uint8), rng.integers(-50, 50, (16, 16), np.int8)
    assert np.array_equal(session.run(None, {"a": a, "b": b})[0], a.astype(np.int32) @ b.astype(np.int32))


@pytest.mark.parametrize(("largest", "expected"), [(None, False), (32767, True)])
def test_a_product_whose_pairs_saturate_is_found(largest: int | None, expected: bool) -> None:
    """A stand-in adds pairs of products as vpmaddubsw does, in 16 bits, or exactly."""

    class Session:
        def __init__(self, *args: Any, **options: Any) -> None:
            pass

        def run(self, names: None, inputs: dict[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
            a, b = inputs["a"].astype(np.int32), inputs["b"].astype(np.int32)
            pairs = [a[:, k : k + 2] @ b[k : k + 2] for k in range(0, a.shape[1], 2)]
            return [sum(pair if largest is None else pair.clip(-largest - 1, largest) for pair in pairs)]

    class Ort:
        InferenceSession = Session
        SessionOptions = onnxruntime.SessionOptions

    assert saturates_integers(Ort) is expected
