"""Wan 2.1 and 2.2, VACE and Lucy-Edit: a grid of patches that attends to a text beside it.

Kinds of conditioning: "none" generates, or begins with a noised video; "rows" has a clean first frame before the
noisy ones (TI2V); "channels" has a clean row beside each noisy row (Lucy); "control" steers by rows of a masked
video and of reference pictures (VACE). The order of rows is that of diffusers' pipelines.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from editverse_rt.bundle.spec import BundleSpec, Geometry
from editverse_rt.errors import RequestError
from editverse_rt.media.frames import Frames
from editverse_rt.request.checked import CheckedRequest
from editverse_rt.request.inputs import Footage
from editverse_rt.request.laid_out import Branch, LaidOutRequest
from editverse_rt.request.layout import Grid, Layout
from editverse_rt.stages import Array, Run, encode_clip, run_chunks

__all__ = ["Wan"]

_WHITE = 255
_THRESHOLD = 127
"""A mask's grey level above which a pixel is made anew."""


class Wan:
    """The text stands beside the sequence; guidance's second branch has a negative prompt."""

    name = "wan"

    def lay_out(self, spec: BundleSpec, checked: CheckedRequest, footage: Footage) -> LaidOutRequest:
        """See `Family.lay_out`."""
        roles = _roles_of(spec, checked)
        height_px, width_px = checked.inputs.size
        shown = _grid(spec.geometry, footage.num_frames, height_px, width_px)
        kept = Grid(1, shown.rows, shown.columns) if roles.first_frame else None
        noisy = Grid(shown.frames + len(roles.references) - (kept is not None), shown.rows, shown.columns)
        num_clean = 0
        if kept is not None:
            num_clean = kept.num_patches
        elif spec.conditioning in ("channels", "control"):
            num_clean = noisy.num_patches
        layout = _lay_out_grid(noisy, num_clean, kept)
        _check_lengths(roles, checked, footage)
        return LaidOutRequest.of(
            checked,
            footage,
            target=noisy,
            cond=Branch(0, layout),
            uncond=Branch(1, layout),
            num_kept=0 if kept is None else 1,
            num_dropped=len(roles.references),
            start=roles.video if spec.conditioning == "none" else None,
        )

    def texts(self, checked: CheckedRequest) -> list[tuple[int, ...]]:
        """The instruction without its tags, and the negative prompt."""
        return [tuple(i for ids in checked.ids for i in ids), checked.negative_ids or ()]

    def go_on(
        self, spec: BundleSpec, checked: CheckedRequest, footage: Footage, before: Frames
    ) -> tuple[Footage, Frames | None]:
        """See `Family.go_on`: a model that takes a first frame gets one, for others the first frames are known."""
        first_frame = _roles_of(spec, checked).first_frame
        if first_frame is None:
            return footage, before
        return replace(footage, clips={**footage.clips, first_frame: before[-1:]}), None

    def encode_known(self, run: Run, spec: BundleSpec, frames: Frames) -> Array:
        """The patches of the frames."""
        if spec.conditioning != "control":
            return encode_clip(run, spec.geometry, frames)
        patches = _encode_masked(run, spec.geometry, frames, np.ones(frames.shape[:3], np.float32))
        return patches.reshape(-1, spec.geometry.patch_dim)

    def encode_clean(self, run: Run, spec: BundleSpec, checked: CheckedRequest, footage: Footage) -> Array:
        """The clean rows [Lc, Pc]: none, the first frame, the source, or the control rows."""
        roles, clips = _roles_of(spec, checked), footage.clips
        if spec.conditioning == "control":
            return _encode_control(run, spec, checked, footage, roles)
        name = roles.first_frame if spec.conditioning == "rows" else roles.video
        if name is None or spec.conditioning == "none":
            return np.zeros((0, spec.geometry.clean_dim), np.float32)
        return encode_clip(run, spec.geometry, clips[name])


@dataclass(frozen=True)
class _Roles:
    """Which input is what; None where there is none."""

    video: str | None = None
    mask: str | None = None
    first_frame: str | None = None
    references: tuple[str, ...] = ()


def _roles_of(spec: BundleSpec, checked: CheckedRequest) -> _Roles:
    """What each input is for, by the bundle's conditioning. Raises RequestError for one that has no use."""
    videos = [name for name in checked.inputs.names if name.startswith("video")]
    images = [name for name in checked.inputs.names if name.startswith("image")]
    most_videos, most_images = {
        "none": (1, 0), "rows": (0, 1), "channels": (1, 0), "control": (2, len(images)),
    }[spec.conditioning]  # fmt: skip
    for found, most, kind in ((videos, most_videos, "video"), (images, most_images, "image")):
        if len(found) > most:
            raise RequestError(
                f"{', '.join(found)} is given",
                expected=f"at most {most} {kind}{'' if most == 1 else 's'}, which is what this bundle takes",
                hint="leave the others out",
                code="request.unsupported",
                field="inputs",
            )
    if spec.conditioning == "channels" and not videos:
        raise RequestError(
            "no video is given",
            expected="video1, the clip to edit",
            code="request.unsupported",
            field="inputs",
        )
    first_frame = images[0] if spec.conditioning == "rows" and images else None
    references = tuple(images) if spec.conditioning == "control" else ()
    return _Roles(
        video=videos[0] if videos else None,
        mask=videos[1] if len(videos) > 1 else None,
        first_frame=first_frame,
        references=references,
    )


def _check_lengths(roles: _Roles, checked: CheckedRequest, footage: Footage) -> None:
    """A mask lasts as long as its video. Raises RequestError."""
    if roles.mask is None or roles.video is None:
        return
    inputs, slack = checked.inputs, 0
    mask, video = (len(footage.clips[name]) for name in (roles.mask, roles.video))
    if inputs.total_frames is not None:  # the clips are windows: by what the files say, where they say it
        if any(inputs.media[name].num_frames is None for name in (roles.mask, roles.video)):
            return
        mask, video = (
            min(inputs.frames_there(name) or 0, inputs.total_frames) for name in (roles.mask, roles.video)
        )
        # A mask of another rate is taken at the video's times, of which its end may leave one out.
        slack = 0 if inputs.rate_for(roles.mask) is None else 1
    if abs(mask - video) > slack:
        raise RequestError(
            f"{roles.mask}, the mask, has {mask} frames and {roles.video} has {video}",
            expected="the same length",
            hint="give a mask frame for each frame of the video",
            code="request.input_kind",
            field=f"inputs.{roles.mask}",
        )


def _encode_control(
    run: Run, spec: BundleSpec, checked: CheckedRequest, footage: Footage, roles: _Roles
) -> Array:
    """VACE's control rows: references in front, the last one first, then the masked video.

    The video is encoded once for what is kept and once for what is made anew; without a mask all is made
    anew, and without a video there is grey.
    """
    geometry, (height, width) = spec.geometry, checked.inputs.size
    shape = (footage.num_frames, height, width)
    video = np.zeros((*shape, 3), np.uint8) if roles.video is None else footage.clips[roles.video]
    anew = np.ones(shape, np.float32)
    levels = np.ones(shape, np.float32)
    if roles.mask is not None:
        mask = footage.clips[roles.mask][..., 0]
        levels = mask.astype(np.float32) / np.float32(_WHITE)
        anew = (mask > _THRESHOLD).astype(np.float32)
    if roles.video is None:
        anew = np.zeros(shape, np.float32)
        inactive = reactive = _encode_masked(run, geometry, video, anew)
    else:
        inactive = _encode_masked(run, geometry, video, 1 - anew)
        reactive = _encode_masked(run, geometry, video, anew)
    nothing = np.zeros((height, width), np.float32)
    rows = []
    for name in reversed(roles.references):
        picture = _on_white(footage.clips[name], height, width)
        latents = _encode_masked(run, geometry, picture, np.ones((1, height, width), np.float32))
        rows.append(
            run("condition", inactive=latents, reactive=np.zeros_like(latents), mask=nothing)["clean"]
        )
    num_latent = len(inactive)
    for frame in range(num_latent):
        part = slice(frame, frame + 1)
        # The frame whose mask stands for a latent frame: scaled in time to the nearest.
        nearest = (2 * frame + 1) * footage.num_frames // (2 * num_latent)
        rows.append(
            run("condition", inactive=inactive[part], reactive=reactive[part], mask=levels[nearest])["clean"]
        )
    return np.concatenate([np.asarray(row) for row in rows]).reshape(-1, geometry.clean_dim)


def _encode_masked(
    run: Run, geometry: Geometry, frames: Frames, keep: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Patches float32 [t, h, w, P] of frames [T, H, W, 3] whose pixels count where keep [T, H, W] is 1."""
    ratio = geometry.temporal_ratio
    chunks = [slice(0, 1), *(slice(i, i + ratio) for i in range(1, len(frames), ratio))]
    given: list[dict[str, NDArray[Any]]] = [{"frames": frames[part], "keep": keep[part]} for part in chunks]
    return np.asarray(run_chunks(run, "vae_encoder", given, "patches"), np.float32)


def _on_white(picture: Frames, height: int, width: int) -> Frames:
    """A picture uint8 [1, H, W, 3] in the middle of a white one."""
    if picture.shape[1:3] == (height, width):
        return picture
    canvas = np.full((1, height, width, 3), _WHITE, np.uint8)
    top, left = (height - picture.shape[1]) // 2, (width - picture.shape[2]) // 2
    canvas[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
    return canvas


def _grid(geometry: Geometry, frames: int, height_px: int, width_px: int) -> Grid:
    multiple = geometry.size_multiple
    return Grid(geometry.count_latent_frames(frames), height_px // multiple, width_px // multiple)


def _lay_out_grid(noisy: Grid, num_clean: int, kept: Grid | None) -> Layout:
    """Noisy rows in order, after the rows of a clean first frame where there is one.

    The layout indexes (noisy, clean); positions are frame, row and column, and 0 on the sequential axis.
    """
    first = 0 if kept is None else kept.num_patches
    rows = np.concatenate(
        [np.arange(noisy.num_patches, noisy.num_patches + first), np.arange(noisy.num_patches)]
    )
    frames = noisy.frames + (kept is not None)
    places = [axis.reshape(-1) for axis in np.indices((frames, noisy.rows, noisy.columns), dtype=np.int64)]
    return Layout(
        layout=rows.astype(np.int64),
        positions=np.stack([np.zeros_like(places[0]), *places], axis=1),
        num_text=0,
        num_clean=num_clean,
        num_noisy=noisy.num_patches,
    )
