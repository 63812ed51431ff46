"""Bundles of the Wan family through both hosts: the same bytes, texts and errors. `make test-wan-native`.

Slow: random checkpoints of each kind are made and exported below build/wan, some minutes each, and kept there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cpp.tests import library as native
from editverse_rt import EditRequest, Pipeline
from editverse_rt.errors import EditVerseError

pytestmark = pytest.mark.slow
KEPT = native.ROOT / "build" / "wan"
KINDS = ["wan-t2v-tiny", "wan-ti2v-tiny", "lucy-tiny", "wan-vace-tiny", "wan-a14b-tiny"]
STEPS = 3
Frames = NDArray[np.uint8]


def bundle_of(kind: str) -> Any:
    """The exported bundle of a random checkpoint, made where it is not there yet."""
    checkpoint, bundle = KEPT / f"{kind}-checkpoint", KEPT / kind
    if not (bundle / "bundle.json").is_file():
        KEPT.mkdir(parents=True, exist_ok=True)
        for command in (
            ["reference.checkpoint", "random", kind, str(checkpoint)],
            ["export.export_onnx", str(checkpoint), str(bundle)],
        ):
            subprocess.run([sys.executable, "-m", *command], check=True, cwd=native.ROOT, timeout=3000)
    return bundle


@pytest.fixture(scope="module", params=KINDS)
def hosts(request: pytest.FixtureRequest) -> Iterator[tuple[Pipeline, Any]]:
    bundle = bundle_of(request.param)
    with Pipeline.open(bundle, "ort-cpu", num_threads=1) as host, native.NativePipeline(bundle) as twin:
        yield host, twin


def clip(count: int, seed: int = 0) -> Frames:
    t, y, x, c = np.ogrid[:count, :64, :96, :3]
    frames = x * 2 * (c == 0) + y * 3 * (c == 1) + (t * 20 + seed * 50) * (c == 2)
    return np.asarray(frames % 256, np.uint8)


def requests(conditioning: str) -> dict[str, dict[str, Any]]:
    """Name -> settings, of those that a bundle of a kind of conditioning takes."""
    mask = np.where(clip(9) > 120, 255, 0).astype(np.uint8)
    small = np.ascontiguousarray(clip(1)[0, :32, :32])
    return {
        "none": {
            "text": {"num_frames": 9},
            "negative prompt": {"num_frames": 5, "negative_prompt": "a red square", "seed": 4},
            "noised source": {"video1": clip(9)},
            "noised source, strength": {"video1": clip(5), "strength": 0.4, "num_inference_steps": 5},
        },
        "rows": {
            "text": {"num_frames": 9},
            "first frame": {"image1": clip(1)[0], "num_frames": 9},
            "one frame": {"image1": clip(1)[0], "num_frames": 1},
        },
        "channels": {"edit": {"video1": clip(9)}, "no guidance": {"video1": clip(5), "guidance_scale": 1.0}},
        "control": {
            "text": {"num_frames": 5},
            "video": {"video1": clip(9)},
            "video and mask": {"video1": clip(9), "video2": mask},
            "references": {"image1": clip(1)[0], "image2": small, "num_frames": 5},
            "all": {"video1": clip(9), "video2": mask, "image1": small},
        },
    }[conditioning]


def bad_requests(conditioning: str) -> list[dict[str, Any]]:
    bad: list[dict[str, Any]] = [
        {"video1": clip(5), "video2": clip(5), "video3": clip(5)},
        {"video1": clip(5), "strength": 0.01},
        {"num_frames": 10**6, "length": "cut"},
    ]
    if conditioning != "control":
        bad.append({"image1": clip(1)[0], "image2": clip(1)[0], "video1": clip(5)})
    else:
        bad.append({"video1": clip(9), "video2": clip(5)})
    if conditioning == "channels":
        bad += [{}, {"image1": clip(1)[0]}]
    return bad


def test_the_same_bytes(hosts: tuple[Pipeline, Any]) -> None:
    host, twin = hosts
    for name, settings in requests(host.bundle.spec.conditioning).items():
        given = {"num_inference_steps": STEPS, **settings}
        expected = host("Make it night, calmly", **given)
        frames, fps, notices = twin.run("Make it night, calmly", **given)
        assert np.array_equal(frames, expected.frames), name
        assert (fps, notices) == (expected.fps, list(expected.notices)), name
        info, _ = twin.describe("Make it night, calmly", **given)
        assert (info.result.num_frames, info.result.height_px, info.result.width_px) == frames.shape[:3]
        assert info.num_inference_steps == expected.laid_out.schedule.num_inference_steps
        assert info.sequence_length == len(expected.laid_out.cond.layout.layout)
        assert len(np.unique(frames)) > 1, name


@pytest.fixture(scope="module")
def short_hosts(hosts: tuple[Pipeline, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The same bundle with a limit of 9 frames a window."""
    root = hosts[0].bundle.root
    folder = tmp_path_factory.mktemp("short") / root.name
    shutil.copytree(root, folder, copy_function=os.link)
    (folder / "bundle.json").unlink()
    spec = json.loads((root / "bundle.json").read_text("utf-8"))
    spec["geometry"] |= {"max_frames": 9, "default_frames": 5}
    (folder / "bundle.json").write_text(json.dumps(spec), "utf-8")
    with Pipeline.open(folder, "ort-cpu", num_threads=1) as host, native.NativePipeline(folder) as twin:
        yield host, twin


def long_requests(conditioning: str) -> dict[str, dict[str, Any]]:
    """Name -> settings, of 20 frames in three windows. Videos move slowly, or each frame would be a cut."""
    video = np.repeat(clip(1), 20, 0)
    mask = np.where(video > 120, 255, 0).astype(np.uint8)
    picture = clip(1)[0]
    return {
        "none": {"text": {"num_frames": 20}, "noised source": {"video1": video}},
        "rows": {"text": {"num_frames": 20}, "first frame": {"image1": picture, "num_frames": 20}},
        "channels": {"edit": {"video1": video}},
        "control": {
            "text": {"num_frames": 20},
            "video and mask": {"video1": video, "video2": mask},
            "all": {"video1": video, "video2": mask, "image1": picture[:32, :32].copy()},
        },
    }[conditioning]


def test_the_same_bytes_window_by_window(short_hosts: tuple[Pipeline, Any]) -> None:
    host, twin = short_hosts
    for name, settings in long_requests(host.bundle.spec.conditioning).items():
        given = {"num_inference_steps": STEPS, **settings}
        expected = host("Make it night, calmly", **given)
        assert (len(expected.frames), expected.num_windows) == (20, 3), name
        frames, fps, notices = twin.run("Make it night, calmly", **given)
        assert np.array_equal(frames, expected.frames), name
        assert (fps, notices) == (expected.fps, list(expected.notices)), name
        info, _ = twin.describe("Make it night, calmly", **given)
        assert (info.result.num_frames, info.num_windows) == (20, 3), name
        # The first window is that of a request of its own.
        own = {key: value[:9] if key.startswith("video") else value for key, value in given.items()}
        first = host("Make it night, calmly", **{**own, **({"num_frames": 9} if "num_frames" in own else {})})
        assert np.array_equal(first.frames, frames[:9]), name


def test_a_cut_begins_a_window_that_shares_nothing(short_hosts: tuple[Pipeline, Any]) -> None:
    """The blue of this clip falls from 240 to 4 at frame 13."""
    host, twin = short_hosts
    if host.bundle.spec.conditioning == "rows":
        return  # it takes no video
    given = {"num_inference_steps": STEPS, "video1": clip(20)}
    windows: list[tuple[int, Frames]] = []

    def take(index: int, count: int, begin: int, added: Frames) -> bool:
        windows.append((begin, added))
        return True

    twin.run("Make it night, calmly", on_window=take, **given)
    assert [(begin, len(added)) for begin, added in windows] == [(0, 9), (9, 4), (13, 7)]
    expected = host("Make it night, calmly", **given)
    assert np.array_equal(np.concatenate([added for _, added in windows]), expected.frames)
    # A velocity that is no number would leave one grey level.
    assert all(len(np.unique(added)) > 16 for _, added in windows)


def test_a_window_goes_on_from_the_one_before(short_hosts: tuple[Pipeline, Any]) -> None:
    """Its first frame is the last one before it, decoded once more."""
    host, _ = short_hosts
    for name, settings in long_requests(host.bundle.spec.conditioning).items():
        request = EditRequest(
            "Make it night, calmly",
            {key: value for key, value in settings.items() if isinstance(value, np.ndarray)},
            num_frames=settings.get("num_frames"),
            num_inference_steps=STEPS,
        )
        windows = list(host.run_windows(host.prepare(request)))
        rest = list(host.run_windows(host.prepare(request), first=1, known=windows[0].frames[-1:]))
        assert np.array_equal(rest[0].frames, windows[1].frames), name
        other = 255 - windows[0].frames[-1:]
        changed = list(host.run_windows(host.prepare(request), first=1, known=other))
        assert not np.array_equal(changed[0].frames, windows[1].frames), name


def test_the_same_errors(hosts: tuple[Pipeline, Any]) -> None:
    host, twin = hosts
    for settings in bad_requests(host.bundle.spec.conditioning):
        with pytest.raises(EditVerseError) as expected:
            host("Make it night", num_inference_steps=STEPS, **settings)
        with pytest.raises(native.LibraryError) as found:
            twin.run("Make it night", num_inference_steps=STEPS, **settings)
        wanted = expected.value.to_json()
        assert found.value.facts["code"] == wanted["code"]
        assert [found.value.facts[k] for k in ("found", "expected", "hint")] == [
            wanted[k] for k in ("found", "expected", "hint")
        ]


def test_an_expert_is_given_back_before_the_next_one_is_loaded() -> None:
    bundle, settings = bundle_of("wan-a14b-tiny"), {"num_frames": 5, "num_inference_steps": 10}
    with Pipeline.open(bundle, "ort-cpu", num_threads=1) as kept:
        expected = kept("a wave", **settings).frames
    loaded: list[set[str]] = []

    def look(pipeline: Pipeline, *_: object) -> None:
        sessions = pipeline._runner._sessions  # type: ignore[union-attr]
        loaded.append({name for name in sessions if name.startswith("transformer")})

    with Pipeline.open(bundle, "ort-cpu", num_threads=1, release_graphs=True) as host:
        found = host("a wave", **settings, callback_on_step_end=look).frames
    np.testing.assert_array_equal(found, expected)
    switch = loaded.index(set())
    assert loaded == [{"transformer"}] * switch + [set()] + [{"transformer_2"}] * (9 - switch)
    with native.NativePipeline(bundle, release_graphs=True) as twin:
        np.testing.assert_array_equal(twin.run("a wave", **settings)[0], expected)
