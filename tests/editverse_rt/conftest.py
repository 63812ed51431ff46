"""A bundle on disk whose graphs are empty files, and a runner in numpy that checks how it is called.

The runner's VAE keeps the mean colour of each patch's pixels, and its transformer points from the noise to
the clean rows (or, without any, to grey): an edit must give back its source, blurred to patches.
"""

from __future__ import annotations

import io
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest
import sentencepiece
from numpy.typing import NDArray

from editverse_rt.backends import RunnerTraits
from editverse_rt.bundle.manifest import file_specs, load_bundle, write_bundle_json
from editverse_rt.bundle.schedule import Schedule, ScheduleTable
from editverse_rt.bundle.spec import (
    FORMAT_VERSION,
    BundleSpec,
    Capabilities,
    Geometry,
    GraphSpec,
    TensorSpec,
    TokenizerSpec,
)
from editverse_rt.pipeline import Pipeline

sys.path.insert(0, str(Path(__file__).parent))

from fake_ray import fake_ray  # noqa: F401

GEOMETRY = Geometry(
    temporal_ratio=4,
    spatial_ratio=8,
    patch_size=2,
    patch_dim=64,
    clean_dim=64,
    min_area_px=32 * 32,
    max_area_px=64 * 64,
    max_side_px=128,
    max_frames=9,
    default_height_px=48,
    default_width_px=48,
    default_frames=5,
    default_fps=8.0,
)
OPTIONS = {"shift": 1.0, "guided_from": 0.0, "guided_until": 1.0}
Array = NDArray[Any]
TEXT_DIM = 6
GREY = 100
PATCH = 16
MAX_TOKENS = 24

# Written out once more, on purpose: the contract between export and runtime, not what bundle.py thinks of it.
PATCHES = TensorSpec("patches", "float32", (1, "h", "w", 64))
FIRST = TensorSpec("frames", "uint8", (1, "16*h", "16*w", 3))
NEXT = TensorSpec("frames", "uint8", (4, "16*h", "16*w", 3))
CACHES = (TensorSpec("cache_0", "float32", (1, "H", "W", 3)), TensorSpec("cache_1", "float32", (1,)))
NEXT_CACHES = tuple(TensorSpec(f"next_{t.name}", t.dtype, t.shape) for t in CACHES)


def rows(name: str, count: str) -> TensorSpec:
    return TensorSpec(name, "float32", (count, 64))


GRAPHS = {
    "text_encoder": (
        (TensorSpec("ids", "int64", ("Lt",)),),
        (TensorSpec("text", "float32", ("Lt", TEXT_DIM)),),
    ),
    "vae_encoder_first": ((FIRST,), (PATCHES, *NEXT_CACHES)),
    "vae_encoder_next": ((NEXT, *CACHES), (PATCHES, *NEXT_CACHES)),
    "transformer": (
        (
            TensorSpec("text", "float32", ("Lt", TEXT_DIM)),
            rows("clean", "Lc"),
            rows("noisy", "Lg"),
            TensorSpec("layout", "int64", ("L",)),
            TensorSpec("positions", "int64", ("L", 4)),
            TensorSpec("timestep", "float32", ()),
        ),
        (rows("velocity", "Lg"),),
    ),
    "solver_step": (
        (
            rows("sample", "Lg"),
            TensorSpec("history", "float32", (2, "Lg", 64)),
            rows("velocity_cond", "Lg"),
            rows("velocity_uncond", "Lg"),
            TensorSpec("guidance", "float32", ()),
            TensorSpec("matrix", "float32", (3, 4)),
        ),
        (rows("sample_next", "Lg"), TensorSpec("history_next", "float32", (2, "Lg", 64))),
    ),
    "noise": (
        (TensorSpec("seed", "int64", ()), TensorSpec("shape", "int64", (2,))),
        (TensorSpec("noise", "float32", ("N", "P")),),
    ),
    "vae_decoder_first": ((PATCHES,), (FIRST, *NEXT_CACHES)),
    "vae_decoder_next": ((PATCHES, *CACHES), (NEXT, *NEXT_CACHES)),
    "schedule_euler": (
        (
            TensorSpec("num_steps", "int64", ()),
            TensorSpec("first_step", "int64", ()),
            *(
                TensorSpec(name, "float64", ())
                for name in ("shift", "guidance_scale", "guidance_scale_2", "guided_from", "guided_until")
            ),
        ),
        (
            TensorSpec("times", "float64", ("n",)),
            TensorSpec("timesteps", "float64", ("n",)),
            TensorSpec("guidance", "float64", ("n",)),
            TensorSpec("matrices", "float64", ("n", 3, 4)),
            TensorSpec("experts", "int64", ("n",)),
        ),
    ),
}


def multistep(c0: float, c1: float = 0.0, c2: float = 0.0) -> tuple[tuple[float, ...], ...]:
    """x + c0 v + c1 v' + c2 v'' as a matrix over [x, v', v'']."""
    return ((1.0, c1, c2, c0), (0.0, 0.0, 0.0, 1.0), (0.0, 1.0, 0.0, 0.0))


WORDS = (
    "Turn the circle green",
    "Insert a paper boat in the water",
    "Make it grayscale, remove the small red square and add a large blue triangle to the left",
    "A yellow ring moves over a purple background",
)


@dataclass(frozen=True)
class FakeBundle:
    root: Path
    spec: BundleSpec


@pytest.fixture(scope="session")
def tokenizer_bytes() -> bytes:
    """A SentencePiece model with T5's ids: padding 0, end of sequence 1, unknown 2."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS * 4),
        model_writer=model,
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture
def fake_bundle(tmp_path: Path, fake_template: FakeBundle) -> FakeBundle:
    """A copy for each test, to be altered as it likes."""
    return FakeBundle(Path(shutil.copytree(fake_template.root, tmp_path / "fake")), fake_template.spec)


@pytest.fixture(scope="session")
def fake_template(tmp_path_factory: pytest.TempPathFactory, tokenizer_bytes: bytes) -> FakeBundle:
    root = tmp_path_factory.mktemp("template") / "fake"
    (root / "graphs").mkdir(parents=True)
    (root / "tokenizer.model").write_bytes(tokenizer_bytes)
    for name in GRAPHS:
        (root / "graphs" / f"{name}.onnx").write_bytes(f"graph {name}".encode())
    steps = 4
    spec = BundleSpec(
        format_version=FORMAT_VERSION,
        name="fake",
        family="editverse",
        conditioning="interleaved",
        unconditional="drop_text",
        default_negative_prompt="",
        capabilities=Capabilities(),
        model={"width": 8},
        geometry=GEOMETRY,
        tokenizer=TokenizerSpec("tokenizer.model", 1, MAX_TOKENS),
        graphs={
            name: GraphSpec(name, f"graphs/{name}.onnx", inputs, outputs)
            for name, (inputs, outputs) in GRAPHS.items()
        },
        schedules={
            "paper": Schedule(
                "paper",
                "schedule_euler",
                5.0,
                ScheduleTable(
                    tuple(i / steps for i in range(steps)),
                    tuple(i / steps for i in range(steps)),
                    (5.0,) * steps,
                    (multistep(1 / steps),) * steps,
                    (0,) * steps,
                ),
                OPTIONS,
            ),
            "interval": Schedule(
                "interval",
                "schedule_euler",
                5.0,
                ScheduleTable(
                    (0.0, 0.25, 0.5),
                    (0.0, 0.25, 0.5),
                    (1.0, 5.0, 1.0),
                    (multistep(0.25), multistep(0.375, -0.125), multistep(0.75, -0.5, 0.25)),
                    (0, 0, 0),
                ),
                OPTIONS,
            ),
        },
        default_schedule="paper",
        files=file_specs(root),
        made={"by": "a test"},
        quality={"success_rate": 0.0, "edits": 0, "by_task": {}},
    )
    write_bundle_json(root, spec)
    return FakeBundle(root, spec)


class FakeRunner:
    """Implements the graph contract in numpy and records every call."""

    def __init__(self, spec: BundleSpec) -> None:
        self.spec = spec
        self.calls: list[tuple[str, dict[str, Array]]] = []
        self.depth = 0
        self.traits = RunnerTraits()
        self.held: list[Array] = []

    def __enter__(self) -> FakeRunner:
        self.depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.depth -= 1

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert self.depth == 1
        axes: dict[str, int] = {}
        declared = self.spec.graphs[graph].inputs
        assert set(inputs) == {tensor.name for tensor in declared}
        for tensor in declared:
            value = inputs[tensor.name]
            assert value.dtype == tensor.dtype, (graph, tensor.name)
            assert len(value.shape) == len(tensor.shape), (graph, tensor.name)
            for axis, size in zip(tensor.shape, value.shape, strict=True):
                assert size == (axis if isinstance(axis, int) else axes.setdefault(axis, size))
        self.calls.append((graph, dict(inputs)))
        return getattr(self, graph)(**inputs)

    def hold(self, array: Array) -> Array:
        assert self.depth == 1
        self.held.append(array)
        return array

    def count(self, graph: str) -> int:
        return sum(name == graph for name, _ in self.calls)

    def inputs_of(self, graph: str) -> list[dict[str, Array]]:
        return [inputs for name, inputs in self.calls if name == graph]

    def text_encoder(self, ids: Array) -> dict[str, Array]:
        return {"text": np.repeat(ids[:, None], 6, axis=1).astype(np.float32)}

    def vae_encoder_first(self, frames: Array) -> dict[str, Array]:
        return self._encode(frames, 1)

    def vae_encoder_next(self, frames: Array, cache_0: Array, cache_1: Array) -> dict[str, Array]:
        return self._encode(frames, int(cache_1[0]) + 1)

    def _encode(self, frames: Array, chunk: int) -> dict[str, Array]:
        _, height, width, _ = frames.shape
        last = frames[-1].reshape(height // PATCH, PATCH, width // PATCH, PATCH, 3).mean((1, 3))
        patches = np.zeros((1, height // PATCH, width // PATCH, 64), np.float32)
        patches[0, ..., :3] = last
        patches[..., 3] = chunk
        return {"patches": patches, **self._caches(frames, chunk)}

    def _caches(self, frames: Array, chunk: int) -> dict[str, Array]:
        return {
            "next_cache_0": frames[-1:].astype(np.float32),
            "next_cache_1": np.array([chunk], np.float32),
        }

    def transformer(
        self, text: Array, clean: Array, noisy: Array, layout: Array, positions: Array, timestep: Array
    ) -> dict[str, Array]:
        assert sorted(set(layout.tolist())) == list(range(len(text) + len(clean) + len(noisy) + 2))
        assert positions.shape == (len(layout), 4)
        target = clean[: len(noisy)] if len(clean) >= len(noisy) else np.full_like(noisy, GREY)
        return {"velocity": ((target - noisy) / (1 - timestep)).astype(np.float32)}

    def keep_known(
        self, sample: Array, known: Array, noise: Array, rows: Array, time: Array
    ) -> dict[str, Array]:
        result = sample.copy()
        result[rows] = time * known + (1 - time) * noise[rows]
        return {"sample_next": result.astype(np.float32)}

    def solver_step(
        self,
        sample: Array,
        history: Array,
        velocity_cond: Array,
        velocity_uncond: Array,
        guidance: Array,
        matrix: Array,
    ) -> dict[str, Array]:
        velocity = velocity_uncond + guidance * (velocity_cond - velocity_uncond)
        state = np.tensordot(matrix, np.concatenate([sample[None], history, velocity[None]]), 1)
        return {"sample_next": state[0].astype(np.float32), "history_next": state[1:].astype(np.float32)}

    def schedule_euler(self, num_steps: Array, guidance_scale: Array, **others: Array) -> dict[str, Array]:
        numbers = {name: float(value) for name, value in others.items()}
        assert numbers.pop("guidance_scale_2") == float(guidance_scale)
        assert numbers == {"first_step": 0.0, "shift": 1.0, "guided_from": 0.0, "guided_until": 1.0}
        n = int(num_steps)
        return {
            "times": np.arange(n) / n,
            "timesteps": np.arange(n) / n,
            "guidance": np.full(n, float(guidance_scale)),
            "matrices": np.tile(np.array(multistep(1 / n)), (n, 1, 1)),
            "experts": np.zeros(n, np.int64),
        }

    def noise(self, seed: Array, shape: Array) -> dict[str, Array]:
        rng = np.random.default_rng(int(seed))
        return {"noise": rng.standard_normal(tuple(shape), dtype=np.float32)}

    def vae_decoder_first(self, patches: Array) -> dict[str, Array]:
        return self._decode(patches, 1, 1)

    def vae_decoder_next(self, patches: Array, cache_0: Array, cache_1: Array) -> dict[str, Array]:
        return self._decode(patches, 4, int(cache_1[0]) + 1)

    def _decode(self, patches: Array, num_frames: int, chunk: int) -> dict[str, Array]:
        picture = patches[0, ..., :3].repeat(PATCH, axis=0).repeat(PATCH, axis=1)
        frames = np.repeat(picture[None].round().clip(0, 255).astype(np.uint8), num_frames, axis=0)
        return {"frames": frames, **self._caches(frames, chunk)}


@pytest.fixture
def windowed(fake_bundle: FakeBundle) -> FakeBundle:
    """A bundle that edits longer videos: nine frames a window, of which one is the last of the window before."""
    keep_known = GraphSpec(
        "keep_known",
        "graphs/keep_known.onnx",
        (
            rows("sample", "Lg"),
            rows("known", "Lk"),
            rows("noise", "Lg"),
            TensorSpec("rows", "int64", ("Lk",)),
            TensorSpec("time", "float32", ()),
        ),
        (rows("sample_next", "Lg"),),
    )
    (fake_bundle.root / keep_known.file).write_bytes(b"graph keep_known")
    spec = replace(
        fake_bundle.spec,
        graphs={**fake_bundle.spec.graphs, "keep_known": keep_known},
        geometry=replace(GEOMETRY, shared_frames=1),
        files=file_specs(fake_bundle.root),
    )
    write_bundle_json(fake_bundle.root, spec)
    return FakeBundle(fake_bundle.root, spec)


@pytest.fixture
def windowed_runner(windowed: FakeBundle) -> FakeRunner:
    return FakeRunner(windowed.spec)


@pytest.fixture
def windowed_pipeline(windowed: FakeBundle, windowed_runner: FakeRunner) -> Pipeline:
    return Pipeline(load_bundle(windowed.root), windowed_runner)


@pytest.fixture
def runner(fake_bundle: Any) -> FakeRunner:
    return FakeRunner(fake_bundle.spec)


@pytest.fixture
def pipeline(fake_bundle: Any, runner: FakeRunner) -> Pipeline:
    return Pipeline(load_bundle(fake_bundle.root), runner)


@pytest.fixture
def slow_clip() -> Callable[..., NDArray[np.uint8]]:
    """slow_clip(num_frames, height, width): as `blocky_clip`, with colours that change too little for a cut."""

    def make(num_frames: int, height: int, width: int) -> NDArray[np.uint8]:
        rng = np.random.default_rng(0)
        colours = rng.integers(40, 200, (height // PATCH, width // PATCH, 3), np.uint8)
        latent = (np.arange(num_frames) + 3) // 4
        frames = colours[None] + latent[:, None, None, None].astype(np.uint8)
        return frames.repeat(PATCH, axis=1).repeat(PATCH, axis=2)

    return make


@pytest.fixture
def blocky_clip() -> Callable[..., NDArray[np.uint8]]:
    """blocky_clip(num_frames, height, width, seed): random colours, constant over each patch and over the
    frames of each latent frame, which the runner's VAE carries without loss."""
    return draw_blocky_clip


def draw_blocky_clip(num_frames: int, height: int = 48, width: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    chunks = 1 + -(-(num_frames - 1) // 4)
    colors = rng.integers(0, 256, (chunks, height // PATCH, width // PATCH, 3), dtype=np.uint8)
    chunk_of_frame = [(i + 3) // 4 for i in range(num_frames)]
    return colors.repeat(PATCH, axis=1).repeat(PATCH, axis=2)[chunk_of_frame]


@pytest.fixture
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before
