"""What the exporter asks of a model family; one class a family answers for one checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from editverse_rt.bundle.schedule import Schedule
from editverse_rt.bundle.spec import Capabilities, Geometry
from export.graphs import Graph
from export.lower import Lowering, RopeConfig

__all__ = ["FamilyExport", "count_parameters", "text_facts", "vae_facts"]

# What says how large the VAE's convolutions are.
_VAE_FACTS = (
    "base_dim", "z_dim", "dim_mult", "num_res_blocks", "attn_scales", "temperal_downsample",
    "in_channels", "out_channels", "is_residual",
)  # fmt: skip


class FamilyExport(Protocol):
    """One checkpoint as its family exports it. The properties become fields of `bundle.json`."""

    @property
    def family(self) -> str: ...
    @property
    def conditioning(self) -> str: ...
    @property
    def unconditional(self) -> str: ...
    @property
    def default_negative_prompt(self) -> str: ...
    @property
    def geometry(self) -> Geometry: ...
    @property
    def tokenizer_file(self) -> Path: ...
    @property
    def max_text_tokens(self) -> int: ...
    @property
    def rope(self) -> RopeConfig:
        """What the attention nodes of its transformer have in common."""
        ...

    def capabilities(self, lowering: Lowering, dtype: torch.dtype) -> Capabilities: ...
    def graphs(self) -> dict[str, Graph]: ...
    def schedules(self) -> tuple[dict[str, Schedule], str]:
        """Schedules by name, and the name of the default."""
        ...

    def fixed_schedule(self, name: str) -> Schedule:
        """A schedule without a graph, by its name. Raises ValueError for a name that the family does not have."""
        ...

    def model_facts(self) -> dict[str, Any]:
        """How the parts are built, as JSON's kinds of values, with `parameters` of each."""
        ...

    def provenance(self) -> dict[str, Any]:
        """What went into the bundle beside the checkpoint, such as adapters."""
        ...


def count_parameters(parts: Mapping[str, torch.nn.Module]) -> dict[str, int]:
    """How many weights each part has, by its name."""
    return {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}


def text_facts(config: Any) -> dict[str, Any]:
    """How a T5 encoder is built."""
    return {
        "width": config.d_model,
        "mlp_width": config.d_ff,
        "mlp_matrices": 3 if config.is_gated_act else 2,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "head_dim": config.d_kv,
    }


def vae_facts(config: Any) -> dict[str, Any]:
    """How a VAE of diffusers' Wan class is built."""
    return {
        **{name: config[name] for name in _VAE_FACTS},
        "decoder_base_dim": config.decoder_base_dim or config.base_dim,
        "patch_size": config.patch_size or 1,
    }
