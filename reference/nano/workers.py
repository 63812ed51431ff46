"""One training process a core or a GPU: each has its own samples, the gradients are averaged.

Products of nano's sizes gain well below twice from a second thread (1.4 times was measured), so a core is a
worker of its own. Linear layers and convolutions compute in bfloat16 on a GPU, and where the CPU has instructions
for it (measured on such a CPU: 4.5 times the float32 products a second); weights, norms, losses and optimisers stay
in float32.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

CPU = torch.device("cpu")


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    """`--device` and `--workers`."""
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu",
        help="(default: %(default)s, by what is here)",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, help="(default: one a GPU, or one a core)")


def start_workers(work: Callable[[int, argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Run work(rank, args) in `args.workers` processes, which meet at a file in `args.run`; wait for them.

    Raises ValueError for more workers than there are GPUs.
    """
    is_cuda = args.device == "cuda"
    places = torch.cuda.device_count() if is_cuda else os.cpu_count() or 1
    args.workers = args.workers or places
    if is_cuda and args.workers > places:
        raise ValueError(f"--workers {args.workers}; expected one for each of the {places} GPUs here at most")
    args.meeting = args.run / "workers"
    args.meeting.unlink(missing_ok=True)
    start_processes(work, (args,), nprocs=args.workers, start_method="spawn")


def join_workers(rank: int, args: argparse.Namespace) -> torch.device:
    """Called first in each worker: one thread, and the group that the gradients are averaged in; its device.

    On a CPU attention is left to plain products: at nano's lengths the fused kernel's backward takes much longer.
    """
    torch.set_num_threads(1)
    device = CPU if args.device == "cpu" else torch.device(args.device, rank)
    if device == CPU:
        torch.backends.cuda.enable_flash_sdp(False)
    else:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "gloo" if device == CPU else "nccl",
        init_method=f"file://{args.meeting.absolute()}",
        rank=rank,
        world_size=args.workers,
    )
    return device


def average_gradients(parameters: Iterable[nn.Parameter], facts: Tensor) -> Tensor:
    """Average the gradients in place, and add facts [n], on any device, up over the workers; the sums on the CPU."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    together = torch.cat([g.flatten() for g in gradients] + [facts.to(gradients[0].device)])
    dist.all_reduce(together)
    start = 0
    for gradient in gradients:
        total = together[start : start + gradient.numel()]
        gradient.copy_(total.view_as(gradient) / dist.get_world_size())
        start += gradient.numel()
    return together[start:].cpu()


def has_fast_bfloat16(device: torch.device = CPU) -> bool:
    """Whether a device multiplies in bfloat16 faster than in float32: every GPU since Ampere, some CPUs."""
    return device.type != "cpu" or bool(
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def in_bfloat16(device: torch.device = CPU, *, enabled: bool = True) -> torch.autocast:
    """A context in which linear layers and convolutions compute in bfloat16, where that is faster."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and has_fast_bfloat16(device))
