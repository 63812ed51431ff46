"""Take a trained VAE over into one with more latent channels, so that training goes on with a wider one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor


@torch.no_grad()
def grow_latents(old: Mapping[str, Tensor], vae: AutoencoderKLWan) -> None:
    """Give a VAE the weights of one with as many latent channels or fewer; no picture changes at first.

    New channels are written by the encoder as loud as the old ones, and not read by the decoder's first layer yet:
    quiet ones stay unused. The 1x1 convolutions around the latents, hundreds of times smaller and larger than others
    after levelling, come back to the size at which the optimiser's steps fit them. ValueError where other shapes
    differ.
    """
    z_dim = len(old["post_quant_conv.bias"])
    more = len(vae.post_quant_conv.bias) - z_dim
    if more < 0:
        raise ValueError(
            f"the VAE to begin with has {z_dim} latent channels; expected {z_dim + more} at most"
        )
    own = torch.arange(z_dim)
    moments = torch.cat((own, own + z_dim + more))  # means, then the logarithms of variances
    wide = {name: value.clone() for name, value in vae.state_dict().items()}
    for name, value in old.items():
        around = wide[name]
        if name == "encoder.conv_out.weight":
            around.mul_(_row_size(value) / _row_size(around))
            around[moments] = value
        elif name == "encoder.conv_out.bias":
            around.zero_()[moments] = value
        elif name.startswith(("quant_conv.", "post_quant_conv.")):
            rows = moments if name.startswith("quant_conv.") else own
            if around.ndim > 1:
                around.copy_(_row_size(value[:z_dim]) * torch.eye(len(around)).view_as(around))
                around[rows.unsqueeze(1), rows] = value
            else:
                around.zero_()[rows] = value
        elif name == "decoder.conv_in.weight":
            around.zero_()[:, :z_dim] = value
        elif around.shape == value.shape:
            around.copy_(value)
        else:
            raise ValueError(f"{name} is {tuple(value.shape)}; expected {tuple(around.shape)}")
    loudness = _row_size(old["quant_conv.weight"][:z_dim])
    for part in ("quant_conv.weight", "quant_conv.bias"):
        wide[part][: z_dim + more] /= loudness
    wide["post_quant_conv.weight"] *= loudness
    vae.load_state_dict(wide)


def _row_size(weight: Tensor) -> float:
    """The mean length of a weight's rows [out, ...]."""
    return float(weight.flatten(1).norm(dim=1).mean())
