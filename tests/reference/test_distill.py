"""Distillation: what the student is asked for, that it learns it, that stopping changes nothing, what is refused."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from reference import distill
from reference.checkpoint import load_checkpoint, make_random_checkpoint
from reference.distill import Pair
from reference.nano.requests import draw_requests
from reference.sampler import lay_out

TINY = {"width": 32, "num_blocks": 1, "num_heads": 1, "head_dim": 64, "mlp_width": 32, "time_width": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_checkpoint(
        "nano", tmp_path_factory.mktemp("tiny") / "checkpoint", transformer_overrides=TINY,
        vae_overrides={"base_dim": 4, "dim_mult": [1, 1, 1]},
    )  # fmt: skip


@pytest.fixture(scope="module")
def work(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cached pairs of clips without text, and of an edit from a file."""
    work = tmp_path_factory.mktemp("work")
    np.save(work / "clip.npy", np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8))
    lines = [
        {"prompt": "<video1> night", "inputs": {"video1": "clip.npy"}, "shape": [5, 32, 32]},
        {"prompt": "", "shape": [1, 32, 48]},
    ]
    (work / "requests.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    requests = distill.read_requests(work / "requests.jsonl")
    distill.cache_pairs(load_checkpoint(folder), requests, work, distill.SHARD, 4, 2.0)
    return work


def copy_pairs(work: Path, target: Path) -> Path:
    shutil.copytree(work / "pairs", target / "pairs")
    return target


def test_the_teacher_is_its_own_sampler(folder: Path):
    """Euler by hand through the whole network, with guidance; Adams-Bashforth of order 2 begins with its step."""
    checkpoint = load_checkpoint(folder)
    request = lay_out(checkpoint, "red", {}, (1, 32, 32))
    middle, end = distill.follow_teacher(checkpoint, request, 3, 2, 2.0)
    net = checkpoint.transformer
    x = distill.draw_noise(3, 4, net.config.patch_dim)
    velocities = []
    for t in (0.0, 0.5):
        both = [
            net(text, request.clean, x, branch.layout, branch.positions, torch.tensor(t))
            for text, branch in (
                (request.text, request.conditional),
                (request.text[:0], request.unconditional),
            )
        ]
        velocities.append(2 * both[0] - both[1])
        if t == 0:
            x = x + 0.5 * velocities[0]
            torch.testing.assert_close(middle, x, atol=1e-4, rtol=1e-4)
    x = x + 0.5 * (1.5 * velocities[1] - 0.5 * velocities[0])
    torch.testing.assert_close(end, x, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="3 steps of the teacher; expected an even number"):
        distill.follow_teacher(checkpoint, request, 3, 3, 2.0)


def test_a_student_that_hits_its_targets_follows_the_teacher(work: Path):
    """Two Euler steps with the target samples land on the cached states."""
    pair = distill.read_pairs(work)[0]
    given, target, at = distill.target_of(pair, 2, 0)
    assert torch.equal(given, pair.noise)
    assert at == 0.0
    middle = given + 0.5 * (target - given)
    torch.testing.assert_close(middle, pair.middle.float(), atol=1e-5, rtol=1e-5)
    given, target, at = distill.target_of(pair, 2, 1)
    assert torch.equal(given, pair.middle.float())
    assert at == 0.5
    torch.testing.assert_close(given + 0.5 * (target - given) / (1 - at), pair.end.float())
    given, target, at = distill.target_of(pair, 1, 0)
    assert torch.equal(target, pair.end.float())
    assert at == 0.0


@torch.no_grad()
def test_a_padded_batch_equals_its_pairs_one_by_one(folder: Path, work: Path):
    net = load_checkpoint(folder).transformer
    pairs = distill.read_pairs(work)[:3]
    noisy = [pair.noise for pair in pairs]
    timesteps = torch.tensor([0.0, 0.5, 0.5])
    together = distill.predict_samples(net, pairs, noisy, timesteps)
    alone = [
        x + (1 - t) * net(p.text.float(), p.clean.float(), x, p.layout, p.positions, t)
        for p, x, t in zip(pairs, noisy, timesteps, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)


def train(folder: Path, work: Path, stop_after: int | None, steps: int = 2) -> bool:
    return distill.distil(
        load_checkpoint(folder), distill.read_pairs(work), work, steps=steps, train_steps=40, batch=4, lr=2e-3,
        stop_after=stop_after,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(folder: Path, work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    whole = copy_pairs(work, tmp_path_factory.mktemp("whole"))
    assert train(folder, whole, None)
    return whole


def loss_of(folder: Path, pairs: list[Pair]) -> float:
    net = load_checkpoint(folder).transformer
    given = [distill.target_of(pair, 2, index % 2) for index, pair in enumerate(pairs)]
    with torch.no_grad():
        times = torch.tensor([t for _, _, t in given])
        seen = distill.predict_samples(net, pairs, [x for x, _, _ in given], times)
    return float((seen - torch.cat([target for _, target, _ in given])).square().mean())


def test_the_loss_falls_and_the_written_checkpoint_has_it(
    folder: Path, work: Path, trained: Path, tmp_path: Path
):
    out = distill.write_distilled(load_checkpoint(folder), trained, tmp_path / "out")
    pairs = distill.read_pairs(work)[:16]
    assert loss_of(out, pairs) < 0.9 * loss_of(folder, pairs)
    scheduler = load_checkpoint(out).scheduler
    assert (scheduler["num_inference_steps"], scheduler["guidance_scale"], scheduler["is_fixed"]) == (
        2,
        1.0,
        True,
    )


def test_a_training_that_was_stopped_ends_as_one_that_was_not(
    folder: Path, work: Path, trained: Path, tmp_path: Path
):
    parts = copy_pairs(work, tmp_path)
    assert not train(folder, parts, 7)
    assert not train(folder, parts, 5)
    assert train(folder, parts, None)
    one, other = (torch.load(place / "train.pt") for place in (trained, parts))
    assert one["done"] == other["done"] == 40
    assert all(torch.equal(one["average"][name], other["average"][name]) for name in one["average"])
    with pytest.raises(ValueError, match="was begun with --steps 2; give that, or another folder, not 1"):
        train(folder, parts, 1, steps=1)


def test_cached_pairs_stay_and_more_are_added(folder: Path, work: Path, tmp_path: Path):
    again = copy_pairs(work, tmp_path)
    before = (again / "pairs" / "00000.pt").stat().st_mtime_ns
    requests = distill.read_requests(work / "requests.jsonl")
    distill.cache_pairs(load_checkpoint(folder), requests, again, distill.SHARD + 1, 2, 2.0)
    assert (again / "pairs" / "00000.pt").stat().st_mtime_ns == before
    pairs = distill.read_pairs(again)
    assert len(pairs) == 2 * distill.SHARD
    assert [pair.seed for pair in pairs] == list(range(2 * distill.SHARD))


def test_a_request_without_text_has_no_rows_of_text(work: Path):
    edit, free = distill.read_pairs(work)[:2]
    assert len(edit.text) > 1
    assert len(edit.clean) == len(edit.end) == 8
    assert (len(free.text), len(free.clean), len(free.end)) == (0, 0, 6)
    assert len(free.layout) == 8


def test_bad_requests_are_told_by_their_line(tmp_path: Path):
    path = tmp_path / "requests.jsonl"
    for text, told in (
        ("", "holds no request"),
        ('{"prompt": "a"}', "line 1: 'shape'"),
        ('{"prompt": "a", "shape": [1, 2]}', "line 1"),
        ('{"prompt": "a", "shape": [1, 32, 32], "inputs": {"image1": "no.npy"}}', "line 1"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=told):
            next(distill.read_requests(path))
    with pytest.raises(FileNotFoundError, match="run `cache` first"):
        distill.read_pairs(tmp_path)
    with pytest.raises(ValueError, match="--steps 3; expected 1 or 2"):
        distill.distil(None, [], tmp_path, steps=3, train_steps=1)


def test_nanos_requests_are_its_worlds():
    drawn = list(itertools.islice(draw_requests(), 12))
    again = list(itertools.islice(draw_requests(), 12))
    assert [prompt for prompt, _, _ in drawn] == [prompt for prompt, _, _ in again]
    assert {bool(prompt) for prompt, _, _ in drawn} == {True, False}
    assert all(not inputs for prompt, inputs, _ in drawn if not prompt)
