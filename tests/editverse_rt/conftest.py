"""A bundle on disk whose graphs are empty files: enough for all that happens around the graphs."""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import sentencepiece

from editverse_rt.bundle import file_specs, write_bundle_json
from editverse_rt.spec import (
    FORMAT_VERSION,
    BundleSpec,
    Geometry,
    GraphSpec,
    Schedule,
    TensorSpec,
    TokenizerSpec,
)

GEOMETRY = Geometry(
    temporal_ratio=4,
    spatial_ratio=8,
    patch_size=2,
    patch_dim=64,
    min_area_px=32 * 32,
    max_area_px=64 * 64,
    max_side_px=128,
    max_frames=9,
    default_height_px=48,
    default_width_px=48,
    default_frames=5,
    default_fps=8.0,
)
TEXT_DIM = 6
MAX_TOKENS = 24

# Written out once more, on purpose: the contract between export and runtime, not what bundle.py thinks of it.
PATCHES = TensorSpec("patches", "float32", (1, "h", "w", 64))
FIRST = TensorSpec("frames", "uint8", (1, "H", "W", 3))
NEXT = TensorSpec("frames", "uint8", (4, "H", "W", 3))
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
            rows("velocity_cond", "Lg"),
            rows("velocity_uncond", "Lg"),
            rows("velocity_prev1", "Lg"),
            rows("velocity_prev2", "Lg"),
            TensorSpec("guidance", "float32", ()),
            TensorSpec("coefficients", "float32", (3,)),
        ),
        (rows("sample_next", "Lg"), rows("velocity", "Lg")),
    ),
    "noise": (
        (TensorSpec("seed", "int64", ()), TensorSpec("shape", "int64", (2,))),
        (TensorSpec("noise", "float32", ("N", "P")),),
    ),
    "vae_decoder_first": ((PATCHES,), (FIRST, *NEXT_CACHES)),
    "vae_decoder_next": ((PATCHES, *CACHES), (NEXT, *NEXT_CACHES)),
}

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
                tuple(i / steps for i in range(steps)),
                ((1 / steps, 0.0, 0.0),) * steps,
                (5.0,) * steps,
            ),
            "interval": Schedule(
                "interval",
                (0.0, 0.25, 0.5),
                ((0.25, 0.0, 0.0), (0.375, -0.125, 0.0), (0.75, -0.5, 0.25)),
                (1.0, 5.0, 1.0),
                "multistep",
            ),
        },
        default_schedule="paper",
        files=file_specs(root),
        made={"by": "a test"},
        quality={"success_rate": 0.0, "edits": 0, "by_task": {}},
    )
    write_bundle_json(root, spec)
    return FakeBundle(root, spec)
