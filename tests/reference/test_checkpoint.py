"""Checkpoint folders: what is saved is what is loaded, in one file and in shards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

from reference.checkpoint import LIMITS, Checkpoint, load_checkpoint, make_random_checkpoint, save_checkpoint
from reference.weights import write_json

TRANSFORMER = {
    "width": 32, "num_blocks": 2, "num_heads": 2, "head_dim": 16, "mlp_width": 48, "time_width": 16,
    "text_dim": 24, "axis_dims": (4, 4, 4, 4),
}  # fmt: skip


def make_tiny_checkpoint(folder: Path, seed: int = 0) -> Path:
    return make_random_checkpoint(
        "nano", folder, seed=seed, transformer_overrides=TRANSFORMER, vae_overrides={"base_dim": 2}
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return load_checkpoint(folder)


def copy_with_shards(checkpoint: Checkpoint, folder: Path, max_shard_bytes: int) -> Path:
    return save_checkpoint(
        folder,
        transformer=checkpoint.transformer,
        vae=checkpoint.vae,
        text_encoder=checkpoint.text_encoder,
        tokenizer_file=checkpoint.tokenizer_file,
        limits=checkpoint.limits,
        max_shard_bytes=max_shard_bytes,
    )


def test_a_folder_has_the_diffusers_layout(folder: Path) -> None:
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/spiece.model",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    index = json.loads((folder / "model_index.json").read_text())
    assert index["vae"] == ["diffusers", "AutoencoderKLWan"]
    assert index["editverse"] == LIMITS["nano"]
    schedule = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert (schedule["num_inference_steps"], schedule["guidance_scale"]) == (50, 5.0)


def test_random_weights_depend_on_the_seed_alone(folder: Path, tmp_path: Path) -> None:
    again = make_tiny_checkpoint(tmp_path / "again")
    other = make_tiny_checkpoint(tmp_path / "other", seed=1)
    for part in ("transformer/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        file = f"{part}.safetensors"
        assert (folder / file).read_bytes() == (again / file).read_bytes()
        assert (folder / file).read_bytes() != (other / file).read_bytes()


def test_no_weight_of_a_random_checkpoint_is_left_at_zero(checkpoint: Checkpoint) -> None:
    # Zeros, as training begins with, would hide whole branches of a graph from every comparison.
    for module in (checkpoint.transformer, checkpoint.vae):
        assert all(
            weight.abs().min() < weight.abs().max() for weight in module.parameters() if weight.numel() > 1
        )


def test_shards_and_their_index_hold_the_same_weights(checkpoint: Checkpoint, tmp_path: Path) -> None:
    copy = copy_with_shards(checkpoint, tmp_path, max_shard_bytes=20_000)
    index = json.loads((copy / "transformer" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    shards = sorted((copy / "transformer").glob("*.safetensors"))
    assert len(shards) > 2
    assert {path.name for path in shards} == set(index["weight_map"].values())
    expected = checkpoint.transformer.state_dict()
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in expected.values())
    loaded = load_checkpoint(copy).transformer.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], weight) for name, weight in expected.items())


def test_saving_again_leaves_no_shard_of_before(checkpoint: Checkpoint, tmp_path: Path) -> None:
    copy_with_shards(checkpoint, tmp_path, max_shard_bytes=20_000)
    copy_with_shards(checkpoint, tmp_path, max_shard_bytes=10**9)
    weights = [path.name for path in (tmp_path / "transformer").iterdir() if path.name != "config.json"]
    assert weights == ["diffusion_pytorch_model.safetensors"]


def test_a_dtype_applies_to_all_but_the_vae(folder: Path) -> None:
    checkpoint = load_checkpoint(folder, dtype=torch.bfloat16)
    assert {weight.dtype for weight in checkpoint.transformer.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in checkpoint.text_encoder.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in checkpoint.vae.parameters()} == {torch.float32}


def test_modules_are_loaded_for_inference(checkpoint: Checkpoint) -> None:
    for module in (checkpoint.transformer, checkpoint.vae, checkpoint.text_encoder):
        assert not module.training
        assert not any(weight.requires_grad for weight in module.parameters())
    assert checkpoint.patch_size == 2


def test_the_tokenizer_has_the_ids_of_flan_t5(checkpoint: Checkpoint) -> None:
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint.tokenizer_file))
    assert (tokenizer.pad_id(), tokenizer.eos_id(), tokenizer.unk_id(), tokenizer.bos_id()) == (0, 1, 2, -1)
    # Byte fallback: nothing becomes the unknown id.
    assert tokenizer.unk_id() not in tokenizer.encode("Übermale die Kröte, 描く")


def test_a_part_of_another_class_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    copy = copy_with_shards(checkpoint, tmp_path, max_shard_bytes=10**9)
    path = copy / "model_index.json"
    path.write_text(path.read_text().replace("AutoencoderKLWan", "AutoencoderKL"))
    with pytest.raises(ValueError, match="vae is AutoencoderKL; expected AutoencoderKLWan"):
        load_checkpoint(copy)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "transformer/config.json",
            {"window": 9},
            r"config\.json: window is 9, a field that the transformer does not",
        ),
        (
            "transformer/config.json",
            {"width": None},
            r"config\.json: width is missing; expected all of width, ",
        ),
        ("transformer/config.json", {"width": "32"}, "width is '32'; expected a whole number above 0; take"),
        ("transformer/config.json", {"norm_eps": 0}, "norm_eps is 0; expected a number above 0"),
        (
            "transformer/config.json",
            {"axis_dims": [4, 4, 8]},
            r"axis_dims is \(4, 4, 8\); expected four whole",
        ),
        ("transformer/config.json", {"prediction": "noise"}, "prediction is 'noise'; expected 'velocity' or"),
        (
            "transformer/config.json",
            {"head_dim": 32},
            r"axis_dims \(4, 4, 4, 4\) must be even and sum to head_dim 32",
        ),
        (
            "transformer/config.json",
            {"num_blocks": 3},
            r"weight blocks\.2\..* is missing; take the folder's own",
        ),
        ("transformer/config.json", {"num_blocks": 1}, r"weight blocks\.1\..* is not known"),
        (
            "transformer/config.json",
            {"mlp_width": 64},
            r"is \(48, 32\); expected \(64, 32\) after config\.json",
        ),
        ("vae/config.json", {"tiling": True}, r"config\.json: tiling is True, a field that AutoencoderKLWan"),
        ("vae/config.json", {"z_dim": "48"}, r"z_dim is '48'; expected a number"),
        ("vae/config.json", {"latents_mean": [0.0]}, r"latents_mean has 1 values; expected z_dim"),
        (
            "scheduler/scheduler_config.json",
            {"guidance_scale": None},
            "guidance_scale is None; expected a number",
        ),
        (
            "scheduler/scheduler_config.json",
            {"num_inference_steps": "x"},
            "num_inference_steps is 'x'; expected",
        ),
        ("model_index.json", {"editverse": None}, "editverse is None; expected an object of min_area_px"),
        ("model_index.json", {"editverse": {}}, r"editverse\.min_area_px is None; expected a number above 0"),
        ("model_index.json", {"vae": "AutoencoderKLWan"}, "vae is None; expected AutoencoderKLWan"),
    ],
)
def test_a_field_that_is_not_run_is_refused_by_its_name(
    file: str, changes: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    """None takes a field out."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    facts = json.loads((copy / file).read_text()) | changes
    write_json(copy / file, {name: value for name, value in facts.items() if value is not None})
    with pytest.raises(ValueError, match=message):
        load_checkpoint(copy)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            "text_encoder",
            "the text encoder's d_model is 40 and the transformer's text_dim 24; take the two of one",
        ),
        ("vae", r"the transformer's patch_dim is 256; expected 6 \* p \* p"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    part: str, message: str, folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    other = make_random_checkpoint(
        "nano", tmp_path / "other", text_overrides={"d_model": 40},
        vae_overrides={"base_dim": 2, "z_dim": 6, "latents_mean": [0.0] * 6, "latents_std": [1.0] * 6},
        transformer_overrides=TRANSFORMER,
    )  # fmt: skip
    shutil.rmtree(copy / part)
    shutil.copytree(other / part, copy / part)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(copy)


def test_a_missing_shard_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    copy = copy_with_shards(checkpoint, tmp_path, max_shard_bytes=20_000)
    shard = sorted((copy / "transformer").glob("*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"{shard.name} is missing"):
        load_checkpoint(copy)


def test_limits_are_asked_for(checkpoint: Checkpoint, tmp_path: Path) -> None:
    limits = {name: value for name, value in checkpoint.limits.items() if name != "max_frames"}
    with pytest.raises(ValueError, match="limits lack max_frames"):
        save_checkpoint(
            tmp_path,
            transformer=checkpoint.transformer,
            vae=checkpoint.vae,
            text_encoder=checkpoint.text_encoder,
            tokenizer_file=checkpoint.tokenizer_file,
            limits=limits,
        )


def test_a_checkpoint_does_not_say_where_it_was_made(checkpoint: Checkpoint, tmp_path: Path) -> None:
    copy = copy_with_shards(checkpoint, tmp_path / "copy", 5_000_000_000)
    text = "".join(path.read_text("utf-8") for path in copy.rglob("*.json"))
    assert checkpoint.vae.config._name_or_path not in ("", None)
    assert "_name_or_path" not in text
