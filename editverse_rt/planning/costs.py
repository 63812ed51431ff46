"""What each graph costs: operations, bytes moved and bytes held, from the facts in `bundle.json` alone.

A multiplication and an addition are two operations; only matrix products, convolutions and attention count,
as is usual. Bytes held are those beside the weights. Their factors were measured with ONNX Runtime on a CPU
(docs/engines.md); a backend that fuses more holds less.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from editverse_rt.bundle.spec import BundleSpec
from editverse_rt.errors import BundleError
from editverse_rt.fields import Fields

__all__ = ["BYTES", "Cost", "Tokens", "cost_text_encoder", "cost_transformer", "cost_vae", "weight_bytes"]

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
"""Bytes of one value by precision."""

# Rows of the transformer's width, and of its heads' or its feed-forward's, that are alive at once: the
# residual, its norm and a modulation; q, k, v, their turned copies and the result.
_LIVE_WIDTHS, _LIVE_HEADS, _LIVE_MLP = 3, 7, 3
# Tensors as large as the largest convolution's result, with the two frames before it, alive at once. Where a
# first chunk leaves the frames of zeros before it out, it holds as much as with one.
_LIVE_CONVOLUTIONS, _FRAMES_BEFORE, _ZEROS_BEFORE = 4, 2, 1
# Copies of all heads' scores in memory: in attention that is not fused, and in the text encoder's.
_LIVE_SCORES, _LIVE_TEXT_SCORES = 2, 4
_TIME_WAVES = 256


@dataclass(frozen=True)
class Cost:
    """One run of one graph. flops: operations; traffic_bytes: read and written, weights among them;
    activation_bytes: held at the peak beside the weights, inputs and outputs among them."""

    flops: int
    traffic_bytes: int
    activation_bytes: int


@dataclass(frozen=True)
class Tokens:
    """Rows of one transformer call: text, clean and noisy patches, and all of them with the marks."""

    text: int
    clean: int
    noisy: int
    total: int


def weight_bytes(spec: BundleSpec, precision: Mapping[str, str]) -> dict[str, int]:
    """Bytes of the weights of each part. Raises BundleError for a bundle that does not count them."""
    counts = _facts(spec, "parameters")
    second = counts.integer("transformer_2", 0) if "transformer_2" in counts else 0
    extra = {"transformer": second}
    return {
        part: (counts.integer(part, 0) + extra.get(part, 0)) * BYTES[wanted]
        for part, wanted in precision.items()
    }


def cost_transformer(spec: BundleSpec, tokens: Tokens, precision: str, *, holds_scores: bool) -> Cost:
    """One evaluation of the transformer (paper sections 3.1 and 5.1).

    holds_scores: attention writes its L x L scores to memory, as the inline lowering does without a fused
    kernel. Raises BundleError for a bundle that does not say how its transformer is built.
    """
    if spec.family == "wan":
        return _cost_wan_transformer(spec, tokens, precision, holds_scores=holds_scores)
    facts = _facts(spec, "transformer")
    C, M, blocks = (facts.integer(name, 1) for name in ("width", "mlp_width", "num_blocks"))
    heads, inner = facts.integer("num_heads", 1), facts.integer("num_heads", 1) * facts.integer("head_dim", 1)
    P, text, time = (facts.integer(name, 1) for name in ("patch_dim", "text_dim", "time_width"))
    L, size = tokens.total, BYTES[precision]

    def count_block(queries: int) -> int:
        """One block: keys and values for all rows; queries, attention and feed-forward for `queries`."""
        return 2 * L * 2 * C * inner + queries * (2 * (2 * C * inner + 3 * C * M) + 4 * L * inner)

    # Two timesteps: that of the clean rows and that of the noisy ones.
    embedding = 2 * 2 * (_TIME_WAVES * time + time * time + time * 6 * C)
    edges = 2 * (tokens.text * text * C + (tokens.clean + 2 * tokens.noisy) * P * C)
    scores = heads * L * L * size
    # Each block writes and reads: six modulations and three forms of the residual twice; q, k, v turned; the
    # feed-forward's three rows.
    moved = blocks * 2 * L * (9 * C + 6 * inner + 3 * M) * size + (blocks * 4 * scores if holds_scores else 0)
    rows = L * (_LIVE_WIDTHS * C + max(_LIVE_HEADS * inner, _LIVE_MLP * M)) * size
    held = rows + (_LIVE_SCORES * scores if holds_scores else 0)
    weights = _facts(spec, "parameters").integer("transformer", 0) * size
    # The last block computes only the noisy rows.
    flops = (blocks - 1) * count_block(L) + count_block(tokens.noisy)
    return Cost(flops + embedding + edges, moved + weights, held)


def _cost_wan_transformer(spec: BundleSpec, tokens: Tokens, precision: str, *, holds_scores: bool) -> Cost:
    """One evaluation of Wan's transformer: self-attention, attention to a padded text, feed-forward.

    VACE's control blocks are blocks like the others.
    """
    facts = _facts(spec, "transformer")
    heads, M, text_rows = (facts.integer(name, 1) for name in ("num_heads", "mlp_width", "max_text"))
    C = heads * facts.integer("head_dim", 1)
    blocks = facts.integer("num_blocks", 1) + len(facts.array("control_blocks"))
    L, P, Pc, size = tokens.total, spec.geometry.patch_dim, spec.geometry.clean_dim, BYTES[precision]
    own = 4 * 2 * L * C * C + 4 * L * L * C
    crossed = 2 * 2 * L * C * C + 2 * 2 * text_rows * C * C + 4 * L * text_rows * C
    flops = blocks * (own + crossed + 2 * 2 * L * C * M)
    edges = (
        2 * C * (text_rows * (facts.integer("text_dim", 1) + C) + 2 * tokens.noisy * P + tokens.clean * Pc)
    )
    scores = heads * L * L * size
    moved = blocks * 2 * L * (9 * C + 9 * C + 2 * M) * size + (blocks * 4 * scores if holds_scores else 0)
    held = L * (_LIVE_WIDTHS * C + max(_LIVE_HEADS * C, 2 * M)) * size + (
        _LIVE_SCORES * scores if holds_scores else 0
    )
    weights = _facts(spec, "parameters").integer("transformer", 0) * size
    return Cost(flops + edges, moved + weights, held)


def cost_text_encoder(spec: BundleSpec, num_text: int, precision: str) -> Cost:
    """One instruction through the T5 encoder, whose attention holds its scores."""
    facts = _facts(spec, "text_encoder")
    width, mlp, layers = (facts.integer(name, 1) for name in ("width", "mlp_width", "num_layers"))
    heads, inner = facts.integer("num_heads", 1), facts.integer("num_heads", 1) * facts.integer("head_dim", 1)
    gates, size = facts.integer("mlp_matrices", 2), BYTES[precision]
    layer = 2 * num_text * (4 * width * inner + gates * width * mlp) + 4 * num_text**2 * inner
    weights = _facts(spec, "parameters").integer("text_encoder", 0) * size
    scores = heads * num_text**2 * size
    held = num_text * (4 * width + 3 * mlp) * size + _LIVE_TEXT_SCORES * scores
    return Cost(layers * layer, weights + layers * 2 * held, held)


def cost_vae(
    spec: BundleSpec, half: str, *, first: bool, height_px: int, width_px: int, precision: str
) -> Cost:
    """One chunk through half ("encoder" or "decoder") of the VAE: the first frame, or the frames of a next.

    Raises BundleError for a bundle that does not say how its VAE is built.
    """
    facts, size = _facts(spec, "vae"), BYTES[precision]
    frames = 1 if first else spec.geometry.temporal_ratio
    cells = (height_px // facts.integer("patch_size", 1)) * (width_px // facts.integer("patch_size", 1))
    layers = list((_encoder_layers if half == "encoder" else _decoder_layers)(facts, first, frames))
    before = _FRAMES_BEFORE
    if first and spec.capabilities.convolutions == "frames":
        before = _ZEROS_BEFORE
        # Of three frames that a convolution sees, the two before the first are zeros, and are left out.
        layers = [
            replace(layer, taps=layer.taps // 3 if layer.taps == 27 else layer.taps) for layer in layers
        ]
    flops = outputs = largest = scores = 0
    for layer in layers:
        picture = layer.channels_out * cells / layer.shrink**2
        flops += int(2 * layer.taps * layer.channels_in * layer.frames * picture)
        outputs += int(layer.frames * picture)
        largest = max(largest, int((layer.frames + before) * picture))
        if layer.attends:
            rows = int(cells // layer.shrink**2)
            flops += 4 * layer.frames * rows * rows * layer.channels_in
            scores = max(scores, layer.frames * rows * rows)
    caches = sum(
        math.prod(_axis_px(axis, height_px, width_px, spec.geometry.size_multiple) for axis in tensor.shape)
        for tensor in spec.graphs[f"vae_{half}_next"].inputs
        if tensor.name.startswith("cache_")
    )
    # The caches are float32 at the graph's edges, whatever it computes in; a first chunk only gives them.
    cache_bytes = 4 * caches * (1 if first else 2)
    weights = _facts(spec, "parameters").integer("vae", 0) // 2 * size
    held = max(_LIVE_CONVOLUTIONS * largest, scores) * size + cache_bytes
    return Cost(flops, weights + 3 * outputs * size + cache_bytes, held)


@dataclass(frozen=True)
class _Layer:
    """A convolution: taps of its kernel, its result's frames and how often its side goes into the input's."""

    taps: int
    channels_in: int
    channels_out: int
    frames: int
    shrink: float
    attends: bool = False


def _encoder_layers(facts: Fields, first: bool, frames: int) -> Iterator[_Layer]:
    """The encoder of diffusers' AutoencoderKLWan, layer by layer, for a chunk of so many frames."""
    base, z = facts.integer("base_dim", 1), facts.integer("z_dim", 1)
    widths, halves = _numbers(facts, "dim_mult"), _numbers(facts, "temperal_downsample")
    attention_scales = _numbers(facts, "attn_scales")
    shrink, channels = 1.0, base
    yield _Layer(27, facts.integer("in_channels", 1), base, frames, shrink)
    for stage, width in enumerate(widths):
        for _ in range(facts.integer("num_res_blocks", 0)):
            yield from _residual(channels, int(base * width), frames, shrink)
            channels = int(base * width)
            if 1 / shrink in attention_scales:
                yield from _attention(channels, frames, shrink)
        channels_out = int(base * width)
        if stage < len(widths) - 1:
            shrink *= 2
            yield _Layer(9, channels_out, channels_out, frames, shrink)
            # The first frame only fills the temporal convolution's cache.
            if halves[stage] and not first:
                frames = frames // 2
                yield _Layer(3, channels_out, channels_out, frames, shrink)
        channels = channels_out
    yield from _middle(channels, frames, shrink)
    yield _Layer(27, channels, 2 * z, frames, shrink)
    yield _Layer(1, 2 * z, 2 * z, frames, shrink)


def _decoder_layers(facts: Fields, first: bool, frames: int) -> Iterator[_Layer]:
    """The decoder of diffusers' AutoencoderKLWan, layer by layer, for a chunk of so many frames made."""
    base, z = facts.integer("decoder_base_dim", 1), facts.integer("z_dim", 1)
    widths = _numbers(facts, "dim_mult")[::-1]
    doubles = _numbers(facts, "temperal_downsample")[::-1]
    shrink, frames, channels = 2.0 ** (len(widths) - 1), 1, int(base * widths[0])
    # The upsampling of Wan 2.2's residual layout keeps its channels; that of Wan 2.1 halves them.
    narrowing = 1 if "is_residual" in facts and facts.boolean("is_residual") else 2
    yield _Layer(1, z, z, frames, shrink)
    yield _Layer(27, z, channels, frames, shrink)
    yield from _middle(channels, frames, shrink)
    for stage, width in enumerate(widths):
        for _ in range(facts.integer("num_res_blocks", 0) + 1):
            yield from _residual(channels, int(base * width), frames, shrink)
            channels = int(base * width)
        if stage < len(widths) - 1:
            if doubles[stage] and not first:
                yield _Layer(3, channels, 2 * channels, frames, shrink)
                frames *= 2
            shrink /= 2
            yield _Layer(9, channels, channels // narrowing, frames, shrink)
            channels //= narrowing
    yield _Layer(27, channels, facts.integer("out_channels", 1), frames, shrink)


def _residual(channels: int, channels_out: int, frames: int, shrink: float) -> Iterator[_Layer]:
    yield _Layer(27, channels, channels_out, frames, shrink)
    yield _Layer(27, channels_out, channels_out, frames, shrink)
    if channels != channels_out:
        yield _Layer(1, channels, channels_out, frames, shrink)


def _middle(channels: int, frames: int, shrink: float) -> Iterator[_Layer]:
    yield from _residual(channels, channels, frames, shrink)
    yield from _attention(channels, frames, shrink)
    yield from _residual(channels, channels, frames, shrink)


def _attention(channels: int, frames: int, shrink: float) -> Iterator[_Layer]:
    yield _Layer(1, channels, 3 * channels, frames, shrink, attends=True)
    yield _Layer(1, channels, channels, frames, shrink)


def _axis_px(axis: int | str, height_px: int, width_px: int, multiple: int) -> int:
    """The size of an axis of a cache, such as 8*h, where h and w count patches."""
    if isinstance(axis, int):
        return axis
    factor, _, name = axis.rpartition("*")
    sides = {"h": height_px // multiple, "w": width_px // multiple, "H": height_px, "W": width_px}
    return int(factor or 1) * sides.get(name, 1)


def _facts(spec: BundleSpec, part: str) -> Fields:
    if not isinstance(spec.model.get(part), dict):
        raise BundleError(
            f'bundle "{spec.name}" does not say how its {part} is built: bundle.json has no '
            f'object "model.{part}"',
            hint="export the bundle again",
            code="bundle.field",
        )
    return Fields(spec.model[part], f'bundle "{spec.name}"', f"model.{part}")


def _numbers(facts: Fields, field: str) -> list[float]:
    return [float(value) for value in facts.array(field) if isinstance(value, (int, float))]
