"""Photographs as clips: what is held out is never trained on, and the clips are what they should be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reference.nano import heldout, photographs, train_vae
from reference.nano.photographs import Photographs, Source, open_photographs
from reference.nano.tasks import Sample, draw_sample
from reference.nano.world import FOOTAGE, Background, Canvas, Scene, render, render_mask

SOURCES = (Source("shown", "CC0-1.0"), Source("kept", "CC0-1.0", is_held_out=True))


def picture(seed: int, height: int = 120, width: int = 160) -> np.ndarray:
    """Smooth, so that it survives scaling: uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(photographs, "_shipped_pictures", list)
    for seed in range(4):
        save(tmp_path / "shown" / "usr" / f"{seed}.png", picture(seed))
    for seed in range(10, 13):
        save(tmp_path / "kept" / f"{seed}.jpg", picture(seed))
    return tmp_path


def test_a_held_out_source_is_never_trained_on(folder: Path):
    # A held-out picture once more among the others: smaller, in another format, under another name.
    save(folder / "shown" / "again.webp", picture(11, 240, 320)[::2, ::2])
    # And one of the others twice.
    save(folder / "shown" / "twice.png", picture(2, 180, 240))
    shown = open_photographs(folder, held_out=False, sources=SOURCES)
    kept = open_photographs(folder, held_out=True, sources=SOURCES)
    assert (len(shown.pictures), len(kept.pictures)) == (4, 3)
    for one in shown.pictures:
        for other in kept.pictures:
            assert float(photographs.thumbnail_of(one) @ photographs.thumbnail_of(other)) < 0.9


def test_the_list_holds_a_source_out_and_names_licences():
    assert [source.package for source in photographs.SOURCES if source.is_held_out] == [
        "lomiri-wallpapers-20.04"
    ]
    assert all(source.licences for source in photographs.SOURCES)
    page = (Path(__file__).parents[3] / "docs" / "nano.md").read_text("utf-8")
    for source in photographs.SOURCES:
        assert f"`{source.package}`" in page
        assert source.licences in page


@pytest.mark.parametrize("shape", [(1, 64, 64), (9, 48, 80), (5, 80, 48)])
def test_clips_have_the_canvas_and_move_little(folder: Path, shape: tuple[int, int, int]):
    source = open_photographs(folder, held_out=False, sources=SOURCES)
    again = [source.draw(np.random.default_rng(7), Canvas(*shape)) for _ in range(2)]
    assert np.array_equal(*again)
    rng = np.random.default_rng(0)
    for _ in range(30):
        clip = source.draw(rng, Canvas(*shape))
        assert clip.dtype == np.uint8
        assert clip.shape == (*shape, 3)
        plain = source.draw_plain(rng, Canvas(*shape)).astype(np.float32)
        if shape[0] > 1:
            assert 0 < np.abs(np.diff(plain, axis=0)).mean() < 40


def test_a_plain_cut_of_a_picture_of_the_same_size_is_the_picture():
    own = picture(3, 64, 64)
    source = Photographs([own.astype(np.float32) / 255])
    cut = source.draw_plain(np.random.default_rng(0), Canvas(1, 64, 64))
    assert np.abs(cut[0].astype(int) - own).max() <= 1


def test_what_is_no_picture_or_too_small_is_left_out(folder: Path):
    save(folder / "kept" / "small.png", picture(20, 40, 60))
    (folder / "kept" / "broken.jpg").write_bytes(b"no picture")
    (folder / "kept" / "notes.txt").write_text("no picture")
    assert len(open_photographs(folder, held_out=True, sources=SOURCES).pictures) == 3


def test_no_pictures_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(photographs, "_shipped_pictures", list)
    with pytest.raises(ValueError, match="there is no picture"):
        open_photographs(tmp_path, held_out=False, sources=SOURCES)


def test_packages_that_are_there_are_not_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(photographs.subprocess, "run", lambda words, **options: asked.append(words))
    photographs.fetch_photographs(folder, SOURCES)
    assert asked == []

    def absent(words: list[str], **options: object) -> None:
        raise FileNotFoundError(words[0])

    monkeypatch.setattr(photographs.subprocess, "run", absent)
    with pytest.raises(FileNotFoundError, match="no apt-get here; put the pictures of more into"):
        photographs.fetch_photographs(folder, (*SOURCES, Source("more", "CC0-1.0")))


def test_a_share_of_the_vaes_clips_is_made_of_photographs():
    def black(rng: np.random.Generator, canvas: Canvas) -> np.ndarray:
        return np.zeros((canvas.frames, canvas.height, canvas.width, 3), np.uint8)

    white = Photographs([np.ones((100, 120, 3), np.float32)])
    draw = photographs.mix(white, 0.25, black)
    rng = np.random.default_rng(0)
    shown = sum(bool(draw(rng, Canvas(1, 16, 16)).max()) for _ in range(400))
    assert 70 < shown < 130
    video = train_vae.batch(rng, 1, 3, black)
    assert float(video.max()) == -1.0
    assert float(train_vae.Batches(rng, draw_clip=black).draw(1, 2).max()) == -1.0
    assert float(train_vae.batch(rng, 1, 3).max()) > -1.0


def test_a_vae_of_another_shape_is_still_nanos_otherwise():
    small = train_vae.make_vae({"base_dim": 4, "z_dim": 6})
    assert small.config.base_dim == 4
    assert small.config.z_dim == 6
    assert small.config.dim_mult == train_vae.VAE_CONFIG["dim_mult"]


def test_scenes_over_photographs_change_where_the_edit_says(folder: Path):
    footage = open_photographs(folder, held_out=False, sources=SOURCES)
    found = set()
    for seed in range(12):
        sample = draw_sample(np.random.default_rng(seed), "change_color", Canvas(9, 48, 80, footage))
        background = sample.scenes[0].background
        found.add(background.kind == FOOTAGE)
        source = sample.inputs["video1"]
        mask = render_mask(sample.scenes[0], _index_of_change(sample), Canvas(9, 48, 80))
        # An edge that covers less than half a grey level of white may still be one level of a colour.
        assert np.abs(source.astype(int) - sample.target)[mask == 0].max() <= 1
        if background.kind == FOOTAGE:
            bare = render(Scene(background, ()), Canvas(9, 48, 80))
            uncovered = source == bare
            assert uncovered.mean() > 0.5
    assert found == {True, False}


def _index_of_change(sample: Sample) -> int:
    before, after = (scene.things for scene in sample.scenes)
    return next(i for i, (one, other) in enumerate(zip(before, after, strict=True)) if one != other)


def test_a_camera_over_photographs_begins_where_it_stood(folder: Path):
    """The right answer of a pan is a wider view of the same film, not another cut of its picture."""
    footage = open_photographs(folder, held_out=False, sources=SOURCES)
    background = Background(FOOTAGE, seed=5, footage=footage)
    canvas = Canvas(5, 48, 80)
    still = render(Scene(background, ()), canvas)
    panned = render(Scene(background, ()), canvas, [0, 4, 8, 12, 16])
    assert np.array_equal(still[0], panned[0])
    assert np.array_equal(still[4][:, 16:], panned[4][:, :-16])


def test_without_photographs_the_world_is_what_it_was():
    """Held-out sets are drawn from seeds: a draw more or less would make others of them."""
    assert Canvas(1, 64, 64) == Canvas(1, 64, 64, None)
    samples = [draw_sample(np.random.default_rng(seed), "stylize", Canvas(1, 64, 64)) for seed in range(8)]
    assert all(scene.things and scene.background.kind != FOOTAGE for s in samples for scene in s.scenes)


def test_photographs_with_nothing_drawn_on_them_are_edited_as_a_whole(folder: Path):
    footage = open_photographs(folder, held_out=False, sources=SOURCES)
    drawn = [
        draw_sample(np.random.default_rng(seed), "stylize", Canvas(1, 64, 64, footage)) for seed in range(30)
    ]
    assert any(not sample.scenes[0].things for sample in drawn)


def test_the_held_out_edits_are_over_photographs_that_are_held_out():
    samples = list(heldout.photograph_samples(per_kind=1))
    assert len(samples) == 2 * len(heldout.PHOTOGRAPH_TASKS)
    assert {sample.scenes[0].background.kind for sample in samples} == {FOOTAGE}
    assert {sample.task for sample in samples} == {f"photograph_{t}" for t in heldout.PHOTOGRAPH_TASKS}
    again = list(heldout.photograph_samples(per_kind=1))
    assert all(np.array_equal(a.target, b.target) for a, b in zip(samples, again, strict=True))
