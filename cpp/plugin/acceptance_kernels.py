"""The section `bits` of `accept.py`: kernel one on the GPU beside its own source on the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from cpp.plugin.acceptance_cases import NUMERICS, Case, cases_and_dtypes, make_inputs
from cpp.plugin.acceptance_report import Report
from cpp.plugin.kernel_libraries import DeviceKernel, EmulatedKernel

if TYPE_CHECKING:
    from cpp.plugin.accept import Libraries

LONGEST = 700
"""Tokens: the emulation runs every lane of every warp on the host."""


def bits_of(inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {
        name: value.numpy() if name == "positions" else value.view(torch.int16).numpy().view(np.uint16)
        for name, value in inputs.items()
    }


def check_bits(device: DeviceKernel, kernel: EmulatedKernel, case: Case, dtype: str) -> tuple[bool, str]:
    inputs = bits_of(make_inputs(case, dtype))
    expected = kernel.normalize_and_rotate(case.rope, dtype, inputs)
    q, k = device.normalize_and_rotate(case.rope, dtype, inputs)
    different = int((q != expected.q).sum() + (k != expected.k).sum())
    return different == 0, f"{different} of {q.size + k.size} values differ"


def run(report: Report, libraries: Libraries) -> None:
    kernel, device = EmulatedKernel(libraries.emulation), DeviceKernel(libraries.device_kernel)
    for case, dtype in cases_and_dtypes(NUMERICS, LONGEST):
        label = f"{case.name}, {case.tokens} tokens, {dtype}"
        report.run("bits", label, lambda c=case, d=dtype: check_bits(device, kernel, c, d))
