"""The procedural world that nano is trained in: coloured shapes that move over varied backgrounds.

A `Scene` is described in units of the frame (positions in [0, 1] of height and width, sizes in units of
the shorter side), so that one scene renders at any size and length, and every edit of it has a known
right answer. Everything is numpy, float32 in [0, 1] while rendering, uint8 at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
"""uint8 [T, H, W, 3]."""

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.12, 0.14),
    "green": (0.12, 0.66, 0.22),
    "blue": (0.14, 0.28, 0.88),
    "yellow": (0.96, 0.86, 0.14),
    "orange": (0.96, 0.52, 0.08),
    "purple": (0.54, 0.18, 0.70),
    "cyan": (0.12, 0.80, 0.86),
    "white": (0.97, 0.97, 0.97),
    "black": (0.04, 0.04, 0.05),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
SIZES: dict[str, float] = {"small": 0.15, "medium": 0.20, "large": 0.26}
PLACES: dict[str, tuple[float, float]] = {
    "top left": (0.26, 0.26),
    "top": (0.26, 0.5),
    "top right": (0.26, 0.74),
    "left": (0.5, 0.26),
    "center": (0.5, 0.5),
    "right": (0.5, 0.74),
    "bottom left": (0.74, 0.26),
    "bottom": (0.74, 0.5),
    "bottom right": (0.74, 0.74),
}
MOTIONS: dict[str, tuple[float, float]] = {
    "": (0.0, 0.0),
    "moving left": (0.0, -0.028),
    "moving right": (0.0, 0.028),
    "moving up": (-0.028, 0.0),
    "moving down": (0.028, 0.0),
}
MAX_SPEED = 0.04
"""Of an object, in frame units per frame: two to three pixels, as in footage of some frames a second."""
PATTERNS = ("plain", "gradient", "stripes", "checkerboard")
TEXTURES = ("clouds", "leaves")
FOOTAGE = "footage"
"""The kind of a background that is photographs or film, whatever is in them."""
FOOTAGE_SHARE = 0.6
"""Of the scenes on a canvas that has footage."""
MAX_PAN = 0.2
"""How far a camera of these scenes moves, in widths of the frame."""


@dataclass(frozen=True)
class Thing:
    """One object: its place is (row, column) in frame units at frame 0, its motion is per frame."""

    shape: str
    color: str
    size: float
    place: tuple[float, float]
    motion: tuple[float, float] = (0.0, 0.0)

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


class Footage(Protocol):
    """Photographs or film that scenes may have as their background."""

    def draw_background(self, seed: int, canvas: Canvas) -> NDArray[np.float32]:
        """A clip float32 [T, H, W, 3] in [0, 1], always the same for a seed."""
        ...


@dataclass(frozen=True)
class Background:
    """`kind` is one of PATTERNS (told by `color`), of TEXTURES (told by `seed`), or FOOTAGE (told by `seed`)."""

    kind: str
    color: str = "white"
    seed: int = 0
    footage: Footage | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        if self.kind == "gradient":
            return f"{self.color} gradient"
        if self.kind == "stripes":
            return f"{self.color} striped"
        if self.kind == "checkerboard":
            return f"{self.color} checkerboard"
        return f"plain {self.color}"


@dataclass(frozen=True)
class Scene:
    """Background and objects, the later ones in front."""

    background: Background
    things: tuple[Thing, ...]

    def without(self, index: int) -> Scene:
        return replace(self, things=self.things[:index] + self.things[index + 1 :])

    def changed(self, index: int, **changes: object) -> Scene:
        thing = replace(self.things[index], **changes)  # type: ignore[arg-type]
        return replace(self, things=(*self.things[:index], thing, *self.things[index + 1 :]))

    def with_thing(self, thing: Thing) -> Scene:
        return replace(self, things=(*self.things, thing))


@dataclass(frozen=True)
class Canvas:
    """Frames, height and width in pixels. footage: what backgrounds may show besides; None for drawn ones alone."""

    frames: int
    height: int
    width: int
    footage: Footage | None = field(default=None, compare=False, repr=False)

    @property
    def short_side(self) -> int:
        return min(self.height, self.width)


def coverage(
    shape: str, dy: NDArray[np.float32], dx: NDArray[np.float32], radius: float
) -> NDArray[np.float32]:
    """Anti-aliased coverage in [0, 1] of a shape centred at the origin; dy, dx and radius in pixels."""
    ay, ax = np.abs(dy), np.abs(dx)
    if shape == "circle":
        distance = np.hypot(dy, dx) - radius
    elif shape == "ring":
        distance = np.abs(np.hypot(dy, dx) - 0.72 * radius) - 0.28 * radius
    elif shape == "square":
        distance = np.maximum(ay, ax) - 0.88 * radius
    elif shape == "diamond":
        distance = (ay + ax - 1.15 * radius) * np.float32(0.7071)
    elif shape == "cross":
        arm = 0.34 * radius
        distance = np.minimum(np.maximum(ay - radius, ax - arm), np.maximum(ax - radius, ay - arm))
    elif shape == "triangle":
        distance = np.maximum(0.894 * ax - 0.447 * dy - 0.447 * radius, dy - 0.85 * radius)
    else:
        raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")
    return np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32)


def pixel_grid(canvas: Canvas) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pixel centres, rows [H, 1] and columns [1, W], in pixels."""
    rows = np.arange(canvas.height, dtype=np.float32)[:, None] + np.float32(0.5)
    columns = np.arange(canvas.width, dtype=np.float32)[None, :] + np.float32(0.5)
    return rows, columns


def thing_alpha(
    thing: Thing, canvas: Canvas, frame: int, grid: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Coverage [H, W] of one object in one frame."""
    rows, columns = grid
    y = (thing.place[0] + thing.motion[0] * frame) * canvas.height
    x = (thing.place[1] + thing.motion[1] * frame) * canvas.width
    return coverage(
        thing.shape, rows - np.float32(y), columns - np.float32(x), thing.size * canvas.short_side
    )


def bounding_box(thing: Thing, canvas: Canvas, frame: int, camera_px: int = 0) -> tuple[slice, slice]:
    """Rows and columns outside of which the object has no coverage."""
    reach = 1.2 * thing.size * canvas.short_side + 2
    y = (thing.place[0] + thing.motion[0] * frame) * canvas.height
    x = (thing.place[1] + thing.motion[1] * frame) * canvas.width - camera_px
    return (
        slice(max(0, int(y - reach)), max(0, int(y + reach))),
        slice(max(0, int(x - reach)), max(0, int(x + reach))),
    )


def _named_background(background: Background, canvas: Canvas) -> NDArray[np.float32]:
    color = np.asarray(COLORS[background.color], np.float32) * np.float32(0.6) + np.float32(0.3)
    pale = color * np.float32(0.3) + np.float32(0.65)
    rows, columns = pixel_grid(canvas)
    cell = canvas.short_side / 8
    if background.kind == "plain":
        mix = np.zeros((canvas.height, canvas.width), np.float32)
    elif background.kind == "gradient":
        mix = np.broadcast_to(rows / canvas.height, (canvas.height, canvas.width))
    elif background.kind == "stripes":
        mix = np.broadcast_to((columns // cell) % 2, (canvas.height, canvas.width))
    else:
        mix = (rows // cell + columns // cell) % 2
    return color + mix[..., None].astype(np.float32) * (pale - color)


@lru_cache(maxsize=512)
def texture(kind: str, seed: int, side: int = 96) -> NDArray[np.float32]:
    """A square texture [side, side, 3] with the statistics of natural images: 1/f noise or dead leaves."""
    rng = np.random.default_rng([7, TEXTURES.index(kind), seed])
    if kind == "clouds":
        frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
        amplitude = 1.0 / np.maximum(frequency, 1.0 / side) ** rng.uniform(1.5, 2.1)
        planes = []
        for _ in range(3):
            phase = rng.standard_normal(amplitude.shape) + 1j * rng.standard_normal(amplitude.shape)
            plane = np.fft.irfft2(phase * amplitude, s=(side, side))
            planes.append(plane / plane.std())
        mixing = 0.75 * np.full((3, 3), 1 / 3) + 0.35 * np.eye(3)
        picture = np.stack(planes, -1) @ mixing.T
        picture = 0.5 + rng.uniform(0.07, 0.16) * picture / picture.std() + rng.uniform(-0.15, 0.15, 3)
        return np.clip(picture, 0, 1).astype(np.float32)
    picture = np.zeros((side, side, 3), np.float32)
    picture[:] = rng.uniform(0.1, 0.9, 3)
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    base = rng.uniform(0.2, 0.8, 3)
    for _ in range(60):
        radius = 4.0 / rng.uniform(0.06, 1.0) ** 0.8
        y, x = rng.uniform(0, side, 2)
        leaf = np.clip(0.3 * rng.uniform(0, 1, 3) + 0.7 * base + rng.normal(0, 0.10), 0, 1)
        alpha = np.clip(0.5 + radius - np.hypot(rows - y, columns - x), 0, 1)[..., None]
        picture = picture * (1 - alpha) + leaf * alpha
    return picture.astype(np.float32)


def render_background(background: Background, canvas: Canvas, reach_px: int = 0) -> NDArray[np.float32]:
    """The background alone, float32 [T, H, W + reach_px or more, 3]; T is 1 for one that does not move."""
    wide = replace(canvas, width=canvas.width + reach_px)
    if background.kind in PATTERNS:
        return _named_background(background, wide)[None]
    if background.kind == FOOTAGE:
        assert background.footage is not None
        # As wide with a camera that moves as without, so that both show the same.
        wide = replace(canvas, width=canvas.width + round(MAX_PAN * canvas.width))
        return background.footage.draw_background(background.seed, wide)
    picture = texture(background.kind, background.seed // 4)
    if background.seed & 1:
        picture = picture[::-1]
    if background.seed & 2:
        picture = picture[:, ::-1]
    return picture[None, : wide.height, : wide.width]


def render_float(scene: Scene, canvas: Canvas, camera_px: Sequence[int] = ()) -> NDArray[np.float32]:
    """The scene as float32 [T, H, W, 3] in [0, 1].

    camera_px: how many pixels to the right the camera stands in each frame (none: it stays).
    """
    camera = list(camera_px) or [0] * canvas.frames
    backgrounds = render_background(scene.background, canvas, max(map(abs, camera)))
    columns = np.arange(canvas.width)
    # Left of the scene's edge the background is its own mirror image.
    frames = np.stack(
        [
            backgrounds[min(index, len(backgrounds) - 1)][:, np.abs(columns + offset)]
            for index, offset in enumerate(camera)
        ]
    )
    grid = pixel_grid(canvas)
    for thing in scene.things:
        color = np.asarray(COLORS[thing.color], np.float32)
        for index, offset in enumerate(camera):
            box = bounding_box(thing, canvas, index, offset)
            near = (grid[0][box[0]], grid[1][:, box[1]] + np.float32(offset))
            area = frames[index][box]
            area += thing_alpha(thing, canvas, index, near)[..., None] * (color - area)
    return frames


def uint8_from_float(frames: NDArray[np.float32]) -> Frames:
    """Round [0, 1] to grey levels."""
    return np.asarray(np.clip(frames * 255.0 + 0.5, 0, 255), np.uint8)


def render(scene: Scene, canvas: Canvas, camera_px: Sequence[int] = ()) -> Frames:
    """The scene as uint8 [T, H, W, 3]."""
    return uint8_from_float(render_float(scene, canvas, camera_px))


def render_mask(scene: Scene, index: int, canvas: Canvas) -> Frames:
    """White where the object is seen, black elsewhere, uint8 [T, H, W, 3]."""
    grid = pixel_grid(canvas)
    frames = np.zeros((canvas.frames, canvas.height, canvas.width, 3), np.float32)
    for frame in range(canvas.frames):
        alpha = thing_alpha(scene.things[index], canvas, frame, grid)
        for other in scene.things[index + 1 :]:
            alpha = alpha * (1 - thing_alpha(other, canvas, frame, grid))
        frames[frame] = alpha[..., None]
    return uint8_from_float(frames)


@lru_cache(maxsize=4096)
def full_area_px(shape: str, tenth_radius: int) -> float:
    """Area of a whole shape whose radius is given in tenths of a pixel."""
    reach = np.arange(-32, 32, dtype=np.float32)
    return float(coverage(shape, reach[:, None], reach[None, :], tenth_radius / 10).sum())


def visible_fraction(scene: Scene, index: int, canvas: Canvas) -> float:
    """The least share, over the frames, of the object's full area that is inside the frame and not hidden."""
    thing = scene.things[index]
    full = full_area_px(thing.shape, round(10 * thing.size * canvas.short_side))
    grid = pixel_grid(canvas)
    worst = 1.0
    for frame in {0, canvas.frames // 2, canvas.frames - 1}:
        alpha = thing_alpha(thing, canvas, frame, grid)
        for other in scene.things[index + 1 :]:
            alpha = alpha * (1 - thing_alpha(other, canvas, frame, grid))
        worst = min(worst, float(alpha.sum() / full))
    return worst


def random_background(rng: np.random.Generator, footage: Footage | None = None) -> Background:
    """Of what is drawn, textures half of the time, a named pattern otherwise."""
    if footage is not None and rng.random() < FOOTAGE_SHARE:
        return Background(FOOTAGE, seed=int(rng.integers(2**31)), footage=footage)
    if rng.random() < 0.5:
        return Background(str(rng.choice(TEXTURES)), seed=int(rng.integers(800)))
    return random_pattern(rng)


def random_pattern(rng: np.random.Generator) -> Background:
    kind = str(rng.choice(PATTERNS, p=(0.4, 0.3, 0.15, 0.15)))
    return Background(kind, color=str(rng.choice(list(COLORS))))


def random_thing(rng: np.random.Generator, canvas: Canvas, taken: tuple[Thing, ...] = ()) -> Thing:
    """An object whose colour and shape differ from those already there."""
    shape = str(rng.choice([s for s in SHAPES if s not in {t.shape for t in taken}]))
    color = str(rng.choice([c for c in COLORS if c not in {t.color for t in taken}]))
    place = (float(rng.uniform(0.2, 0.8)), float(rng.uniform(0.2, 0.8)))
    motion = (0.0, 0.0)
    if canvas.frames > 1 and rng.random() < 0.7:
        speed = min(0.5 / canvas.frames, MAX_SPEED)
        motion = (float(rng.uniform(-speed, speed)), float(rng.uniform(-speed, speed)))
    return Thing(shape, color, float(rng.uniform(0.13, 0.27)), place, motion)


def random_scene(rng: np.random.Generator, canvas: Canvas, least: int = 1, most: int = 3) -> Scene:
    """A scene of `least` to `most` objects that all stay visible (drawn again until they do)."""
    while True:
        scene = Scene(random_background(rng, canvas.footage), ())
        for _ in range(int(rng.integers(least, most + 1))):
            scene = scene.with_thing(random_thing(rng, canvas, scene.things))
        if all(visible_fraction(scene, index, canvas) > 0.6 for index in range(len(scene.things))):
            return scene
