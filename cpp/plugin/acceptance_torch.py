"""The section `attention` of `accept.py`: PyTorch's fused attentions, which the plugin has to be compared with."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from cpp.plugin.acceptance_report import Report

if TYPE_CHECKING:
    from cpp.plugin.accept import Libraries

NUM_HEADS, HEAD_DIM = 16, 128
TOKENS = (1024, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
BUDGET_S = 0.3
"""Of one cell of the table."""


def time_ms(run: Callable[[], Any]) -> float:
    """Median of as many runs as fit the budget, at least two, after one to warm up; by events of the device."""
    run()
    torch.cuda.synchronize()
    seconds: list[float] = []
    while len(seconds) < 2 or (sum(seconds) < BUDGET_S and len(seconds) < 50):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return 1e3 * statistics.median(seconds)


def time_attention(tokens: int, backend: SDPBackend) -> str:
    """Milliseconds and TFLOP/s of one attention in bfloat16, or why there are none."""
    shape = (1, NUM_HEADS, tokens, HEAD_DIM)
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3))

    def attend() -> torch.Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    try:
        milliseconds = time_ms(attend)
    except RuntimeError as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
    operations = 4 * tokens**2 * NUM_HEADS * HEAD_DIM
    return f"{milliseconds:.3f} ({operations / milliseconds / 1e9:.0f} TFLOP/s)"


def run(report: Report, libraries: Libraries) -> None:
    report.machine.append(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}")
    title = f"Attention in bfloat16, {NUM_HEADS} heads of {HEAD_DIM}, milliseconds"
    for tokens in TOKENS:
        row = tuple(time_attention(tokens, backend) for backend in BACKENDS.values())
        report.add_row(title, ("tokens", *BACKENDS), (tokens, *row))
