"""Shapes and sizes of a graph's outputs, from those of its inputs and the names of their axes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from editverse_rt.bundle.spec import GraphSpec, TensorSpec
from editverse_rt.errors import BackendError, BundleError
from editverse_rt.fields import EXPORT_AGAIN

__all__ = ["Shape", "count_bytes", "output_shapes"]

_ITEM_BYTES = {"float32": 4, "int64": 8, "uint8": 1}
Shape = tuple[int, ...]


def output_shapes(graph: GraphSpec, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Shapes of a graph's outputs from those of its inputs, by the names of their axes.

    Raises BackendError for inputs that are missing, or contradict each other or the graph table.
    """
    sizes: dict[str, int] = {}
    for tensor in graph.inputs:
        shape = shapes.get(tensor.name)
        if shape is None or not _fits_axes(tensor, shape, sizes):
            found = "is missing" if shape is None else f"has shape {list(shape)}"
            raise BackendError(
                f'graph "{graph.name}": {tensor.name} {found}, expected {list(tensor.shape)}'
                f"{f' with {sizes}' if sizes else ''}",
                hint="give inputs as the bundle's graph table has them",
                code="backend.inputs",
            )
    results: dict[str, Shape] = {}
    for tensor in graph.outputs:
        axes = [_split_axis(axis) for axis in tensor.shape]
        for _, name in axes:
            if name and name not in sizes:
                raise BackendError(
                    f'graph "{graph.name}": no input has the axis {name} of {tensor.name}',
                    hint=EXPORT_AGAIN,
                    code="bundle.field",
                )
        results[tensor.name] = tuple(factor * sizes[name] if name else factor for factor, name in axes)
    return results


def count_bytes(tensor: TensorSpec, shape: Shape) -> int:
    """Bytes of a tensor of the graph table at a shape; at least one, because a buffer needs an address."""
    return max(1, math.prod(shape) * _ITEM_BYTES[tensor.dtype])


def _fits_axes(tensor: TensorSpec, shape: Shape, sizes: dict[str, int]) -> bool:
    """Whether a shape has the axes of a tensor; sizes takes those of the axes that are named first here."""
    if len(shape) != len(tensor.shape):
        return False
    for axis, size in zip(tensor.shape, shape, strict=True):
        factor, name = _split_axis(axis)
        if not name and size != factor:
            return False
        if name and (size % factor or sizes.setdefault(name, size // factor) != size // factor):
            return False
    return True


def _split_axis(axis: int | str) -> tuple[int, str]:
    """`16*h` -> (16, `h`); `Lt` -> (1, `Lt`); 64 -> (64, ``). Raises BundleError for another factor."""
    if isinstance(axis, int):
        return axis, ""
    factor, star, name = axis.rpartition("*")
    if not star:
        return 1, name
    if not re.fullmatch("[0-9]{1,9}", factor) or int(factor) == 0:
        raise BundleError(
            f'a graph has the axis "{axis}"',
            expected="a name, or 16*name",
            hint=EXPORT_AGAIN,
            code="bundle.field",
        )
    return int(factor), name
