"""Train nano's text encoder and transformer on cached latents.

    python -m reference.nano.train RUN --minutes 90

RUN/state.pt holds everything; a second call goes on from there. RUN/log.jsonl takes a line every 100 steps:
loss, samples seen, hours; and every `--evaluate` steps the error left after a short sampling of held-out
requests, relative to the error of doing nothing, for each task.

Small batches learn most from a sample, and products of their size gain well below twice from a second thread
(1.4 times was measured); so each core has a process of its own (`--workers`), with its own samples, and the
gradients are averaged.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from reference.model import CONFIGS, EditVerseTransformer, TransformerConfig
from reference.nano.batching import Batch, Packed, ShardPool, collate, pack
from reference.nano.curate import draw_curated, random_canvas
from reference.nano.dataset import cache_sample
from reference.nano.optim import Averaged, Muon
from reference.nano.tasks import TASKS
from reference.text_encoder import Tokenizer, make_nano_text_encoder

MIN_TIME_LEFT = 0.1
"""The loss is on the velocity; its weight 1 / (1 - t)^2 stops growing here."""
TEXT_DROPOUT = 0.1
EARLY_VIDEO_SHARE, LATE_VIDEO_SHARE, LATE = 0.1, 0.4, 0.5
"""A task is learnt on images, which cost a third of a clip, and carried over to clips in the later half."""
POSITION_GAIN = 2.0
"""Attention starts with this scale on the channels of rows and columns: a token finds its like at once."""
LOG_EVERY = 100
VALIDATION_SEED = 2


class Nano(nn.Module):
    """The two networks that train together."""

    def __init__(self, config: TransformerConfig = CONFIGS["nano"]) -> None:
        super().__init__()
        self.text_encoder = make_nano_text_encoder()
        self.transformer = EditVerseTransformer(config)
        first = (config.axis_dims[0] + config.axis_dims[1]) // 2
        for block in self.transformer.blocks:
            for norm in (block.attention.q_norm, block.attention.k_norm):
                norm.data.view(2, -1)[:, first:] = POSITION_GAIN

    def encode_text(self, batch: Batch) -> Tensor:
        """[B * Lt, text_dim]."""
        out = self.text_encoder(input_ids=batch.ids, attention_mask=batch.ids_mask)
        return out.last_hidden_state.flatten(0, 1)

    def outputs(self, batch: Batch, text: Tensor, x_t: Tensor, timestep: Tensor) -> Tensor:
        """The head's output for the noisy rows [sum Lg, P]; timestep [B]."""
        net = self.transformer
        table = torch.cat(
            (
                net.text_in(text),
                net.patch_in(torch.cat((batch.clean, x_t))),
                net.vision_markers,
                torch.zeros(1, net.config.width),
            )
        )
        out = net.run_blocks(table[batch.layout], batch.positions, batch.is_noisy, timestep, batch.key_mask)
        return out[batch.is_noisy]


def make_nano(state: dict[str, Any] | None) -> Nano:
    """A model of the sizes of a run's state, whose weights are yet to be loaded; of today's, without one."""
    return Nano(TransformerConfig.from_dict(state["config"])) if state else Nano()


def draw_timesteps(count: int) -> Tensor:
    """Logit-normal, towards the noise: there the edit is decided."""
    return torch.sigmoid(torch.randn(count) - 0.6)


def velocity_loss(model: Nano, batch: Batch) -> Tensor:
    """Flow matching (section 3.3): mean squared error of the velocity on the target segment."""
    timestep = draw_timesteps(len(batch.samples))
    t = timestep[batch.noisy_owner, None]
    x_t = t * batch.noisy + (1 - t) * torch.randn_like(batch.noisy)
    error = model.outputs(batch, model.encode_text(batch), x_t, timestep) - batch.noisy
    return (error / (1 - t).clamp(min=MIN_TIME_LEFT)).square().mean()


@torch.no_grad()
def sample(model: Nano, batch: Batch, steps: int) -> Tensor:
    """Euler without guidance, for validation only: the target rows [sum Lg, P]."""
    x = torch.randn(batch.noisy.shape, generator=torch.Generator().manual_seed(0))
    text = model.encode_text(batch)
    for step in range(steps):
        t = step / steps
        out = model.outputs(batch, text, x, torch.full((len(batch.samples),), t))
        x = x + (out - x) / (1 - t) / steps
    return x


def validation_set(run: Path) -> list[Packed]:
    """Two requests a task that are never trained on, encoded once."""
    path = run / "validation.pt"
    if not path.exists():
        vae = AutoencoderKLWan.from_pretrained(run / "vae").eval()
        tokenizer = Tokenizer(run / "tokenizer.model")
        samples = []
        for index, task in enumerate(TASKS):
            for video_share in (0.0, 0.0, 1.0):
                rng = np.random.default_rng([VALIDATION_SEED, index, len(samples)])
                samples.append(
                    cache_sample(
                        vae, tokenizer, draw_curated(rng, task, random_canvas(rng, task, video_share))
                    )
                )
        torch.save(samples, path)
    return [pack(s) for s in torch.load(path, weights_only=False)]


def evaluate(model: Nano, packed: list[Packed]) -> dict[str, float]:
    """Squared error left by task, relative to leaving the source as it is (to black, without one)."""
    ratios: dict[str, list[float]] = {}
    for start in range(0, len(packed), 12):
        group = packed[start : start + 12]
        batch = collate(group, np.zeros(len(group), bool))
        result = sample(model, batch, 8)
        for row, p in enumerate(group):
            rows = batch.noisy_owner == row
            target = batch.noisy[rows]
            source = (
                p.clean[: len(target)].float() if len(p.clean) >= len(target) else torch.zeros_like(target)
            )
            if p.sample.task == "propagation":
                source = p.sample.clips["video1"].reshape(target.shape).float()
            error = (result[rows] - target).square().mean() / (source - target).square().mean().clamp(
                min=1e-3
            )
            ratios.setdefault(p.sample.task, []).append(float(error))
    return {task: round(float(np.mean(values)), 3) for task, values in ratios.items()}


NOT_STARTED: dict[str, Any] = {"step": 0, "samples": 0, "spent": 0.0}


def save_state(
    path: Path,
    model: Nano,
    optimizers: list[torch.optim.Optimizer],
    average: Averaged,
    progress: dict[str, Any],
) -> None:
    """Write all that a later call needs to go on."""
    state = {
        "config": model.transformer.config.to_dict(),
        "model": model.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
    }
    partial = path.with_suffix(".tmp")
    torch.save(state | {"average": average.values, "progress": progress}, partial)
    os.replace(partial, path)


def make_optimizers(
    model: Nano, muon_lr: float = 0.02, adam_lr: float = 1.5e-3
) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings, norms, modulation and the text encoder."""
    matrices = [p for p in model.transformer.blocks.parameters() if p.ndim == 2 and min(p.shape) > 6]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        Muon(matrices, lr=muon_lr),
        torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def average_over_workers(model: Nano, facts: Tensor) -> Tensor:
    """Average the gradients in place, and add facts [n] up over the workers."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    together = torch.cat([g.flatten() for g in gradients] + [facts])
    dist.all_reduce(together)
    start = 0
    for gradient in gradients:
        total = together[start : start + gradient.numel()]
        gradient.copy_(total.view_as(gradient) / dist.get_world_size())
        start += gradient.numel()
    return together[start:]


def train(rank: int, args: argparse.Namespace) -> None:
    """One worker; the first keeps the clock, the log and the state."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{args.meeting.absolute()}", rank=rank, world_size=args.workers
    )
    torch.manual_seed(0)
    state_path = args.run / "state.pt"
    state = torch.load(state_path) if state_path.exists() else None
    model = make_nano(state)
    optimizers = make_optimizers(model, args.lr, args.adam_lr)
    average = Averaged(model, 0.998)
    progress_of = dict(NOT_STARTED)
    if state:
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        average.values, progress_of = state["average"], state["progress"]
    shadow = make_nano(state)
    for block in model.transformer.blocks:
        block.compile(dynamic=True)
    pool = ShardPool(args.run / "data")
    validation = validation_set(args.run) if rank == 0 else []
    torch.manual_seed(progress_of["step"] * args.workers + rank)
    rng = np.random.default_rng([3, progress_of["step"], rank])
    batches = pool.batches(rng, args.tokens)
    losses: list[float] = []
    start = time.monotonic() - progress_of["spent"]
    progress = progress_of["spent"] / (60 * args.minutes)
    while progress < 1:
        pool.video_share = EARLY_VIDEO_SHARE if progress < LATE else LATE_VIDEO_SHARE
        packed = next(batches)
        batch = collate(packed, rng.random(len(packed)) < TEXT_DROPOUT)
        loss = velocity_loss(model, batch)
        loss.backward()
        spent = time.monotonic() - start if rank == 0 else 0.0
        facts = average_over_workers(model, torch.tensor([float(loss.detach()), len(packed), spent]))
        losses.append(float(facts[0]) / args.workers)
        progress_of["spent"] = float(facts[2])
        progress = progress_of["spent"] / (60 * args.minutes)
        nn.utils.clip_grad_norm_(optimizers[1].param_groups[0]["params"], 1.0)
        factor = min(1.0, (progress_of["step"] + 1) / 100, max(0.0, 1 - progress) / 0.45)
        for optimizer, lr in zip(optimizers, (args.lr, args.adam_lr), strict=True):
            optimizer.param_groups[0]["lr"] = lr * factor
            optimizer.step()
        model.zero_grad(set_to_none=True)
        step = progress_of["step"] = progress_of["step"] + 1
        average.update(model, step)
        progress_of["samples"] += int(facts[1])
        if step % LOG_EVERY == 0:
            pool.refresh()
        if rank == 0 and step % LOG_EVERY == 0:
            line: dict[str, Any] = {
                "step": step,
                "samples": progress_of["samples"],
                "hours": round(progress_of["spent"] / 3600, 3),
                "loss": round(float(np.mean(losses)), 4),
                "distinct": len(pool.images) + len(pool.videos),
            }
            losses.clear()
            if step % args.evaluate == 0:
                average.copy_to(shadow)
                line["error_left"] = evaluate(shadow, validation)
                save_state(state_path, model, optimizers, average, progress_of)
            with (args.run / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
    if rank == 0:
        save_state(state_path, model, optimizers, average, progress_of)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=90.0, help="total training time, over all calls")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tokens", type=int, default=768, help="padded tokens a step and worker")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=1.5e-3)
    parser.add_argument("--evaluate", type=int, default=500)
    args = parser.parse_args()
    args.meeting = args.run / "workers"
    args.meeting.unlink(missing_ok=True)
    mp.start_processes(train, (args,), nprocs=args.workers, start_method="spawn")


if __name__ == "__main__":
    main()
