"""The noise graph: N(0, 1) from a counter, the same stream wherever ONNX runs.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns the seed and the
index of a group of four values into four random words; Box-Muller turns them into four normals. No state is
kept, so value i depends on the seed and on i alone: a longer request begins with the noise of a shorter one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["NOISE_WORDS", "build_noise_model"]

OPSET = 23
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF

# The tensor that holds the random words, uint64 [groups, 4]: what an integer oracle is compared with.
NOISE_WORDS = "words"


class _Nodes:
    """Collects nodes and constants; every call returns the name of a tensor."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.count = 0

    def constant(self, name: str, value: object, dtype: type[np.generic]) -> str:
        self.constants[name] = numpy_helper.from_array(np.array(value, dtype=dtype), name)
        return name

    def __call__(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        self.count += 1
        output = name or f"{op.lower()}_{self.count}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output

    def low_word(self, x: str) -> str:
        return self("BitwiseAnd", x, self.constant("word", WORD, np.uint64))

    def high_word(self, x: str) -> str:
        return self("BitShift", x, self.constant("bits_32", 32, np.uint64), direction="RIGHT")

    def product(self, x: str, multiplier: int) -> str:
        """The full 64-bit product of two 32-bit words.

        ONNX Runtime multiplies int64 but not uint64; the bits of a wrapped product are the same.
        """
        factor = self.constant(f"multiplier_{multiplier:08x}", multiplier, np.int64)
        signed = self("Mul", self("Cast", x, to=TensorProto.INT64), factor)
        return self("Cast", signed, to=TensorProto.UINT64)


def _add_philox(n: _Nodes, counter: str, seed: str) -> list[str]:
    """Ten rounds on the counter (group index, 0), the key being the seed: four words, uint64 [groups]."""
    zero = n("BitwiseXor", counter, counter)
    words = [n.low_word(counter), n.high_word(counter), zero, zero]
    keys = [n.low_word(seed), n.high_word(seed)]
    for index in range(ROUNDS):
        if index > 0:
            steps = [n.constant(f"key_step_{step:08x}", step, np.uint64) for step in KEY_STEPS]
            keys = [n.low_word(n("Add", key, step)) for key, step in zip(keys, steps, strict=True)]
        first = n.product(words[0], MULTIPLIERS[0])
        second = n.product(words[2], MULTIPLIERS[1])
        words = [
            n("BitwiseXor", n("BitwiseXor", n.high_word(second), words[1]), keys[0]),
            n.low_word(second),
            n("BitwiseXor", n("BitwiseXor", n.high_word(first), words[3]), keys[1]),
            n.low_word(first),
        ]
    return words


def _add_uniform(n: _Nodes, word: str) -> str:
    """The top 23 bits of a word -> float32 in (0, 1): (k + 0.5) / 2^23, which is exact in float32."""
    top = n("BitShift", word, n.constant("bits_9", 9, np.uint64), direction="RIGHT")
    as_float = n("Cast", n("Cast", top, to=TensorProto.INT64), to=TensorProto.FLOAT)
    centred = n("Add", as_float, n.constant("half", 0.5, np.float32))
    return n("Mul", centred, n.constant("step", 2.0**-23, np.float32))


def _add_normals(n: _Nodes, radius_word: str, angle_word: str) -> list[str]:
    """Box-Muller: two words -> two normals. The angle lies in (-pi, pi), where float32 is finest."""
    log = n("Log", _add_uniform(n, radius_word))
    radius = n("Sqrt", n("Mul", log, n.constant("minus_two", -2.0, np.float32)))
    turn = n("Sub", _add_uniform(n, angle_word), n.constant("half", 0.5, np.float32))
    angle = n("Mul", turn, n.constant("two_pi", 2.0 * math.pi, np.float32))
    return [n("Mul", radius, n(function, angle)) for function in ("Cos", "Sin")]


def build_noise_model() -> onnx.ModelProto:
    """The graph `noise`: seed int64 [], shape int64 [2] -> noise float32 [N, P], standard operators only.

    Words 0 and 1 of group i give values 4 i and 4 i + 1, words 2 and 3 the other two, row-major.
    """
    n = _Nodes()
    total = n("ReduceProd", "shape", keepdims=0)
    zero, one = n.constant("zero", 0, np.int64), n.constant("one", 1, np.int64)
    four = n.constant("four", 4, np.int64)
    groups = n("Div", n("Add", total, n.constant("three", 3, np.int64)), four)
    counter = n("Cast", n("Range", zero, groups, one), to=TensorProto.UINT64)
    words = _add_philox(n, counter, n("Cast", "seed", to=TensorProto.UINT64))
    axis = n.constant("axis_1", [1], np.int64)
    n("Concat", *[n("Unsqueeze", word, axis) for word in words], name=NOISE_WORDS, axis=1)
    normals = _add_normals(n, words[0], words[1]) + _add_normals(n, words[2], words[3])
    table = n("Concat", *[n("Unsqueeze", normal, axis) for normal in normals], axis=1)
    flat = n("Reshape", table, n.constant("flat", [-1], np.int64))
    end = n("Reshape", total, n.constant("vector", [1], np.int64))
    kept = n("Slice", flat, n.constant("start", [0], np.int64), end, n.constant("axis_0", [0], np.int64))
    n("Reshape", kept, "shape", name="noise", allowzero=1)
    graph = helper.make_graph(
        n.nodes,
        "noise",
        [
            helper.make_tensor_value_info("seed", TensorProto.INT64, []),
            helper.make_tensor_value_info("shape", TensorProto.INT64, [2]),
        ],
        [helper.make_tensor_value_info("noise", TensorProto.FLOAT, ["N", "P"])],
        list(n.constants.values()),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
