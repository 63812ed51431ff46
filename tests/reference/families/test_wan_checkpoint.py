"""Wan folders: what is read, what is refused, and that weights are loaded as they are."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanTransformer3DModel
from safetensors.torch import save_file

from reference.checkpoint import load_any_checkpoint, load_checkpoint, main, make_random_checkpoint
from reference.families.wan_checkpoint import WanCheckpoint, load_wan
from reference.families.wan_config import read_scheduler, read_transformer
from reference.families.wan_random import RANDOM
from reference.lora import Lora
from reference.weights import WEIGHTS, load_weights, read_json

TINY = [name for name in RANDOM if name.endswith("tiny")]
Folder = Callable[[str], Path]


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(read_json(path) | changes), "utf-8")


@pytest.fixture
def copy(tiny_folder: Folder, tmp_path: Path) -> Folder:
    return lambda name: Path(shutil.copytree(tiny_folder(name), tmp_path / name))


@pytest.mark.parametrize("name", TINY)
def test_random_checkpoints_load_here_and_in_diffusers(name: str, tiny_folder: Folder) -> None:
    folder = tiny_folder(name)
    checkpoint = load_any_checkpoint(folder)
    assert isinstance(checkpoint, WanCheckpoint)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    assert type(pipeline).__name__ == checkpoint.pipeline
    assert len(checkpoint.transformers) == (2 if "a14b" in name else 1)
    source = {"wan-vace-tiny": "control", "lucy-tiny": "channels"}.get(name, "rows")
    config = checkpoint.config
    assert (config.source, config.clean_timestep) == (source, "ti2v" in name)
    assert config.latent_channels == (48 if RANDOM[name].residual else 16)
    assert config.clean_dim == (96 * 4 if source == "control" else config.patch_dim)
    assert (checkpoint.strength is not None) == ("v2v" in name and "ti2v" not in name)
    for module in (*checkpoint.transformers, checkpoint.vae, checkpoint.text_encoder):
        assert not module.training
        assert not any(weight.requires_grad for weight in module.parameters())
        for weight in module.parameters():
            assert weight.numel() == 1 or weight.min() < weight.max(), "a weight hides behind a constant"


PUBLISHED_MILLIONS = {
    "wan2.1-t2v-1.3b": 1419, "wan2.1-vace-1.3b": 2150, "wan2.1-t2v-14b": 14288, "wan2.1-vace-14b": 17330,
    "wan2.2-ti2v-5b": 5000, "lucy-edit-5b": 5000,
}  # fmt: skip


@pytest.mark.parametrize("name", list(PUBLISHED_MILLIONS))
def test_full_sizes_are_those_of_the_published_models(name: str) -> None:
    arguments = RANDOM[name].transformer
    cls = diffusers.WanVACETransformer3DModel if "vace_layers" in arguments else WanTransformer3DModel
    with torch.device("meta"):
        count = sum(weight.numel() for weight in cls(**arguments).parameters())
    assert count / 1e6 == pytest.approx(PUBLISHED_MILLIONS[name], rel=0.01)


def test_weights_are_mapped_and_keep_their_dtypes(copy: Folder) -> None:
    """As diffusers saves a checkpoint in 16 bits: some parts stay in float32."""
    folder = copy("wan-t2v-tiny")
    model = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.bfloat16)
    model.save_pretrained(folder / "transformer", max_shard_size="100KB")
    saved = load_weights(folder / "transformer")
    assert {weight.dtype for weight in saved.values()} == {torch.bfloat16, torch.float32}
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 2
    (folder / "transformer" / f"{WEIGHTS}.safetensors").unlink()
    checkpoint = load_wan(folder)
    assert checkpoint.transformer.patch_in.weight.dtype == torch.bfloat16
    assert checkpoint.transformer.out_modulation.dtype == torch.float32
    if sys.platform == "linux":
        assert str(folder / "transformer") in Path("/proc/self/maps").read_text()
    noisy, layout = torch.randn((6, 64)).bfloat16(), torch.arange(6)
    positions = torch.stack((0 * layout, 0 * layout, layout // 3, layout % 3), 1)
    inputs = (torch.randn((3, 32)).bfloat16(), noisy[:0], noisy, layout, positions, torch.tensor(0.5))
    velocity = checkpoint.transformer(*inputs)
    assert velocity.dtype == torch.bfloat16
    full = load_wan(folder, dtype=torch.float32)
    assert {weight.dtype for weight in full.transformer.parameters()} == {torch.float32}
    exact = full.transformer(*(x.float() if x.dtype == torch.bfloat16 else x for x in inputs))
    assert (velocity - exact).abs().max() <= 0.05 * exact.abs().max()


def test_two_experts_are_told_apart(tiny_folder: Folder) -> None:
    checkpoint = load_wan(tiny_folder("wan-a14b-tiny"))
    first, second = (net.patch_in.weight for net in checkpoint.transformers)
    assert not torch.equal(first, second)
    assert (checkpoint.schedule.boundary, checkpoint.schedule.guidance_scales) == (0.875, (4.0, 3.0))


def test_adapters_go_to_the_expert_they_name(tiny_folder: Folder, tmp_path: Path) -> None:
    key = "diffusion_model.blocks.0.self_attn.v"
    tensors = {f"{key}.lora_down.weight": torch.ones((1, 64)), f"{key}.lora_up.weight": torch.ones((64, 1))}
    save_file(tensors, tmp_path / "low.safetensors")
    plain = load_wan(tiny_folder("wan-a14b-tiny"))
    merged = load_wan(tiny_folder("wan-a14b-tiny"), loras=[Lora(tmp_path / "low.safetensors", 0.5, expert=1)])
    changes = [
        merged.transformers[i].state_dict()["blocks.0.attention.to_v.weight"]
        - plain.transformers[i].state_dict()["blocks.0.attention.to_v.weight"]
        for i in (0, 1)
    ]
    assert changes[0].count_nonzero() == 0
    torch.testing.assert_close(changes[1], torch.full((64, 64), 0.5))
    assert [(note.file, note.expert) for note in merged.merged] == [("low.safetensors", 1)]


def test_an_adapter_names_an_expert_where_there_are_two_and_there_alone(
    tiny_folder: Folder, tmp_path: Path
) -> None:
    key = "diffusion_model.blocks.0.self_attn.v"
    tensors = {f"{key}.lora_down.weight": torch.ones((1, 64)), f"{key}.lora_up.weight": torch.ones((64, 1))}
    path = tmp_path / "fast.safetensors"
    save_file(tensors, path)
    with pytest.raises(
        ValueError, match=r"names none of them; .* fast\.safetensors@high or fast\.safetensors@low"
    ):
        load_any_checkpoint(tiny_folder("wan-a14b-tiny"), loras=[Lora(path, expert=0), Lora(path)])
    with pytest.raises(ValueError, match=r"for low noise, of two; .*: leave @low out"):
        load_any_checkpoint(tiny_folder("wan-t2v-tiny"), loras=[Lora(path, expert=1)])
    both = load_wan(tiny_folder("wan-a14b-tiny"), loras=[Lora(path, expert=1), Lora(path, expert=0)])
    assert [note.expert for note in both.merged] == [0, 1]


def test_a_folder_of_transformers_5_has_its_tokenizer_made(copy: Folder) -> None:
    from transformers import AutoTokenizer

    folder = copy("wan-t2v-tiny")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    shutil.rmtree(folder / "tokenizer")
    tokenizer.save_pretrained(folder / "tokenizer")
    checkpoint = load_wan(folder)
    assert not (folder / "tokenizer" / "spiece.model").exists()
    assert checkpoint.tokenizer_file.is_file()


BAD_INDEX = [
    (
        {"_class_name": "FluxPipeline"},
        "_class_name is 'FluxPipeline'; expected one of EditVersePipeline, Wan",
    ),
    ({"vae": ["diffusers", "AutoencoderKL"]}, "vae is AutoencoderKL; expected AutoencoderKLWan"),
    ({"text_encoder": ["transformers", "T5EncoderModel"]}, "text_encoder is T5EncoderModel; expected UMT5"),
    ({"scheduler": ["diffusers", "DDIMScheduler"]}, "scheduler is DDIMScheduler; expected UniPC"),
    (
        {"image_encoder": ["transformers", "CLIPVisionModel"]},
        "image_encoder is CLIPVisionModel; expected none",
    ),
    ({"_class_name": "WanImageToVideoPipeline"}, "expand_timesteps is None; expected true"),
    ({"_class_name": "LucyEditPipeline"}, "takes its source as rows; expected channels"),
    ({"_class_name": "WanVACEPipeline"}, "transformer is WanTransformer3DModel; expected WanVACE"),
    ({"boundary_ratio": 0.9}, "boundary_ratio is 0.9 with 1 transformers"),
    ({"safety_checker": ["x", "Y"]}, "safety_checker is a part that WanPipeline is not run with"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_INDEX)
def test_an_index_that_is_not_run_is_refused(changes: dict[str, Any], message: str, copy: Folder) -> None:
    folder = copy("wan-t2v-tiny")
    edit(folder / "model_index.json", **changes)
    with pytest.raises(ValueError, match=message):
        load_any_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_dim": 1280}, "image_dim is 1280; expected None"),
        ({"added_kv_proj_dim": 5}, "added_kv_proj_dim is 5; expected None"),
        ({"qk_norm": "layer_norm"}, "qk_norm is 'layer_norm'; expected 'rms_norm_across_heads'"),
        ({"patch_size": [2, 2, 2]}, r"patch_size is \[2, 2, 2\]; expected \[1, p, p\]"),
        ({"in_channels": 36}, "in_channels is 36 and out_channels 16; expected 16, or 32"),
        ({"window_size": [-1, -1]}, "window_size is .* a field that WanTransformer3DModel"),
        (
            {"_class_name": "HunyuanVideoTransformer3DModel"},
            "_class_name is 'Hunyuan.*'; expected one of Wan",
        ),
        ({"num_layers": "3"}, "num_layers is '3'; expected a number"),
        ({"num_layers": 4}, r"weight blocks\.3\..* is missing"),
        ({"ffn_dim": 128}, r"is \(96, 64\); expected \(128, 64\) after config\.json"),
    ],
)
def test_a_transformer_config_that_is_not_run_is_refused(
    changes: dict[str, Any], message: str, copy: Folder
) -> None:
    folder = copy("wan-t2v-tiny")
    edit(folder / "transformer" / "config.json", **changes)
    with pytest.raises(ValueError, match=message):
        load_wan(folder)


def test_every_scheduler_field_is_read_or_refused() -> None:
    path = Path("scheduler_config.json")
    unipc = dict(UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    ).config)  # fmt: skip
    unipc["_class_name"] = "UniPCMultistepScheduler"
    assert read_scheduler(path, unipc).shift == 5.0
    euler = dict(FlowMatchEulerDiscreteScheduler(shift=8.0).config)
    euler["_class_name"] = "FlowMatchEulerDiscreteScheduler"
    assert (read_scheduler(path, euler).solver, read_scheduler(path, euler).shift) == ("euler", 8.0)
    wrong: list[tuple[dict[str, Any], str, Any]] = [
        (unipc, "prediction_type", "epsilon"), (unipc, "use_flow_sigmas", False), (unipc, "solver_order", 3),
        (unipc, "solver_type", "bh1"), (unipc, "predict_x0", False), (unipc, "use_karras_sigmas", True),
        (unipc, "use_dynamic_shifting", True), (unipc, "final_sigmas_type", "sigma_min"),
        (unipc, "disable_corrector", [0]), (unipc, "lower_order_final", False),
        (unipc, "num_train_timesteps", 500), (euler, "use_dynamic_shifting", True),
        (euler, "stochastic_sampling", True), (euler, "shift_terminal", 0.1), (euler, "a_new_field", 1),
    ]  # fmt: skip
    for facts, name, value in wrong:
        with pytest.raises(ValueError, match=f"{name} is "):
            read_scheduler(path, {**facts, name: value})


def test_parts_that_do_not_belong_together_are_refused(copy: Folder) -> None:
    folder = copy("wan-t2v-tiny")
    vae = read_json(folder / "vae" / "config.json")
    edit(folder / "vae" / "config.json", clip_output=False)  # other versions write it, and none reads it
    load_wan(folder)
    edit(folder / "vae" / "config.json", tiling=True)
    with pytest.raises(ValueError, match="tiling is True, a field that AutoencoderKLWan"):
        load_wan(folder)
    (folder / "vae" / "config.json").write_text(json.dumps(vae), "utf-8")
    make_random_checkpoint("wan-ti2v-text-tiny", folder / "other")
    shutil.rmtree(folder / "vae")
    shutil.copytree(folder / "other" / "vae", folder / "vae")
    with pytest.raises(ValueError, match="z_dim is 48 and the transformer's latents have 16"):
        load_wan(folder)


def test_two_experts_of_other_sizes_are_refused(copy: Folder) -> None:
    folder = copy("wan-a14b-tiny")
    make_random_checkpoint("wan-a14b-tiny", folder / "other", blocks=2)
    shutil.rmtree(folder / "transformer_2")
    shutil.copytree(folder / "other" / "transformer_2", folder / "transformer_2")
    with pytest.raises(
        ValueError, match="of transformer and of transformer_2 give other sizes; expected the same"
    ):
        load_wan(folder)


def test_weights_that_do_not_fit_are_refused_with_an_adapter_too(copy: Folder, tmp_path: Path) -> None:
    folder = copy("wan-t2v-tiny")
    edit(folder / "transformer" / "config.json", num_layers=4)
    with pytest.raises(ValueError, match=r"weight blocks\.3\..* is missing"):
        load_wan(folder, loras=[Lora(tmp_path / "fast.safetensors")])


def test_missing_files_are_named(copy: Folder) -> None:
    folder = copy("wan-t2v-tiny")
    weights = folder / "transformer" / f"{WEIGHTS}.safetensors"
    weights.rename(folder / "transformer" / f"{WEIGHTS}.fp16.safetensors")
    with pytest.raises(FileNotFoundError, match=rf"{WEIGHTS}\.safetensors is missing.*fp16\.safetensors"):
        load_wan(folder)
    (folder / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_any_checkpoint(folder)
    (folder / "model_index.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"model_index\.json is missing"):
        load_any_checkpoint(folder)


def test_an_editverse_loader_refuses_wan(tiny_folder: Folder) -> None:
    with pytest.raises(ValueError, match="is a WanPipeline; expected an EditVersePipeline"):
        load_checkpoint(tiny_folder("wan-t2v-tiny"))


def test_the_command_makes_a_checkpoint_of_fewer_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*options: str) -> None:
        monkeypatch.setattr("sys.argv", ["checkpoint", "random", "wan-vace-tiny", str(tmp_path), *options])
        main()

    run("--blocks", "2", "--dtype", "bf16")
    facts = read_json(tmp_path / "transformer" / "config.json")
    assert (facts["num_layers"], facts["vace_layers"]) == (2, [0])
    config = read_transformer(tmp_path, facts, clean_timestep=False, rounds_timestep=True)
    assert config.control_blocks == (0,)
    assert load_wan(tmp_path).transformer.dtype == torch.bfloat16
    with pytest.raises(SystemExit):
        run("--blocks", "0")
    assert "--blocks 0: give at least 1" in capsys.readouterr().err
