"""The JSON of Wan checkpoints as sizes, schedules and limits: every field is read or refused by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)

from reference.families.wan import WanConfig
from reference.solvers import TRAIN_STEPS, Schedule, Solver, Spacing
from reference.weights import read_fields

__all__ = [
    "NEGATIVE_PROMPT",
    "PIPELINES",
    "WanSchedule",
    "limits_of",
    "read_scheduler",
    "read_transformer",
]

PIPELINES = (
    "WanPipeline",
    "WanImageToVideoPipeline",
    "WanVideoToVideoPipeline",
    "WanVACEPipeline",
    "LucyEditPipeline",
)

# The negative prompt that Wan's repository samples with (`sample_neg_prompt`, Apache-2.0).
NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，"
    "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)


@dataclass(frozen=True)
class WanSchedule:
    """How a checkpoint is sampled; `build` makes the module that computes it for any number of steps."""

    solver: Solver
    spacing: Spacing
    told: Literal["floor", "exact"]
    shift: float
    num_inference_steps: int = 50
    guidance_scales: tuple[float, ...] = (5.0,)
    boundary: float | None = None

    def build(self) -> Schedule:
        return Schedule(
            self.solver,
            self.spacing,
            told=self.told,
            guidance_scales=self.guidance_scales,
            boundary=self.boundary,
        )


_TRANSFORMERS = {
    "WanTransformer3DModel": WanTransformer3DModel,
    "WanVACETransformer3DModel": WanVACETransformer3DModel,
}
# Fields of which one value is run.
_TRANSFORMER_MUST = {
    "qk_norm": "rms_norm_across_heads",
    "image_dim": None,
    "added_kv_proj_dim": None,
    "pos_embed_seq_len": None,
}
_SCHEDULER_MUST: dict[str, dict[str, Any]] = {
    "UniPCMultistepScheduler": {
        "num_train_timesteps": TRAIN_STEPS,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "solver_order": 2,
        "solver_type": "bh2",
        "predict_x0": True,
        "lower_order_final": True,
        "disable_corrector": [],
        "solver_p": None,
        "thresholding": False,
        "final_sigmas_type": "zero",
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "use_dynamic_shifting": False,
        "shift_terminal": None,
    },
    "FlowMatchEulerDiscreteScheduler": {
        "num_train_timesteps": TRAIN_STEPS,
        "use_dynamic_shifting": False,
        "shift_terminal": None,
        "invert_sigmas": False,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "stochastic_sampling": False,
    },
}


def _must(path: Path, facts: Mapping[str, Any], values: Mapping[str, Any], advice: str) -> None:
    for name, value in values.items():
        if facts[name] != value:
            raise ValueError(f"{path}: {name} is {facts[name]!r}; expected {value!r}: {advice}")


def read_transformer(
    path: Path, facts: Mapping[str, Any], *, clean_timestep: bool, rounds_timestep: bool
) -> WanConfig:
    """The sizes in transformer/config.json. Raises ValueError for a field or a value that is not run."""
    name = facts.get("_class_name")
    if name not in _TRANSFORMERS:
        raise ValueError(f"{path}: _class_name is {name!r}; expected one of {', '.join(_TRANSFORMERS)}")
    config = read_fields(path, facts, _TRANSFORMERS[name])
    _must(path, config, _TRANSFORMER_MUST, "take a checkpoint whose networks see text and video alone")
    depth, rows, columns = config["patch_size"]
    if depth != 1 or rows != columns:
        raise ValueError(f"{path}: patch_size is {config['patch_size']}; expected [1, p, p]")
    z, channels = config["out_channels"] or config["in_channels"], config["in_channels"]
    source: Literal["rows", "channels", "control"] = "rows"
    if name == "WanVACETransformer3DModel":
        source = "control"
    elif channels == 2 * z:
        source = "channels"
    if channels != (2 * z if source == "channels" else z):
        raise ValueError(
            f"{path}: in_channels is {channels} and out_channels {z}; expected {z}, or {2 * z} for a source "
            "in the channels: image-to-video checkpoints with a mask in the channels are not run"
        )
    return WanConfig(
        num_blocks=config["num_layers"],
        num_heads=config["num_attention_heads"],
        head_dim=config["attention_head_dim"],
        mlp_width=config["ffn_dim"],
        text_dim=config["text_dim"],
        latent_channels=z,
        source=source,
        patch_size=rows,
        num_frequencies=config["freq_dim"] // 2,
        norm_eps=config["eps"],
        cross_norm=config["cross_attn_norm"],
        clean_timestep=clean_timestep and source == "rows",
        rounds_timestep=rounds_timestep,
        control_channels=config["vace_in_channels"] if source == "control" else 0,
        control_blocks=tuple(sorted(config["vace_layers"])) if source == "control" else (),
    )


def read_scheduler(path: Path, facts: Mapping[str, Any]) -> WanSchedule:
    """scheduler_config.json. Raises ValueError for another class, or options that are not run."""
    name = facts.get("_class_name")
    if name == "UniPCMultistepScheduler":
        config = read_fields(path, facts, UniPCMultistepScheduler)
    elif name == "FlowMatchEulerDiscreteScheduler":
        config = read_fields(path, facts, FlowMatchEulerDiscreteScheduler)
    else:
        raise ValueError(f"{path}: _class_name is {name!r}; expected one of {', '.join(_SCHEDULER_MUST)}")
    _must(path, config, _SCHEDULER_MUST[name], "take the scheduler that the checkpoint was published with")
    if name == "UniPCMultistepScheduler":
        return WanSchedule("unipc2", "unipc_flow", "floor", float(config["flow_shift"]))
    return WanSchedule("euler", "euler_flow", "exact", float(config["shift"]))


def limits_of(config: WanConfig) -> dict[str, float]:
    """Sizes that a checkpoint of these sizes was made for: its folder does not say. Keys as EditVerse's."""
    limits: dict[str, float] = {
        "min_area_px": 256 * 256,
        "max_area_px": 832 * 480,
        "max_side_px": 1280,
        "max_frames": 81,
        "default_height_px": 480,
        "default_width_px": 832,
        "default_frames": 81,
        "default_fps": 16.0,
        "max_text_tokens": config.max_text,
    }
    if config.width < 512:  # random weights, to try an export
        tiny = {"min_area_px": 32 * 32, "max_area_px": 256 * 256, "max_side_px": 256, "max_frames": 33}
        return limits | tiny | {"default_height_px": 64, "default_width_px": 96, "default_frames": 9}
    if config.latent_channels == 48:  # 24 frames a second, multiples of 32 pixels
        large: dict[str, float] = {"max_area_px": 1280 * 704, "max_frames": 121, "default_fps": 24.0}
        if config.source == "channels":
            return limits | large | {"max_frames": 81}
        return limits | large | {"default_height_px": 704, "default_width_px": 1280, "default_frames": 121}
    return limits if config.width <= 1536 else limits | {"max_area_px": 1280 * 720}
