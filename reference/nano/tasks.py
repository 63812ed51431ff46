"""Nano's tasks: each the small analogue of one of the paper's (section 4 and EditVerseBench's categories).

`draw_sample(rng, task, canvas)` renders one request with its right answer. A canvas of one frame makes the
image form of a task, whose tags are `<image1>`, `<image2>` instead of `<video1>`, `<video2>`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from reference.nano import styles
from reference.nano.world import (
    COLORS,
    MAX_PAN,
    MOTIONS,
    PLACES,
    SHAPES,
    SIZES,
    Background,
    Canvas,
    Frames,
    Scene,
    Thing,
    random_pattern,
    random_scene,
    render,
    render_mask,
)

Rng = np.random.Generator


@dataclass(frozen=True)
class Sample:
    """One request: `target` answers `prompt` given `inputs`; `source` names the input that is edited."""

    task: str
    prompt: str
    inputs: dict[str, Frames]
    target: Frames
    source: str | None
    scenes: tuple[Scene, ...] = field(default=(), repr=False)
    """The scenes whose objects have to be visible for the request to make sense."""


def choose(rng: Rng, *options: str) -> str:
    return options[int(rng.integers(len(options)))]


def article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def refer_to(rng: Rng, thing: Thing) -> str:
    """Colours and shapes are unique in a scene, so each of these names one object."""
    draw = rng.random()
    return (
        f"the {thing.name}"
        if draw < 0.7
        else f"the {thing.shape}"
        if draw < 0.85
        else f"the {thing.color} object"
    )


def in_request(rng: Rng, tag: str, sentence: str) -> str:
    """Put the tag of the edited clip before, into or behind the sentence."""
    lower = sentence[0].lower() + sentence[1:]
    return choose(
        rng,
        f"<{tag}> {sentence}",
        f"<{tag}> {sentence}.",
        f"<{tag}> Please {lower}.",
        f"In <{tag}>, {lower}.",
        f"{sentence} in <{tag}>",
        f"Edit <{tag}>: {lower}",
        f"Take <{tag}> and {lower}.",
    )


def is_free(scene: Scene, thing: Thing) -> bool:
    """No other object starts where this one would stand."""
    gaps = (np.hypot(t.place[0] - thing.place[0], t.place[1] - thing.place[1]) for t in scene.things)
    return all(gap > 0.25 for gap in gaps)


# Edits of a scene: (rng, scene, canvas) -> sentence, edited scene, index of the object it is about (or None).
SceneEdit = tuple[str, Scene, int | None]


def add_object(rng: Rng, scene: Scene, canvas: Canvas) -> SceneEdit:
    for _ in range(20):
        size, place = choose(rng, *SIZES), choose(rng, *PLACES)
        shape = choose(rng, *(s for s in SHAPES if s not in {t.shape for t in scene.things}))
        color = choose(rng, *(c for c in COLORS if c not in {t.color for t in scene.things}))
        motion = choose(rng, *MOTIONS) if canvas.frames > 1 and rng.random() < 0.4 else ""
        thing = Thing(shape, color, SIZES[size], PLACES[place], MOTIONS[motion])
        if is_free(scene, thing):
            break
    noun = article(" ".join(filter(None, (size, thing.name))))
    if motion:
        noun += f" {motion}"
    where = choose(rng, f"at the {place}", f"in the {place}")
    verb = choose(rng, "Add", "Insert", "Put", "Place")
    return f"{verb} {noun} {where}", scene.with_thing(thing), len(scene.things)


def remove_object(rng: Rng, scene: Scene, canvas: Canvas) -> SceneEdit:
    index = int(rng.integers(len(scene.things)))
    verb = choose(rng, "Remove", "Delete", "Erase", "Take away")
    return f"{verb} {refer_to(rng, scene.things[index])}", scene.without(index), index


def change_object(rng: Rng, scene: Scene, canvas: Canvas) -> SceneEdit:
    index = int(rng.integers(len(scene.things)))
    old = scene.things[index]
    shape = choose(rng, *(s for s in SHAPES if s not in {t.shape for t in scene.things}))
    if rng.random() < 0.5:
        return (
            choose(
                rng,
                f"Turn {refer_to(rng, old)} into {article(shape)}",
                f"Change {refer_to(rng, old)} to {article(shape)}",
                f"Make {refer_to(rng, old)} {article(shape)}",
            ),
            scene.changed(index, shape=shape),
            index,
        )
    color = choose(rng, *(c for c in COLORS if c not in {t.color for t in scene.things}))
    new = article(f"{color} {shape}")
    sentence = choose(rng, f"Replace {refer_to(rng, old)} with {new}", f"Swap {refer_to(rng, old)} for {new}")
    return sentence, scene.changed(index, shape=shape, color=color), index


def change_color(rng: Rng, scene: Scene, canvas: Canvas) -> SceneEdit:
    index = int(rng.integers(len(scene.things)))
    color = choose(rng, *(c for c in COLORS if c not in {t.color for t in scene.things}))
    old = refer_to(rng, scene.things[index])
    sentence = choose(
        rng,
        f"Turn {old} {color}",
        f"Make {old} {color}",
        f"Change the color of {old} to {color}",
        f"Paint {old} {color}",
        f"Recolor {old} {color}",
    )
    return sentence, scene.changed(index, color=color), index


def change_background(rng: Rng, scene: Scene, canvas: Canvas) -> SceneEdit:
    background = random_pattern(rng)
    while background == scene.background:
        background = random_pattern(rng)
    new = background.name
    sentence = choose(
        rng,
        f"Change the background to {new}",
        f"Replace the background with {new}",
        f"Make the background {new}",
        f"Put everything on a {new} background",
    )
    return sentence, replace(scene, background=background), None


SCENE_EDITS: dict[str, Callable[[Rng, Scene, Canvas], SceneEdit]] = {
    "add_object": add_object,
    "remove_object": remove_object,
    "change_object": change_object,
    "change_color": change_color,
    "change_background": change_background,
}
WHOLE_EDITS = ("stylize", "camera", "inpainting")
"""Edits that are about no object."""
STYLE_SENTENCES: dict[str, tuple[str, ...]] = {
    "grayscale": ("Make it grayscale", "Convert it to black and white", "Turn everything grayscale"),
    "invert": ("Invert the colors", "Invert all colors", "Make it a color negative"),
    "sepia": ("Apply a sepia tone", "Give it a sepia look", "Turn everything sepia"),
    "pixelate": ("Pixelate it", "Make it pixelated", "Turn everything into pixel art"),
    "darken": ("Make it night", "Turn day into night", "Make it dark like at night"),
}
MIRROR_SENTENCES = (
    "Mirror it",
    "Flip it horizontally",
    "Swap left and right",
    "Mirror everything horizontally",
)


def describe(scene: Scene, motions: tuple[str, ...], places: tuple[str, ...], sizes: tuple[str, ...]) -> str:
    parts = []
    for thing, motion, place, size in zip(scene.things, motions, places, sizes, strict=True):
        noun = article(" ".join(filter(None, (size, thing.name))))
        parts.append(" ".join(filter(None, (noun, motion, place and f"at the {place}"))))
    return f"{' and '.join(parts)} on a {scene.background.name} background"


def named_scene(rng: Rng, canvas: Canvas) -> tuple[Scene, str]:
    """A scene that words describe completely, and its caption."""
    scene, motions, places, sizes = Scene(random_pattern(rng), ()), [], [], []
    for _ in range(int(rng.integers(1, 3))):
        _, scene, _ = add_object(rng, scene, canvas)
    for thing in scene.things:
        motions.append(next(name for name, value in MOTIONS.items() if value == thing.motion))
        places.append(next(name for name, value in PLACES.items() if value == thing.place))
        sizes.append(next(name for name, value in SIZES.items() if value == thing.size))
    return scene, describe(scene, tuple(motions), tuple(places), tuple(sizes))


def plain_sample(rng: Rng, task: str, canvas: Canvas, tag: str) -> Sample:
    """Tasks whose only input is the clip to be edited."""
    # Of footage, what edits all of it is also to be learnt with nothing drawn on it.
    least = 0 if canvas.footage is not None and task in WHOLE_EDITS else 1
    scene = random_scene(rng, canvas, least)
    source = render(scene, canvas)
    if task in SCENE_EDITS:
        sentence, edited, _ = SCENE_EDITS[task](rng, scene, canvas)
        prompt = in_request(rng, tag, sentence)
        return Sample(task, prompt, {tag: source}, render(edited, canvas), tag, (scene, edited))
    if task == "stylize":
        style = choose(rng, *STYLE_SENTENCES)
        prompt = in_request(rng, tag, choose(rng, *STYLE_SENTENCES[style]))
        return Sample(task, prompt, {tag: source}, styles.STYLES[style](source), tag, (scene,))
    if task == "camera":
        return camera_sample(rng, canvas, tag, scene, source)
    if task == "detection":
        sentence, _, index = SCENE_EDITS[choose(rng, "remove_object", "change_object", "change_color")](
            rng, scene, canvas
        )
        assert index is not None
        lower = sentence[0].lower() + sentence[1:]
        prompt = f"<{tag}> I want to {lower}. Detect the region that needs to be edited."
        return Sample(task, prompt, {tag: source}, render_mask(scene, index, canvas), tag, (scene,))
    if task == "inpainting":
        return inpainting_sample(rng, canvas, tag, scene, source)
    if task == "combined":
        first, second = (
            str(n)
            for n in rng.choice(
                ("add_object", "remove_object", "change_color", "change_background", "style"),
                2,
                replace=False,
            )
        )
        if first == "style":
            first, second = second, first
        sentence, edited, _ = SCENE_EDITS[first](rng, scene, canvas)
        if second == "style" or not edited.things:
            style = choose(rng, *STYLE_SENTENCES)
            other, target = choose(rng, *STYLE_SENTENCES[style]), styles.STYLES[style](render(edited, canvas))
        else:
            other, edited, _ = SCENE_EDITS[second](rng, edited, canvas)
            target = render(edited, canvas)
        prompt = in_request(rng, tag, f"{sentence} and {other[0].lower() + other[1:]}")
        return Sample(task, prompt, {tag: source}, target, tag, (scene, edited))
    raise ValueError(f"unknown task {task!r}")


def camera_sample(rng: Rng, canvas: Canvas, tag: str, scene: Scene, source: Frames) -> Sample:
    if canvas.frames == 1 or rng.random() < 0.5:
        prompt = in_request(rng, tag, choose(rng, *MIRROR_SENTENCES))
        return Sample("camera", prompt, {tag: source}, styles.mirror(source), tag, (scene,))
    side = choose(rng, "left", "right")
    sign = 1 if side == "right" else -1
    path = [round(sign * MAX_PAN * canvas.width * i / (canvas.frames - 1)) for i in range(canvas.frames)]
    prompt = in_request(rng, tag, choose(rng, f"Pan the camera to the {side}", f"Move the camera {side}"))
    return Sample("camera", prompt, {tag: source}, render(scene, canvas, path), tag, (scene,))


def inpainting_sample(rng: Rng, canvas: Canvas, tag: str, scene: Scene, whole: Frames) -> Sample:
    """A grey hole in the source; the right answer is what was there."""
    height, width = (int(rng.uniform(0.2, 0.4) * side) for side in (canvas.height, canvas.width))
    top, left = int(rng.integers(canvas.height - height)), int(rng.integers(canvas.width - width))
    source = whole.copy()
    source[:, top : top + height, left : left + width] = 128
    words = choose(rng, "Fill in the gray area", "Fill the gray hole", "Inpaint the gray rectangle")
    return Sample("inpainting", in_request(rng, tag, words), {tag: source}, whole, tag, (scene,))


def guided_sample(rng: Rng, task: str, canvas: Canvas, tag: str) -> Sample:
    """Tasks with a second input: a mask, a first frame, a reference object."""
    scene = random_scene(rng, canvas)
    source = render(scene, canvas)
    kind = tag[:-1]
    if task == "edit_with_mask":
        names = ("change_color", "remove_object", "change_object")
        _, edited, index = (edit := SCENE_EDITS[choose(rng, *names)](rng, scene, canvas))
        assert index is not None
        mask = render_mask(scene, index, canvas)
        mask_tag = f"{kind}2"
        marked = choose(rng, f"the object marked by <{mask_tag}>", f"the object in the mask <{mask_tag}>")
        sentence = edit[0]
        for reference in (
            scene.things[index].name,
            f"{scene.things[index].color} object",
            scene.things[index].shape,
        ):
            sentence = sentence.replace(f"the {reference}", marked)
        return Sample(
            task,
            f"<{tag}> {sentence}",
            {tag: source, mask_tag: mask},
            render(edited, canvas),
            tag,
            (scene, edited),
        )
    if task == "propagation":
        name = choose(rng, *SCENE_EDITS, "style")
        if name == "style":
            edited, target = scene, styles.STYLES[choose(rng, *STYLE_SENTENCES)](source)
        else:
            _, edited, _ = SCENE_EDITS[name](rng, scene, canvas)
            target = render(edited, canvas)
        prompt = choose(
            rng,
            "<video1> Propagate the edit of the first frame <image1>",
            "<image1> is the edited first frame. Apply the same edit to <video1>",
            "<video1> Edit the video so that it starts with <image1>",
        )
        return Sample(
            task, prompt, {"video1": source, "image1": target[:1]}, target, "video1", (scene, edited)
        )
    # reference insertion
    image_tag = "image1" if kind == "video" else "image2"
    _, edited, index = add_object(rng, scene, replace(canvas, frames=1))
    assert index is not None
    thing = edited.things[index]
    place = next(name for name, value in PLACES.items() if value == thing.place)
    page = Background("plain", choose(rng, "white", "black"))
    still = replace(canvas, frames=1)
    shown = render(Scene(page, (replace(thing, place=(0.5, 0.5)),)), still)
    prompt = choose(
        rng,
        f"<{tag}> Insert the object of <{image_tag}> at the {place}",
        f"Put the object from <{image_tag}> at the {place} of <{tag}>",
        f"<{tag}> Add the object shown in <{image_tag}> at the {place}.",
    )
    return Sample(task, prompt, {tag: source, image_tag: shown}, render(edited, canvas), tag, (scene, edited))


def described_sample(rng: Rng, task: str, canvas: Canvas, tag: str) -> Sample:
    """Tasks whose answer is told in words: generation, and sketch to video."""
    scene, caption = named_scene(rng, canvas)
    target = render(scene, canvas)
    kind = "video" if canvas.frames > 1 else "image"
    if task == "sketch":
        prompt = choose(
            rng,
            f"Turn the sketch <{tag}> into {caption}",
            f"<{tag}> Color this sketch: {caption}",
        )
        return Sample(task, prompt, {tag: styles.sketch(target)}, target, tag, (scene,))
    prompt = choose(
        rng, caption, f"Generate {article(kind)} of {caption}", caption[0].upper() + caption[1:] + "."
    )
    return Sample(task, prompt, {}, target, None, (scene,))


PLAIN_TASKS = (*SCENE_EDITS, "stylize", "camera", "detection", "inpainting", "combined")
GUIDED_TASKS = ("edit_with_mask", "propagation", "reference_insertion")
EDIT_TASKS = (*PLAIN_TASKS, *GUIDED_TASKS, "sketch")
TASKS = (*EDIT_TASKS, "generation")


def draw_sample(rng: Rng, task: str, canvas: Canvas) -> Sample:
    """One request of a task, not yet curated; propagation needs a canvas of several frames."""
    tag = "video1" if canvas.frames > 1 else "image1"
    if task in GUIDED_TASKS:
        return guided_sample(rng, task, canvas, tag)
    if task in ("sketch", "generation"):
        return described_sample(rng, task, canvas, tag)
    return plain_sample(rng, task, canvas, tag)
