"""Wan checkpoints (2.1 and 2.2, VACE, Lucy-Edit) as bundles."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from editverse_rt.bundle.schedule import Schedule
from editverse_rt.bundle.spec import Capabilities, Geometry
from export.families.base import count_parameters, text_facts, vae_facts
from export.families.distilled import distilled_schedule
from export.graphs import (
    AddNoise,
    Graph,
    KeepKnown,
    Module,
    SolverStep,
    Transformer,
    geometry_of_vae,
    graph_specs,
    graphs_of,
    text_encoder_module,
    vae_modules,
)
from export.lower import Lowering, RopeConfig, rope_config
from export.schedules import ScheduleGraph, table_of
from reference.families.wan_checkpoint import WanCheckpoint
from reference.families.wan_vace import Condition

__all__ = ["WanExport"]

HISTORY_ROWS = 3
"""UniPC's corrected sample and two clean predictions."""


class WanExport:
    """See `FamilyExport`."""

    family = "wan"
    unconditional = "prompt"

    def __init__(self, checkpoint: WanCheckpoint) -> None:
        config = checkpoint.config
        self.checkpoint = checkpoint
        self.tokenizer_file: Path = checkpoint.tokenizer_file
        self.max_text_tokens = config.max_text
        self.default_negative_prompt = checkpoint.negative_prompt
        self.geometry: Geometry = geometry_of_vae(
            checkpoint.vae, config.patch_size, config.clean_dim, checkpoint.limits
        )
        self.rope: RopeConfig = rope_config(config)
        if config.source == "rows":
            self.conditioning = "rows" if config.clean_timestep else "none"
        else:
            self.conditioning = config.source

    def capabilities(self, lowering: Lowering, dtype: torch.dtype) -> Capabilities:
        noised = self.conditioning == "none"
        return Capabilities(
            generates=self.conditioning != "channels",
            edits=True,
            negative_prompt=True,
            strength=noised,
            attention=lowering,
            convolutions="frames" if lowering == "fused" else "volumes",
            dtype=str(dtype).removeprefix("torch."),
        )

    def graphs(self) -> dict[str, Graph]:
        checkpoint, config, geometry = self.checkpoint, self.checkpoint.config, self.geometry
        modules: dict[str, Module | None] = {
            "text_encoder": text_encoder_module(checkpoint.text_encoder),
            "transformer": lambda: Transformer(checkpoint.transformers[0]),
            "solver_step": lambda: SolverStep(HISTORY_ROWS),
            "noise": None,
            "keep_known": KeepKnown,
            **vae_modules(checkpoint.vae, config.patch_size, masked=self.conditioning == "control"),
            self._schedule_graph: self._schedule_module,
        }
        if len(checkpoint.transformers) == 2:
            modules["transformer_2"] = lambda: Transformer(checkpoint.transformers[1])
        if self.conditioning == "none":
            modules["add_noise"] = AddNoise
        if self.conditioning == "control":
            modules["condition"] = partial(Condition, config.patch_size, geometry.spatial_ratio)
        specs = graph_specs(
            self.family, self.conditioning, modules, checkpoint.vae, geometry, config.text_dim, HISTORY_ROWS
        )
        return graphs_of(specs, modules)

    @property
    def _schedule_graph(self) -> str:
        return f"schedule_{self.checkpoint.schedule.solver}"

    def _schedule_module(self) -> ScheduleGraph:
        schedule = self.checkpoint.schedule
        return ScheduleGraph(
            schedule.solver,
            HISTORY_ROWS,
            spacing=schedule.spacing,
            told=schedule.told,
            float32_sigmas=True,
            boundary=schedule.boundary,
        )

    def schedules(self) -> tuple[dict[str, Schedule], str]:
        """The model's own, by the name of its solver."""
        own = self.checkpoint.schedule
        options = {"shift": own.shift, "guided_from": 0.0, "guided_until": 1.0}
        if len(own.guidance_scales) == 2:
            options["guidance_scale_2"] = own.guidance_scales[1]
        scale = own.guidance_scales[0]
        table = table_of(self._schedule_module(), own.num_inference_steps, scale, options)
        return {own.solver: Schedule(own.solver, self._schedule_graph, scale, table, options)}, own.solver

    def fixed_schedule(self, name: str) -> Schedule:
        """See `FamilyExport`: that of a step-distilled adapter."""
        return distilled_schedule(name, HISTORY_ROWS, self.checkpoint.schedule.boundary)

    def model_facts(self) -> dict[str, Any]:
        checkpoint, config = self.checkpoint, self.checkpoint.config
        names = ("transformer", "transformer_2")
        parts = {
            **dict(zip(names, checkpoint.transformers, strict=False)),
            "text_encoder": checkpoint.text_encoder,
            "vae": checkpoint.vae,
        }
        return {
            "pipeline": checkpoint.pipeline,
            "transformer": asdict(config),
            "text_encoder": text_facts(checkpoint.text_encoder.config),
            "vae": vae_facts(checkpoint.vae.config),
            "parameters": count_parameters(parts),
        }

    def provenance(self) -> dict[str, Any]:
        merged = [{**asdict(lora), "dropped": list(lora.dropped)} for lora in self.checkpoint.merged]
        return {"loras": merged} if merged else {}
