"""The causal video autoencoder: diffusers' `AutoencoderKLWan`, and stateless first/next views of it.

The class keeps its temporal caches in itself; a graph cannot. The four modules below run the class's own
encoder and decoder with the caches as arguments and results, all of one uniform shape, so that one "first"
and one "next" graph serve clips of every length. Both layouts are run: that of Wan 2.1, and the residual one
of Wan 2.2 (`is_residual`), whose shortcuts stay inside a chunk and need no cache. On one side stand uint8
pixels, on the other normalised latents cut into the transformer's patches (paper section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import CACHE_T, patchify, unpatchify
from torch import Tensor, nn

__all__ = [
    "UNUSED_VAE_FIELDS",
    "DecoderFirst",
    "DecoderNext",
    "EncoderFirst",
    "EncoderNext",
    "check_vae",
    "clip_psnr_db",
    "decode_clip",
    "encode_clip",
    "frames_from_pixels",
    "latents_from_patches",
    "patches_from_latents",
    "pixels_from_frames",
]


UNUSED_VAE_FIELDS = frozenset({"clip_output"})
"""Fields of vae/config.json that other versions of diffusers write and none of this one's classes reads: frames are
clipped anyway."""


def check_vae(vae: AutoencoderKLWan) -> None:
    """Refuse a VAE that the chunked modules cannot run.

    Raises ValueError for latents without the statistics to normalise them, and for other ratios than 4 in
    time.
    """
    config = vae.config
    for name in ("latents_mean", "latents_std"):
        if len(getattr(config, name)) != config.z_dim:
            raise ValueError(
                f"the VAE's {name} has {len(getattr(config, name))} values; expected z_dim = {config.z_dim}: "
                "write the statistics of its latents into vae/config.json"
            )
    temporal_ratio = 2 ** sum(config.temperal_downsample)
    if temporal_ratio != 4:
        raise ValueError(
            f"the VAE compresses time by {temporal_ratio}; expected 4, the frames that the class encodes "
            "in a chunk: set two of temperal_downsample"
        )


def pixels_from_frames(frames: Tensor) -> Tensor:
    """Frames uint8 [T, H, W, 3] -> pixels float32 [1, 3, T, H, W] in [-1, 1]."""
    return (frames.to(torch.float32) / 127.5 - 1.0).permute(3, 0, 1, 2).unsqueeze(0)


def clip_psnr_db(pixels: Tensor, expected: Tensor) -> Tensor:
    """PSNR in dB, float32 [n], of each clip [n, 3, T, H, W] of pixels in [-1, 1]; 96 where it is as expected."""
    error = (pixels.clamp(-1, 1) - expected).square().mean((1, 2, 3, 4))
    return 10 * torch.log10(4 / error.clamp(min=1e-9))


def frames_from_pixels(pixels: Tensor) -> Tensor:
    """Pixels [1, 3, T, H, W] -> frames uint8 [T, H, W, 3], rounded to the nearest grey level and clipped."""
    levels = ((pixels.to(torch.float32) + 1.0) * 127.5).round().clamp(0.0, 255.0)
    return levels.squeeze(0).permute(1, 2, 3, 0).to(torch.uint8)


def patches_from_latents(latents: Tensor, patch_size: int) -> Tensor:
    """Latents [1, z, t, h p, w p] -> patches [t, h, w, z p p], z slowest (section 3.1: kernel 1 x p x p)."""
    _, z, t, height, width = latents.shape
    p = patch_size
    cells = latents.reshape(z, t, height // p, p, width // p, p)
    return cells.permute(1, 2, 4, 0, 3, 5).reshape(t, height // p, width // p, z * p * p)


def latents_from_patches(patches: Tensor, patch_size: int) -> Tensor:
    """Patches [t, h, w, z p p] -> latents [1, z, t, h p, w p]; the inverse of `patches_from_latents`."""
    t, h, w, dim = patches.shape
    p = patch_size
    cells = patches.reshape(t, h, w, dim // (p * p), p, p).permute(3, 0, 1, 4, 2, 5)
    return cells.reshape(1, dim // (p * p), t, h * p, w * p)


def encode_clip(vae: AutoencoderKLWan, frames: Tensor, patch_size: int = 2) -> Tensor:
    """A whole clip through the class's own `encode`: the slow twin of `EncoderFirst` and `EncoderNext`.

    frames uint8 [1 + 4 k, H, W, 3] -> normalised patches float32 [1 + k, h, w, P], the distribution's mean.
    """
    check_vae(vae)
    mean, std = latent_statistics(vae)
    latents = vae.encode(pixels_from_frames(frames).to(vae.dtype)).latent_dist.mode()
    return patches_from_latents((latents.to(torch.float32) - mean) / std, patch_size)


def decode_clip(vae: AutoencoderKLWan, patches: Tensor, patch_size: int = 2) -> Tensor:
    """A whole clip through the class's own `decode`: the slow twin of `DecoderFirst` and `DecoderNext`.

    Normalised patches float32 [1 + k, h, w, P] -> frames uint8 [1 + 4 k, H, W, 3].
    """
    check_vae(vae)
    mean, std = latent_statistics(vae)
    latents = latents_from_patches(patches, patch_size) * std + mean
    return frames_from_pixels(vae.decode(latents.to(vae.dtype)).sample)


def latent_statistics(vae: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    """The config's latents_mean and latents_std, each float32 [1, z, 1, 1, 1]."""
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean, dtype=torch.float32).reshape(shape)
    std = torch.tensor(vae.config.latents_std, dtype=torch.float32).reshape(shape)
    return mean, std


def _count_caches(module: nn.Module) -> int:
    """How many convolutions of an encoder or decoder look back in time; each owns one cache."""
    return sum(isinstance(m, nn.Conv3d) and m.kernel_size[0] > 1 for m in module.modules())


def _fill_to_two_frames(cache: Tensor) -> Tensor:
    """Zeros in front of a cache of one frame: what the causal padding would have put there anyway."""
    if cache.shape[2] == CACHE_T:
        return cache
    return torch.cat([torch.zeros_like(cache), cache], dim=2)


def _uniform_caches(raw: Sequence[Tensor | str]) -> list[Tensor]:
    """The class's caches after a chunk -> tensors of two frames each, [1, C, 2, h', w'].

    Where the class notes "Rep" (a temporal upsampling that has seen no second chunk yet) it pads with zeros
    in the next chunk, so two frames of zeros say the same. Their shape is that of the cache before, which
    belongs to the last convolution of the same block.
    """
    caches: list[Tensor] = []
    for cache in raw:
        caches.append(torch.zeros_like(caches[-1]) if isinstance(cache, str) else _fill_to_two_frames(cache))
    return caches


class _Half(nn.Module):
    """What the four modules share: one half of the VAE, the latents' statistics and the number of caches."""

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(self, vae: AutoencoderKLWan, coder: nn.Module, conv: nn.Module, patch_size: int) -> None:
        super().__init__()
        check_vae(vae)
        self.coder = coder
        self.conv = conv
        self.patch_size = patch_size
        self.pixel_patch_size = vae.config.patch_size or 1
        self.compute_dtype = vae.dtype
        self.num_caches = _count_caches(coder)
        mean, std = latent_statistics(vae)
        self.register_buffer("latents_mean", mean, persistent=False)
        self.register_buffer("latents_std", std, persistent=False)

    def run_coder(
        self, x: Tensor, caches: Sequence[Tensor | None], **options: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """One chunk through the class's encoder or decoder, the caches given and returned."""
        raw: list[Tensor | str | None] = list(caches)
        result = self.coder(x, feat_cache=raw, feat_idx=[0], **options)
        return result, _uniform_caches([cache for cache in raw if cache is not None])

    def encode_chunk(
        self, frames: Tensor, keep: Tensor | None, caches: Sequence[Tensor | None]
    ) -> tuple[Tensor, ...]:
        pixels = pixels_from_frames(frames)
        if keep is not None:
            pixels = pixels * keep  # [T, H, W]: a pixel that is not kept becomes 0, which no uint8 says
        pixels = pixels.to(self.compute_dtype)
        moments, caches_out = self.run_coder(patchify(pixels, self.pixel_patch_size), caches)
        mean = self.conv(moments)[:, : self.latents_mean.shape[1]].to(torch.float32)
        latents = (mean - self.latents_mean) / self.latents_std
        return patches_from_latents(latents, self.patch_size), *caches_out

    def decode_chunk(
        self, patches: Tensor, caches: Sequence[Tensor | None], first: bool
    ) -> tuple[Tensor, ...]:
        latents = latents_from_patches(patches, self.patch_size) * self.latents_std + self.latents_mean
        moments = self.conv(latents.to(self.compute_dtype))
        pixels, caches_out = self.run_coder(moments, caches, first_chunk=first)
        return frames_from_pixels(unpatchify(pixels, self.pixel_patch_size)), *caches_out


class EncoderFirst(_Half):
    """frames uint8 [1, H, W, 3] -> patches float32 [1, h, w, P], then the caches, each [1, C, 2, h', w'].

    masked: a second input follows the frames, keep float32 [1, H, W], 1 where pixels stay and 0 where they
    become the mean of black and white. VACE encodes a source so, once for each side of its mask.
    """

    def __init__(self, vae: AutoencoderKLWan, patch_size: int = 2, *, masked: bool = False) -> None:
        super().__init__(vae, vae.encoder, vae.quant_conv, patch_size)
        self.masked = masked

    def forward(self, frames: Tensor, *keep: Tensor) -> tuple[Tensor, ...]:
        return self.encode_chunk(frames, keep[0] if self.masked else None, [None] * self.num_caches)


class EncoderNext(_Half):
    """frames uint8 [4, H, W, 3] and the caches -> patches float32 [1, h, w, P], then the caches.

    masked: keep float32 [4, H, W] stands between the frames and the caches.
    """

    def __init__(self, vae: AutoencoderKLWan, patch_size: int = 2, *, masked: bool = False) -> None:
        super().__init__(vae, vae.encoder, vae.quant_conv, patch_size)
        self.masked = masked

    def forward(self, frames: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        keep, caches = (rest[0], rest[1:]) if self.masked else (None, rest)
        return self.encode_chunk(frames, keep, caches)


class DecoderFirst(_Half):
    """patches float32 [1, h, w, P] -> frames uint8 [1, H, W, 3], then the caches, each [1, C, 2, h', w']."""

    def __init__(self, vae: AutoencoderKLWan, patch_size: int = 2) -> None:
        super().__init__(vae, vae.decoder, vae.post_quant_conv, patch_size)

    def forward(self, patches: Tensor) -> tuple[Tensor, ...]:
        return self.decode_chunk(patches, [None] * self.num_caches, first=True)


class DecoderNext(_Half):
    """patches float32 [1, h, w, P] and the caches -> frames uint8 [4, H, W, 3], then the caches."""

    def __init__(self, vae: AutoencoderKLWan, patch_size: int = 2) -> None:
        super().__init__(vae, vae.decoder, vae.post_quant_conv, patch_size)

    def forward(self, patches: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        return self.decode_chunk(patches, caches, first=False)
