"""The loops over rows against diffusers' whole pipelines, with the same noise, at tiny sizes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from reference.checkpoint import load_any_checkpoint
from reference.families.wan_checkpoint import WanCheckpoint
from reference.families.wan_sampler import Frames, Inputs, encode_text, generate, sample
from reference.vae import patches_from_latents

# Largest difference over the largest value, float32, 6 steps of two evaluations; 1.4e-6 was measured.
TOLERANCE = 1e-5
SHAPE = (9, 64, 96)
STEPS = 6


def clip(num_frames: int, seed: int) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, *SHAPE[1:], 3), dtype=np.uint8)


def pictures(frames: Frames) -> list[PIL.Image.Image]:
    return [PIL.Image.fromarray(frame) for frame in frames]


def noise_of(checkpoint: WanCheckpoint, extra_frames: int = 0) -> Tensor:
    ratio = 16 if checkpoint.config.latent_channels == 48 else 8
    shape = (1, checkpoint.config.latent_channels, 3 + extra_frames, SHAPE[1] // ratio, SHAPE[2] // ratio)
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


def run(folder: Path, latents: Tensor, **arguments: Any) -> Tensor:
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        latents=latents, num_inference_steps=STEPS, output_type="latent", return_dict=False,
        height=SHAPE[1], width=SHAPE[2], prompt="Turn the red circle green.",
        negative_prompt="blurred details", **arguments,
    )[0]  # fmt: skip


def both(folder: Path, arguments: dict[str, Any], inputs: Inputs, extra: int = 0) -> tuple[Tensor, Tensor]:
    checkpoint = load_any_checkpoint(folder)
    assert isinstance(checkpoint, WanCheckpoint)
    latents = noise_of(checkpoint, extra)
    expected = run(folder, latents.clone(), **arguments)[:, :, extra:]
    found = sample(
        checkpoint, "Turn the red circle green.", patches_from_latents(latents, 2), SHAPE, inputs,
        negative_prompt="blurred details", num_inference_steps=STEPS,
    )  # fmt: skip
    return found, patches_from_latents(expected.float(), 2)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


VIDEO, MASK = clip(9, 1), np.repeat((clip(9, 2)[..., :1] > 128).astype(np.uint8) * 255, 3, axis=3)
CASES: dict[str, tuple[dict[str, Any], Inputs, int]] = {
    "wan-t2v-tiny": ({"num_frames": 9}, Inputs(), 0),
    "wan-ti2v-text-tiny": ({"num_frames": 9}, Inputs(), 0),
    "wan-ti2v-tiny": ({"num_frames": 9, "image": pictures(VIDEO)[0]}, Inputs(first_frame=VIDEO[:1]), 0),
    "wan-a14b-tiny": ({"num_frames": 9, "guidance_scale": 4.0, "guidance_scale_2": 3.0}, Inputs(), 0),
    "lucy-tiny": ({"num_frames": 9, "video": pictures(VIDEO)}, Inputs(video=VIDEO), 0),
    "wan-vace-tiny": (
        {"num_frames": 9, "video": pictures(VIDEO), "mask": pictures(MASK)},
        Inputs(video=VIDEO, mask=MASK),
        0,
    ),
    "wan-vace-tiny with references": (
        {
            "num_frames": 9, "video": pictures(VIDEO), "mask": pictures(MASK),
            "reference_images": pictures(clip(2, 3)),
        },
        Inputs(video=VIDEO, mask=MASK, references=(clip(2, 3)[:1], clip(2, 3)[1:])),
        2,
    ),
    "wan-vace-tiny of text alone": ({"num_frames": 9}, Inputs(), 0),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CASES))
def test_a_loop_over_rows_equals_the_pipeline(case: str, tiny_folder: Callable[[str], Path]) -> None:
    arguments, inputs, extra = CASES[case]
    assert_close(*both(tiny_folder(case.split()[0]), arguments, inputs, extra))


def test_a_noised_source_equals_the_pipeline(
    tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """WanVideoToVideoPipeline draws its noise itself, so the test gives it that of the rows."""
    from diffusers.pipelines.wan import pipeline_wan_video2video

    folder = tiny_folder("wan-v2v-tiny")
    checkpoint = load_any_checkpoint(folder)
    assert isinstance(checkpoint, WanCheckpoint)
    latents, source = noise_of(checkpoint), Inputs(video=VIDEO)
    monkeypatch.setattr(pipeline_wan_video2video, "randn_tensor", lambda *_, **__: latents)
    expected = run(folder, None, video=pictures(VIDEO), strength=0.7)  # type: ignore[arg-type]
    found = sample(
        checkpoint, "Turn the red circle green.", patches_from_latents(latents, 2), SHAPE, source,
        negative_prompt="blurred details", num_inference_steps=STEPS, strength=0.7,
    )  # fmt: skip
    assert_close(found, patches_from_latents(expected, 2))


def test_euler_steps_equal_the_pipeline(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """A scheduler that tells the network sigma itself, not whole thousandths."""
    folder = Path(shutil.copytree(tiny_folder("wan-t2v-tiny"), tmp_path / "euler"))
    diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0).save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    assert_close(*both(folder, {"num_frames": 9}, Inputs()))


def test_the_text_encoder_is_one_graph_for_every_length(tiny_folder: Callable[[str], Path]) -> None:
    checkpoint = load_any_checkpoint(tiny_folder("wan-t2v-tiny"))
    assert isinstance(checkpoint, WanCheckpoint)
    checkpoint.text_encoder.set_attn_implementation("eager")

    class Rows(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = checkpoint.text_encoder

        def forward(self, ids: Tensor) -> Tensor:
            return self.model(input_ids=ids.unsqueeze(0)).last_hidden_state.squeeze(0)

    shapes = ({0: torch.export.Dim("Lt")},)
    exported = torch.export.export(Rows().eval(), (torch.arange(5),), dynamic_shapes=shapes).module()
    for length in (1, 40, 300):
        ids = torch.arange(length) % 256
        torch.testing.assert_close(exported(ids), Rows()(ids), atol=1e-5, rtol=1e-5)


def test_frames_come_out_in_the_shape_that_was_asked_for(tiny_folder: Callable[[str], Path]) -> None:
    checkpoint = load_any_checkpoint(tiny_folder("wan-t2v-tiny"))
    assert isinstance(checkpoint, WanCheckpoint)
    noise = patches_from_latents(noise_of(checkpoint), 2)
    assert generate(checkpoint, "", noise, SHAPE, num_inference_steps=1).shape == (*SHAPE, 3)


@torch.no_grad()
def test_unpadded_text_gives_what_padded_and_cut_text_gives(tiny_folder: Callable[[str], Path]) -> None:
    folder = tiny_folder("wan-t2v-tiny")
    checkpoint = load_any_checkpoint(folder)
    assert isinstance(checkpoint, WanCheckpoint)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    for text in ("", "Turn the red circle green.", "Add the blue star in the middle. " * 60):
        expected = pipeline._get_t5_prompt_embeds(text, max_sequence_length=512)[0]
        found = encode_text(checkpoint, text)
        assert len(found) <= 512
        assert expected[len(found) :].count_nonzero() == 0
        torch.testing.assert_close(found, expected[: len(found)], atol=1e-5, rtol=1e-5)
