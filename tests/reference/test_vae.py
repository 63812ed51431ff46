"""The chunked modules against the class's own encode() and decode()."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.vae import (
    DecoderFirst,
    DecoderNext,
    EncoderFirst,
    EncoderNext,
    clip_psnr_db,
    decode_clip,
    encode_clip,
    frames_from_pixels,
    latent_statistics,
    latents_from_patches,
    patches_from_latents,
    pixels_from_frames,
)

# Chunk by chunk the same convolutions see the same numbers; only the order of float32 sums may differ.
PATCH_TOLERANCE = 1e-5

LAYOUTS = {
    "public": {"dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True], "patch_size": None},
    "patchified": {
        "dim_mult": [1, 2, 4],
        "temperal_downsample": [True, True],
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
    },
    "residual": {
        "dim_mult": [1, 2, 4, 4],
        "temperal_downsample": [False, True, True],
        "is_residual": True,
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
        "z_dim": 48,
        "latents_mean": [0.01 * i - 0.2 for i in range(48)],
        "latents_std": [0.5 + 0.02 * i for i in range(48)],
    },
}


@pytest.fixture(scope="module", params=list(LAYOUTS))
def vae(request: pytest.FixtureRequest) -> AutoencoderKLWan:
    torch.manual_seed(0)
    layout = {"base_dim": 4, "z_dim": 16, "num_res_blocks": 1, "attn_scales": []} | LAYOUTS[request.param]
    return AutoencoderKLWan(**layout).eval()


def side_and_values(vae: AutoencoderKLWan) -> tuple[int, int]:
    """How many pixels a patch is wide, and how many values it has."""
    return 2 * 2 ** (len(vae.config.dim_mult) - 1) * (vae.config.patch_size or 1), 4 * vae.config.z_dim


def random_clip(num_frames: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_frames * height + width)
    return torch.randint(0, 256, (num_frames, height, width, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("num_frames", "height", "width"), [(1, 32, 48), (5, 32, 32), (13, 16, 32)])
def test_chunked_encoding_equals_encode(
    vae: AutoencoderKLWan, num_frames: int, height: int, width: int
) -> None:
    side, values = side_and_values(vae)
    height, width = height * side // 16, width * side // 16
    frames = random_clip(num_frames, height, width)
    with torch.no_grad():
        expected = encode_clip(vae, frames)
        patches, *caches = EncoderFirst(vae)(frames[:1])
        chunks = [patches]
        shapes = [cache.shape for cache in caches]
        for start in range(1, num_frames, 4):
            patches, *caches = EncoderNext(vae)(frames[start : start + 4], *caches)
            assert [cache.shape for cache in caches] == shapes
            chunks.append(patches)
    assert expected.shape == (1 + num_frames // 4, height // side, width // side, values)
    assert all(shape[2] == 2 for shape in shapes)
    torch.testing.assert_close(torch.cat(chunks), expected, atol=PATCH_TOLERANCE, rtol=PATCH_TOLERANCE)


@pytest.mark.parametrize(("num_latent_frames", "h", "w"), [(1, 2, 3), (2, 2, 2), (4, 1, 2)])
def test_chunked_decoding_equals_decode(
    vae: AutoencoderKLWan, num_latent_frames: int, h: int, w: int
) -> None:
    side, values = side_and_values(vae)
    patches = torch.randn((num_latent_frames, h, w, values), generator=torch.Generator().manual_seed(h + w))
    with torch.no_grad():
        expected = decode_clip(vae, patches)
        frames, *caches = DecoderFirst(vae)(patches[:1])
        chunks = [frames]
        shapes = [cache.shape for cache in caches]
        for index in range(1, num_latent_frames):
            frames, *caches = DecoderNext(vae)(patches[index : index + 1], *caches)
            assert [cache.shape for cache in caches] == shapes
            chunks.append(frames)
    assert expected.shape == (4 * num_latent_frames - 3, side * h, side * w, 3)
    # A grey level apart where a sum falls on either side of a rounding edge; nothing else.
    difference = torch.cat(chunks).int() - expected.int()
    assert difference.abs().max() <= 1
    assert (difference == 0).float().mean() >= 0.999


def test_a_later_chunk_depends_on_the_caches(vae: AutoencoderKLWan) -> None:
    frames = random_clip(5, 32, 32)
    with torch.no_grad():
        _, *caches = EncoderFirst(vae)(frames[:1])
        right = EncoderNext(vae)(frames[1:], *caches)[0]
        wrong = EncoderNext(vae)(frames[1:], *[torch.zeros_like(cache) for cache in caches])[0]
    assert (right - wrong).abs().max() > 100 * PATCH_TOLERANCE


@settings(max_examples=25, deadline=None)
@given(
    t=st.integers(1, 3), h=st.integers(1, 4), w=st.integers(1, 4), z=st.integers(1, 5), p=st.integers(1, 3)
)
def test_patches_are_a_bijection_of_latents(t: int, h: int, w: int, z: int, p: int) -> None:
    latents = torch.arange(z * t * h * p * w * p, dtype=torch.float32).reshape(1, z, t, h * p, w * p)
    patches = patches_from_latents(latents, p)
    assert patches.shape == (t, h, w, z * p * p)
    assert torch.equal(latents_from_patches(patches, p), latents)
    # z slowest, then the row and the column inside the patch
    assert patches[0, h - 1, w - 1, -1] == latents[0, z - 1, 0, -1, -1]
    assert torch.equal(patches[0, 0, 0, : p * p], latents[0, 0, 0, :p, :p].reshape(-1))


def test_every_grey_level_survives_the_way_to_pixels_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    pixels = pixels_from_frames(levels)
    assert (pixels.min(), pixels.max()) == (-1.0, 1.0)
    assert torch.equal(frames_from_pixels(pixels), levels)
    assert torch.equal(frames_from_pixels(pixels * 3.0)[levels > 200], levels[levels > 200] * 0 + 255)


def test_pixels_that_are_not_kept_are_grey_to_the_encoder(vae: AutoencoderKLWan) -> None:
    """As VACE masks a source: multiplied pixels, between two grey levels, through the class's own encode."""
    side, _ = side_and_values(vae)
    frames = random_clip(5, side, 2 * side)
    keep = (torch.rand((5, side, 2 * side), generator=torch.Generator().manual_seed(5)) > 0.4).float()
    mean, std = latent_statistics(vae)
    with torch.no_grad():
        latents = vae.encode(pixels_from_frames(frames) * keep).latent_dist.mode()
        expected = patches_from_latents((latents - mean) / std, 2)
        first, *caches = EncoderFirst(vae, masked=True)(frames[:1], keep[:1])
        later, *_ = EncoderNext(vae, masked=True)(frames[1:], keep[1:], *caches)
    torch.testing.assert_close(
        torch.cat((first, later)), expected, atol=PATCH_TOLERANCE, rtol=PATCH_TOLERANCE
    )
    assert not torch.equal(expected, encode_clip(vae, frames))


def test_missing_latent_statistics_are_refused() -> None:
    vae = AutoencoderKLWan(base_dim=4, z_dim=8, dim_mult=[1, 2, 4, 4], num_res_blocks=1, attn_scales=[])
    with pytest.raises(ValueError, match="latents_mean has 16 values; expected z_dim = 8"):
        EncoderFirst(vae)


def test_the_psnr_of_clips_is_that_of_each():
    """Held to the formula of each clip in double precision; values outside [-1, 1] count as the nearest inside."""
    generator = torch.Generator().manual_seed(0)
    expected = torch.rand(3, 3, 5, 8, 8, generator=generator) * 2 - 1
    pixels = expected + torch.tensor([0.01, 0.2, 0.0])[:, None, None, None, None] * torch.randn(
        expected.shape, generator=generator
    )
    found = clip_psnr_db(pixels, expected)
    for clip in range(2):
        error = np.square(
            np.clip(pixels[clip].double().numpy(), -1, 1) - expected[clip].double().numpy()
        ).mean()
        assert float(found[clip]) == pytest.approx(20 * np.log10(2) - 10 * np.log10(error), abs=1e-3)
    assert float(found[2]) == pytest.approx(96.0206, abs=1e-3)  # 4 / 1e-9
