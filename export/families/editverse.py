"""EditVerse checkpoints as bundles."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from editverse_rt.bundle.schedule import Schedule
from editverse_rt.bundle.spec import Capabilities, Geometry
from export.families.base import count_parameters, text_facts, vae_facts
from export.graphs import (
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
from export.schedules import (
    HISTORY_ROWS,
    ScheduleGraph,
    build_schedule,
    exported_settings,
    fixed_schedule,
    solvers,
)
from reference.families.editverse_checkpoint import EditVerseCheckpoint

__all__ = ["DISTILLED_SCHEDULE", "EditVerseExport"]

DISTILLED_SCHEDULE = "distilled"
"""The one schedule of a checkpoint of `reference/distill.py`."""


class EditVerseExport:
    """See `FamilyExport`."""

    family = "editverse"
    conditioning = "interleaved"
    unconditional = "drop_text"
    default_negative_prompt = ""

    def __init__(self, checkpoint: EditVerseCheckpoint) -> None:
        self.checkpoint = checkpoint
        self.tokenizer_file: Path = checkpoint.tokenizer_file
        self.max_text_tokens = int(checkpoint.limits["max_text_tokens"])
        patch_dim = checkpoint.transformer.config.patch_dim
        self.geometry: Geometry = geometry_of_vae(
            checkpoint.vae, checkpoint.patch_size, patch_dim, checkpoint.limits
        )
        self.rope: RopeConfig = rope_config(checkpoint.transformer.config)
        self._is_fixed = bool(checkpoint.scheduler.get("is_fixed"))
        self._settings = {} if self._is_fixed else exported_settings(checkpoint.scheduler)

    def capabilities(self, lowering: Lowering, dtype: torch.dtype) -> Capabilities:
        return Capabilities(
            attention=lowering,
            convolutions="frames" if lowering == "fused" else "volumes",
            dtype=str(dtype).removeprefix("torch."),
        )

    def graphs(self) -> dict[str, Graph]:
        checkpoint = self.checkpoint
        used = {settings.solver for settings in self._settings.values()}
        modules: dict[str, Module | None] = {
            "text_encoder": text_encoder_module(checkpoint.text_encoder),
            "transformer": lambda: Transformer(checkpoint.transformer),
            "solver_step": lambda: SolverStep(HISTORY_ROWS),
            "noise": None,
            "keep_known": KeepKnown,
            **vae_modules(checkpoint.vae, checkpoint.patch_size),
            **{f"schedule_{solver}": partial(ScheduleGraph, solver) for solver in solvers if solver in used},
        }
        text_dim = checkpoint.transformer.config.text_dim
        specs = graph_specs(
            self.family, self.conditioning, modules, checkpoint.vae, self.geometry, text_dim, HISTORY_ROWS
        )
        return graphs_of(specs, modules)

    def schedules(self) -> tuple[dict[str, Schedule], str]:
        if self._is_fixed:
            steps = int(self.checkpoint.scheduler["num_inference_steps"])
            return {DISTILLED_SCHEDULE: fixed_schedule(DISTILLED_SCHEDULE, steps)}, DISTILLED_SCHEDULE
        return {name: build_schedule(name, s) for name, s in self._settings.items()}, "paper"

    def fixed_schedule(self, name: str) -> Schedule:
        """EditVerse has no fixed schedules, see `FamilyExport`. Raises ValueError."""
        raise ValueError(f"no schedule is named {name!r} for EditVerse; leave --schedule-from out")

    def model_facts(self) -> dict[str, Any]:
        checkpoint, vae = self.checkpoint, self.checkpoint.vae
        parts = {
            "transformer": checkpoint.transformer,
            "text_encoder": checkpoint.text_encoder,
            "vae": vae,
        }
        return {
            "transformer": checkpoint.transformer.config.to_dict(),
            "text_encoder": text_facts(checkpoint.text_encoder.config),
            "vae": vae_facts(vae.config),
            "parameters": count_parameters(parts),
        }

    def provenance(self) -> dict[str, Any]:
        return {}
