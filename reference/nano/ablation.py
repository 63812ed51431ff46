"""Do images teach video? Three arms of training that differ in their data alone (docs/ablation.md).

    python -m reference.nano.ablation data CHECKPOINT DIR
    python -m reference.nano.ablation run DIR
    python -m benchmarks.ablation DIR

Arm A trains on clips, B on the same clips and on images besides, C on as many tokens as B, all of clips. The clips
of `LEFT_OUT` are in no arm; B has images of them. `data` encodes the samples once, with the VAE of CHECKPOINT; `run`
trains seed by seed and arm by arm; both go on where they were stopped. `run --pilot` is a smaller study of other
seeds, from which only the spread is read. `benchmarks.ablation` makes the table, the plot and the verdict.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

if not __package__:  # run as a file: `python reference/nano/ablation.py`
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from reference.checkpoint import load_checkpoint
from reference.families.editverse import TransformerConfig
from reference.nano.ablation_statistics import Outcome
from reference.nano.batching import Packed, collate, pack
from reference.nano.curate import VIDEO_ONLY, draw_curated, random_canvas
from reference.nano.dataset import PATCH_SIZE, cache_samples
from reference.nano.heldout import score_edit
from reference.nano.optim import Averaged
from reference.nano.tasks import EDIT_TASKS, Sample
from reference.nano.train import TEXT_DROPOUT, Nano, compute_losses, config_for, make_optimizers, sample
from reference.nano.train_vae import use_image_convolutions
from reference.nano.world import Canvas, Frames, render
from reference.text_encoder import Tokenizer
from reference.vae import decode_clip

Arm = Literal["A", "B", "C"]
ARMS: tuple[Arm, ...] = ("A", "B", "C")
LEFT_OUT = ("stylize", "remove_object", "change_color")
"""Edits that no arm sees on a clip: what B does better there was carried over from images."""
SEEN = tuple(task for task in EDIT_TASKS if task not in LEFT_OUT)
GROUPS = {"lift": SEEN, "transfer": LEFT_OUT}

SHARD = 256
CLIP_SEED, IMAGE_SEED, HELDOUT_SEED = 21, 22, 23
HELDOUT_CLIPS = 24
"""Of each task."""
SAMPLING_STEPS = 8
TOKENS = 1536
"""Padded tokens of a step."""
SORTED = 512
"""Samples that are sorted by length at a time, to fill steps."""
LR, ADAM_LR = 0.02, 1.5e-3
WARM_UP_STEPS, FALLING = 100, 0.45
"""The learning rate falls to zero over this last share of the budget."""
SAVE_EVERY_S = 300.0
EVALUATED_AT_ONCE = 12


@dataclass(frozen=True)
class Budget:
    """How long an arm trains: draws of clips, and of images in B; from so many distinct ones; which seeds."""

    clips: int
    images: int
    distinct_clips: int
    distinct_images: int
    seeds: tuple[int, ...]


FULL = Budget(60_000, 120_000, 8_192, 40_960, (0, 1, 2, 3, 4, 5))
PILOT = Budget(10_000, 20_000, 2_048, 8_192, (100, 101, 102))


def holds_left_out(one: Sample) -> bool:
    """Whether an edit of `LEFT_OUT` is in the answer, alone or as a part of another task."""
    if one.task in LEFT_OUT:
        return True
    if one.task not in ("combined", "edit_with_mask", "propagation"):
        return False
    before, after = one.scenes
    by_place = {thing.place: thing for thing in after.things}
    for thing in before.things:
        found = by_place.get(thing.place)
        if found is None or (found.shape == thing.shape and found.color != thing.color):
            return True
    return not np.array_equal(one.target, render(after, Canvas(*one.target.shape[:3])))


def draw_clip(rng: np.random.Generator) -> Sample:
    """A clip of a task of `SEEN`, without any edit that is left out."""
    task = SEEN[int(rng.integers(len(SEEN)))]
    while True:
        drawn = draw_curated(rng, task, random_canvas(rng, task, 1.0))
        if not holds_left_out(drawn):
            return drawn


def draw_image(rng: np.random.Generator) -> Sample:
    """An image of any task that images have."""
    tasks = [task for task in EDIT_TASKS if task not in VIDEO_ONLY]
    task = tasks[int(rng.integers(len(tasks)))]
    return draw_curated(rng, task, random_canvas(rng, task, 0.0))


def heldout_clips() -> list[Sample]:
    """Clips of all tasks that no arm trains on."""
    drawn = []
    for number, task in enumerate(EDIT_TASKS):
        for index in range(HELDOUT_CLIPS):
            rng = np.random.default_rng([HELDOUT_SEED, number, index])
            drawn.append(draw_curated(rng, task, random_canvas(rng, task, 1.0)))
    return drawn


def write_data(checkpoint: Path, folder: Path, budget: Budget) -> None:
    """Encode clips and images in shards, DIR/clips/NNNN.pt and DIR/images/NNNN.pt; those that are there stay."""
    if not (folder / "vae").exists():
        source = load_checkpoint(checkpoint)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.tokenizer_file, folder / "tokenizer.model")
        source.vae.save_pretrained(folder / "vae")
    use_image_convolutions()
    vae = AutoencoderKLWan.from_pretrained(folder / "vae").eval()
    tokenizer = Tokenizer(folder / "tokenizer.model")
    kinds = (
        ("clips", CLIP_SEED, draw_clip, budget.distinct_clips),
        ("images", IMAGE_SEED, draw_image, budget.distinct_images),
    )
    for kind, seed, draw, count in kinds:
        (folder / kind).mkdir(exist_ok=True)
        for shard in range(-(-count // SHARD)):
            path = folder / kind / f"{shard:04d}.pt"
            if path.exists():
                continue
            rng = np.random.default_rng([seed, shard])
            cached = cache_samples(vae, tokenizer, [draw(rng) for _ in range(SHARD)])
            torch.save(cached, path.with_suffix(".tmp"))
            os.replace(path.with_suffix(".tmp"), path)
            print(path, flush=True)
    path = folder / "heldout.pt"
    if not path.exists():
        torch.save(cache_samples(vae, tokenizer, heldout_clips()), path)


def read_packed(folder: Path, kind: str, count: int) -> list[Packed]:
    """The first samples of a kind, laid out. Raises FileNotFoundError where `data` has not written them."""
    packed: list[Packed] = []
    for shard in range(-(-count // SHARD)):
        path = folder / kind / f"{shard:04d}.pt"
        packed += [pack(one) for one in torch.load(path, weights_only=False)]
    return packed[:count]


def fill_steps(rng: np.random.Generator, lengths: Sequence[int], draws: int, tokens: int) -> list[list[int]]:
    """Draws of samples as steps of at most `tokens` padded tokens, of like lengths. lengths: of the samples."""
    steps: list[list[int]] = []
    for start in range(0, draws, SORTED):
        drawn = rng.integers(len(lengths), size=min(SORTED, draws - start)).tolist()
        drawn.sort(key=lambda index: lengths[index])
        cuts: list[list[int]] = [[]]
        for index in drawn:
            if cuts[-1] and (len(cuts[-1]) + 1) * lengths[index] > tokens:
                cuts.append([])
            cuts[-1].append(index)
        steps += [cuts[place] for place in rng.permutation(len(cuts))]
    return steps


Step = tuple[str, list[int]]
"""The kind, "clips" or "images", and the samples."""


def plan_steps(arm: Arm, seed: int, budget: Budget, lengths: dict[str, list[int]]) -> list[Step]:
    """All steps of an arm, in order. lengths: of the samples of each kind.

    The clips of A are those of B in the same order, and those that C begins with. C ends when it has seen as many
    tokens as B, padding left out.
    """

    def count(kind: str, steps: Sequence[Sequence[int]]) -> int:
        return sum(lengths[kind][index] for step in steps for index in step)

    clips = fill_steps(np.random.default_rng([seed, 0]), lengths["clips"], budget.clips, TOKENS)
    if arm == "A":
        return [("clips", step) for step in clips]
    images = fill_steps(np.random.default_rng([seed, 1]), lengths["images"], budget.images, TOKENS)
    if arm == "B":
        kinds = ["clips"] * len(clips) + ["images"] * len(images)
        order = np.random.default_rng([seed, 2]).permutation(len(kinds))
        streams = {"clips": iter(clips), "images": iter(images)}
        return [(kinds[place], next(streams[kinds[place]])) for place in order]
    rest = count("images", images)
    more = fill_steps(np.random.default_rng([seed, 3]), lengths["clips"], 4 * budget.clips, TOKENS)
    steps = list(clips)
    for step in more:
        if rest <= 0:
            break
        steps.append(step)
        rest -= count("clips", [step])
    return [("clips", step) for step in steps]


@torch.no_grad()
def measure(model: Nano, folder: Path) -> dict[str, dict[str, float]]:
    """By task: the median error left, as a share of what doing nothing leaves, and the success rate."""
    samples = heldout_clips()
    packed = [pack(one) for one in torch.load(folder / "heldout.pt", weights_only=False)]
    vae = AutoencoderKLWan.from_pretrained(folder / "vae").eval()
    left: dict[str, list[float]] = {}
    right: dict[str, list[bool]] = {}
    order = sorted(range(len(packed)), key=lambda place: packed[place].length)
    for start in range(0, len(order), EVALUATED_AT_ONCE):
        places = order[start : start + EVALUATED_AT_ONCE]
        batch = collate([packed[place] for place in places], np.zeros(len(places), bool))
        rows = sample(model, batch, SAMPLING_STEPS, seed=start)
        error = (rows - batch.noisy).square().mean(-1)
        for row, place in enumerate(places):
            own = batch.noisy_owner == row
            change = batch.change[own]
            share = (change * error[own]).sum() / (change * batch.difference[own]).sum()
            one = samples[place]
            left.setdefault(one.task, []).append(float(share))
            right.setdefault(one.task, []).append(score_edit(one, _decode(vae, rows[own], one)).is_success)
    return {
        task: {"error_left": float(np.median(left[task])), "success_rate": float(np.mean(right[task]))}
        for task in EDIT_TASKS
    }


def _decode(vae: AutoencoderKLWan, rows: Tensor, one: Sample) -> Frames:
    frames, height, width, _ = one.target.shape
    side = 8 * PATCH_SIZE
    grid = (1 + (frames - 1) // 4, height // side, width // side)
    return decode_clip(vae, rows.reshape(*grid, -1), PATCH_SIZE).numpy()


def train_arm(
    folder: Path,
    run: Path,
    arm: Arm,
    seed: int,
    budget: Budget,
    samples: dict[str, list[Packed]],
    *,
    config: TransformerConfig,
    stop_after: int | None = None,
) -> bool:
    """Train one arm of one seed to its end and write RUN/result.json; go on from RUN/state.pt.

    Each step draws its noise from (seed, arm, step), so that a run that was stopped ends as one that was not.
    stop_after: stop, with the state saved, after so many steps of this call. Returns whether the end was reached.
    """
    run.mkdir(parents=True, exist_ok=True)
    steps = plan_steps(arm, seed, budget, {kind: [p.length for p in own] for kind, own in samples.items()})
    torch.manual_seed(seed)
    model = Nano(config)
    optimizers = make_optimizers(model, LR, ADAM_LR)
    average = Averaged(model, 0.999)
    done, spent_s = 0, 0.0
    state_path = run / "state.pt"
    if state_path.exists():
        state = torch.load(state_path)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        average.values, done, spent_s = state["average"], state["done"], state["spent_s"]

    def save() -> None:
        state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
        torch.save(state | {"average": average.values, "done": done, "spent_s": spent_s}, run / "state.tmp")
        os.replace(run / "state.tmp", state_path)

    begun, saved_at = done, time.monotonic()
    clock = time.process_time()
    while done < len(steps):
        kind, members = steps[done]
        torch.manual_seed(int(np.random.SeedSequence([seed, ARMS.index(arm), done]).generate_state(1)[0]))
        dropped = np.random.default_rng([seed, 4, done]).random(len(members)) < TEXT_DROPOUT
        losses = compute_losses(model, collate([samples[kind][index] for index in members], dropped))
        losses.total.backward()
        nn.utils.clip_grad_norm_(optimizers[1].param_groups[0]["params"], 1.0)
        factor = min(1.0, (done + 1) / WARM_UP_STEPS, (1 - done / len(steps)) / FALLING)
        for optimizer, lr in zip(optimizers, (LR, ADAM_LR), strict=True):
            optimizer.param_groups[0]["lr"] = lr * factor
            optimizer.step()
        model.zero_grad(set_to_none=True)
        done += 1
        average.update(model, done)
        is_last_of_call = stop_after is not None and done - begun == stop_after
        if is_last_of_call or time.monotonic() - saved_at > SAVE_EVERY_S:
            spent_s, clock, saved_at = (
                spent_s + time.process_time() - clock,
                time.process_time(),
                time.monotonic(),
            )
            save()
            print(f"{run.name}: {done} of {len(steps)} steps, {spent_s / 3600:.2f} core-hours", flush=True)
        if is_last_of_call and done < len(steps):
            return False
    average.copy_to(model)
    tokens = sum(samples[kind][index].length for kind, members in steps for index in members)
    result: dict[str, Any] = {
        "arm": arm,
        "seed": seed,
        "budget": asdict(budget),
        "steps": len(steps),
        "tokens": tokens,
        "core_hours": round((spent_s + time.process_time() - clock) / 3600, 3),
        "by_task": measure(model.eval(), folder),
    }
    (run / "result.tmp").write_text(json.dumps(result, indent=2) + "\n")
    os.replace(run / "result.tmp", run / "result.json")
    state_path.unlink(missing_ok=True)
    return True


def run_study(rank: int, workers: int, folder: Path, study: Path, budget: Budget) -> None:
    """One worker: each of its arms of every seed, one after the other, on one thread."""
    torch.set_num_threads(1)
    torch.backends.cuda.enable_flash_sdp(False)
    samples = {
        "clips": read_packed(folder, "clips", budget.distinct_clips),
        "images": read_packed(folder, "images", budget.distinct_images),
    }
    runs = [(seed, arm) for seed in budget.seeds for arm in ARMS]
    for seed, arm in runs[rank::workers]:
        run = study / f"seed-{seed}-{arm}"
        if not (run / "result.json").exists():
            train_arm(folder, run, arm, seed, budget, samples, config=config_for(folder / "vae"))
            print(f"{run.name}: done", flush=True)


def read_runs(study: Path) -> list[dict[str, Any]]:
    """What the runs wrote that reached their end, by seed and arm."""
    runs = [json.loads(path.read_text()) for path in study.glob("seed-*/result.json")]
    return sorted(runs, key=lambda run: (run["seed"], run["arm"]))


def group_mean(run: dict[str, Any], group: str, measure: str) -> float:
    """The mean over a group's tasks of a run's "error_left" or "success_rate"."""
    return float(np.mean([run["by_task"][task][measure] for task in GROUPS[group]]))


def outcomes_of(runs: Sequence[dict[str, Any]]) -> list[Outcome]:
    """The figures that the statistic compares."""
    return [
        Outcome(run["seed"], run["arm"], f"{group}, {measure}", group_mean(run, group, measure))
        for measure in ("error_left", "success_rate")
        for group in GROUPS
        for run in runs
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="encode the samples")
    data.add_argument("checkpoint", type=Path)
    run = commands.add_parser("run", help="train what is not trained yet")
    for command in (data, run):
        command.add_argument("folder", type=Path, metavar="DIR")
        command.add_argument("--pilot", action="store_true", help="the smaller study")
    run.add_argument("--workers", type=int, default=1, help="processes that share the runs (default: 1)")
    args = parser.parse_args()
    budget, study = (PILOT, args.folder / "pilot") if args.pilot else (FULL, args.folder / "full")
    if args.command == "data":
        torch.set_num_threads(1)
        write_data(args.checkpoint, args.folder, budget)
    else:
        rest = (args.workers, args.folder, study, budget)
        start_processes(run_study, rest, nprocs=args.workers, start_method="spawn")


if __name__ == "__main__":
    main()
