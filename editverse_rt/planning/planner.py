"""What a request costs on a GPU before anything runs: tokens, operations, memory and the time of its peak.

Times are a roofline: each graph takes the longer of its operations at a share of the target's peak and its
bytes at a share of its bandwidth. The shares are assumptions, stated here and in what `plan` prints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from editverse_rt.bundle.spec import BundleSpec
from editverse_rt.errors import RequestError
from editverse_rt.planning.costs import (
    Cost,
    Tokens,
    cost_text_encoder,
    cost_transformer,
    cost_vae,
    weight_bytes,
)
from editverse_rt.planning.targets import Target, check_build, default_precisions

__all__ = [
    "COMPUTE_SHARE",
    "CPU_PRECISION",
    "RESERVED_BYTES",
    "Estimate",
    "Stage",
    "Work",
    "check_budget",
    "check_fit",
    "count_weights",
    "estimate_work",
    "find_largest",
]

COMPUTE_SHARE = 0.5
"""Share of the dense peak that products and attention are assumed to reach."""
BANDWIDTH_SHARE = 0.8
RESERVED_BYTES = 10**9
"""What the driver, the CUDA context and the libraries are assumed to take of the GPU's memory."""
CPU_PRECISION = {"transformer": "fp32", "text_encoder": "fp32", "vae": "fp32"}
"""Of each part, without a target."""


Shape = tuple[int, int, int]
"""Frames, height and width of a clip in pixels."""


@dataclass(frozen=True)
class Work:
    """What is to be computed.

    num_text: text tokens, the end of the sequence among them. num_steps: solver steps. num_guided: those with
    a second evaluation of the transformer, for guidance. num_windows: how often all but the text is done, each time
    for another window of a long video; clips and result are those of one window.
    """

    num_text: int
    clips: tuple[Shape, ...]
    result: Shape
    num_steps: int
    num_guided: int
    num_windows: int = 1

    def with_frames(self, num_frames: int) -> Work:
        """The same request for a result of num_frames, its clips cut to that."""
        clips = tuple((min(frames, num_frames), height, width) for frames, height, width in self.clips)
        return replace(self, clips=clips, result=(num_frames, *self.result[1:]))


@dataclass(frozen=True)
class Stage:
    """One line of an estimate; flops and seconds over all calls, activation_bytes at the peak of one.

    seconds: None without a target.
    """

    name: str
    calls: int
    flops: int
    activation_bytes: int
    seconds: float | None


@dataclass(frozen=True)
class Estimate:
    """What a request costs. available_bytes, seconds: None without a target."""

    target: Target | None
    precision: dict[str, str]
    tokens: Tokens
    tokens_uncond: Tokens
    stages: tuple[Stage, ...]
    weight_bytes: int
    buffer_bytes: int
    available_bytes: int | None

    @property
    def peak_bytes(self) -> int:
        """All weights stay loaded; the graphs run one after another and share what they hold besides."""
        return self.weight_bytes + self.buffer_bytes + max(stage.activation_bytes for stage in self.stages)

    @property
    def flops(self) -> int:
        """Floating-point operations of all stages."""
        return sum(stage.flops for stage in self.stages)

    @property
    def seconds(self) -> float | None:
        """Time of all stages, in seconds; None without a target."""
        times = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return sum(times) if self.target is not None else None

    @property
    def fits(self) -> bool:
        """Whether the peak of memory is available; true where nothing is known of that."""
        return self.available_bytes is None or self.peak_bytes <= self.available_bytes


def estimate_work(
    spec: BundleSpec, work: Work, target: Target | None = None, precision: str | None = None
) -> Estimate:
    """What a request costs on a target, or without one on a CPU in float32.

    precision: the transformer's; None for the recipe's. Raises RequestError for one that the target's backend
    cannot build, BundleError for a bundle that does not say how its parts are built.
    """
    if target is None:
        chosen = dict(CPU_PRECISION)
        holds_scores = spec.capabilities.attention == "inline"
    else:
        chosen = default_precisions(target, precision)
        # TensorRT decomposes attention in float32; its fused kernels take 16 bits.
        holds_scores = chosen["transformer"] == "fp32"
        check_build(target, target.backend, chosen)
    tokens = _count_tokens(spec, work)
    uncond = tokens
    if spec.unconditional == "drop_text":
        uncond = replace(tokens, text=0, total=tokens.total - tokens.text)
    steps, guided = work.num_steps, work.num_guided

    def transformer(rows: Tokens) -> Cost:
        return cost_transformer(spec, rows, chosen["transformer"], holds_scores=holds_scores)

    rows_bytes = 4 * spec.geometry.patch_dim
    solver = Cost(0, 7 * tokens.noisy * rows_bytes, 7 * tokens.noisy * rows_bytes)
    text = cost_text_encoder(spec, work.num_text, chosen["text_encoder"])
    # A control video goes through the encoder twice, for what is kept and for what is made anew.
    passes = 2 if spec.conditioning == "control" else 1
    encoder = [
        (passes * count, cost)
        for clip in work.clips
        for count, cost in _cost_clip(spec, "encoder", clip, chosen["vae"])
    ]
    runs: list[tuple[str, str, list[tuple[int, Cost]]]] = [
        ("text_encoder", "text_encoder", [(1, text)]),
        ("vae_encoder", "vae", encoder),
        ("transformer", "transformer", [(steps, transformer(tokens))]),
        ("transformer, unconditional", "transformer", [(guided, transformer(uncond))]),
        ("solver_step", "transformer", [(steps, solver)]),
        ("vae_decoder", "vae", _cost_clip(spec, "decoder", work.result, chosen["vae"])),
    ]
    windows = {name: 1 if name == "text_encoder" else work.num_windows for name, _, _ in runs}
    runs = [
        (name, part, [(windows[name] * calls, cost) for calls, cost in costs if calls])
        for name, part, costs in runs
    ]
    return Estimate(
        target=target,
        precision=chosen,
        tokens=tokens,
        tokens_uncond=uncond,
        stages=tuple(_stage(name, costs, target, chosen[part]) for name, part, costs in runs if costs),
        weight_bytes=sum(weight_bytes(spec, chosen).values()),
        buffer_bytes=(tokens.clean + 4 * tokens.noisy) * rows_bytes,
        available_bytes=None if target is None else target.memory_bytes - RESERVED_BYTES,
    )


def check_fit(spec: BundleSpec, work: Work, target: Target, precision: str | None = None) -> Estimate:
    """The estimate of what fits the target's memory. Raises RequestError with the largest that does."""
    estimate = estimate_work(spec, work, target, precision)
    if estimate.fits:
        return estimate
    frames, height, width = work.result
    need = f"{width}x{height} with {frames} frames needs {estimate.peak_bytes / 1e9:.1f} GB"
    has = f"{target.name} has {(estimate.available_bytes or 0) / 1e9:.1f} GB to give"
    largest = find_largest(lambda w: estimate_work(spec, w, target, precision).fits, spec, work)
    if largest is None:
        weights = f"the weights alone take {estimate.weight_bytes / 1e9:.1f} GB"
        raise RequestError(
            f"{need}, {has}",
            hint=f"not even one frame fits ({weights}): take a larger GPU or a smaller size",
            code="request.too_large",
        )
    raise RequestError(
        f"{need}, {has}",
        hint=f"the largest that fits at this size is {largest} frames",
        code="request.too_large",
    )


def count_weights(spec: BundleSpec) -> int:
    """Bytes of a bundle's weights on a CPU, as ONNX Runtime holds them."""
    return sum(weight_bytes(spec, CPU_PRECISION).values())


def check_budget(spec: BundleSpec, work: Work, budget_bytes: int, beside_bytes: int = 0) -> Estimate:
    """The estimate on a CPU of work that fits a budget for the weights and all else.

    beside_bytes: what is held beside the planner's estimate, such as decoded inputs. Raises RequestError with the
    largest that fits.
    """

    def peak_bytes(work: Work) -> int:
        return estimate_work(spec, work).peak_bytes + beside_bytes

    estimate = estimate_work(spec, work)
    if estimate.peak_bytes + beside_bytes <= budget_bytes:
        return estimate
    frames, height, width = work.result
    need = (
        f"{width}x{height} with {frames} frames needs {peak_bytes(work) / 1e6:.1f} MB with the weights, "
        f"memory_budget_bytes gives {budget_bytes / 1e6:.1f} MB"
    )
    largest = find_largest(lambda w: peak_bytes(w) <= budget_bytes, spec, work)
    if largest is None:
        raise RequestError(
            f"{need}",
            hint="not even one frame fits: take a smaller size or a larger budget",
            code="request.too_large",
        )
    raise RequestError(
        f"{need}",
        hint=f"the largest that fits at this size is {largest} frames",
        code="request.too_large",
    )


def find_largest(fits: Callable[[Work], bool], spec: BundleSpec, work: Work) -> int | None:
    """The most frames, 1 + temporal_ratio * k and no more than work's, that fit; None if one does not."""
    ratio = spec.geometry.temporal_ratio
    low, high = -1, (work.result[0] - 1) // ratio
    while low < high:
        middle = (low + high + 1) // 2
        if fits(work.with_frames(1 + ratio * middle)):
            low = middle
        else:
            high = middle - 1
    return None if low < 0 else 1 + ratio * low


def _count_tokens(spec: BundleSpec, work: Work) -> Tokens:
    def patches(shape: Shape) -> int:
        frames, height, width = shape
        multiple = spec.geometry.size_multiple
        return spec.geometry.count_latent_frames(frames) * (height // multiple) * (width // multiple)

    clean, noisy = sum(map(patches, work.clips)), patches(work.result)
    if spec.conditioning == "interleaved":
        marks = 2 * (len(work.clips) + 1)
        return Tokens(work.num_text, clean, noisy, work.num_text + clean + noisy + marks)
    # The text is not part of the sequence. Clean rows are channels of the noisy ones; a first frame replaces
    # noisy rows.
    if spec.conditioning == "rows":
        clean = min(clean, noisy // spec.geometry.count_latent_frames(work.result[0]))
        return Tokens(work.num_text, clean, noisy - clean, noisy)
    if spec.conditioning == "control":
        pictures = sum(patches(clip) for clip in work.clips if clip[0] == 1)
        noisy += pictures
    return Tokens(work.num_text, 0 if spec.conditioning == "none" else noisy, noisy, noisy)


def _cost_clip(spec: BundleSpec, half: str, shape: Shape, precision: str) -> list[tuple[int, Cost]]:
    frames, height, width = shape
    chunks = spec.geometry.count_latent_frames(frames)
    return [
        (count, cost_vae(spec, half, first=first, height_px=height, width_px=width, precision=precision))
        for count, first in ((1, True), (chunks - 1, False))
        if count
    ]


def _stage(name: str, runs: list[tuple[int, Cost]], target: Target | None, precision: str) -> Stage:
    seconds = None
    if target is not None:
        flops_per_s = target.peak_flops[precision] * COMPUTE_SHARE
        bytes_per_s = target.bandwidth_bytes_per_s * BANDWIDTH_SHARE
        seconds = sum(
            count * max(cost.flops / flops_per_s, cost.traffic_bytes / bytes_per_s) for count, cost in runs
        )
    return Stage(
        name=name,
        calls=sum(count for count, _ in runs),
        flops=sum(count * cost.flops for count, cost in runs),
        activation_bytes=max(cost.activation_bytes for _, cost in runs),
        seconds=seconds,
    )
