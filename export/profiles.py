"""Optimization profiles: from a target's tokens and a bundle's limits to shapes of every input."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from editverse_rt.bundle.spec import BundleSpec, Geometry, GraphSpec
from editverse_rt.engines.manifest import ShapeProfile
from editverse_rt.engines.shapes import Shape
from editverse_rt.errors import RequestError
from editverse_rt.planning.targets import Profile, Target
from export.graphs import axis_size, split_axis
from export.sequences import most_noisy_rows, most_tokens, row_range

__all__ = ["Overrides", "cover_sizes", "parse_shapes", "profiles_of"]

Overrides = Mapping[str, Mapping[str, Shape]]
"""By "min", "opt" and "max": shapes that replace a profile's, by the input's name or by graph/name."""

_OPT_TEXT = 32
_MOST_SPARE = 4 / 3
"""The largest corner of a VAE's profile, as a multiple of the largest area that the bundle takes."""


def parse_shapes(text: str | None) -> dict[str, Shape]:
    """Shapes in trtexec's syntax, `text:0x128,noisy:1x64`; graph/name says which graph's input is meant.

    Raises RequestError for anything else.
    """
    shapes: dict[str, Shape] = {}
    for part in (text or "").split(",") if text else ():
        match = re.fullmatch(r"([A-Za-z_][\w/]*):(\d+(?:x\d+)*)", part.strip())
        if match is None:
            raise RequestError(f"shape {part!r} is given; expected name:1x2x3, several with commas between")
        shapes[match[1]] = tuple(int(side) for side in match[2].split("x"))
    return shapes


def profiles_of(
    spec: BundleSpec, graph: GraphSpec, target: Target, max_tokens: int | None, overrides: Overrides
) -> tuple[ShapeProfile, ...]:
    """The profiles of one graph on a target, none twice.

    max_tokens: the caller's end for the longest. overrides: the caller's own shapes, which make one profile.
    Raises RequestError for shapes that are out of order or do not fit an input.
    """
    made = []
    for name, low, opt, high in _axis_ranges(spec, graph.name, target, max_tokens):
        shapes = {
            tensor.name: (
                _resolve(tensor.shape, low),
                _resolve(tensor.shape, opt),
                _resolve(tensor.shape, high),
            )
            for tensor in graph.inputs
            if any(isinstance(axis, str) for axis in tensor.shape)
        }
        made.append(ShapeProfile(name, shapes))
    given = {
        bound: {name: shape for name, shape in shapes.items() if _input_of(graph, name) is not None}
        for bound, shapes in overrides.items()
    }
    if any(given.values()):
        made = [_override(graph, made[-1], given)]
    unique: dict[str, ShapeProfile] = {}
    for profile in made:
        unique.setdefault(repr(profile.shapes), profile)
    return tuple(unique.values())


def _axis_ranges(
    spec: BundleSpec, graph: str, target: Target, max_tokens: int | None
) -> list[tuple[str, dict[str, int], dict[str, int], dict[str, int]]]:
    text, patches = spec.tokenizer.max_tokens, most_noisy_rows(spec)
    if graph.startswith("transformer"):
        ranges = [(p.name, row_range(spec, p)) for p in _clip_profiles(spec, target, max_tokens)]
        return [(name, rows.low, rows.opt, rows.high) for name, rows in ranges]
    if graph == "text_encoder":
        return [("text", {"Lt": 1}, {"Lt": min(_OPT_TEXT, text)}, {"Lt": text})]
    if graph == "solver_step":
        return [("patches", {"Lg": 1}, {"Lg": max(1, patches // 2)}, {"Lg": patches})]
    return _box_ranges(spec.geometry)


def _box_ranges(geometry: Geometry) -> list[tuple[str, dict[str, int], dict[str, int], dict[str, int]]]:
    """The profiles of a VAE's graph, each a box over rows and columns, named after its largest size.

    Each is tuned for the default size, lying or standing, or else for the largest of its own shape.
    """
    side = geometry.size_multiple
    area = max(1, geometry.max_area_px // side**2)
    default = (geometry.default_height_px // side, geometry.default_width_px // side)
    ranges = []
    for rows, columns in cover_sizes(area, geometry.max_side_px // side):
        shrink = min(1.0, math.sqrt(area / (rows * columns)))
        own = (max(1, int(rows * shrink)), max(1, int(columns * shrink)))
        shapes = (default, default[::-1], own)
        h, w = next(size for size in shapes if size[0] <= rows and size[1] <= columns)
        low, opt, high = {"h": 1, "w": 1}, {"h": h, "w": w}, {"h": rows, "w": columns}
        ranges.append((f"{columns * side}x{rows * side}", low, opt, high))
    return ranges


def cover_sizes(area: int, longest: int) -> list[tuple[int, int]]:
    """Boxes (rows, columns) that hold every size of at most area, with sides of at most longest; widest first.

    A builder provides for the corner of a box, so none is larger than `_MOST_SPARE` times the area. They are as few
    as that takes, and then as small as so few can be.
    """
    longest = min(longest, area)

    def cover(corner: int) -> list[tuple[int, int]]:
        boxes: list[tuple[int, int]] = []
        rows = 0
        while rows < longest:
            # What has more rows than the boxes so far has at most so many columns.
            columns = min(longest, area // (rows + 1))
            rows = min(longest, corner // columns)
            boxes.append((rows, columns))
        return boxes

    most = max(area, int(_MOST_SPARE * area))
    fewest = len(cover(most))
    return next(boxes for corner in range(area, most + 1) if len(boxes := cover(corner)) == fewest)


def _clip_profiles(spec: BundleSpec, target: Target, max_tokens: int | None) -> list[Profile]:
    """The target's profiles up to the first that holds the bundle's longest sequence."""
    end = min(most_tokens(spec), max_tokens or target.profiles[-1].max_tokens)
    if end < 3:
        raise RequestError(
            f"{end}",
            expected="3 or more, because a sequence has at least a patch and its two marks",
            code="request.option",
            field="max_tokens",
            is_value=True,
        )
    kept = [p for p in target.profiles if p.max_tokens < end]
    last = next((p for p in target.profiles if p.max_tokens >= end), target.profiles[-1])
    return [*kept, Profile(last.name, min(last.opt_tokens, max(3, end // 2)), end)]


def _resolve(axes: tuple[int | str, ...], sizes: Mapping[str, int]) -> Shape:
    return tuple(axis_size(axis, sizes) for axis in axes)


def _input_of(graph: GraphSpec, name: str) -> str | None:
    prefix, _, tensor = name.rpartition("/")
    known = [t.name for t in graph.inputs]
    return tensor if prefix in ("", graph.name) and tensor in known else None


def _override(graph: GraphSpec, base: ShapeProfile, given: Overrides) -> ShapeProfile:
    """One profile of the caller's shapes. An axis that inputs share follows in all of them, since a builder
    refuses a profile in which they differ, and only when it has done nearly all of its work."""
    axes = {tensor.name: tensor.shape for tensor in graph.inputs}
    bounds: list[dict[str, int]] = []
    for position, bound in enumerate(("min", "opt", "max")):
        sizes: dict[str, int] = {}
        for tensor, rows in base.shapes.items():
            sizes |= _sizes_from(graph, tensor, axes[tensor], rows[position])
        asked: dict[str, int] = {}
        for name, shape in given.get(bound, {}).items():
            tensor = _input_of(graph, name) or name
            if tensor not in base.shapes:
                raise RequestError(f"{graph.name}/{tensor} has no dynamic axis; leave its shape out")
            for axis, size in _sizes_from(graph, tensor, axes[tensor], shape).items():
                if asked.setdefault(axis, size) != size:
                    raise RequestError(
                        f"{graph.name}/{tensor}: axis {axis} is {size} here and {asked[axis]} in another "
                        "input; give both the same"
                    )
        bounds.append({**sizes, **asked})
    low, opt, high = bounds
    for axis, size in high.items():
        if low[axis] > size:
            raise RequestError(f"{graph.name}: the least {axis}, {low[axis]}, is above the largest, {size}")
        # What was given is a bound of what was not: the tuned size follows into the range.
        opt[axis] = min(max(low[axis], opt[axis]), size)
    return ShapeProfile(
        "given",
        {
            tensor: (_resolve(axes[tensor], low), _resolve(axes[tensor], opt), _resolve(axes[tensor], high))
            for tensor in base.shapes
        },
    )


def _sizes_from(graph: GraphSpec, tensor: str, axes: tuple[int | str, ...], shape: Shape) -> dict[str, int]:
    """The sizes of the named axes of an input, from its shape. Raises RequestError for one it cannot have."""
    sizes: dict[str, int] = {}
    fits = len(shape) == len(axes)
    for axis, size in zip(axes, shape, strict=False):
        if isinstance(axis, int):
            fits &= axis == size
            continue
        factor, name = split_axis(axis)
        fits &= size % factor == 0 and sizes.setdefault(name, size // factor) == size // factor
    if not fits:
        raise RequestError(f"shape of {graph.name}/{tensor} is {list(shape)}; expected {list(axes)}")
    return sizes
