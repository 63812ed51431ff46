"""Widen the feed-forward layers of a training run, so that training goes on with a larger network.

    python -m reference.nano.grow RUN --mlp-width 704

The new units write nothing at first, so the network computes exactly what it did (Net2Net, Chen et al.,
2016); the optimisers' memory is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

if not __package__:  # run as a file: `python reference/nano/grow.py`
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch import Tensor

from reference.families.editverse import TransformerConfig
from reference.nano.optim import Averaged
from reference.nano.train import make_nano, make_optimizers, save_state

SEED = 5


def grow(run: Path, mlp_width: int) -> None:
    """Rewrite RUN/state.pt with `mlp_width` hidden units; ValueError when that is no growth."""
    path = run / "state.pt"
    old = torch.load(path)
    config = TransformerConfig.from_dict(old["config"])
    if mlp_width <= config.mlp_width:
        raise ValueError(
            f"the feed-forward layers have {config.mlp_width} units; expected --mlp-width to be more, "
            f"not {mlp_width}"
        )
    config = dataclasses.replace(config, mlp_width=mlp_width)
    torch.manual_seed(SEED)
    fresh = make_nano({"config": config.to_dict()})
    initial = {name: value.detach().clone() for name, value in fresh.named_parameters()}
    fresh.load_state_dict({name: _placed(value, initial.get(name)) for name, value in old["model"].items()})
    average = Averaged(fresh, 0.0)
    average.values = {name: _placed(value, initial[name]) for name, value in old["average"].items()}
    optimizers = make_optimizers(fresh)
    for optimizer, saved in zip(optimizers, old["optimizers"], strict=True):
        _grow_moments(optimizer, saved)
        optimizer.load_state_dict(saved)
    save_state(path, fresh, optimizers, average, old["progress"])


def _placed(value: Tensor, around: Tensor | None) -> Tensor:
    """A value in the corner of a larger tensor: new rows stay as they were drawn, new columns are zeros."""
    if around is None or around.shape == value.shape:
        return value
    larger = around.clone()
    larger[: value.shape[0], value.shape[1] :] = 0
    larger[: value.shape[0], : value.shape[1]] = value
    return larger


def _grow_moments(optimizer: torch.optim.Optimizer, saved: dict[str, dict[int, dict[str, Tensor]]]) -> None:
    """Pad an optimiser's saved moments with zeros to the shapes of its parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, moments in saved["state"].items():
        for name, value in moments.items():
            if value.ndim == 2:
                moments[name] = _placed(value, torch.zeros_like(parameters[index]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--mlp-width", type=int, required=True)
    args = parser.parse_args()
    grow(args.run, args.mlp_width)


if __name__ == "__main__":
    main()
