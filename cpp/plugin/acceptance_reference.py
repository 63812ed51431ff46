"""The section `reference` of `accept.py`: the 2 B model of the reference on a GPU, seconds an evaluation."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import torch

from cpp.plugin.acceptance_report import Report
from reference.families.editverse import CONFIGS, EditVerseTransformer, TransformerConfig

if TYPE_CHECKING:
    from cpp.plugin.accept import Libraries

TOKENS = (2048, 21_504, 49_152, 110_822)
TEXT_TOKENS = 64


def make_network(config: TransformerConfig, device: str) -> EditVerseTransformer:
    """The network in bfloat16 with random weights."""
    torch.manual_seed(0)
    with torch.device(device):
        network = EditVerseTransformer(config).to(torch.bfloat16).eval().requires_grad_(False)
    with torch.no_grad():
        for weight in network.parameters():
            scale = 0.02 if weight.ndim > 1 else 0.1
            weight.copy_(torch.randn_like(weight) * scale + (weight.ndim == 1))
    return network


def make_inputs(config: TransformerConfig, tokens: int, device: str) -> tuple[torch.Tensor, ...]:
    """A text, a clip and the noisy segment that edits it: text, clean, noisy, layout, positions, timestep."""
    num_clean = (tokens - TEXT_TOKENS - 4) // 2
    num_noisy = tokens - TEXT_TOKENS - 4 - num_clean
    start = TEXT_TOKENS + num_clean + num_noisy
    rows = torch.arange(start)
    marks = torch.tensor([start, start + 1])
    layout = torch.cat(
        (rows[:TEXT_TOKENS], marks[:1], rows[TEXT_TOKENS : TEXT_TOKENS + num_clean], marks.flip(0),
         rows[TEXT_TOKENS + num_clean :], marks[1:])
    )  # fmt: skip
    index = torch.arange(tokens)
    positions = torch.stack((index // 5, index // 900, index // 30 % 30, index % 30), 1)
    values = (
        torch.randn(TEXT_TOKENS, config.text_dim),
        torch.randn(num_clean, config.patch_dim),
        torch.randn(num_noisy, config.patch_dim),
    )
    made = (
        *(value.to(torch.bfloat16) for value in values),
        layout,
        positions,
        torch.tensor(0.3).to(torch.bfloat16),
    )
    return tuple(value.to(device) for value in made)


def time_evaluation(
    network: EditVerseTransformer, inputs: tuple[torch.Tensor, ...], repeats: int
) -> list[float]:
    """Seconds of each evaluation after one to warm up. Raises RuntimeError where a result is not finite."""
    seconds = []
    with torch.no_grad():
        for _ in range(1 + repeats):
            begin = time.perf_counter()
            velocity = network(*inputs)
            if velocity.is_cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
            if not velocity.isfinite().all():
                raise RuntimeError("a velocity is not finite")
    return seconds[1:]


def run(report: Report, libraries: Libraries) -> None:
    config = CONFIGS["editverse-2b"]
    network = make_network(config, "cuda")
    title = f"editverse-2b in PyTorch {torch.__version__}, bfloat16, random weights, {torch.cuda.get_device_name()}"
    header = ("tokens", "seconds an evaluation", "least to largest", "peak GB")
    for tokens in TOKENS:
        try:
            torch.cuda.reset_peak_memory_stats()
            seconds = time_evaluation(
                network, make_inputs(config, tokens, "cuda"), 5 if tokens < 30_000 else 2
            )
        except RuntimeError as error:  # out of memory: the next length needs more
            report.add("reference", "FAILED", f"{tokens} tokens: {error}")
            return
        peak = torch.cuda.max_memory_allocated() / 1e9
        spread = f"{min(seconds):.3f} to {max(seconds):.3f}"
        report.add_row(title, header, (tokens, f"{statistics.median(seconds):.3f}", spread, f"{peak:.1f}"))
