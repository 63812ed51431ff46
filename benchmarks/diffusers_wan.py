"""Wan's transformer as diffusers runs it, behind the rows of this project's graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from safetensors.torch import load_file
from torch import Tensor, nn

from reference.vae import latents_from_patches, patches_from_latents

__all__ = ["DiffusersTransformer"]

_MAX_TEXT = 512
_TRAIN_STEPS = 1000


class DiffusersTransformer(nn.Module):
    """The class of diffusers for a grid without clean rows; inputs and output as the graph `transformer` has them.

    folder: the part `transformer` of a checkpoint. Its weights are read as diffusers reads them with accelerate:
    into a model that holds none yet. ValueError for a model of another class.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if facts.get("_class_name", WanTransformer3DModel.__name__) != WanTransformer3DModel.__name__:
            raise ValueError(f"{folder} holds a {facts['_class_name']}; expected a WanTransformer3DModel")
        with torch.device("meta"):
            model = WanTransformer3DModel.from_config(facts)
        model.rope = WanRotaryPosEmbed(model.config.attention_head_dim, model.config.patch_size, 1024)
        weights: dict[str, Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            weights |= load_file(path)
        model.load_state_dict(weights, assign=True)
        self.model = model.eval()

    def forward(
        self, text: Tensor, clean: Tensor, noisy: Tensor, layout: Tensor, positions: Tensor, timestep: Tensor
    ) -> Tensor:
        config: Any = self.model.config
        frames, rows, columns = (int(n) + 1 for n in positions[-1, 1:])
        latents = latents_from_patches(noisy.unflatten(0, (frames, rows, columns)), config.patch_size[1])
        told = torch.round((1 - timestep) * _TRAIN_STEPS).reshape(1)
        padded = F.pad(text, (0, 0, 0, _MAX_TEXT - len(text)))[None]
        output = self.model(latents, told, padded, return_dict=False)[0]
        return -patches_from_latents(output, config.patch_size[1]).flatten(0, 2)
