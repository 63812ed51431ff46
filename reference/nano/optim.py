"""Muon for matrices, Adam for the rest, in float32; and an average of the weights.

Muon (K. Jordan, 2024) replaces the momentum of a matrix by the nearest semi-orthogonal matrix, found with
five Newton-Schulz steps. torch.optim.Muon takes whole matrices, in bfloat16; these few lines take blocks of
rows, and share the work among workers.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from reference.nano.workers import has_fast_bfloat16

BLOCK_ROWS = 64
"""A matrix is orthogonalised in blocks of this many rows: a fifth of the work."""


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Push all singular values of each of [..., rows, columns], rows <= columns, towards 1.

    In bfloat16 where the device is faster in it: the singular values are only meant to be near 1.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if has_fast_bfloat16(matrices.device):
        x = x.bfloat16()
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.to(matrices.dtype)


def orthogonal_update(gradient: Tensor) -> Tensor:
    """The orthogonalised blocks of a gradient [out, ...], of its shape."""
    matrix = gradient.reshape(gradient.shape[0], -1)
    is_tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.mT if is_tall else matrix
    rows = BLOCK_ROWS if wide.shape[0] % BLOCK_ROWS == 0 else wide.shape[0]
    blocks = orthogonalize(wide.reshape(-1, rows, wide.shape[1])).reshape(wide.shape)
    return (blocks.mT if is_tall else blocks).reshape(gradient.shape)


def is_matrix(parameter: nn.Parameter) -> bool:
    """Whether a parameter of the VAE is one for Muon: biases, gains and the layer that gives pixels are not."""
    return parameter.ndim >= 2 and parameter.shape[0] > 4 and parameter.numel() > parameter.shape[0]


class Muon(torch.optim.Optimizer):
    """Muon on parameters of two and more dimensions (convolutions as [out, rest]), Nesterov momentum.

    Where torch.distributed has workers, whose gradients are equal by then, each makes its share of the
    updates and hands it to the others.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 0.02, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        workers, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            updates = []
            for index, parameter in enumerate(moved):
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(state["momentum"], group["momentum"])
                updates.append(
                    orthogonal_update(ahead) if index % workers == rank else torch.zeros_like(parameter)
                )
            if workers > 1:
                together = torch.cat([update.flatten() for update in updates])
                dist.all_reduce(together)
                parts = together.split([update.numel() for update in updates])
                updates = [part.view_as(update) for part, update in zip(parts, updates, strict=True)]
            for parameter, update in zip(moved, updates, strict=True):
                scale = max(1.0, parameter.shape[0] / parameter[0].numel()) ** 0.5
                parameter.add_(update, alpha=-group["lr"] * scale)


class Averaged:
    """An exponential moving average of a module's parameters."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Follow the module; early steps use a shorter memory so that the start is forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.named_parameters():
            self.values[name].lerp_(value, 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        for name, value in module.named_parameters():
            value.copy_(self.values[name])
