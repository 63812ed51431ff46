"""Take a trained VAE over into one of another shape, so that training goes on with that one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor


@torch.no_grad()
def carry_over(old: Mapping[str, Tensor], vae: AutoencoderKLWan) -> None:
    """Give a VAE the weights of one with other widths, and with as many latent channels or fewer.

    With the same widths no picture changes at first. New latent channels are written by the encoder as loud as the
    old ones, and not read by the decoder's first layer yet: quiet ones stay unused. The 1x1 convolutions around the
    latents, hundreds of times smaller and larger than others after levelling, come back to the size at which the
    optimiser's steps fit them.

    Of other widths the first channels are taken over, new ones are as loud as the old ones, and the old ones do not
    read them yet; training has to mend what is missing. ValueError for fewer latent channels or other layers.
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
    lost = sorted(name for name in old.keys() - wide.keys() if ".conv_shortcut." not in name)
    if lost:
        raise ValueError(f"the VAE to begin with has {lost[0]}; expected the same layers")
    for name, around in wide.items():
        value = old.get(name)
        if value is None and ".conv_shortcut." in name:  # where two widths have become unlike
            around.copy_(torch.eye(*around.shape[:2]).view_as(around) if around.ndim > 1 else 0)
        elif value is None:
            raise ValueError(f"the VAE to begin with has no {name}; expected the same layers")
        elif name.startswith(("quant_conv.", "post_quant_conv.")):
            rows = moments if name.startswith("quant_conv.") else own
            if around.ndim > 1:
                around.copy_(_row_size(value[:z_dim]) * torch.eye(len(around)).view_as(around))
                around[rows.unsqueeze(1), rows] = value
            else:
                around.zero_()[rows] = value
        elif name.startswith("encoder.conv_out."):
            _put_rows(around, moments, value)
        else:
            parts = 3 if ".to_qkv." in name else 2 if ".upsamplers.0.time_conv." in name else 1
            taken, kept = (
                _first_rows(layer, min(len(around), len(value)), parts) for layer in (value, around)
            )
            _put_rows(around, kept, value[taken])
    loudness = _row_size(old["quant_conv.weight"][:z_dim])
    for part in ("quant_conv.weight", "quant_conv.bias"):
        wide[part][: z_dim + more] /= loudness
    wide["post_quant_conv.weight"] *= loudness
    vae.load_state_dict(wide)


def _first_rows(layer: Tensor, count: int, parts: int) -> Tensor:
    """`count` rows of a layer whose rows are so many equal parts: the first ones of each part."""
    own = torch.arange(count // parts)
    return torch.cat([own + part * (len(layer) // parts) for part in range(parts)])


def _put_rows(around: Tensor, rows: Tensor, value: Tensor) -> None:
    """Put weights, or as many of their columns as fit, into rows of a fresh layer; its other rows become as loud."""
    if value.ndim == 1:
        around.zero_()[rows] = value
        return
    columns = min(value.shape[1], around.shape[1])
    if columns > 1:  # a norm's gains are [C, 1, ...]
        around.mul_(_row_size(value) / _row_size(around))
        around[rows] = 0
    around[rows, :columns] = value[:, :columns]


def _row_size(weight: Tensor) -> float:
    """The mean length of a weight's rows [out, ...]."""
    return float(weight.flatten(1).norm(dim=1).mean())
