"""Small models that ask ONNX Runtime what it does on this machine: three sessions of one node each."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["free_idle_memory", "saturates_integers", "starts_provider"]

_CPU = "CPUExecutionProvider"
_FATAL_SEVERITY = 4
_FLOAT32, _UINT8, _INT8, _INT32 = 1, 2, 3, 6
"""Element types of ONNX."""


def starts_provider(ort: Any, provider: str) -> bool:
    """Whether a session of one node runs on the execution provider."""
    try:
        session = ort.InferenceSession(_identity_model(), _quiet_options(ort), providers=[provider])
        return provider in session.get_providers()
    except Exception:
        return False


def free_idle_memory(ort: Any, options: Any) -> None:
    """Give what the arena of `options` holds and nobody uses back to the system.

    options: SessionOptions of a session that takes its memory from that arena. ONNX Runtime frees idle memory
    after a run that asks for it, of any session of the arena.
    """
    session = ort.InferenceSession(_identity_model(), options, providers=[_CPU])
    run_options = ort.RunOptions()
    run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    session.run(None, {"x": np.zeros(1, np.float32)}, run_options)


def saturates_integers(ort: Any) -> bool:
    """Whether products of uint8 and int8 lose their high bits on this processor.

    On x86-64 with AVX2 but without VNNI, ONNX Runtime adds pairs of products in 16 bits, which saturate
    ("When and why do I need to try U8U8?" in its quantization guide). The session option
    session.x64quantprecision then gives exact sums. It is not set elsewhere: with AVX512-VNNI it makes the
    products slower (docs/machines.md).
    """
    rows, columns = np.full((4, 16), 255, np.uint8), np.full((16, 16), 127, np.int8)
    session = ort.InferenceSession(_integer_product_model(), _quiet_options(ort), providers=[_CPU])
    found = session.run(None, {"a": rows, "b": columns})[0]
    return bool((found != 255 * 127 * 16).any())


def _quiet_options(ort: Any) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = _FATAL_SEVERITY
    return options


def _identity_model() -> bytes:
    """An ONNX file of one Identity node, from x to y, float32 [1]."""
    node = b'\x0a\x01x\x12\x01y"\x08Identity'
    shape = b"\x12\x04\x0a\x02\x08\x01"
    return _model(node, [_value("x", _FLOAT32, shape)], _value("y", _FLOAT32, shape))


def _integer_product_model() -> bytes:
    """An ONNX file of one MatMulInteger node: a uint8 [M, K] times b int8 [K, N] is y int32 [M, N]."""
    node = b'\x0a\x01a\x0a\x01b\x12\x01y"\x0dMatMulInteger'
    return _model(node, [_value("a", _UINT8), _value("b", _INT8)], _value("y", _INT32))


# Protocol buffers by hand, so that the runtime needs no package `onnx`. Every length is below 128.


def _model(node: bytes, inputs: list[bytes], output: bytes) -> bytes:
    """A ModelProto (IR version 8, opset 13) of one NodeProto."""
    graph = _field(1, node) + b"\x12\x01g" + b"".join(_field(11, value) for value in inputs)
    graph += _field(12, output)
    return b"\x08\x08" + _field(7, graph) + b"B\x04\x0a\x00\x10\x0d"


def _value(name: str, element_type: int, shape: bytes = b"") -> bytes:
    """A ValueInfoProto of a tensor; shape is a field of its type, left out for any shape."""
    tensor = b"\x08" + bytes([element_type]) + shape
    return _field(1, name.encode()) + _field(2, _field(1, tensor))


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content
