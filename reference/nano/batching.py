"""Unequal sequences in one batch: sorted by length, padded a little, the padding masked as keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reference.nano.dataset import CachedSample
from reference.sequence import Interleaved, interleave


@dataclass(frozen=True)
class Packed:
    """A sample with its two layouts (with text, without)."""

    sample: CachedSample
    ids: list[int]
    clean: Tensor
    """Clean patches [Lc, P] in the order of the instruction."""
    noisy: Tensor
    """The target's patches [Lg, P]."""
    layouts: tuple[Interleaved, Interleaved]

    @property
    def length(self) -> int:
        return int(self.layouts[0].layout.shape[0])


def pack(sample: CachedSample) -> Packed:
    """Lay a sample out as a sequence."""
    clips = [sample.clips[s] for s in sample.segments if isinstance(s, str)]
    shapes = [tuple(sample.clips[s].shape[:3]) if isinstance(s, str) else len(s) for s in sample.segments]
    target = tuple(sample.target.shape[:3])
    patch_dim = sample.target.shape[-1]
    return Packed(
        sample,
        [i for s in sample.segments if not isinstance(s, str) for i in s],
        torch.cat([c.reshape(-1, patch_dim) for c in clips]) if clips else torch.zeros(0, patch_dim),
        sample.target.reshape(-1, patch_dim),
        (interleave(shapes, target), interleave([s for s in shapes if isinstance(s, tuple)], target)),
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
    key_mask: Tensor
    samples: list[CachedSample]


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
    is_noisy = (layout >= num_text + len(clean)) & (layout < markers)
    owner = torch.repeat_interleave(torch.arange(count), torch.tensor([len(p.noisy) for p in packed]))
    return Batch(
        ids,
        ids_mask,
        clean.float(),
        noisy.float(),
        owner,
        layout,
        positions,
        is_noisy,
        layout < markers + 2,
        [p.sample for p in packed],
    )


class ShardPool:
    """Samples of all shards there are; grows while a generator writes more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loaded: set[str] = set()
        self.images: list[Packed] = []
        self.videos: list[Packed] = []
        self.video_share = 0.0
        self.refresh()

    def refresh(self) -> None:
        for path in sorted(self.folder.glob("*.pt")):
            if path.name not in self.loaded:
                self.loaded.add(path.name)
                for sample in torch.load(path, weights_only=False):
                    (self.videos if len(sample.target) > 1 else self.images).append(pack(sample))

    def draw(self, rng: np.random.Generator) -> Packed:
        """An image or, with the odds of `video_share`, a clip."""
        among = self.videos if rng.random() < self.video_share else self.images
        return among[int(rng.integers(len(among)))]

    def batches(self, rng: np.random.Generator, tokens: int) -> Iterator[list[Packed]]:
        """Endless batches of at most `tokens` padded tokens, of samples of like length."""
        while True:
            drawn = [self.draw(rng) for _ in range(512)]
            drawn.sort(key=lambda p: p.length)
            cuts, batch = [], []
            for p in drawn:
                if batch and (len(batch) + 1) * p.length > tokens:
                    cuts.append(batch)
                    batch = []
                batch.append(p)
            cuts.append(batch)
            for index in rng.permutation(len(cuts)):
                yield cuts[index]
