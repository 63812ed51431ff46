"""The models that are measured: checkpoint, bundle and plain export of each, made once and kept.

They lie under `build/benchmarks/`, or `--cache`; remove that folder to have them made again, after a change
of the export for one. `python -m benchmarks.artifacts [MODEL ...]` makes them before a benchmark asks.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python benchmarks/artifacts.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.plain import export_plain
from editverse_rt.bundle.manifest import load_bundle
from export.export_onnx import export_bundle
from export.integers import quantize_bundle
from reference.checkpoint import make_random_checkpoint

__all__ = ["CACHE", "MODELS", "Model", "make_model"]

ROOT = Path(__file__).resolve().parents[1]
NANO = ROOT / "reference" / "nano" / "checkpoint"
CACHE = ROOT / "build" / "benchmarks"
MODELS = ("nano", "nano-int8", "editverse-150m", "wan2.1-t2v-1.3b", "wan2.2-vae")

# The VAE of Wan 2.1 and the encoder of Flan-T5-base, at their full sizes.
WAN_VAE: dict[str, Any] = {
    "base_dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [],
    "temperal_downsample": [False, True, True], "patch_size": None, "in_channels": 3, "out_channels": 3,
}  # fmt: skip
# The VAE of Wan 2.2 TI2V-5B at its full size, beside a small transformer.
WAN22_VAE: dict[str, Any] = {"base_dim": 160, "decoder_base_dim": 256, "num_res_blocks": 2}
T5_BASE: dict[str, Any] = {"d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12}
OVERRIDES: dict[str, dict[str, Any]] = {
    "editverse-150m": {"vae_overrides": WAN_VAE, "text_overrides": T5_BASE},
    "wan2.2-vae": {"vae_overrides": WAN22_VAE},
}
RECIPES = {"wan2.2-vae": "wan-ti2v-tiny"}
"""The random checkpoint that a model is made from, where it has another name."""
# Of Wan 2.1 only the transformer is measured: its VAE is the one above. Of Wan 2.2 it is the VAE.
_VAE_GRAPHS = ("vae_encoder_first", "vae_encoder_next", "vae_decoder_first", "vae_decoder_next")
PLAIN_GRAPHS = {"wan2.1-t2v-1.3b": ("transformer",), "wan2.2-vae": _VAE_GRAPHS}


@dataclass(frozen=True)
class Model:
    """Where a model's three forms lie: the checkpoint, the runtime's bundle, the plain export."""

    name: str
    checkpoint: Path
    bundle: Path
    plain: Path


def make_model(name: str, cache: Path = CACHE, *, needs_plain: bool = True) -> Model:
    """The three forms of a model, made where they are not there yet; the plain export only where it is needed.

    "nano" is the bundle that ships and the checkpoint it comes from, "nano-int8" the same in integers; the others
    have random weights. Raises ValueError for another name.
    """
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r} to measure; expected one of {', '.join(MODELS)}")
    folder = cache / name
    if name == "nano":
        model = Model(name, NANO, load_bundle("nano").root, folder / "plain")
    elif name == "nano-int8":
        model = Model(name, NANO, folder / "bundle", folder / "plain")
        shipped = load_bundle("nano").root
        if not _is_fresh(model.bundle, shipped):
            shutil.rmtree(model.bundle, ignore_errors=True)
            quantize_bundle(shipped, model.bundle)
    else:
        model = Model(name, folder / "checkpoint", folder / "bundle", folder / "plain")
        if not (model.checkpoint / "model_index.json").exists():
            print(f"making {model.checkpoint} ...", file=sys.stderr)
            partial = folder / ".checkpoint.partial"
            shutil.rmtree(partial, ignore_errors=True)
            make_random_checkpoint(RECIPES.get(name, name), partial, **OVERRIDES.get(name, {}))
            partial.rename(model.checkpoint)
        if not (model.bundle / "bundle.json").exists():
            print(f"exporting {model.bundle} ...", file=sys.stderr)
            export_bundle(model.checkpoint, model.bundle, name=name)
    if needs_plain and not _is_fresh(model.plain, model.bundle):
        print(f"exporting {model.plain} ...", file=sys.stderr)
        export_plain(model.checkpoint, model.bundle, model.plain, PLAIN_GRAPHS.get(name))
    return model


def _is_fresh(derived: Path, bundle: Path) -> bool:
    """Whether a plain export or a bundle in integers was made after the bundle, which may have been replaced since."""
    made, source = derived / "bundle.json", bundle / "bundle.json"
    return made.exists() and made.stat().st_mtime >= source.stat().st_mtime


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.artifacts", description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL", help=f"(default: {MODELS})")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"where they are kept (default: {CACHE})")
    parser.add_argument(
        "--without-plain", action="store_true", help="leave out what only ONNX Runtime and OpenVINO read"
    )
    args = parser.parse_args(arguments)
    for name in args.models:
        model = make_model(name, args.cache, needs_plain=not args.without_plain)
        print(f"{model.name}: {model.checkpoint}, {model.bundle}, {model.plain}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
