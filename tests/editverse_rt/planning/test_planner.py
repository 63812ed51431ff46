"""What a request is said to cost: its counts by hand, its memory against a run, and what is refused."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editverse_rt import media
from editverse_rt.bundle.manifest import load_bundle, load_spec
from editverse_rt.bundle.spec import BundleSpec
from editverse_rt.commands.main import main
from editverse_rt.errors import BundleError, EditVerseError, RequestError
from editverse_rt.planning.costs import Tokens, cost_text_encoder, cost_transformer, cost_vae
from editverse_rt.planning.planner import RESERVED_BYTES, Work, check_fit, estimate_work, find_largest
from editverse_rt.planning.targets import load_target

# Between what a formula says is held and what a run held; measured 0.95 to 1.1.
MEMORY_FACTOR = 1.25

# A model of two billion weights, whose memory is worth planning.
LARGE = {
    "width": 2048, "num_blocks": 28, "num_heads": 16, "head_dim": 128, "mlp_width": 8704, "time_width": 2048,
    "patch_dim": 64, "text_dim": 4096,
}  # fmt: skip


# What the exporter counts of such a model. Two operations for each weight of the blocks and token, and attention's two
# products; the last block has keys and values of all tokens, and the rest of the noisy ones.
_PROJECTION, _MLP = 2048 * 2048, 3 * 2048 * 8704
LARGE_COSTS = {
    "transformer": {
        "flops": {
            "L": 2 * (27 * (4 * _PROJECTION + _MLP) + 2 * _PROJECTION),
            "Lg": 2 * (2 * _PROJECTION + _MLP),
            "L*L": 27 * 4 * 2048,
            "L*Lg": 4 * 2048,
        },
        "moved": {"L": 28 * 2 * (15 * 2048 + 3 * 8704)},
        "held": {"L": 3 * 2048 + 3 * 8704},
    },
    **{
        # Wan 2.1's VAE at its widths, to a few per cent.
        f"vae_{half}_{chunk}": {
            "flops": {"h*w": flops * (1 if chunk == "first" else 4)},
            "moved": {"h*w": 16 * 16 * 96 * 60 * (1 if chunk == "first" else 4)},
            "held": {"h*w": 16 * 16 * 96 * (8 if chunk == "first" else 24)},
        }
        for half, flops in (("encoder", 1.2e9), ("decoder", 2.1e9))
        for chunk in ("first", "next")
    },
}


@pytest.fixture(scope="module")
def nano() -> BundleSpec:
    return load_spec("nano")


@pytest.fixture(scope="module")
def large(nano: BundleSpec) -> BundleSpec:
    counts = {"transformer": 2_070_000_000, "text_encoder": 4_700_000_000, "vae": 127_000_000}
    geometry = replace(
        nano.geometry,
        patch_dim=64,
        clean_dim=64,
        min_area_px=256 * 256,
        max_area_px=512 * 512,
        max_side_px=1024,
        max_frames=81,
        default_height_px=320,
        default_width_px=576,
        default_frames=81,
        default_fps=16.0,
    )
    model: dict[str, object] = {**nano.model, "transformer": LARGE, "parameters": counts}
    return replace(nano, model=model, geometry=geometry, costs={**nano.costs, **LARGE_COSTS})


def edit_work(spec: BundleSpec, frames: int = 81, size: tuple[int, int] = (320, 576)) -> Work:
    shape = (frames, *size)
    schedule = spec.schedules[spec.default_schedule]
    guided = schedule.table.num_evaluations - schedule.num_inference_steps
    return Work(512, (shape,), shape, schedule.num_inference_steps, guided)


def test_tokens_and_calls_are_those_of_the_request(nano: BundleSpec) -> None:
    side = nano.geometry.size_multiple
    work = Work(12, ((9, 4 * side, 4 * side), (1, 2 * side, 3 * side)), (17, 3 * side, 5 * side), 10, 6)
    estimate = estimate_work(nano, work)
    # 3 latent frames of 16 and one of 6; 5 of 15; three pairs of marks.
    assert estimate.tokens == Tokens(text=12, clean=54, noisy=75, total=12 + 54 + 75 + 6)
    assert estimate.tokens_uncond == Tokens(text=0, clean=54, noisy=75, total=54 + 75 + 6)
    calls = {stage.name: stage.calls for stage in estimate.stages}
    assert calls["transformer"] == calls["solver_step"] == 10
    assert calls["transformer, unconditional"] == 6
    assert (calls["vae_encoder"], calls["vae_decoder"]) == (4, 5)
    plain = estimate_work(nano, replace(work, num_guided=0))
    assert "transformer, unconditional" not in {stage.name for stage in plain.stages}
    # The whole is its parts.
    one = cost_transformer(nano, estimate.tokens, "fp32", holds_scores=False).flops
    assert next(s.flops for s in estimate.stages if s.name == "transformer") == 10 * one
    assert estimate.flops == sum(stage.flops for stage in estimate.stages)


def test_polynomials_are_evaluated_at_the_axes(large: BundleSpec) -> None:
    tokens = Tokens(text=100, clean=5000, noisy=5000, total=10_104)
    cost = cost_transformer(large, tokens, "bf16", holds_scores=False)
    flops = LARGE_COSTS["transformer"]["flops"]
    by_hand = 10_104 * (flops["L"] + 10_104 * flops["L*L"]) + 5000 * (flops["Lg"] + 10_104 * flops["L*Lg"])
    assert cost.flops == by_hand
    assert cost.activation_bytes == 2 * 10_104 * (3 * 2048 + 3 * 8704)
    scores = cost_transformer(large, tokens, "bf16", holds_scores=True)
    assert scores.activation_bytes - cost.activation_bytes == 2 * 16 * 10_104**2 * 2


# Run in a process of its own: the most memory a process ever held can only be read once.
MEASURE = """
import json, sys
import numpy as np, onnxruntime as ort
from editverse_rt.bundle.manifest import load_bundle
graph, sizes = sys.argv[1], json.loads(sys.argv[2])
bundle = load_bundle("nano")
def axis(a):
    factor, _, name = str(a).rpartition("*")
    return a if isinstance(a, int) else int(factor or 1) * sizes[name]
feeds = {t.name: np.zeros([axis(a) for a in t.shape], t.dtype) for t in bundle.spec.graphs[graph].inputs}
options = ort.SessionOptions()
options.intra_op_num_threads, options.enable_cpu_mem_arena, options.enable_mem_pattern = 1, False, False
path = str(bundle.graph_path(graph))
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
def read(field):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024
open("/proc/self/clear_refs", "w").write("5")
before = read("VmRSS")
session.run(None, feeds)
print(read("VmHWM") - before + sum(v.nbytes for v in feeds.values()))
"""


def measure_bytes(graph: str, sizes: dict[str, int]) -> int:
    """Bytes that one run of nano's graph held beside its weights, inputs and outputs among them."""
    # Large blocks go back to the system at once, or what the allocator keeps would count as held.
    prompt = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-c", MEASURE, graph, json.dumps(sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=prompt)
    return int(done.stdout)


def said_bytes(nano: BundleSpec, graph: str, sizes: dict[str, int]) -> int:
    """What the planner says of the same run."""
    if graph == "transformer":
        tokens = Tokens(text=sizes["Lt"], clean=sizes["Lc"], noisy=sizes["Lg"], total=sizes["L"])
        return cost_transformer(nano, tokens, "fp32", holds_scores=False).activation_bytes
    if graph == "text_encoder":
        return cost_text_encoder(nano, sizes["Lt"], "fp32").activation_bytes
    _, half, chunk = graph.split("_")
    height, width = (sizes[axis] * nano.geometry.size_multiple for axis in "hw")
    first = chunk == "first"
    cost = cost_vae(nano, half, first=first, height_px=height, width_px=width, precision="fp32")
    return cost.activation_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says how much memory a process held")
@pytest.mark.parametrize(
    ("graph", "sizes"),
    [
        *(("transformer", {"Lt": 16, "Lc": n, "Lg": n, "L": 2 * n + 20}) for n in (1000, 2000, 4000)),
        *(
            (f"vae_{graph}", {"h": 32, "w": 32})
            for graph in ("encoder_first", "encoder_next", "decoder_next")
        ),
        ("text_encoder", {"Lt": 1024}),
    ],
)
def test_memory_is_what_a_run_on_the_cpu_holds(nano: BundleSpec, graph: str, sizes: dict[str, int]) -> None:
    """docs/engines.md has these as a table: `pytest -k cpu_holds --log-cli-level=INFO` shows them."""
    said, held = said_bytes(nano, graph, sizes), measure_bytes(graph, sizes)
    logging.getLogger(__name__).info("%s %s: %.1f MB held, %.1f said", graph, sizes, held / 1e6, said / 1e6)
    assert held / MEMORY_FACTOR <= said <= held * MEMORY_FACTOR


def test_scores_that_are_held_are_most_of_the_memory(nano: BundleSpec) -> None:
    tokens = Tokens(text=16, clean=2000, noisy=2000, total=4020)
    without, held = (
        cost_transformer(nano, tokens, "fp32", holds_scores=holds_scores).activation_bytes
        for holds_scores in (False, True)
    )
    assert held > 4 * without


def test_weights_count_in_their_precision(large: BundleSpec) -> None:
    work = edit_work(large, frames=1)
    wide, narrow = (estimate_work(large, work, load_target("h100"), p) for p in ("fp32", "bf16"))
    assert narrow.weight_bytes == 2 * (2_070_000_000 + 4_700_000_000) + 4 * 127_000_000
    assert wide.weight_bytes == 4 * (2_070_000_000 + 4_700_000_000 + 127_000_000)


def test_time_follows_peak_and_bandwidth(large: BundleSpec) -> None:
    work, h100 = edit_work(large), load_target("h100")
    seconds = estimate_work(large, work, h100).seconds
    faster = replace(
        h100,
        peak_flops={name: 2 * peak for name, peak in h100.peak_flops.items()},
        bandwidth_bytes_per_s=2 * h100.bandwidth_bytes_per_s,
    )
    assert seconds is not None
    assert estimate_work(large, work, faster).seconds == pytest.approx(seconds / 2)
    # Attention dominates at this length: no amount of bandwidth makes up for the peak.
    assert estimate_work(large, work, replace(h100, bandwidth_bytes_per_s=1e15)).seconds == pytest.approx(
        seconds, rel=0.2
    )


def test_what_does_not_fit_is_refused_with_the_largest_that_does(large: BundleSpec) -> None:
    work, target = edit_work(large), load_target("rtx4090")
    assert check_fit(large, work, load_target("h200")).fits
    room = estimate_work(large, work.with_frames(73), target).peak_bytes + RESERVED_BYTES
    target = replace(target, memory_bytes=room)
    with pytest.raises(RequestError, match="the largest that fits at this size is 73 frames") as error:
        check_fit(large, work, target)
    found = re.search(r"is (\d+) frames", str(error.value))
    assert found is not None
    frames = int(found[1])
    # The one that is named fits; the next one does not.
    assert estimate_work(large, work.with_frames(frames), target).fits
    assert not estimate_work(large, work.with_frames(frames + large.geometry.temporal_ratio), target).fits
    tight = replace(target, memory_bytes=10 * 10**9)
    with pytest.raises(RequestError, match="not even one frame fits"):
        check_fit(large, work, tight)


@settings(deadline=None, max_examples=50)
@given(limit=st.integers(-1, 20), latent=st.integers(1, 20))
def test_the_largest_is_found(limit: int, latent: int) -> None:
    spec = load_spec("nano")
    ratio = spec.geometry.temporal_ratio
    work = edit_work(spec, frames=1 + ratio * (latent - 1))

    def fits(candidate: Work) -> bool:
        return (candidate.result[0] - 1) // ratio <= limit

    expected = None if limit < 0 else 1 + ratio * min(limit, latent - 1)
    assert find_largest(fits, spec, work) == expected


def test_a_bundle_that_does_not_say_how_it_is_built(nano: BundleSpec) -> None:
    work = edit_work(nano, 9, (64, 64))
    for graph in ("transformer", "vae_decoder_next", "text_encoder"):
        costs = {name: cost for name, cost in nano.costs.items() if name != graph}
        with pytest.raises(
            BundleError, match=rf"what its graph {graph} costs.*export the bundle again"
        ) as caught:
            estimate_work(replace(nano, costs=costs), work)
        assert caught.value.field == f"costs.{graph}"
    model = {name: facts for name, facts in nano.model.items() if name != "parameters"}
    with pytest.raises(BundleError, match=r"how its parameters is built.*export the bundle again"):
        estimate_work(replace(nano, model=model), work)


# --- the command line -------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(["plan", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_plan_follows_its_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = load_spec("nano")
    height, width = spec.geometry.default_height_px, spec.geometry.default_width_px
    clip = tmp_path / "in.mp4"
    media.write_clip(clip, np.zeros((8, height, width, 3), np.uint8), 8.0)
    code, out, _ = run(
        capsys, "--input", str(clip), "--target", "h100", "--prompt", "Make it night", "--json"
    )
    facts: dict[str, Any] = json.loads(out)
    assert code == 0
    # 8 frames become 5, and the text is far below the most there can be.
    assert facts["clips"] == [[5, height, width]]
    assert facts["frames"] == 5
    assert 2 <= facts["tokens"]["text"] <= 12
    assert facts["target"]["fits"]
    assert facts["transformer_calls"] == 2 * facts["num_inference_steps"]


def test_plan_without_a_target_shows_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--precision", "bf16")
    assert code == 0
    for name in ("rtx3090", "h100", "b200"):
        assert re.search(rf"^  {name} +bf16", out, re.MULTILINE)
    assert "t4 (sm_75) has no bfloat16" in out
    assert "nothing here was measured on a GPU" in out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--target", "h1000"], "did you mean h100"),
        (["--target", "t4", "--precision", "bf16"], "use the precision fp16"),
        (["--target", "h100", "--recipe", "x.toml"], "not allowed with"),
        (["--recipe", "absent.toml"], "cannot be read"),
        (["--frames", "100000", "--length", "cut"], "takes 1 to"),
        (["--size", "30x30"], "the nearest is"),
        (["--schedule", "none"], "this bundle has"),
        (["--input", "absent.mp4"], "no such file"),
        (["absent"], "no such folder"),
    ],
)
def test_bad_input_is_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *argv)
    assert code == 2
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_the_tokenizer_is_verified_before_it_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = load_bundle("nano")
    (tmp_path / "bundle.json").write_bytes((bundle.root / "bundle.json").read_bytes())
    code, _, _ = run(capsys, str(tmp_path))
    assert code == 0, "bundle.json is enough where no words are counted"
    (tmp_path / bundle.spec.tokenizer.file).write_bytes(b"altered")
    code, _, err = run(capsys, str(tmp_path), "--prompt", "Make it night")
    assert code == 2
    assert "tokenizer" in err
    with pytest.raises(EditVerseError):
        load_bundle(tmp_path)


def wan(nano: BundleSpec, conditioning: str) -> BundleSpec:
    geometry = replace(nano.geometry, patch_dim=64, clean_dim=64)
    return replace(nano, family="wan", conditioning=conditioning, unconditional="prompt", geometry=geometry)


def test_a_negative_prompt_has_rows_too(nano: BundleSpec) -> None:
    estimate = estimate_work(wan(nano, "none"), Work(8, (), (9, 64, 64), 4, 4))
    assert (estimate.tokens.total, estimate.tokens.noisy) == (48, 48)
    assert estimate.tokens_uncond == estimate.tokens


@pytest.mark.parametrize(
    ("conditioning", "clips", "clean", "noisy"),
    [
        ("channels", ((9, 64, 64),), 48, 48),
        ("rows", ((1, 64, 64),), 16, 32),
        ("control", ((9, 64, 64), (9, 64, 64), (1, 64, 64)), 64, 64),
    ],
)
def test_clean_rows_stand_where_the_conditioning_puts_them(
    nano: BundleSpec, conditioning: str, clips: tuple[Any, ...], clean: int, noisy: int
) -> None:
    tokens = estimate_work(wan(nano, conditioning), Work(8, clips, (9, 64, 64), 4, 4)).tokens
    assert (tokens.clean, tokens.noisy) == (clean, noisy)
