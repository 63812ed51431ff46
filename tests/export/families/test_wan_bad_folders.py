"""Folders that cannot be exported: the command says why in one line, and writes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from export import export_onnx
from reference.families.wan_random import make_random_wan


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose transformer lies in several shards."""
    return make_random_wan(
        "wan-t2v-tiny", tmp_path_factory.mktemp("sharded") / "checkpoint", blocks=1, max_shard_bytes=60_000
    )


def first_shard(folder: Path) -> Path:
    shards = sorted((folder / "transformer").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    return shards[0]


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def other_class(folder: Path) -> None:
    change(folder / "model_index.json", _class_name="HunyuanVideoPipeline")


def missing_shard(folder: Path) -> None:
    first_shard(folder).unlink()


def cut_shard(folder: Path) -> None:
    """An interrupted download."""
    path = first_shard(folder)
    path.write_bytes(path.read_bytes()[:1000])


def unknown_field(folder: Path) -> None:
    change(folder / "transformer" / "config.json", window_size=[9, 9])


def unknown_value(folder: Path) -> None:
    change(folder / "transformer" / "config.json", qk_norm="layer_norm")


def missing_part(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder")


def weights_of(folder: Path, part: str) -> Path:
    (path,) = (folder / part).glob("*.safetensors")
    return path


def missing_text_weights(folder: Path) -> None:
    weights_of(folder, "text_encoder").unlink()


def cut_text_weights(folder: Path) -> None:
    path = weights_of(folder, "text_encoder")
    path.write_bytes(path.read_bytes()[:2000])


def text_without_a_layer(folder: Path) -> None:
    """transformers would draw the missing weight at random, and warn."""
    path = weights_of(folder, "text_encoder")
    weights = load_file(path)
    del weights["encoder.block.1.layer.1.DenseReluDense.wo.weight"]
    save_file(weights, path, metadata={"format": "pt"})


def cut_vae_weights(folder: Path) -> None:
    path = weights_of(folder, "vae")
    path.write_bytes(path.read_bytes()[:2000])


def bad_index(folder: Path) -> None:
    (index,) = (folder / "transformer").glob("*.index.json")
    index.write_text("{}")


@pytest.mark.parametrize(
    ("break_folder", "said"),
    [
        (other_class, "model_index.json: _class_name is 'HunyuanVideoPipeline'; expected one of"),
        (missing_shard, "-of-00"),
        (cut_shard, "is no whole safetensors file"),
        (unknown_field, "window_size is [9, 9]"),
        (unknown_value, "qk_norm is 'layer_norm'; expected 'rms_norm_across_heads'"),
        (bad_index, "has no weight_map"),
        (missing_part, "config.json is missing"),
        (missing_text_weights, "its weights cannot be read"),
        (cut_text_weights, "its weights cannot be read"),
        (text_without_a_layer, "weight encoder.block.1.layer.1.DenseReluDense.wo.weight is missing"),
        (cut_vae_weights, "its weights cannot be read"),
    ],
)
def test_a_folder_that_cannot_be_exported_is_one_line(
    break_folder: Callable[[Path], None],
    said: str,
    sharded: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(sharded, folder)
    break_folder(folder)
    monkeypatch.setattr("sys.argv", ["export_onnx", str(folder), str(tmp_path / "bundle")])
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        export_onnx.main()
    assert stop.value.code == 2
    # The progress bars of the libraries that read weights end in carriage returns.
    lines = [line for line in capfd.readouterr().err.replace("\r", "\n").splitlines() if "error: " in line]
    assert len(lines) == 1
    assert said in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"], "nothing is half-written"
