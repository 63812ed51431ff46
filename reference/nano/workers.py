"""One training process a core: each has its own samples, the gradients are averaged.

Products of nano's sizes gain well below twice from a second thread (1.4 times was measured), so a core is a
worker of its own. Linear layers and convolutions compute in bfloat16 where the CPU has instructions for it
(measured on such a CPU: 4.5 times the float32 products a second); weights, norms, losses and optimisers stay
in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes


def start_workers(work: Callable[[int, argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Run work(rank, args) in `args.workers` processes, which meet at a file in `args.run`; wait for them."""
    args.meeting = args.run / "workers"
    args.meeting.unlink(missing_ok=True)
    start_processes(work, (args,), nprocs=args.workers, start_method="spawn")


def join_workers(rank: int, args: argparse.Namespace) -> None:
    """Called first in each worker: one thread, and the group that the gradients are averaged in.

    Attention is left to plain products: at nano's lengths the fused kernel's backward takes much longer.
    """
    torch.set_num_threads(1)
    torch.backends.cuda.enable_flash_sdp(False)
    dist.init_process_group(
        "gloo", init_method=f"file://{args.meeting.absolute()}", rank=rank, world_size=args.workers
    )


def average_gradients(parameters: Iterable[nn.Parameter], facts: Tensor) -> Tensor:
    """Average the gradients in place, and add facts [n] up over the workers."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    together = torch.cat([g.flatten() for g in gradients] + [facts])
    dist.all_reduce(together)
    start = 0
    for gradient in gradients:
        total = together[start : start + gradient.numel()]
        gradient.copy_(total.view_as(gradient) / dist.get_world_size())
        start += gradient.numel()
    return together[start:]


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16 faster than in float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
