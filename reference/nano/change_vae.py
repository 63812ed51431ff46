"""Give a training run another VAE, so that training goes on from what the transformer knows.

    python -m reference.nano.change_vae RUN VAE

The latents of the two VAEs are fitted to each other on the same clips, and the transformer's first and last layer
take the fitted maps up: what a linear map carries over need not be learnt again. The run begins anew, with new
optimisers and a new clock; its data are of the old VAE and must be made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from pathlib import Path

if not __package__:  # run as a file: `python reference/nano/change_vae.py`
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from reference.families.editverse import TransformerConfig
from reference.nano.dataset import PATCH_SIZE
from reference.nano.optim import Averaged
from reference.nano.train import NOT_STARTED, make_nano, make_optimizers, save_state
from reference.nano.train_vae import batch
from reference.vae import latent_statistics

SEED = 10
FITTED = ((1, 14), (5, 3), (9, 2)) * 16
"""(frames, clips) of the batches that the maps are fitted on."""
RIDGE = 0.003
"""Added to the mean squares of the latents, 0.09 on the average. Some directions hold next to nothing; undamped, a map
stretches them a thousandfold, and with them the noise that the transformer reads and the errors that it writes."""


@torch.no_grad()
def fit_latents(old: AutoencoderKLWan, new: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    """Matrices for rows of normalised latents, [z_new, z_old] and [z_old, z_new], by damped least squares."""
    rng = np.random.default_rng(SEED)
    rows: tuple[list[Tensor], list[Tensor]] = ([], [])
    for frames, count in FITTED:
        video = batch(rng, frames, count)
        for vae, found in zip((old, new), rows, strict=True):
            mean, std = latent_statistics(vae)
            latents = (vae.encode(video).latent_dist.mean - mean) / std
            found.append(latents.transpose(0, 1).flatten(1).T)
    of_old, of_new = (torch.cat(found).double() for found in rows)
    return fit_rows(of_new, of_old), fit_rows(of_old, of_new)


def fit_rows(given: Tensor, wanted: Tensor) -> Tensor:
    """The matrix float32 [n, m] that takes rows float64 [N, n] nearest to rows [N, m], damped by RIDGE."""
    squares = given.T @ given / len(given) + RIDGE * torch.eye(given.shape[1], dtype=given.dtype)
    return torch.linalg.solve(squares, given.T @ wanted / len(given)).float()


@torch.no_grad()
def change_vae(run: Path, folder: Path) -> None:
    """Rewrite RUN/state.pt for the latents of the VAE in a folder of diffusers, and put that VAE into RUN/vae.

    Raises FileExistsError where RUN still has data of the old VAE.
    """
    stale = [path.name for path in (run / "data", run / "validation.pt") if path.exists()]
    if stale:
        raise FileExistsError(
            f"{run} holds {' and '.join(stale)}, made by the VAE that it has; move them away"
        )
    new = AutoencoderKLWan.from_pretrained(folder).eval()
    to_old, to_new = fit_latents(AutoencoderKLWan.from_pretrained(run / "vae").eval(), new)
    state = torch.load(run / "state.pt")
    # Patches hold their channels slowest: each of the pixels in one is mapped alike.
    pixels = torch.eye(PATCH_SIZE * PATCH_SIZE)
    before = TransformerConfig.from_dict(state["config"])
    config = dataclasses.replace(before, patch_dim=len(to_old) * len(pixels))
    nano = make_nano({"config": config.to_dict()})
    averaged = dict(state["average"])
    for values in (state["model"], averaged):
        values["transformer.patch_in.weight"] = values["transformer.patch_in.weight"] @ torch.kron(
            to_old.T, pixels
        )
        values["transformer.patch_out.weight"] = (
            torch.kron(to_new.T, pixels) @ values["transformer.patch_out.weight"]
        )
    nano.load_state_dict(state["model"] | averaged)
    shutil.rmtree(run / "vae")
    new.save_pretrained(run / "vae")
    save_state(run / "state.pt", nano, make_optimizers(nano), Averaged(nano, 0.0), NOT_STARTED)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("vae", type=Path, help="a folder of diffusers")
    args = parser.parse_args()
    try:
        change_vae(args.run, args.vae)
    except FileExistsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
