"""What each graph costs, from the counts in `bundle.json`: operations, bytes moved and bytes held.

The exporter counts on the graphs themselves (`export/costs.py`) and writes polynomials in their axes, so that nothing
here knows an architecture. A multiplication and an addition are two operations; only matrix products, convolutions and
attention count, as is usual. Bytes held are those beside the weights, as ONNX Runtime holds them on a CPU
(docs/engines.md has measurements); a backend that fuses more holds less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from editverse_rt.bundle.spec import BundleSpec
from editverse_rt.errors import BundleError
from editverse_rt.fields import Fields

__all__ = ["BYTES", "Cost", "Tokens", "cost_text_encoder", "cost_transformer", "cost_vae", "weight_bytes"]

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
"""Bytes of one value by precision."""

_LIVE_SCORES = 2
"""Copies of all heads' scores that attention holds where it is not fused."""


@dataclass(frozen=True)
class Cost:
    """One run of one graph. flops: operations; traffic_bytes: read and written, weights among them;
    activation_bytes: held at the peak beside the weights, inputs and outputs among them."""

    flops: int
    traffic_bytes: int
    activation_bytes: int


@dataclass(frozen=True)
class Tokens:
    """Rows of one transformer call: text, clean and noisy patches, and all of them with the marks."""

    text: int
    clean: int
    noisy: int
    total: int


def weight_bytes(spec: BundleSpec, precision: Mapping[str, str]) -> dict[str, int]:
    """Bytes of the weights of each part, a second transformer's with the first's.

    In "fp32", which is what ONNX Runtime runs, matrices in 8 bits count as they are stored.
    Raises BundleError for a bundle that does not count them.
    """
    found = {part: _part_bytes(spec, part, wanted) for part, wanted in precision.items()}
    if "transformer" in found and "transformer_2" in _facts(spec, "parameters"):
        found["transformer"] += _part_bytes(spec, "transformer_2", precision["transformer"])
    return found


def cost_transformer(spec: BundleSpec, tokens: Tokens, precision: str, *, holds_scores: bool) -> Cost:
    """One evaluation of the transformer (paper sections 3.1 and 5.1).

    holds_scores: attention writes its L x L scores to memory, which a graph with fused attention does not count.
    Raises BundleError for a bundle without costs.
    """
    axes = {"Lt": tokens.text, "Lc": tokens.clean, "Lg": tokens.noisy, "L": tokens.total}
    cost = _cost_graph(spec, "transformer", axes, precision, _part_bytes(spec, "transformer", precision))
    if not holds_scores:
        return cost
    facts = _facts(spec, "transformer")
    scores = facts.integer("num_heads", 1) * tokens.total**2 * BYTES[precision]
    return Cost(
        cost.flops,
        cost.traffic_bytes + facts.integer("num_blocks", 1) * 4 * scores,
        cost.activation_bytes + _LIVE_SCORES * scores,
    )


def cost_text_encoder(spec: BundleSpec, num_text: int, precision: str) -> Cost:
    """One instruction through the text encoder."""
    weights = _part_bytes(spec, "text_encoder", precision)
    return _cost_graph(spec, "text_encoder", {"Lt": num_text}, precision, weights)


def cost_vae(
    spec: BundleSpec, half: str, *, first: bool, height_px: int, width_px: int, precision: str
) -> Cost:
    """One chunk through half ("encoder" or "decoder") of the VAE: the first frame, or the frames of a next."""
    multiple = spec.geometry.size_multiple
    axes = {"h": height_px // multiple, "w": width_px // multiple}
    graph = f"vae_{half}_{'first' if first else 'next'}"
    return _cost_graph(spec, graph, axes, precision, _part_bytes(spec, "vae", precision) // 2)


def _cost_graph(spec: BundleSpec, graph: str, axes: Mapping[str, int], precision: str, weights: int) -> Cost:
    if graph not in spec.costs:
        raise BundleError(
            f'bundle "{spec.name}" does not say what its graph {graph} costs: bundle.json has no object '
            f'"costs.{graph}"',
            hint="export the bundle again",
            code="bundle.field",
            field=f"costs.{graph}",
        )
    costs = spec.costs[graph]
    flops, moved, held = (_evaluate(costs[kind], axes) for kind in ("flops", "moved", "held"))
    size = BYTES[precision]
    return Cost(int(flops), int(moved) * size + weights, int(held) * size)


def _evaluate(polynomial: Mapping[str, float], axes: Mapping[str, int]) -> float:
    """The value of a polynomial at the sizes of its axes; "1" is its constant."""
    return sum(
        coefficient * math.prod(axes[axis] for axis in term.split("*") if axis != "1")
        for term, coefficient in polynomial.items()
    )


def _part_bytes(spec: BundleSpec, part: str, precision: str) -> int:
    stored = spec.costs.get(part, {}).get("weight_bytes")
    if stored is not None and precision == "fp32":
        return int(_evaluate(stored, {}))
    # No plan is built of matrices in 8 bits: in another precision it is an export without them that is asked about.
    return _facts(spec, "parameters").integer(part, 0) * BYTES[precision]


def _facts(spec: BundleSpec, part: str) -> Fields:
    if not isinstance(spec.model.get(part), dict):
        raise BundleError(
            f'bundle "{spec.name}" does not say how its {part} is built: bundle.json has no object "model.{part}"',
            hint="export the bundle again",
            code="bundle.field",
        )
    return Fields(spec.model[part], f'bundle "{spec.name}"', f"model.{part}")
