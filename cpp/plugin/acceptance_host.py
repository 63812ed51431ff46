"""The section `emulation` of `accept.py`, which needs no GPU: kernel one's source on the host against ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from cpp.plugin.acceptance_cases import (
    NUMERICS,
    SPEED,
    Case,
    cases_and_dtypes,
    make_inputs,
    node_model,
    relative_error,
    run_onnx_runtime,
)
from cpp.plugin.acceptance_kernels import LONGEST, bits_of
from cpp.plugin.acceptance_report import Report
from cpp.plugin.kernel_libraries import EmulatedKernel

if TYPE_CHECKING:
    from cpp.plugin.accept import Libraries

# float32 against double, and one rounding to the short format (relative root mean square).
EMULATION_TOLERANCE = {"float16": 5e-4, "bfloat16": 4e-3}


def floats_of(bits: np.ndarray, dtype: str) -> np.ndarray:
    widened: np.ndarray = torch.from_numpy(bits.view(np.int16)).view(getattr(torch, dtype)).float().numpy()
    return widened


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, num_heads: int) -> np.ndarray:
    """Attention in double, head by head, from q and k as kernel one leaves them."""
    q, k, v = (x.astype(np.float64).reshape(len(x), num_heads, -1) for x in (q, k, v))
    mixed = np.empty_like(v)
    for head in range(num_heads):
        scores = q[:, head] @ k[:, head].T / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, head]
    return mixed.reshape(len(q), -1)


def check_emulation(kernel: EmulatedKernel, case: Case, dtype: str) -> tuple[bool, str]:
    inputs = make_inputs(case, dtype)
    run = kernel.normalize_and_rotate(case.rope, dtype, bits_of(inputs))
    turned = floats_of(run.q, dtype), floats_of(run.k, dtype)
    mixed = attend(*turned, inputs["v"].float().numpy(), case.rope.num_heads)
    error = relative_error(mixed, run_onnx_runtime(case, inputs))
    tolerance = EMULATION_TOLERANCE[dtype]
    found = run.error or f"relative error {error:.1e}, tolerance {tolerance:.0e}"
    return not run.error and error <= tolerance, found


def run(report: Report, libraries: Libraries) -> None:
    kernel = EmulatedKernel(libraries.emulation)
    for case, dtype in cases_and_dtypes(NUMERICS, LONGEST):
        label = f"{case.name}, {case.tokens} tokens, {dtype}"
        report.run("emulation", label, lambda c=case, d=dtype: check_emulation(kernel, c, d))
    # The graphs that TensorRT is given; making one checks it.
    for case, dtype in [*cases_and_dtypes(NUMERICS, 10**6), *cases_and_dtypes(SPEED, 10**6)]:
        node_model(case, dtype, "plugin")
