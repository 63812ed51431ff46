"""Kernel one through ctypes: its source emulated on the host, and the kernel itself on a GPU.

The tests and `accept.py` call both through here. The C side is tests/emulated_kernel.cpp and
tests/device_kernel.cpp.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["DeviceKernel", "EmulatedKernel", "EmulatedRun", "Rope", "emulation_command"]

DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
INPUTS = ("q", "k", "q_norm", "k_norm", "positions")
MESSAGE_BYTES = 512
PLUGIN = Path(__file__).parent


@dataclass(frozen=True)
class Rope:
    """The attributes of a RopeAttention node."""

    num_heads: int
    axis_dims: tuple[int, int, int, int]
    axis_thetas: tuple[float, float, float, float] = (10000.0,) * 4
    epsilon: float = 1e-6

    @property
    def head_dim(self) -> int:
        return sum(self.axis_dims)

    @property
    def inner(self) -> int:
        return self.num_heads * self.head_dim

    def axis_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.axis_dims, np.int32), np.array(self.axis_thetas, np.float32)


@dataclass(frozen=True)
class EmulatedRun:
    """What the emulated kernel wrote, and how often it touched each element of each tensor."""

    q: np.ndarray
    k: np.ndarray
    reads: dict[str, np.ndarray]
    writes: dict[str, np.ndarray]
    error: str


def address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def pointers(arrays: Sequence[np.ndarray | None]) -> Any:
    return (ctypes.c_void_p * len(arrays))(*(None if a is None else a.ctypes.data for a in arrays))


def _contiguous(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray | None]:
    """The inputs in the kernel's order; norms that are not given are null."""
    given = (inputs.get(name) if name.endswith("norm") else inputs[name] for name in INPUTS)
    return [None if array is None else np.ascontiguousarray(array) for array in given]


def emulation_command(compiler: str, library: Path) -> list[str]:
    """The command that compiles kernel one's source for the host."""
    tests = PLUGIN / "tests"
    sources = [str(tests / name) for name in ("emulated_kernel.cpp", "emulated_cuda.cpp")]
    # Contraction would be a rounding less than the device makes.
    options = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-fPIC", "-shared"]
    return [compiler, *options, f"-I{PLUGIN / 'src'}", f"-I{tests}", *sources, "-o", str(library)]


class EmulatedKernel:
    """Kernel one's own source, run lane by lane on the host (tests/emulated_cuda.h)."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))

    def normalize_and_rotate(self, rope: Rope, dtype: str, inputs: dict[str, np.ndarray]) -> EmulatedRun:
        """inputs: q, k [L, inner], q_norm, k_norm [head_dim] or neither, float32 or 16 bits; positions int64 [L, 4]."""
        arrays = _contiguous(inputs)
        outputs = [np.zeros(inputs[name].shape, inputs[name].dtype) for name in "qk"]
        counts = [np.zeros(0 if a is None else a.shape, np.uint32) for a in [*arrays, *outputs]]
        dims, thetas = rope.axis_arrays()
        error = ctypes.create_string_buffer(MESSAGE_BYTES)
        self.library.run_normalize_and_rotate(
            DTYPES[dtype], pointers(arrays), pointers(outputs), pointers(counts),
            ctypes.c_int64(len(outputs[0])), rope.num_heads, rope.head_dim, address(dims), address(thetas),
            ctypes.c_float(rope.epsilon), error, ctypes.c_size_t(MESSAGE_BYTES),
        )  # fmt: skip
        reads = dict(zip(INPUTS, counts, strict=False))
        writes = dict(zip("qk", counts[len(INPUTS) :], strict=True))
        return EmulatedRun(outputs[0], outputs[1], reads, writes, error.value.decode())

    def describe_packing(self, offsets: np.ndarray, inner: int) -> tuple[np.ndarray, np.ndarray, EmulatedRun]:
        """offsets int32 [S + 1] -> lengths [S], element offsets [S + 1], and what was touched."""
        lengths, elements = np.zeros(len(offsets) - 1, np.int32), np.zeros(len(offsets), np.int32)
        counts = [np.zeros(array.shape, np.uint32) for array in (offsets, lengths, elements)]
        error = ctypes.create_string_buffer(MESSAGE_BYTES)
        self.library.run_describe_packing(
            address(offsets), len(lengths), inner, address(lengths), address(elements), pointers(counts),
            error, ctypes.c_size_t(MESSAGE_BYTES),
        )  # fmt: skip
        writes = {"lengths": counts[1], "elements": counts[2]}
        run = EmulatedRun(lengths, elements, {"offsets": counts[0]}, writes, error.value.decode())
        return lengths, elements, run

    def run_broken_kernel(self, kind: int) -> str:
        error = ctypes.create_string_buffer(MESSAGE_BYTES)
        self.library.run_broken_kernel(kind, error, ctypes.c_size_t(MESSAGE_BYTES))
        return error.value.decode()

    def convert(self, name: str, values: np.ndarray, result_dtype: type) -> np.ndarray:
        """One of fp16_from_float, bf16_from_float, float_from_fp16, float_from_bf16."""
        result = np.empty(values.shape, result_dtype)
        getattr(self.library, name)(address(values), ctypes.c_size_t(values.size), address(result))
        return result

    def rotations_by(self, angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cosines, sines = np.empty_like(angles), np.empty_like(angles)
        count = ctypes.c_size_t(angles.size)
        self.library.rotations_by(address(angles), count, address(cosines), address(sines))
        return cosines, sines

    def frequencies_of(self, rope: Rope) -> tuple[np.ndarray, np.ndarray]:
        """Frequencies and axes of the head_dim / 2 pairs."""
        frequencies, axes = np.zeros(128, np.float32), np.zeros(128, np.uint8)
        dims, thetas = rope.axis_arrays()
        self.library.frequencies_of(address(dims), address(thetas), address(frequencies), address(axes))
        return frequencies[: rope.head_dim // 2], axes[: rope.head_dim // 2]

    def geometry_of(self, tokens: int, num_heads: int, head_dim: int) -> tuple[int, int, int]:
        """Blocks, warps a block, pairs a lane."""
        found = np.zeros(3, np.int64)
        self.library.geometry_of(ctypes.c_int64(tokens), num_heads, head_dim, address(found))
        blocks, warps, pairs = found.tolist()
        return blocks, warps, pairs


class DeviceKernel:
    """Kernel one on a GPU."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))

    def normalize_and_rotate(
        self, rope: Rope, dtype: str, inputs: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """q and k as 16 bits; inputs as the emulation takes. Raises RuntimeError with CUDA's message."""
        arrays = _contiguous(inputs)
        outputs = [np.zeros(inputs[name].shape, inputs[name].dtype) for name in "qk"]
        dims, thetas = rope.axis_arrays()
        error = ctypes.create_string_buffer(MESSAGE_BYTES)
        status = self.library.device_normalize_and_rotate(
            DTYPES[dtype], pointers(arrays), pointers(outputs), ctypes.c_int64(len(outputs[0])),
            rope.num_heads, rope.head_dim, address(dims), address(thetas), ctypes.c_float(rope.epsilon),
            error, ctypes.c_size_t(MESSAGE_BYTES),
        )  # fmt: skip
        if status != 0:
            raise RuntimeError(error.value.decode())
        return outputs[0], outputs[1]
