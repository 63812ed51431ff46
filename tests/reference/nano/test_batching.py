"""Packed samples, what is known of their rows, and a pool that draws what is not learnt yet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from reference.nano.batching import NUM_FACTS, ShardPool, collate, pack
from reference.nano.dataset import CachedSample
from reference.nano.facts import NAMES
from reference.nano.train import _known_cross_entropy

P = 8


def cached(task: str, frames: int = 1, seed: int = 0) -> CachedSample:
    torch.manual_seed(seed)
    source, mask = torch.randn(frames, 2, 3, P).half(), torch.randn(frames, 2, 3, P).half()
    target = source.clone()
    target[:, 0] += 1.0
    facts = {"video1": torch.rand(frames, 2, 3, len(NAMES)).half()}
    facts["target"] = facts["video1"].flip(2)
    segments = [[7, 8], "video2", "video1", [9, 1]]
    return CachedSample(task, segments, {"video1": source, "video2": mask}, target, "video1", facts)


def test_the_difference_is_to_the_source_and_not_to_another_input():
    packed = pack(cached("a", frames=2))
    difference = packed.difference.reshape(2, 2, 3)
    torch.testing.assert_close(difference[:, 0], torch.ones(2, 3), atol=1e-2, rtol=0)
    assert not difference[:, 1].any()


def test_without_a_source_everything_is_new():
    sample = cached("a")
    alone = CachedSample("a", [[7], [1]], {}, sample.target, None, {})
    packed = pack(alone)
    torch.testing.assert_close(packed.difference, sample.target.reshape(6, P).float().square().mean(-1))
    assert packed.clean.shape == (0, P)
    assert packed.facts[:, : len(NAMES)].isnan().all()


def test_facts_stand_beside_their_rows_and_are_forgotten_without_text():
    sample = cached("a")
    batch = collate([pack(sample), pack(sample)], np.array([False, True]))
    named = sample.facts["video1"].reshape(6, -1).float()
    assert batch.clean_facts.shape == (24, NUM_FACTS)
    assert batch.clean_facts[:6, : len(NAMES)].isnan().all()  # the mask, first in the instruction
    assert torch.equal(batch.clean_facts[6:12, : len(NAMES)], named)
    assert torch.equal(batch.noisy_facts[:6, : len(NAMES)], sample.facts["target"].reshape(6, -1).float())
    assert batch.noisy_facts[6:, : len(NAMES)].isnan().all()
    rows = torch.tensor([0.25, 0.25, 0.25, 0.75, 0.75, 0.75])
    columns = torch.tensor([1 / 6, 0.5, 5 / 6] * 2)
    torch.testing.assert_close(batch.noisy_facts[6:, -2:], torch.stack((rows, columns), 1), atol=1e-3, rtol=0)
    assert batch.has_text.tolist() == [True, False]


def test_the_cross_entropy_is_zero_where_shares_are_met_and_counts_only_what_is_known():
    shares = torch.tensor([0.0, 1.0, 0.3, float("nan")])
    logits = torch.logit(shares.nan_to_num(0.5).clamp(1e-6, 1 - 1e-6))
    assert float(_known_cross_entropy(logits, shares)) == pytest.approx(0, abs=1e-4)
    worse = logits + torch.tensor([0.0, 0.0, 2.0, 50.0])
    # Kullback-Leibler from sigmoid(logit(0.3) + 2) to 0.3, by hand, over three that are known.
    q = float(torch.sigmoid(torch.logit(torch.tensor(0.3)) + 2))
    expected = (0.3 * np.log(0.3 / q) + 0.7 * np.log(0.7 / (1 - q))) / 3
    assert float(_known_cross_entropy(worse, shares)) == pytest.approx(expected, abs=1e-4)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in range(4):
        samples = [cached(task, frames, number) for task in ("easy", "hard") for frames in (1, 2)]
        torch.save(samples, tmp_path / f"{number:05d}.pt")
    return tmp_path


def test_workers_share_the_shards_and_find_new_ones(shards):
    pools = [ShardPool(shards, rank, 2) for rank in (0, 1)]
    assert [len(pool) for pool in pools] == [8, 8]
    assert pools[0].loaded.isdisjoint(pools[1].loaded)
    torch.save([cached("new")], shards / "00004.pt")
    for pool in pools:
        pool.refresh()
    assert [len(pool) for pool in pools] == [9, 8]


def test_what_is_learnt_is_drawn_less_and_clips_by_their_share(shards):
    pool = ShardPool(shards)
    for _ in range(600):
        pool.note_error("easy", 0.0)
    rng = np.random.default_rng(0)
    pool.video_share = 0.25
    drawn = [pool.draw(rng) for _ in range(2000)]
    assert sum(p.is_video for p in drawn) == pytest.approx(500, abs=80)
    # 0.15 + 0.99 ** 600 against 0.15 + 1
    assert sum(p.task == "easy" for p in drawn) == pytest.approx(2000 * 0.152 / 1.302, abs=80)


def test_batches_stay_within_their_tokens(shards):
    pool = ShardPool(shards)
    pool.video_share = 0.5
    batches = pool.batches(np.random.default_rng(0), 80)
    for _ in range(50):
        batch = next(batches)
        assert len(batch) * max(p.length for p in batch) <= 80
