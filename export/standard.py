"""A bundle's graphs in standard operators, whatever lowering they were exported with."""

from __future__ import annotations

import onnx_ir as ir

from editverse_rt.bundle.manifest import Bundle
from editverse_rt.errors import RequestError
from editverse_rt.stages import TRANSFORMERS
from export.attention_nodes import OP_TYPE
from export.blocks import has_blocks
from export.integers import INTEGERS
from export.lower import lower_attention, rope_config_of
from export.precision import use_standard_attention

__all__ = ["check_source", "keeps_plugin", "load_standard"]


def keeps_plugin(bundle: Bundle, graph: str) -> bool:
    """Whether a graph was exported with `RopeAttention` left to TensorRT's plugin: a transformer, each one of two."""
    return graph in TRANSFORMERS and bundle.spec.capabilities.attention == "plugin"


def check_source(bundle: Bundle) -> None:
    """Refuse a bundle whose graphs are not in standard operators, or not the model's own any more.

    Raises RequestError that says what to take instead.
    """
    if bundle.spec.capabilities.weights == INTEGERS:
        raise RequestError(
            f'bundle "{bundle.spec.name}" multiplies in 8-bit integers, which only ONNX Runtime reads; give '
            "the bundle that export.integers made it from"
        )
    if bundle.spec.capabilities.emulates:
        raise RequestError(
            f'bundle "{bundle.spec.name}" emulates the rounding of plans; give the bundle that '
            "export.emulate made it from"
        )


def load_standard(bundle: Bundle, graph: str, *, keep_plugin: bool = False) -> ir.Model:
    """A bundle's graph with its functions inlined, in standard operators whatever it was exported for.

    keep_plugin: leave `RopeAttention` as it is where the bundle was exported for the plugin; else it gets the
    body that the export left out. Raises RequestError as `check_source` does, and for matrices in blocks of 8 bits.
    """
    check_source(bundle)
    model = ir.load(bundle.graph_path(graph))
    if has_blocks(model):
        raise RequestError(
            f'graph "{graph}" of bundle "{bundle.spec.name}" has matrices in blocks of 8 bits, which only ONNX Runtime '
            "reads; export the checkpoint without --text-encoder-bits"
        )
    if keeps_plugin(bundle, graph) and not keep_plugin:
        for node in model.graph:
            if node.op_type == OP_TYPE:
                node.attributes.pop("plugin_namespace")
                node.attributes.pop("plugin_version")
        lower_attention(model, rope_config_of(bundle.spec.model), "inline")
    use_standard_attention(model)
    return model
