"""Train nano's text encoder and transformer on cached latents.

    python -m reference.nano.train RUN --minutes 90

RUN/state.pt holds everything; a second call goes on from there. RUN/log.jsonl takes a line every 100 steps:
loss, samples seen, hours, and the error left by task; and every `--evaluate` steps the error left after a
short sampling of held-out requests, relative to the error of doing nothing, for each task.

Small batches learn most from a sample, so each core has a process of its own (`--workers`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python reference/nano/train.py`
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from reference.families.editverse import CONFIGS, Block, EditVerseTransformer, TransformerConfig
from reference.nano.batching import NUM_FACTS, Batch, Packed, ShardPool, collate, pack
from reference.nano.curate import draw_curated, random_canvas
from reference.nano.dataset import PATCH_SIZE, cache_samples
from reference.nano.optim import Averaged, Muon
from reference.nano.tasks import TASKS, Sample
from reference.nano.train_vae import LATENT_SCALE
from reference.nano.workers import (
    CPU,
    add_worker_options,
    average_gradients,
    in_bfloat16,
    join_workers,
    start_workers,
)
from reference.text_encoder import Tokenizer, make_nano_text_encoder

MIN_TIME_LEFT = 0.2
"""The clean segment's error weighs 1 / (1 - t), between its own and the velocity's; no more than here."""
CHANGE_WEIGHT = 2.0
"""What an edit changes weighs this much more than what it keeps, which a network soon learns to copy."""
OBJECT_WEIGHT, OBJECT_WEIGHT_OF = 4.0, {"change_background": 12.0}
"""So does a token with an object in it, whose outline is hard to get right; the more where the frame around
it becomes another."""
FACTS_WEIGHT = 0.5
CLEAN_TAP, NOISY_TAP = 0.35, 0.65
"""How far up the blocks the facts are read off, of the inputs and of the target."""
TEXT_DROPOUT = 0.1
NOISE_SHARE, ANYWHERE_SHARE = 0.15, 0.3
"""Shares of the timesteps that are 0, which is all that one evaluation sees, and that are spread evenly."""
EARLY_VIDEO_SHARE, LATE_VIDEO_SHARE, LATE = 0.2, 0.5, 0.45
"""A task is learnt on images, which cost a third of a clip, and carried over to clips in the later half."""
POSITION_GAIN = 2.0
"""The initial scale on the channels of rows and columns: it biases attention towards matching positions."""
DECIDED = 0.3
"""Errors at earlier timesteps than this say how well a task is learnt."""
LOG_EVERY = 100
VALIDATION_SEED = 2
TOKENS = {"cpu": 1536, "cuda": 12_288}
"""Padded tokens of a step: on a CPU small steps learn most from a sample; a GPU wants more at once."""


class FactHeads(nn.Module):
    """Read off hidden tokens what they show (`facts.py`): training only, and no part of what is published."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.taps = [round(share * (config.num_blocks - 1)) for share in (CLEAN_TAP, NOISY_TAP)]
        self.clean = nn.Linear(config.width, NUM_FACTS)
        self.noisy = nn.Linear(config.width, NUM_FACTS + 1)  # and whether the edit changes it

    def loss(self, batch: Batch, clean: Tensor, noisy: Tensor) -> Tensor:
        """Binary cross entropy of shares in [0, 1], where they are known."""
        told = self.noisy(noisy).float()
        return (
            _known_cross_entropy(self.clean(clean).float(), batch.clean_facts)
            + _known_cross_entropy(told[:, :-1], batch.noisy_facts)
            + _known_cross_entropy(
                told[:, -1], batch.change.where(batch.has_text[batch.noisy_owner], float("nan"))
            )
        )


def _known_cross_entropy(logits: Tensor, shares: Tensor) -> Tensor:
    """Beyond the entropy of the shares themselves, mean over those that are not NaN."""
    known = shares.isnan().logical_not()
    exact = shares.where(known, 0.5)
    entropy = -(torch.xlogy(exact, exact) + torch.xlogy(1 - exact, 1 - exact))
    excess = F.binary_cross_entropy_with_logits(logits, exact, reduction="none") - entropy
    return (excess * known).sum() / known.sum().clamp(min=1)


class Nano(nn.Module):
    """The two networks that train together."""

    def __init__(self, config: TransformerConfig = CONFIGS["nano"]) -> None:
        super().__init__()
        self.text_encoder = make_nano_text_encoder()
        self.transformer = EditVerseTransformer(config)
        self.fact_heads = FactHeads(config)
        first = (config.axis_dims[0] + config.axis_dims[1]) // 2
        for block in self.transformer.blocks:
            assert isinstance(block, Block)
            for norm in (block.attention.q_norm, block.attention.k_norm):
                norm.data.view(2, -1)[:, first:] = POSITION_GAIN

    def encode_text(self, batch: Batch) -> Tensor:
        """[B * Lt, text_dim]."""
        out = self.text_encoder(input_ids=batch.ids, attention_mask=batch.ids_mask)
        return out.last_hidden_state.flatten(0, 1)

    def outputs(
        self, batch: Batch, text: Tensor, x_t: Tensor, timestep: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The head's output for the noisy rows [sum Lg, P], and both taps; timestep [B]."""
        net = self.transformer
        table = torch.cat(
            (
                net.text_in(text),
                net.patch_in(torch.cat((batch.clean, x_t))),
                net.vision_markers,
                x_t.new_zeros(1, net.config.width),
            )
        )
        x = table[batch.layout]
        modulation, mask = net.modulate(timestep), batch.is_noisy.unsqueeze(-1)
        hidden = []
        for block in net.blocks:
            x = block(x, modulation, mask, batch.positions, batch.key_mask)
            hidden.append(x.flatten(0, 1))
        clean_tap, noisy_tap = self.fact_heads.taps
        out = net.head(hidden[-1][batch.noisy_at]).float()
        return out, hidden[clean_tap][batch.clean_at], hidden[noisy_tap][batch.noisy_at]


def make_nano(state: dict[str, Any]) -> Nano:
    """A model of the sizes of a run's state, whose weights are yet to be loaded."""
    return Nano(TransformerConfig.from_dict(state["config"]))


def config_for(vae: Path) -> TransformerConfig:
    """Today's sizes, for the latents of the VAE in a folder of diffusers."""
    z_dim = int(AutoencoderKLWan.load_config(vae)["z_dim"])
    return replace(CONFIGS["nano"], patch_dim=z_dim * PATCH_SIZE**2)


def draw_timesteps(count: int, device: torch.device = CPU, noise_share: float = NOISE_SHARE) -> Tensor:
    """Mostly near the noise, where the edit is decided; some at the very start, the others anywhere."""
    near_noise = torch.sigmoid(1.2 * torch.randn(count, device=device) - 1.2)
    kind = torch.rand(count, device=device)
    elsewhere = torch.where(kind < noise_share, 0.0, torch.rand(count, device=device))
    return torch.where(kind < noise_share + ANYWHERE_SHARE, elsewhere, near_noise)


@dataclass(frozen=True)
class Losses:
    """Of a batch of B. total: what is minimised; pixels, facts: its parts; all three []."""

    total: Tensor
    pixels: Tensor
    facts: Tensor
    timestep: Tensor
    error_left: Tensor
    """[B]: where the edit changes something, the error as a share of what doing nothing leaves."""
    answer: Tensor
    """[sum Lg, P]: the clean segments that the network gives."""


def compute_losses(
    model: Nano, batch: Batch, noise_share: float = NOISE_SHARE, on_its_way: Tensor | None = None
) -> Losses:
    """Flow matching (section 3.3) on the target segment, the edited part of it above all, and the facts.

    noise_share: of the timesteps that are 0. on_its_way: bool [B], the sequences that are seen at their timestep where
    the network's own first step would have brought them, and not on the straight line to the right answer.
    """
    device = batch.noisy.device
    timestep = draw_timesteps(len(batch.samples), device, noise_share)
    t = timestep[batch.noisy_owner, None]
    noise = torch.randn_like(batch.noisy)
    with in_bfloat16(device):
        text = model.encode_text(batch)
        end = batch.noisy
        if on_its_way is not None:
            with torch.no_grad():
                first, _, _ = model.outputs(batch, text, noise, torch.zeros_like(timestep))
            end = torch.where(on_its_way[batch.noisy_owner, None], first, end)
        x_t = t * end + (1 - t) * noise
        out, clean_tap, noisy_tap = model.outputs(batch, text, x_t, timestep)
        facts = model.fact_heads.loss(batch, clean_tap, noisy_tap)
    error = (out - batch.noisy).square().mean(-1)

    def by_sample(values: Tensor) -> Tensor:
        return values.new_zeros(len(batch.samples)).index_add(0, batch.noisy_owner, values)

    of_object = torch.tensor(
        [OBJECT_WEIGHT_OF.get(p.task, OBJECT_WEIGHT) for p in batch.samples], device=device
    )
    weight = (1 + CHANGE_WEIGHT * batch.change) * (1 + of_object[batch.noisy_owner] * batch.has_object)
    weighted = by_sample(weight * error) / by_sample(weight)
    pixels = (weighted / (1 - timestep).clamp(min=MIN_TIME_LEFT)).mean() / LATENT_SCALE**2
    detached = error.detach()
    left = by_sample(batch.change * detached) / by_sample(batch.change * batch.difference).clamp(min=1e-6)
    return Losses(pixels + FACTS_WEIGHT * facts, pixels.detach(), facts.detach(), timestep, left, out)


@torch.no_grad()
def sample(model: Nano, batch: Batch, steps: int, seed: int = 0) -> Tensor:
    """Euler without guidance, for training's own use only: the target rows [sum Lg, P]."""
    x = torch.randn(batch.noisy.shape, generator=torch.Generator().manual_seed(seed)).to(batch.noisy.device)
    text = model.encode_text(batch)
    for step in range(steps):
        t = step / steps
        out, _, _ = model.outputs(batch, text, x, x.new_full((len(batch.samples),), t))
        x = x + (out - x) / (1 - t) / steps
    return x


def validation_set(run: Path) -> list[Packed]:
    """Six requests a task that are never trained on, encoded once."""
    path = run / "validation.pt"
    if not path.exists():
        vae = AutoencoderKLWan.from_pretrained(run / "vae").eval()
        samples: list[Sample] = []
        for index, task in enumerate(TASKS):
            for video_share in (0.0, 0.0, 0.0, 0.0, 1.0, 1.0):
                rng = np.random.default_rng([VALIDATION_SEED, index, len(samples)])
                samples.append(draw_curated(rng, task, random_canvas(rng, task, video_share)))
        torch.save(cache_samples(vae, Tokenizer(run / "tokenizer.model"), samples), path)
    return [pack(s) for s in torch.load(path, weights_only=False)]


@torch.no_grad()
def evaluate(model: Nano, packed: list[Packed]) -> dict[str, float]:
    """Median squared error left by task where the edit changes something, relative to doing nothing."""
    shares: dict[str, list[float]] = {}
    ordered = sorted(packed, key=lambda p: p.length)
    for start in range(0, len(ordered), 12):
        group = ordered[start : start + 12]
        batch = collate(group, np.zeros(len(group), bool)).to(model.transformer.patch_in.weight.device)
        error = (sample(model, batch, 8) - batch.noisy).square().mean(-1)
        for row, p in enumerate(group):
            rows = batch.noisy_owner == row
            change = batch.change[rows]
            share = (change * error[rows]).sum() / (change * batch.difference[rows]).sum()
            shares.setdefault(p.task, []).append(float(share))
    return {task: round(float(np.median(values)), 3) for task, values in shares.items()}


NOT_STARTED: dict[str, Any] = {"step": 0, "samples": 0, "spent": 0.0}


def save_state(
    path: Path,
    model: Nano,
    optimizers: list[torch.optim.Optimizer],
    average: Averaged,
    progress: dict[str, Any],
) -> None:
    """Write all that a later call needs to go on, on whatever device."""
    state: dict[str, Any] = {
        "config": model.transformer.config.to_dict(),
        "model": model.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
    }
    partial = path.with_suffix(".tmp")
    state |= {"average": average.values, "progress": progress}
    torch.save(tree_map_only(Tensor, Tensor.cpu, state), partial)
    os.replace(partial, path)


def make_optimizers(
    model: Nano, muon_lr: float = 0.02, adam_lr: float = 1.5e-3
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of both networks' blocks, AdamW for embeddings, norms, modulation and heads."""
    stacks = (model.transformer.blocks, model.text_encoder.encoder.block)
    matrices = [p for stack in stacks for p in stack.parameters() if p.ndim == 2 and min(p.shape) > 6]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        Muon(matrices, lr=muon_lr),
        torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


class Run:
    """What one worker trains, what trains it, and how far the run is; taken up from RUN/state.pt if there is one."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.device = args, device
        self.path: Path = args.run / "state.pt"
        state = torch.load(self.path, map_location=device) if self.path.exists() else None
        self.model = (make_nano(state) if state else Nano(config_for(args.run / "vae"))).to(device)
        self.optimizers = make_optimizers(self.model, args.lr, args.adam_lr)
        self.average = Averaged(self.model, 0.999)
        self.progress = dict(NOT_STARTED)
        if state:
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.average.values, self.progress = state["average"], state["progress"]
        self.shadow = Nano(self.model.transformer.config).to(device)
        for block in self.model.transformer.blocks:
            block.compile(dynamic=True)

    @property
    def share(self) -> float:
        """How much of the training time is spent, from 0 to 1."""
        return float(self.progress["spent"]) / (60 * float(self.args.minutes))

    def add_gradients(self, packed: list[Packed], pool: ShardPool, rng: np.random.Generator) -> Losses:
        """Forward and backward on one batch; `pool` is told how well the tasks in it are learnt."""
        batch = collate(packed, rng.random(len(packed)) < TEXT_DROPOUT).to(self.device)
        losses = compute_losses(self.model, batch)
        losses.total.backward()
        for p, t, has_text, left in zip(
            packed, losses.timestep.tolist(), batch.has_text.tolist(), losses.error_left.tolist(), strict=True
        ):
            if has_text and t < DECIDED:
                pool.note_error(p.task, left)
        return losses

    def step(self) -> int:
        """One step of both optimizers at the rate for this moment; the number of steps done so far."""
        nn.utils.clip_grad_norm_(self.optimizers[1].param_groups[0]["params"], 1.0)
        factor = min(1.0, (self.progress["step"] + 1) / 100, max(0.0, 1 - self.share) / 0.45)
        for optimizer, lr in zip(self.optimizers, (self.args.lr, self.args.adam_lr), strict=True):
            optimizer.param_groups[0]["lr"] = lr * factor
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        self.progress["step"] += 1
        step = int(self.progress["step"])
        self.average.update(self.model, step)
        return step

    def save(self) -> None:
        save_state(self.path, self.model, self.optimizers, self.average, self.progress)

    def report(self, losses: list[Tensor], pool: ShardPool, validation: list[Packed]) -> None:
        """A line of RUN/log.jsonl; every `--evaluate` steps with a validation, and the state is saved.

        losses: of the steps since the last line, each [2]: of the pixels and of the facts.
        """
        pixels, known = torch.stack(losses).mean(0).tolist()
        line: dict[str, Any] = {
            "step": self.progress["step"],
            "samples": self.progress["samples"],
            "hours": round(self.progress["spent"] / 3600, 3),
            "loss": round(pixels, 4),
            "facts": round(known, 4),
            "distinct": len(pool) * self.args.workers,
            "error_left": {task: round(share, 2) for task, share in sorted(pool.error_left.items())},
        }
        if self.progress["step"] % self.args.evaluate == 0:
            self.average.copy_to(self.shadow)
            line["validation"] = evaluate(self.shadow, validation)
            self.save()
        with (self.args.run / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def train(rank: int, args: argparse.Namespace) -> None:
    """One worker; the first keeps the clock, the log and the state."""
    device = join_workers(rank, args)
    torch.manual_seed(0)
    run = Run(args, device)
    pool = ShardPool(args.run / "data", rank, args.workers)
    validation = validation_set(args.run) if rank == 0 else []
    torch.manual_seed(run.progress["step"] * args.workers + rank)
    rng = np.random.default_rng([3, run.progress["step"], rank])
    batches = pool.batches(rng, args.tokens)
    seen: list[Tensor] = []
    start = time.monotonic() - run.progress["spent"]
    while run.share < 1:
        pool.video_share = EARLY_VIDEO_SHARE if run.share < LATE else LATE_VIDEO_SHARE
        packed = next(batches)
        losses = run.add_gradients(packed, pool, rng)
        spent = time.monotonic() - start if rank == 0 else 0.0
        facts = torch.tensor([float(losses.pixels), float(losses.facts), len(packed), spent])
        facts = average_gradients(run.model.parameters(), facts)
        seen.append(facts[:2] / args.workers)
        run.progress["spent"] = float(facts[3])
        step = run.step()
        run.progress["samples"] += int(facts[2])
        if step % LOG_EVERY == 0:
            pool.refresh()
            if rank == 0:
                run.report(seen, pool, validation)
                seen.clear()
    if rank == 0:
        run.save()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=90.0, help="total training time, over all calls")
    add_worker_options(parser)
    parser.add_argument(
        "--tokens", type=int, help="padded tokens a step and worker (default: 1536; 12288 on a GPU)"
    )
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=1.5e-3)
    parser.add_argument("--evaluate", type=int, default=1000)
    args = parser.parse_args()
    args.tokens = args.tokens or TOKENS[args.device]
    start_workers(train, args)


if __name__ == "__main__":
    main()
