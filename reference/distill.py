"""Distil a checkpoint into one that takes two evaluations, or one, and no guidance.

    python -m reference.distill cache CHECKPOINT WORK --requests nano --count 4096
    python -m reference.distill train CHECKPOINT WORK --train-steps 4000
    python -m reference.distill write CHECKPOINT WORK OUT

`cache` runs the teacher, the checkpoint's own guided sampling in many steps, and keeps of each request where its
trajectory stands at t = 0.5 and where it ends. `train` starts from the teacher's weights and regresses onto these
states at the fixed times 0 and 0.5 (0 alone with --steps 1). Pairs of the same noise have one answer each, so nothing
is averaged, unlike in a regression onto data. Guidance is in the targets, so the result takes none. `write` makes a
checkpoint of the averaged weights; its scheduler config says how many steps it takes, and other numbers are refused.
The first two go on where they were stopped.

--requests: "nano" draws from nano's world; or a file with a JSON object a line, {"prompt": "<video1> Make it night",
"inputs": {"video1": "clip.npy"}, "shape": [frames, height, width]}, where a .npy beside the file holds uint8
[T, H, W, 3] and an empty prompt is the branch without text.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python reference/distill.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reference.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from reference.families.editverse import EditVerseTransformer
from reference.families.editverse_checkpoint import check_steps
from reference.nano.optim import Averaged
from reference.nano.requests import draw_requests
from reference.nano.workers import in_bfloat16
from reference.noise import draw_noise
from reference.sampler import LaidOut, lay_out
from reference.solvers import Schedule

__all__ = [
    "Pair",
    "cache_pairs",
    "distil",
    "follow_teacher",
    "predict_samples",
    "read_pairs",
    "write_distilled",
]

MIDDLE = 0.5
"""The second of the two fixed times; the teacher's steps are even in number, so that one of them begins there."""
SHARD = 64
WARM_UP_STEPS = 50
EMA = 0.998
SAVE_EVERY_S = 300.0
LOG_EVERY = 50


@dataclass(frozen=True)
class Pair:
    """One request as the transformer takes it, and what the teacher made of its noise.

    text [Lt, text_dim], clean [Lc, P], layout int64 [L] and positions int64 [L, 4] as `EditVerseTransformer.forward`
    takes them; seed: of the noise x_0; middle, end [Lg, P]: the trajectory at t = 0.5 and 1. Kept in float16.
    """

    text: Tensor
    clean: Tensor
    layout: Tensor
    positions: Tensor
    seed: int
    middle: Tensor
    end: Tensor

    @property
    def noise(self) -> Tensor:
        return draw_noise(self.seed, *self.end.shape)


@torch.no_grad()
def follow_teacher(
    checkpoint: Checkpoint, request: LaidOut, seed: int, steps: int, guidance_scale: float
) -> tuple[Tensor, Tensor]:
    """The states [Lg, P] at t = 0.5 and t = 1 of `steps` Adams-Bashforth steps of order 2 at uniform times.

    Raises ValueError for an odd number of steps.
    """
    if steps < 2 or steps % 2:
        raise ValueError(
            f"{steps} steps of the teacher; expected an even number, so that one begins at t = {MIDDLE}"
        )
    schedule = Schedule(
        "ab2", "uniform", told="exact", float32_sigmas=False, guidance_scales=(guidance_scale,)
    )
    columns = schedule(torch.tensor(steps), torch.tensor(1.0, dtype=torch.float64))
    timesteps, matrices = columns[1].float(), columns[3].float()
    net = checkpoint.transformer
    state = torch.zeros(2, request.num_noisy, net.config.patch_dim)
    state[0] = draw_noise(seed, *state[0].shape)
    middle = state[0]
    for step in range(steps):
        if 2 * step == steps:
            middle = state[0]
        conditional, free = request.conditional, request.unconditional
        t = timesteps[step]
        v = net(request.text, request.clean, state[0], conditional.layout, conditional.positions, t)
        if guidance_scale != 1 and len(request.text):
            other = net(request.text[:0], request.clean, state[0], free.layout, free.positions, t)
            v = other + guidance_scale * (v - other)
        state = torch.tensordot(matrices[step], torch.cat((state, v[None])), 1)
    return middle, state[0]


Request = tuple[str, dict[str, NDArray[np.uint8]], tuple[int, int, int]]
"""Prompt, inputs uint8 [T, H, W, 3] by tag, and the target's frames, height and width."""


def read_requests(path: Path) -> Iterator[Request]:
    """The requests of a file, again and again. Raises ValueError for a line that is none."""
    lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} holds no request; expected a JSON object a line")
    for number, line in itertools.cycle(enumerate(lines, 1)):
        yield _parse_request(line, path, number)


def _parse_request(line: str, path: Path, number: int) -> Request:
    try:
        value = json.loads(line)
        frames, height, width = (int(n) for n in value["shape"])
        inputs = {
            name: np.load(path.parent / file, allow_pickle=False)
            for name, file in value.get("inputs", {}).items()
        }
        return str(value["prompt"]), inputs, (frames, height, width)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ValueError(f"{path}, line {number}: {error}; expected prompt, inputs and shape") from error


def cache_pairs(
    checkpoint: Checkpoint,
    requests: Iterator[Request],
    work: Path,
    count: int,
    steps: int,
    guidance_scale: float,
) -> None:
    """Write WORK/pairs/NNNNN.pt, `SHARD` pairs each, until there are `count`; shards that are there stay."""
    folder = work / "pairs"
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(-(-count // SHARD)):
        path = folder / f"{shard:05d}.pt"
        drawn = list(itertools.islice(requests, SHARD))
        if path.exists():
            continue
        pairs = []
        for index, (prompt, inputs, shape) in enumerate(drawn):
            request = lay_out(checkpoint, prompt, inputs, shape)
            if not prompt:
                request = request.without_text()
            seed = shard * SHARD + index
            middle, end = follow_teacher(checkpoint, request, seed, steps, guidance_scale)
            sequence = request.conditional
            pairs.append(
                Pair(
                    request.text.half(), request.clean.half(), sequence.layout, sequence.positions, seed,
                    middle.half(), end.half(),
                )
            )  # fmt: skip
        torch.save([vars(pair) for pair in pairs], path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)
        print(f"{path}: {min(count, (shard + 1) * SHARD)} of {count}", flush=True)


def read_pairs(work: Path) -> list[Pair]:
    """All pairs that are cached. Raises FileNotFoundError where there are none."""
    paths = sorted((work / "pairs").glob("*.pt"))
    if not paths:
        raise FileNotFoundError(f"{work / 'pairs'} holds no pairs; run `cache` first")
    return [Pair(**values) for path in paths for values in torch.load(path)]


def predict_samples(
    net: EditVerseTransformer, pairs: Sequence[Pair], noisy: Sequence[Tensor], timesteps: Tensor
) -> Tensor:
    """The clean segments that the network sees behind noisy ones: [sum Lg, P] of a padded batch.

    noisy: [Lg, P] of each pair; timesteps [B]. x_t + (1 - t) v, whatever the network predicts.
    """
    longest = max(len(pair.layout) for pair in pairs)
    device = net.vision_markers.device
    tokens, positions, is_noisy, is_key = [], [], [], []
    for pair, x in zip(pairs, noisy, strict=True):
        rows = torch.cat((
            net.text_in(pair.text.to(device).float()), net.patch_in(pair.clean.to(device).float()),
            net.patch_in(x.to(device)), net.vision_markers,
        ))  # fmt: skip
        layout, missing = pair.layout.to(device), longest - len(pair.layout)
        first = len(pair.text) + len(pair.clean)
        own = (layout >= first) & (layout < first + len(x))
        tokens.append(torch.nn.functional.pad(rows[layout], (0, 0, 0, missing)))
        positions.append(torch.nn.functional.pad(pair.positions.to(device), (0, 0, 0, missing)))
        is_noisy.append(torch.nn.functional.pad(own, (0, missing)))
        is_key.append(torch.arange(longest, device=device) < len(layout))
    mask = torch.stack(is_noisy)
    times = timesteps.to(device)
    out = net.run_blocks(torch.stack(tokens), torch.stack(positions), mask, times, torch.stack(is_key))[
        mask
    ].float()
    owner = torch.repeat_interleave(times, torch.tensor([len(x) for x in noisy], device=device))
    x_t = torch.cat([x.to(device) for x in noisy])
    velocity = net.velocity_from_output(out.unsqueeze(1), x_t.unsqueeze(1), owner).squeeze(1)
    return x_t + (1 - owner)[:, None] * velocity


def target_of(pair: Pair, steps: int, step: int) -> tuple[Tensor, Tensor, float]:
    """What the student is given and what it is to see behind it: noisy [Lg, P], clean [Lg, P], timestep."""
    if steps == 1:
        return pair.noise, pair.end.float(), 0.0
    middle = pair.middle.float()
    if step == 0:
        return pair.noise, (middle - (1 - MIDDLE) * pair.noise) / MIDDLE, 0.0
    return middle, pair.end.float(), MIDDLE


def distil(
    checkpoint: Checkpoint,
    pairs: Sequence[Pair],
    work: Path,
    *,
    steps: int,
    train_steps: int,
    batch: int = 32,
    lr: float = 2e-4,
    stop_after: int | None = None,
) -> bool:
    """Train the student and keep its state in WORK/train.pt; go on from there.

    Each step draws by itself, so that a run that was stopped ends as one that was not. stop_after: stop after so many
    steps of this call. Returns whether the end was reached. Raises ValueError for another number of steps than 1
    or 2, or than the state was begun with.
    """
    if steps not in (1, 2):
        raise ValueError(f"--steps {steps}; expected 1 or 2")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = checkpoint.transformer.to(device).float().requires_grad_(True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    average = Averaged(net, EMA)
    done, spent_s = 0, 0.0
    path = work / "train.pt"
    if path.exists():
        state = torch.load(path, map_location=device)
        if state["steps"] != steps:
            raise ValueError(
                f"{path} was begun with --steps {state['steps']}; give that, or another folder, not {steps}"
            )
        net.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.values, done, spent_s = state["average"], state["done"], state["spent_s"]

    def save() -> None:
        state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "average": average.values}
        torch.save(state | {"done": done, "steps": steps, "spent_s": spent_s}, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    begun, clock, saved_at = done, time.process_time(), time.monotonic()
    losses: list[float] = []
    while done < train_steps and done - begun != stop_after:
        rng = np.random.default_rng([steps, done])
        chosen = [pairs[int(index)] for index in rng.integers(len(pairs), size=batch)]
        given = [target_of(pair, steps, int(rng.integers(steps))) for pair in chosen]
        with in_bfloat16(device):
            seen = predict_samples(
                net, chosen, [x for x, _, _ in given], torch.tensor([t for _, _, t in given])
            )
        loss = (seen - torch.cat([target for _, target, _ in given]).to(device)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = lr * min((done + 1) / WARM_UP_STEPS, 1 - done / train_steps, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        average.update(net, done)
        done += 1
        if done % LOG_EVERY == 0 or done == train_steps:
            spent_s, clock = spent_s + time.process_time() - clock, time.process_time()
            line = {
                "step": done,
                "loss": round(float(np.mean(losses)), 6),
                "core_hours": round(spent_s / 3600, 4),
            }
            losses.clear()
            with (work / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(line, flush=True)
            if time.monotonic() - saved_at > SAVE_EVERY_S:
                save()
                saved_at = time.monotonic()
    spent_s += time.process_time() - clock
    save()
    return done >= train_steps


@torch.no_grad()
def write_distilled(checkpoint: Checkpoint, work: Path, folder: Path) -> Path:
    """Write the checkpoint of the averaged weights. Raises FileNotFoundError before any training."""
    state: dict[str, Any] = torch.load(work / "train.pt", map_location="cpu")
    net = checkpoint.transformer
    # Weights that float16 holds are exported in half the bytes; the student's are rounded if the teacher's were so.
    is_half = all(bool((p == p.half().to(p.dtype)).all()) for p in net.parameters())
    for name, parameter in net.named_parameters():
        value = state["average"][name]
        parameter.copy_(value.half() if is_half else value)
    return save_checkpoint(
        folder,
        transformer=net,
        vae=checkpoint.vae,
        text_encoder=checkpoint.text_encoder,
        tokenizer_file=checkpoint.tokenizer_file,
        limits=checkpoint.limits,
        scheduler={"num_inference_steps": state["steps"], "guidance_scale": 1.0, "is_fixed": True},
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    cache = commands.add_parser("cache", help="run the teacher")
    train = commands.add_parser("train", help="train the student")
    write = commands.add_parser("write", help="the student as a checkpoint")
    for command in (cache, train, write):
        command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
        command.add_argument("work", type=Path, metavar="WORK")
    cache.add_argument("--requests", required=True, metavar="nano|FILE")
    cache.add_argument("--count", type=int, default=4096)
    cache.add_argument("--teacher-steps", type=int, default=20)
    cache.add_argument("--guidance-scale", type=float, help="of the teacher (default: the checkpoint's)")
    train.add_argument("--steps", type=int, default=2, choices=(1, 2), help="evaluations of the student")
    train.add_argument("--train-steps", type=int, default=4000)
    train.add_argument("--batch", type=int, default=32)
    train.add_argument("--lr", type=float, default=2e-4)
    write.add_argument("out", type=Path, metavar="OUT")
    args = parser.parse_args()
    checkpoint = load_checkpoint(args.checkpoint)
    try:
        if args.command == "cache":
            check_steps(checkpoint.scheduler, args.teacher_steps)
            guidance = args.guidance_scale or float(checkpoint.scheduler["guidance_scale"])
            requests = draw_requests() if args.requests == "nano" else read_requests(Path(args.requests))
            cache_pairs(checkpoint, requests, args.work, args.count, args.teacher_steps, guidance)
        elif args.command == "train":
            distil(
                checkpoint, read_pairs(args.work), args.work, steps=args.steps, train_steps=args.train_steps,
                batch=args.batch, lr=args.lr,
            )  # fmt: skip
        else:
            print(write_distilled(checkpoint, args.work, args.out))
    except (FileNotFoundError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
