"""Weights of diffusers' Wan transformers, renamed and rearranged for this project's rows."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from reference.families.wan import WanConfig, WanTransformer
from reference.families.wan_vace import VaceTransformer
from reference.weights import assign_weights

__all__ = ["build_transformer", "weights_from_diffusers"]

# Pattern of a name in diffusers, and the name here. Applied one after the other.
_NAMES = [
    (r"^patch_embedding\.", "patch_in."),
    (r"^vace_patch_embedding\.", "control_in."),
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_in.up."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_in.down."),
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time.up."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time.down."),
    (r"^condition_embedder\.time_proj\.", "time_to_modulation."),
    (r"^scale_shift_table$", "out_modulation"),
    (r"^proj_out\.", "patch_out."),
    (r"^vace_blocks\.0\.proj_in\.", "control_enter."),
    (r"^vace_blocks\.(\d+)\.proj_out\.", r"control_leave.\1."),
    (r"^vace_blocks\.", "control_blocks."),
    (r"\.attn1\.", ".attention."),
    (r"\.attn2\.", ".cross."),
    (r"\.to_out\.0\.", ".to_out."),
    (r"\.norm_(q|k)\.weight$", r".\1_norm"),
    (r"\.norm2\.", ".cross_norm."),
    (r"\.ffn\.net\.0\.proj\.", ".mlp.up."),
    (r"\.ffn\.net\.2\.", ".mlp.down."),
    (r"\.scale_shift_table$", ".modulation"),
]


def weights_from_diffusers(weights: Mapping[str, Tensor], config: WanConfig) -> dict[str, Tensor]:
    """The state dict of `WanTransformer` or `VaceTransformer` from diffusers'. dtypes stay as they are.

    Only what is rearranged is copied: q and k of self-attention, and the last layer.
    """
    head = torch.cat((torch.arange(0, config.head_dim, 2), torch.arange(1, config.head_dim, 2)))
    # RoPE over interleaved pairs becomes RoPE over halves.
    halves = (torch.arange(config.num_heads)[:, None] * config.head_dim + head).flatten()
    # A patch is written as (row, column, z); rows here are (z, row, column).
    patch = torch.arange(config.patch_dim).reshape(-1, config.latent_channels).T.flatten()
    out: dict[str, Tensor] = {}
    for source, weight in weights.items():
        name = source
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        if re.search(r"\.attention\.(to_[qk]\.(weight|bias)|[qk]_norm)$", name):
            weight = weight[halves]
        elif name.startswith("patch_out."):
            weight = -weight[patch]
        elif name in ("patch_in.weight", "control_in.weight"):
            weight = weight.flatten(1)
        elif name.endswith("modulation"):
            weight = weight[0]
        out[name] = weight
    return out


def build_transformer(config: WanConfig, weights: Mapping[str, Tensor]) -> WanTransformer:
    """A transformer that holds diffusers' weights, in eval mode without gradients.

    Raises ValueError that names a weight which is missing, superfluous or of another shape.
    """
    with torch.device("meta"):
        model = VaceTransformer(config) if config.source == "control" else WanTransformer(config)
    assign_weights(model, weights_from_diffusers(weights, config))
    return model.eval().requires_grad_(False)
