"""Give a training run a wider network, or other feed-forward layers, so that training goes on with it.

    python -m reference.nano.grow RUN --width 384 --mlp-width 512

Nothing is written into the new channels and by the new units at first, so the network computes what it did (Net2Net,
Chen et al., 2016); what reads is drawn at the size that trained weights have, without which it would hardly learn.
Units that write next to nothing are drawn anew as well, and where the feed-forward layers become narrower, the
weakest go. The optimisers' memory is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path

if not __package__:  # run as a file: `python reference/nano/grow.py`
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch import Tensor

from reference.families.editverse import TransformerConfig
from reference.nano.optim import Averaged
from reference.nano.train import Nano, make_nano, make_optimizers, save_state

SEED = 5
READERS = ("to_q.weight", "to_k.weight", "to_v.weight", "gate.weight", "up.weight", "patch_out.weight")
"""What reads the stream is drawn where it is new, so that what begins to be written is learnt from."""
DEAD = 1e-3
"""A unit is dead whose weights' norms have a product below this share of the strongest unit's."""
NORMS = ("attention_norm.weight", "mlp_norm.weight", "out_norm.weight")


def grow(run: Path, *, width: int | None = None, mlp_width: int | None = None) -> None:
    """Rewrite RUN/state.pt with `width` channels of the stream and `mlp_width` hidden units; None leaves a size.

    Raises ValueError for fewer channels than there are, and where both sizes are as they were.
    """
    path = run / "state.pt"
    old = torch.load(path)
    before = TransformerConfig.from_dict(old["config"])
    config = dataclasses.replace(before, width=width or before.width, mlp_width=mlp_width or before.mlp_width)
    if config == before or config.width < before.width:
        raise ValueError(
            f"--width {config.width} --mlp-width {config.mlp_width}; the network has {before.width} channels and "
            f"{before.mlp_width} hidden units; expected no fewer channels, and one size that differs"
        )
    torch.manual_seed(SEED)
    fresh = make_nano({"config": config.to_dict()})
    # Drawn once: the averaged weights have to read what the weights read.
    noise = {name: torch.randn_like(value) for name, value in fresh.named_parameters()}
    kept = {
        f"transformer.blocks.{block}.mlp.": _strongest_units(old["average"], block, config.mlp_width)
        for block in range(config.num_blocks)
    }
    quieter = (before.width / config.width) ** 0.5  # the new channels are in a norm's mean, and hold nothing

    def resized(name: str, value: Tensor, *, is_weight: bool = True) -> Tensor:
        value = _select(name, value, kept)
        if name not in noise or value.ndim == 0 or noise[name].shape == value.shape:
            return value
        if name.endswith("time_to_modulation.weight"):
            parts = value.unflatten(0, (6, -1))
            return _placed(parts, torch.zeros(6, config.width, parts.shape[-1])).flatten(0, 1)
        is_reader = is_weight and (name.endswith(READERS) or name.startswith("fact_heads."))
        size = value.square().mean().sqrt() if is_reader else 0.0
        larger = _placed(value, size * noise[name])
        if is_weight and name.endswith(NORMS):
            larger[before.width :] = 1
            larger *= quieter
        return larger

    fresh.load_state_dict({name: resized(name, value) for name, value in old["model"].items()})
    average = Averaged(fresh, 0.0)
    average.values = {name: resized(name, value) for name, value in old["average"].items()}
    optimizers = make_optimizers(fresh)
    for optimizer, saved in zip(optimizers, old["optimizers"], strict=True):
        for index, name in enumerate(_names_of(optimizer, fresh)):
            moments = saved["state"].get(index, {})
            for kind, value in moments.items():
                moments[kind] = resized(name, value, is_weight=False)
        optimizer.load_state_dict(saved)
    save_state(path, fresh, optimizers, average, old["progress"])


def _strongest_units(weights: Mapping[str, Tensor], block: int, count: int) -> Tensor:
    """Which hidden units of a block stay, in order: of those that live, the ones that write most."""
    mlp = f"transformer.blocks.{block}.mlp."
    norms = [weights[mlp + "gate.weight"].norm(dim=1), weights[mlp + "up.weight"].norm(dim=1)]
    strength = norms[0] * norms[1] * weights[mlp + "down.weight"].norm(dim=0)
    living = int((strength > DEAD * strength.max()).sum())
    return strength.topk(min(count, living)).indices.sort().values


def _select(name: str, value: Tensor, kept: Mapping[str, Tensor]) -> Tensor:
    """The kept units' part of a feed-forward layer's matrix, or of a moment of it; anything else as it is."""
    for mlp, units in kept.items():
        if name.startswith(mlp) and value.ndim == 2:
            return value[:, units] if name.endswith("down.weight") else value[units]
    return value


def _placed(value: Tensor, around: Tensor) -> Tensor:
    """A value in the corner of a larger tensor."""
    larger = around.clone()
    larger[tuple(slice(size) for size in value.shape)] = value
    return larger


def _names_of(optimizer: torch.optim.Optimizer, model: Nano) -> list[str]:
    """The names of an optimiser's parameters, in its order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--width", type=int, help="channels of the stream")
    parser.add_argument("--mlp-width", type=int, help="hidden units of each feed-forward layer")
    args = parser.parse_args()
    try:
        grow(args.run, width=args.width, mlp_width=args.mlp_width)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
