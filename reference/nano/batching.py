"""Unequal sequences in one batch: sorted by length, padded a little, the padding masked as keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reference.nano.dataset import CachedSample
from reference.nano.facts import NAMES
from reference.sequence import Interleaved, interleave

CHANGE_SCALE = 0.02
"""A token is half changed when its target differs from its source by this mean square, in latents."""
COVERED = 0.04
"""An object is seen in a token from this share on, colour and shape counted."""
EXTRA_ODDS = {
    "change_background": 0.7,
    "camera": 0.3,
    "change_object": 0.3,
    "detection": 0.2,
    "stylize": 0.3,
    "combined": 0.2,
    "propagation": 0.1,
}
"""Tasks that fail most in the held-out report are drawn more often than their error alone would have it."""
NUM_FACTS = len(NAMES) + 2
"""Objects by colour and shape, then the token's place down and across the frame, in [0, 1]."""


@dataclass(frozen=True)
class Packed:
    """A sample with its two layouts (with text, without), its rows and what is known of each."""

    task: str
    ids: list[int]
    clean: Tensor
    """Clean patches float16 [Lc, P] in the order of the instruction."""
    noisy: Tensor
    """The target's patches float16 [Lg, P]."""
    facts: Tensor
    """float16 [Lc + Lg, NUM_FACTS], NaN where unknown."""
    difference: Tensor
    """float32 [Lg]: mean square of what the edit changes in each row; without a source, of the target."""
    has_object: Tensor
    """float32 [Lg]: 1 where an object is seen in the target's row; in its source's, if only that is known."""
    layouts: tuple[Interleaved, Interleaved]

    @property
    def length(self) -> int:
        return int(self.layouts[0].layout.shape[0])

    @property
    def is_video(self) -> bool:
        return bool(self.layouts[0].positions[:, 1].any())


@lru_cache(maxsize=65536)
def _layouts(
    shapes: tuple[int | tuple[int, int, int], ...], target: tuple[int, int, int]
) -> tuple[Interleaved, Interleaved]:
    without_text = [s for s in shapes if isinstance(s, tuple)]
    return interleave(list(shapes), target), interleave(without_text, target)


def _facts_of(clip: Tensor, named: Tensor | None) -> Tensor:
    """[t * h * w, NUM_FACTS] of a clip [t, h, w, P]."""
    frames, rows, columns = clip.shape[:3]
    facts = torch.full((frames, rows, columns, NUM_FACTS), float("nan"), dtype=torch.float16)
    if named is not None:
        facts[..., : len(NAMES)] = named
    facts[..., -2] = ((torch.arange(rows) + 0.5) / rows).half()[None, :, None]
    facts[..., -1] = ((torch.arange(columns) + 0.5) / columns).half()[None, None, :]
    return facts.flatten(0, 2)


def pack(sample: CachedSample) -> Packed:
    """Lay a sample out as a sequence."""
    names = [s for s in sample.segments if isinstance(s, str)]
    clips = [sample.clips[name] for name in names]
    shapes = tuple((*sample.clips[s].shape[:3],) if isinstance(s, str) else len(s) for s in sample.segments)
    frames, rows, columns, patch_dim = sample.target.shape
    noisy = sample.target.reshape(-1, patch_dim)
    source = sample.clips[sample.source].reshape(-1, patch_dim) if sample.source else torch.zeros_like(noisy)
    facts = [_facts_of(sample.clips[n], sample.facts.get(n)) for n in names]
    shown = sample.facts.get("target", sample.facts.get(sample.source or ""))
    covered = torch.zeros(noisy.shape[:1]) if shown is None else shown.flatten(0, 2).float().sum(-1)
    return Packed(
        sample.task,
        [i for s in sample.segments if not isinstance(s, str) for i in s],
        torch.cat([c.reshape(-1, patch_dim) for c in clips]) if clips else noisy[:0],
        noisy,
        torch.cat([*facts, _facts_of(sample.target, sample.facts.get("target"))]),
        (noisy.float() - source.float()).square().mean(-1),
        (covered > COVERED).float(),
        _layouts(shapes, (frames, rows, columns)),
    )


@dataclass(frozen=True)
class Batch:
    """B sequences; `layout` [B, L] indexes the rows of text [B * Lt], clean, noisy, markers and padding."""

    ids: Tensor
    ids_mask: Tensor
    clean: Tensor
    noisy: Tensor
    noisy_owner: Tensor
    """Which sequence each row of `noisy` belongs to."""
    layout: Tensor
    positions: Tensor
    is_noisy: Tensor
    """bool [B, L]."""
    clean_at: Tensor
    """int64 [sum Lc]: where the clean rows stand in the sequences laid end to end; `noisy_at` [sum Lg] likewise."""
    noisy_at: Tensor
    key_mask: Tensor
    clean_facts: Tensor
    """float32 [sum Lc, NUM_FACTS], NaN where unknown; `noisy_facts` likewise, where the text is there."""
    noisy_facts: Tensor
    difference: Tensor
    """float32 [sum Lg], and `change` in [0, 1): how far the edit changes each row."""
    change: Tensor
    has_object: Tensor
    """float32 [sum Lg]."""
    has_text: Tensor
    """bool [B]."""
    samples: list[Packed]

    def to(self, device: torch.device) -> Batch:
        """The same with its tensors on a device; the samples stay where they are."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def collate(packed: list[Packed], drop_text: np.ndarray) -> Batch:
    """Stack sequences; where `drop_text`, the unconditional layout of guidance is taken (section 5.1)."""
    count, longest_text = len(packed), max(len(p.ids) for p in packed)
    ids = torch.zeros(count, longest_text, dtype=torch.long)
    ids_mask = torch.zeros(count, longest_text, dtype=torch.long)
    for row, p in enumerate(packed):
        ids[row, : len(p.ids)] = torch.tensor(p.ids)
        ids_mask[row, : len(p.ids)] = 1
    clean, noisy = torch.cat([p.clean for p in packed]), torch.cat([p.noisy for p in packed])
    num_text = count * longest_text
    markers = num_text + len(clean) + len(noisy)
    chosen = [p.layouts[int(drop)] for p, drop in zip(packed, drop_text, strict=True)]
    longest = max(len(c.layout) for c in chosen)
    layout = torch.full((count, longest), markers + 2)
    positions = torch.zeros(count, longest, 4, dtype=torch.long)
    at_clean, at_noisy = num_text, num_text + len(clean)
    for row, (p, one, drop) in enumerate(zip(packed, chosen, drop_text, strict=True)):
        texts, cleans, noisies = (0 if drop else len(p.ids)), len(p.clean), len(p.noisy)
        table = torch.cat((
            torch.arange(texts) + row * longest_text,
            torch.arange(cleans) + at_clean,
            torch.arange(noisies) + at_noisy,
            torch.tensor([markers, markers + 1]),
        ))  # fmt: skip
        layout[row, : len(one.layout)] = table[one.layout]
        positions[row, : len(one.layout)] = one.positions
        at_clean += cleans
        at_noisy += noisies
    noisy_facts = torch.cat([p.facts[len(p.clean) :] for p in packed]).float()
    owner = torch.repeat_interleave(torch.arange(count), torch.tensor([len(p.noisy) for p in packed]))
    noisy_facts[torch.from_numpy(drop_text)[owner], : len(NAMES)] = float("nan")
    difference = torch.cat([p.difference for p in packed])
    is_noisy = (layout >= num_text + len(clean)) & (layout < markers)
    return Batch(
        ids=ids,
        ids_mask=ids_mask,
        clean=clean.float(),
        noisy=noisy.float(),
        noisy_owner=owner,
        layout=layout,
        positions=positions,
        is_noisy=is_noisy,
        clean_at=((layout >= num_text) & (layout < num_text + len(clean))).flatten().nonzero().squeeze(1),
        noisy_at=is_noisy.flatten().nonzero().squeeze(1),
        key_mask=layout < markers + 2,
        clean_facts=torch.cat([p.facts[: len(p.clean)] for p in packed]).float(),
        noisy_facts=noisy_facts,
        difference=difference,
        change=difference / (difference + CHANGE_SCALE),
        has_object=torch.cat([p.has_object for p in packed]),
        has_text=torch.from_numpy(~drop_text),
        samples=packed,
    )


class ShardPool:
    """Samples of a worker's share of the shards there are; grows while a generator writes more.

    Tasks are drawn by the error that is left in each, so that what is learnt makes room for what is not.
    """

    def __init__(self, folder: Path, rank: int = 0, workers: int = 1) -> None:
        self.folder, self.rank, self.workers = folder, rank, workers
        self.loaded: set[str] = set()
        self.samples: dict[tuple[str, bool], list[Packed]] = {}
        self.error_left: dict[str, float] = {}
        self.video_share = 0.0
        self.refresh()

    def __len__(self) -> int:
        return sum(map(len, self.samples.values()))

    def refresh(self) -> None:
        for path in sorted(self.folder.glob("*.pt")):
            if path.name not in self.loaded and int(path.stem) % self.workers == self.rank:
                self.loaded.add(path.name)
                for sample in torch.load(path, weights_only=False):
                    packed = pack(sample)
                    self.samples.setdefault((packed.task, packed.is_video), []).append(packed)

    def note_error(self, task: str, share: float) -> None:
        """How much of the edit a sample lacked: the error as a share of what doing nothing leaves."""
        before = self.error_left.get(task, 1.0)
        self.error_left[task] = before + 0.01 * (min(share, 1.5) - before)

    def draw(self, rng: np.random.Generator) -> Packed:
        """An image or, with the odds of `video_share`, a clip."""
        is_video = bool(rng.random() < self.video_share)
        tasks = [task for task, kind in self.samples if kind == is_video]
        odds = np.array([0.15 + self.error_left.get(t, 1.0) + EXTRA_ODDS.get(t, 0.0) for t in tasks])
        among = self.samples[tasks[int(rng.choice(len(tasks), p=odds / odds.sum()))], is_video]
        return among[int(rng.integers(len(among)))]

    def batches(self, rng: np.random.Generator, tokens: int) -> Iterator[list[Packed]]:
        """Endless batches of at most `tokens` padded tokens, of samples of like length."""
        while True:
            drawn = [self.draw(rng) for _ in range(512)]
            drawn.sort(key=lambda p: p.length)
            cuts: list[list[Packed]] = []
            batch: list[Packed] = []
            for p in drawn:
                if batch and (len(batch) + 1) * p.length > tokens:
                    cuts.append(batch)
                    batch = []
                batch.append(p)
            cuts.append(batch)
            for index in rng.permutation(len(cuts)):
                yield cuts[index]
