"""Convolutions over time and space as convolutions of pictures, frame by frame.

ONNX Runtime's CPU kernels unroll a three-dimensional convolution into a matrix of all its windows, 27 times
its input, and multiply that; two-dimensional ones they compute in place, in a blocked layout. A chunk of the
video VAE has a few frames, known when it is traced. So each frame of the result becomes one convolution of
the frames that it sees, laid side by side as channels: the same products, summed in another order. What the
causal padding makes of zeros, two of three frames of a first chunk, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx_ir as ir

__all__ = ["unroll_convolutions"]

_TIME = 2
"""The axis of frames in [1, C, T, H, W]."""


@dataclass(frozen=True)
class _Window:
    """What one frame of the result sees: frames [first, last) of the input, by taps [tap, tap + count)."""

    first: int
    last: int
    tap: int

    @property
    def count(self) -> int:
        return self.last - self.first


def unroll_convolutions(model: ir.Model) -> int:
    """Replace every convolution over [1, C, T, H, W], in place; say how many.

    The model is one as traced: C and T stand in its shapes, weights are initializers.
    Raises ValueError for a convolution that is dilated in time, grouped, padded by name, whose number of
    frames is not known or whose result leaves the graph.
    """
    nodes = [node for node in model.graph if node.op_type == "Conv" and _kernel_of(node).ndim == 5]
    for node in nodes:
        _unroll(model.graph, node)
    return len(nodes)


def _kernel_of(node: ir.Node) -> np.ndarray:
    value = node.inputs[1]
    if value is None or value.const_value is None:
        raise ValueError(f"{node.name}: the weights of the convolution are computed; expected an initializer")
    return value.const_value.numpy()


def _unroll(graph: ir.Graph, node: ir.Node) -> None:
    x, weight = cast(ir.Value, node.inputs[0]), cast(ir.Value, node.inputs[1])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    kernel = _kernel_of(node)
    num_frames = _static_frames(node, x)
    strides, pads = _ints(node, "strides", [1] * 3), _ints(node, "pads", [0] * 6)
    windows = _windows(num_frames, kernel.shape[_TIME], strides[0], pads[0], pads[3])
    # One input of pictures and one weight for each set of taps; most frames share theirs.
    weights: dict[tuple[int, int], ir.Value] = {}
    made: list[ir.Node] = []

    def add(op_type: str, inputs: list[ir.Value | None], **attributes: int | list[int]) -> ir.Value:
        created = ir.node(op_type, inputs, attributes)
        made.append(created)
        return created.outputs[0]

    def constant(name: str, value: np.ndarray) -> ir.Value:
        return _initializer(graph, f"{node.outputs[0].name}.{name}", value)

    frames: list[ir.Value] = []
    for index, window in enumerate(windows):
        taps = (window.tap, window.count)
        if taps not in weights:
            chosen = kernel[:, :, window.tap : window.tap + window.count]
            flat = chosen.reshape(kernel.shape[0], -1, *kernel.shape[3:])
            weights[taps] = _initializer(graph, f"{weight.name}.taps_{window.tap}_{window.count}", flat)
        seen: ir.Value = x
        if window.count < num_frames:
            ends = [constant(f"{end}_{index}", np.array([at])) for end, at in
                    (("first", window.first), ("last", window.last))]  # fmt: skip
            seen = add("Slice", [x, *ends, constant("time", np.array([_TIME]))])
        # [1, C, n, H, W] -> [C, n, H, W] -> [1, C n, H, W], in the order of the kernel's own memory.
        seen = add("Squeeze", [seen, constant("batch", np.array([0]))])
        channels = kernel.shape[1] * window.count
        seen = add("Reshape", [seen, constant(f"channels_{window.count}", np.array([1, channels, 0, 0]))])
        picture = add(
            "Conv",
            [seen, weights[taps], bias],
            kernel_shape=list(kernel.shape[3:]),
            strides=strides[1:],
            pads=[*pads[1:3], *pads[4:6]],
        )
        frames.append(add("Unsqueeze", [picture, constant("time", np.array([_TIME]))]))
    result = frames[0] if len(frames) == 1 else add("Concat", list(frames), axis=_TIME)
    graph.insert_before(node, made)
    old = node.outputs[0]
    old.replace_all_uses_with(result)
    result.name, result.shape, result.type = old.name, old.shape, old.type
    old.name = None
    graph.remove(node, safe=True)
    if not weight.uses() and weight.name is not None:
        del graph.initializers[weight.name]


def _static_frames(node: ir.Node, x: ir.Value) -> int:
    """How many frames the input has, once the convolution is known to be one that can be unrolled."""
    frames = None if x.shape is None else x.shape[_TIME]
    group, dilations = _ints(node, "group", [1]), _ints(node, "dilations", [1] * 3)
    auto_pad = node.attributes.get("auto_pad")
    if not isinstance(frames, int):
        raise ValueError(f"{node.name}: the input's shape is {x.shape}; expected a known number of frames")
    if group != [1] or dilations != [1] * 3 or (auto_pad is not None and auto_pad.as_string() != "NOTSET"):
        found = f"{node.name}: group {group}, dilations {dilations}, auto_pad {auto_pad}"
        raise ValueError(f"{found}; expected a plain convolution with numbers as pads")
    if node.outputs[0].is_graph_output():
        raise ValueError(f"{node.name}: its result leaves the graph; expected the VAE's layers inside")
    return frames


def _windows(frames: int, taps: int, stride: int, pad_before: int, pad_after: int) -> list[_Window]:
    """What each frame of the result sees of the input; padding is not seen."""
    found = []
    for start in range(-pad_before, frames + pad_after - taps + 1, stride):
        first, last = max(start, 0), min(start + taps, frames)
        found.append(_Window(first, last, first - start))
    return found


def _ints(node: ir.Node, name: str, default: list[int]) -> list[int]:
    attribute = node.attributes.get(name)
    if attribute is None:
        return default
    return [attribute.as_int()] if attribute.type == ir.AttributeType.INT else list(attribute.as_ints())


def _initializer(graph: ir.Graph, name: str, value: np.ndarray) -> ir.Value:
    """The initializer of that name, made when it is first asked for."""
    if name not in graph.initializers:
        tensor = ir.tensor(np.ascontiguousarray(value), name=name)
        graph.register_initializer(ir.Value(name=name, const_value=tensor))
    return graph.initializers[name]
