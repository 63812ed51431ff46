"""Networks of the published widths against their classes, with random weights: 4 to 9 GB, minutes each.

python -m pytest -m slow tests/reference/families/test_wan_full_size.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel, WanVACETransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from reference.families.wan_config import read_transformer
from reference.families.wan_random import RANDOM, fill_transformer
from reference.families.wan_sampler import grid_positions
from reference.families.wan_weights import build_transformer
from reference.random_weights import fill_randomly
from reference.vae import (
    DecoderFirst,
    DecoderNext,
    EncoderFirst,
    EncoderNext,
    decode_clip,
    encode_clip,
    patches_from_latents,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# Largest difference over the largest value; 3.8e-6 was the largest that was seen.
TOLERANCE = 1e-5
GRID = (3, 8, 10)
# How many of the blocks are built, None for all.
DEPTHS: dict[str, int | None] = {
    "wan2.1-t2v-1.3b": None,
    "wan2.1-vace-1.3b": None,
    "wan2.2-ti2v-5b": 8,
    "lucy-edit-5b": 8,
    "wan2.1-t2v-14b": 2,
    "wan2.1-vace-14b": 2,
}


def difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max()) / float(expected.abs().max())


@pytest.mark.parametrize("name", list(DEPTHS))
@torch.no_grad()
def test_a_transformer_at_its_full_width(name: str, record_property: Any) -> None:
    arguments: dict[str, Any] = dict(RANDOM[name].transformer)
    arguments["num_layers"] = DEPTHS[name] or arguments["num_layers"]
    if "vace_layers" in arguments:
        arguments["vace_layers"] = [i for i in arguments["vace_layers"] if i < arguments["num_layers"]]
    cls = WanVACETransformer3DModel if "vace_layers" in arguments else WanTransformer3DModel
    with torch.device("meta"):
        model = cls(**arguments).eval()
    model.to_empty(device="cpu")
    # The tables of its RoPE are no weights, so that nothing fills them.
    model.rope = WanRotaryPosEmbed(arguments["attention_head_dim"], (1, 2, 2), 1024)
    fill_transformer(model, 0)
    facts = {**model.config, "_class_name": cls.__name__}
    has_frame = name.startswith("wan2.2-ti2v")
    config = read_transformer(Path(name), facts, clean_timestep=has_frame, rounds_timestep=True)
    transformer = build_transformer(config, model.state_dict())

    def latents(channels: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn((1, channels, GRID[0], 2 * GRID[1], 2 * GRID[2]), generator=generator)

    text, clip, told = torch.randn((40, config.text_dim)), latents(config.latent_channels, 1), 613
    per_frame = GRID[1] * GRID[2]
    timesteps, extra, given = torch.tensor([told]), {}, clip
    layout, rows = torch.arange(GRID[0] * per_frame), patches_from_latents(clip, 2).flatten(0, 2)
    clean, noisy = rows[:0], rows
    if config.source == "control":
        source = latents(config.control_channels, 2)
        extra, clean = {"control_hidden_states": source}, patches_from_latents(source, 2).flatten(0, 2)
    elif config.source == "channels":
        source = latents(config.latent_channels, 2)
        given, clean = torch.cat((clip, source), 1), patches_from_latents(source, 2).flatten(0, 2)
    elif has_frame:
        clean, noisy = rows[:per_frame], rows[per_frame:]
        timesteps = torch.full((1, len(rows)), told)
        timesteps[:, :per_frame] = 0
        layout = torch.cat((torch.arange(len(noisy), len(rows)), torch.arange(len(noisy))))
    padded = F.pad(text, (0, 0, 0, 512 - len(text)))[None]
    output = model(given, timesteps, padded, return_dict=False, **extra)[0]
    expected = -patches_from_latents(output, 2).flatten(0, 2)[len(rows) - len(noisy) :]
    found = transformer(text, clean, noisy, layout, grid_positions(*GRID), torch.tensor(1 - told / 1000))
    ratio = difference(found, expected)
    record_property("difference", ratio)
    assert ratio <= TOLERANCE


VAES: dict[str, dict[str, Any]] = {
    "wan2.1": {},
    "wan2.2": {
        "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "patch_size": 2,
        "in_channels": 12, "out_channels": 12, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", list(VAES))
@torch.no_grad()
def test_a_vae_at_its_full_width(name: str, record_property: Any) -> None:
    vae = AutoencoderKLWan(**VAES[name]).eval()
    fill_randomly(vae, 0)
    frames = torch.randint(0, 256, (9, 32, 64, 3), dtype=torch.uint8)
    expected = encode_clip(vae, frames)
    patches, *caches = EncoderFirst(vae)(frames[:1])
    parts = [patches]
    num_encoder = len(caches)
    for start in (1, 5):
        patches, *caches = EncoderNext(vae)(frames[start : start + 4], *caches)
        parts.append(patches)
    ratio = difference(torch.cat(parts), expected)
    decoded = decode_clip(vae, expected)
    pixels, *caches = DecoderFirst(vae)(expected[:1])
    clips = [pixels]
    for index in (1, 2):
        pixels, *caches = DecoderNext(vae)(expected[index : index + 1], *caches)
        clips.append(pixels)
    if name == "wan2.2":
        assert (num_encoder, len(caches)) == (24, 32)
    record_property("difference", ratio)
    assert ratio <= TOLERANCE
    assert (torch.cat(clips).int() - decoded.int()).abs().max() <= 1


@torch.no_grad()
def test_umt5_xxl_at_its_full_width(record_property: Any) -> None:
    """4 of its 24 layers: unpadded ids give what padded and cut ones give."""
    config = UMT5Config(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=4, num_heads=64)
    model = UMT5EncoderModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 250_000, (1, 40), generator=generator)
    ids[0, -1] = 1
    padded = F.pad(ids, (0, 512 - ids.shape[1]))
    mask = (torch.arange(512) < ids.shape[1]).long()[None]
    expected = model(input_ids=padded, attention_mask=mask).last_hidden_state[0, : ids.shape[1]]
    ratio = difference(model(input_ids=ids).last_hidden_state[0], expected)
    record_property("difference", ratio)
    assert ratio <= TOLERANCE
