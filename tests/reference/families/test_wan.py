"""Wan's transformers behind rows against diffusers' classes, at small sizes and random weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
from torch import Tensor, nn

from reference.families.wan import WanConfig, WanTransformer
from reference.families.wan_vace import Condition, mask_frame
from reference.families.wan_weights import build_transformer
from reference.vae import patches_from_latents

# The same float32 sums in another order: largest difference over the largest value.
TOLERANCE = 1e-5
SIZES: dict[str, Any] = {
    "num_attention_heads": 3, "attention_head_dim": 32, "ffn_dim": 160, "num_layers": 3, "text_dim": 48,
    "freq_dim": 64,
}  # fmt: skip
CONFIG = WanConfig(
    num_blocks=3, num_heads=3, head_dim=32, mlp_width=160, text_dim=48, latent_channels=16, num_frequencies=32
)
GRID = (3, 3, 5)


def randomize(model: nn.Module) -> None:
    """Weights that keep activations near 1: the class's own are zeros in places."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1 and value[0].numel() > 1 and "scale_shift" not in name:
                value.normal_(0, value[0].numel() ** -0.5)
            else:
                value.normal_(1 if name.endswith("weight") else 0, 0.1)


def made(kind: str, **changes: Any) -> tuple[Any, WanTransformer]:
    """A class of diffusers and the same weights behind rows."""
    if kind == "control":
        model = WanVACETransformer3DModel(
            **SIZES, in_channels=16, out_channels=16, vace_layers=[0, 2], vace_in_channels=96
        )
        config = replace(CONFIG, source="control", control_channels=96, control_blocks=(0, 2), **changes)
    else:
        channels = 32 if kind == "channels" else 16
        model = WanTransformer3DModel(**SIZES, in_channels=channels, out_channels=16)
        config = replace(CONFIG, source=kind, **changes)  # type: ignore[arg-type]
    randomize(model.eval())
    return model, build_transformer(config, model.state_dict())


def latents(channels: int, frames: int = GRID[0], seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, channels, frames, 2 * GRID[1], 2 * GRID[2]), generator=generator)


def rows(values: Tensor) -> Tensor:
    return patches_from_latents(values, 2).flatten(0, 2)


def grid_positions(frames: int, first: int = 0) -> Tensor:
    axes = torch.meshgrid(
        torch.arange(first, first + frames), torch.arange(GRID[1]), torch.arange(GRID[2]), indexing="ij"
    )
    places = torch.stack(axes, -1).flatten(0, 2)
    # The sequential axis turns nothing, so any number may stand there.
    return torch.cat((torch.full((len(places), 1), 7), places), 1)


def padded(text: Tensor) -> Tensor:
    return F.pad(text, (0, 0, 0, 512 - len(text)))[None]


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


TEXT = torch.randn((7, 48), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", ["rows", "channels", "control"])
@pytest.mark.parametrize("told", [999, 613, 0])
@torch.no_grad()
def test_a_transformer_equals_diffusers(kind: str, told: int) -> None:
    model, transformer = made(kind)
    noisy = latents(16)
    source = latents({"rows": 0, "channels": 16, "control": 96}[kind], seed=3)
    given, extra = noisy, {}
    if kind == "channels":
        given = torch.cat((noisy, source), 1)
    elif kind == "control":
        extra = {"control_hidden_states": source}
    expected = -model(given, torch.tensor([told]), padded(TEXT), return_dict=False, **extra)[0]
    clean = torch.zeros((0, 64)) if kind == "rows" else rows(source)
    num_rows = GRID[0] * GRID[1] * GRID[2]
    found = transformer(
        TEXT, clean, rows(noisy), torch.arange(num_rows), grid_positions(3), torch.tensor(1 - told / 1000)
    )
    assert_close(found, rows(expected))


@torch.no_grad()
def test_a_clean_first_frame_equals_diffusers() -> None:
    """Wan 2.2 TI2V: a timestep for each row, 0 for those of the first frame."""
    model, transformer = made("rows", clean_timestep=True)
    clip, told = latents(16, frames=4), 741
    per_frame = GRID[1] * GRID[2]
    timesteps = torch.full((1, 4 * per_frame), told)
    timesteps[:, :per_frame] = 0
    expected = -model(clip, timesteps, padded(TEXT), return_dict=False)[0]
    layout = torch.cat((torch.arange(3 * per_frame, 4 * per_frame), torch.arange(3 * per_frame)))
    found = transformer(
        TEXT, rows(clip[:, :, :1]), rows(clip[:, :, 1:]), layout, grid_positions(4),
        torch.tensor(1 - told / 1000),
    )  # fmt: skip
    assert_close(found, rows(expected[:, :, 1:]))
    # Without a first frame the same weights make a video of text alone.
    expected = -model(clip, torch.full((1, 4 * per_frame), told), padded(TEXT), return_dict=False)[0]
    alone = transformer(
        TEXT, torch.zeros((0, 64)), rows(clip), torch.arange(4 * per_frame), grid_positions(4),
        torch.tensor(1 - told / 1000),
    )  # fmt: skip
    assert_close(alone, rows(expected))


@torch.no_grad()
def test_a_timestep_that_is_not_rounded_equals_diffusers() -> None:
    model, transformer = made("rows", rounds_timestep=False)
    noisy, layout = latents(16), torch.arange(GRID[0] * GRID[1] * GRID[2])
    expected = -model(noisy, torch.tensor([613.4]), padded(TEXT), return_dict=False)[0]
    timestep = torch.tensor(1 - 0.6134)
    found = transformer(TEXT, torch.zeros((0, 64)), rows(noisy), layout, grid_positions(3), timestep)
    assert_close(found, rows(expected))


@torch.no_grad()
def test_a_transformer_in_bfloat16_equals_diffusers() -> None:
    """As it is deployed: weights and products in 16 bits, norms and modulation in float32."""
    model, transformer = made("rows")
    noisy, layout = latents(16), torch.arange(GRID[0] * GRID[1] * GRID[2])
    model, transformer = model.bfloat16(), transformer.bfloat16()
    expected = -model(noisy.bfloat16(), torch.tensor([500]), padded(TEXT).bfloat16(), return_dict=False)[0]
    found = transformer(
        TEXT.bfloat16(), torch.zeros((0, 64)).bfloat16(), rows(noisy).bfloat16(), layout, grid_positions(3),
        torch.tensor(0.5),
    )  # fmt: skip
    # Two units in the last of bfloat16's eight bits.
    assert float((found - rows(expected)).abs().max()) <= 2 * 2**-7 * float(expected.abs().max())


def test_weights_of_another_config_are_refused() -> None:
    model, _ = made("rows")
    weights = dict(model.state_dict())
    with pytest.raises(ValueError, match=r"blocks\.2\..* is not known"):
        build_transformer(replace(CONFIG, num_blocks=2), weights)
    with pytest.raises(ValueError, match=r"blocks\.3\..* is missing"):
        build_transformer(replace(CONFIG, num_blocks=4), weights)
    with pytest.raises(ValueError, match=r"mlp\.up\.weight is \(160, 96\); expected \(64, 96\)"):
        build_transformer(replace(CONFIG, mlp_width=64), weights)


def test_condition_and_mask_frames_equal_diffusers() -> None:
    """Against the pipeline's own `prepare_masks`."""
    from diffusers import WanVACEPipeline

    class Stub:
        vae_scale_factor_temporal = 4
        vae_scale_factor_spatial = 8

        class transformer:  # noqa: N801
            class config:  # noqa: N801
                patch_size = (1, 2, 2)

    for num_frames in (1, 5, 9, 17, 33, 49, 81, 121):
        mask = torch.rand((1, 3, num_frames, 32, 48), generator=torch.Generator().manual_seed(num_frames))
        expected = WanVACEPipeline.prepare_masks(Stub(), mask, [[]])  # type: ignore[arg-type]
        blank = torch.zeros((1, 2, 3, 64))
        for frame in range(expected.shape[2]):
            chosen = mask[0, 0, mask_frame(frame, num_frames)]
            found = Condition(2, 8)(blank, blank + 1, chosen)
            assert torch.equal(found[..., 128:], patches_from_latents(expected[:, :, frame : frame + 1], 2))
            assert torch.equal(found[..., :128], torch.cat((blank, blank + 1), -1))


@pytest.mark.parametrize("kind", ["rows", "channels", "control"])
@torch.no_grad()
def test_a_transformer_is_one_graph_for_every_length(kind: str) -> None:
    """What an exporter needs: no branch on values, every length free."""
    _, transformer = made(kind, clean_timestep=kind == "rows")
    clean_dim, clean_rows = transformer.config.clean_dim, 6 if kind == "rows" else 11

    def inputs(num_text: int, num_clean: int, num_noisy: int) -> tuple[Tensor, ...]:
        length = num_noisy + (num_clean if kind == "rows" else 0)
        layout = torch.cat((torch.arange(num_noisy, length), torch.arange(num_noisy)))
        positions = torch.randint(0, 9, (length, 4), generator=torch.Generator().manual_seed(0))
        clean, noisy = torch.randn((num_clean, clean_dim)), torch.randn((num_noisy, 64))
        return torch.randn((num_text, 48)), clean, noisy, layout, positions, torch.tensor(0.25)

    text, noisy = torch.export.Dim("Lt", max=512), torch.export.Dim("Lg")
    clean = torch.export.Dim("Lc") if kind == "rows" else noisy
    length = torch.export.Dim("L") if kind == "rows" else noisy
    shapes = ({0: text}, {0: clean}, {0: noisy}, {0: length}, {0: length}, None)
    exported = torch.export.export(transformer, inputs(5, clean_rows, 11), dynamic_shapes=shapes)
    for sizes in ((1, 4, 9), (512, 9, 23)):
        other = inputs(sizes[0], sizes[1] if kind == "rows" else sizes[2], sizes[2])
        assert_close(exported.module()(*other), transformer(*other))
