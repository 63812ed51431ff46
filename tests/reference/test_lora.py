"""Merged adapters against W + scale * alpha / rank * B A written out, in every style of names; diffusers' own fuse."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from reference.families.wan_random import make_random_wan
from reference.lora import Lora, load_merged, merge_loras, read_adapter
from reference.weights import write_json

SIZES: dict[str, Any] = {
    "num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 48, "num_layers": 2, "text_dim": 16,
    "freq_dim": 32,
}  # fmt: skip
RANK, ALPHA = 4, 2.0
# diffusers' name of a layer, and the name in Wan's own repository.
LAYERS = {
    **{f"attn1.to_{x}": f"self_attn.{x}" for x in "qkv"},
    "attn1.to_out.0": "self_attn.o",
    **{f"attn2.to_{x}": f"cross_attn.{x}" for x in "qkv"},
    "attn2.to_out.0": "cross_attn.o",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return WanTransformer3DModel(**SIZES)


def drawn(model: Any, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of every layer of every block."""
    generator = torch.Generator().manual_seed(seed)
    weights = model.state_dict()
    out = {}
    for block in range(SIZES["num_layers"]):
        for layer in LAYERS:
            rows, columns = weights[f"blocks.{block}.{layer}.weight"].shape
            out[f"blocks.{block}.{layer}"] = (
                torch.randn((RANK, columns), generator=generator) * 0.1,
                torch.randn((rows, RANK), generator=generator) * 0.1,
            )
    return out


def save(style: str, layers: dict[str, tuple[Tensor, Tensor]], path: Path) -> Path:
    """Write an adapter as tools of that style do. Those of diffusers and peft have no alpha here: it is in A."""
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in layers.items():
        _, block, layer = name.split(".", 2)
        own = f"blocks.{block}.{LAYERS[layer]}"
        if style in ("diffusers", "peft", "bare"):
            prefix = {"diffusers": "transformer.", "peft": "base_model.model.", "bare": ""}[style]
            tensors[f"{prefix}{name}.lora_A.weight"] = a * (ALPHA / RANK)
            tensors[f"{prefix}{name}.lora_B.weight"] = b
        elif style == "musubi":
            key = "lora_unet_" + own.replace(".", "_")
            tensors |= {f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": b}
            tensors[f"{key}.alpha"] = torch.tensor(ALPHA)
        else:
            prefix = "diffusion_model." if style == "comfyui" else ""
            tensors |= {f"{prefix}{own}.lora_down.weight": a, f"{prefix}{own}.lora_up.weight": b}
            tensors[f"{prefix}{own}.alpha"] = torch.tensor(ALPHA)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path


def merged_by_hand(
    before: dict[str, Tensor], layers: dict[str, tuple[Tensor, Tensor]], scale: float
) -> dict[str, Tensor]:
    out = dict(before)
    for name, (a, b) in layers.items():
        out[f"{name}.weight"] = before[f"{name}.weight"] + scale * ALPHA / RANK * (b @ a)
    return out


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("style", ["diffusers", "peft", "bare", "musubi", "comfyui", "lightx2v"])
def test_every_style_is_merged(style: str, model: Any, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layers = drawn(model, 1)
    path = save(style, layers, tmp_path / "adapter.safetensors")
    found, (note,) = merge_loras(model, [Lora(path, 0.7)])
    assert_same(found, merged_by_hand(before, layers, 0.7))
    assert (note.file, note.scale, note.num_layers) == ("adapter.safetensors", 0.7, len(layers))
    assert note.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert note.dropped == ()
    assert note.alpha_from == ("tensors" if style in ("musubi", "comfyui", "lightx2v") else None)


def test_several_adapters_add_up_whatever_their_style(model: Any, tmp_path: Path) -> None:
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    chosen = []
    for seed, (style, scale) in enumerate((("musubi", 1.0), ("diffusers", -0.5), ("lightx2v", 0.25))):
        layers = drawn(model, seed)
        chosen.append(Lora(save(style, layers, tmp_path / f"{style}.safetensors"), scale))
        expected = merged_by_hand(expected, layers, scale)
    found, notes = merge_loras(model, chosen)
    assert_same(found, expected)
    assert [note.scale for note in notes] == [1.0, -0.5, 0.25]


def test_a_folder_is_merged_without_touching_its_files(tmp_path: Path) -> None:
    folder = make_random_wan("wan-t2v-tiny", tmp_path / "wan") / "transformer"
    file = folder / "diffusion_pytorch_model.safetensors"
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    model = WanTransformer3DModel.from_pretrained(folder)
    weight = model.state_dict()["blocks.0.attn1.to_v.weight"].clone()
    a, b = torch.ones((1, 64)), torch.ones((64, 1))
    layers = {"blocks.0.attn1.to_v": (a, b)}
    adapter = save("lightx2v", layers, tmp_path / "adapter.safetensors")
    found, _ = load_merged(folder, [Lora(adapter, 0.5)])
    # alpha over the rank of this adapter, 1
    torch.testing.assert_close(found["blocks.0.attn1.to_v.weight"], weight + 0.5 * ALPHA)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before


def test_what_the_loader_drops_is_named(model: Any, tmp_path: Path) -> None:
    path = save("comfyui", drawn(model, 1), tmp_path / "adapter.safetensors")
    extra = {
        "diffusion_model.blocks.0.norm3.diff": torch.ones(32),
        "diffusion_model.blocks.1.norm3.diff": torch.zeros(32),
        "diffusion_model.blocks.0.self_attn.q.diff_b": torch.ones(32),
        "diffusion_model.patch_embedding.diff": torch.ones(32),
    }
    save_file(load_file(path) | extra, path)
    names = ("diffusion_model.blocks.0.norm3.diff", "diffusion_model.patch_embedding.diff")
    assert read_adapter(path).dropped == names


def trained(model: Any, **config: Any) -> Any:
    """A copy of a transformer with an adapter of peft's config, drawn at random, as a trainer has it."""
    copy = WanTransformer3DModel(**SIZES)
    copy.load_state_dict(model.state_dict())
    copy.add_adapter(LoraConfig(r=RANK, target_modules=["to_q", "to_k", "ffn.net.2"], **config), "default")
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in copy.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.1, generator=generator)
    return copy


def fused(copy: Any) -> dict[str, Tensor]:
    """The weights of a transformer after diffusers' own fuse."""
    copy.fuse_lora(adapter_names=["default"])
    copy.unload_lora()
    return {name: value.clone() for name, value in copy.state_dict().items()}


CONFIGS: dict[str, dict[str, Any]] = {
    "four times the rank": {"lora_alpha": 4 * RANK},
    "by the root of the rank": {"lora_alpha": 3, "use_rslora": True},
    "other layers, other ranks": {
        "lora_alpha": 16, "rank_pattern": {"to_q": 2}, "alpha_pattern": {"blocks.1.attn1.to_k": 1, "ffn.net.2": 6},
    },
    "with biases": {"lora_alpha": 2, "lora_bias": True},
}  # fmt: skip


@pytest.mark.parametrize("saved_by", ["pipeline", "transformer", "peft"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_alpha_is_that_of_the_saved_config(
    config: dict[str, Any], saved_by: str, model: Any, tmp_path: Path
) -> None:
    """In the header by a pipeline or a transformer of diffusers, in adapter_config.json by peft."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copy = trained(model, **config)
    layers = get_peft_model_state_dict(copy, adapter_name="default")
    if saved_by == "pipeline":
        facts = _collate_lora_metadata({"transformer": copy})
        WanPipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers, **facts)
    elif saved_by == "transformer":
        copy.save_lora_adapter(tmp_path)
    else:
        prefixed = {f"base_model.model.{name}": value.contiguous() for name, value in layers.items()}
        save_file(prefixed, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
        copy.peft_config["default"].save_pretrained(tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    found, (note,) = merge_loras(model, [Lora(path)])
    expected = fused(copy)
    assert not torch.equal(expected["blocks.0.attn1.to_q.weight"], before["blocks.0.attn1.to_q.weight"])
    assert_same(found, expected)
    assert note.alpha_from == ("adapter_config.json" if saved_by == "peft" else "header")


def test_pefts_config_belongs_to_its_own_file_alone(model: Any, tmp_path: Path) -> None:
    path = save("diffusers", drawn(model, 1), tmp_path / "another.safetensors")
    write_json(tmp_path / "adapter_config.json", {"r": RANK, "lora_alpha": 40})
    assert read_adapter(path).config is None
    own = save("peft", drawn(model, 1), tmp_path / "renamed.safetensors")
    config = read_adapter(own).config
    assert config is not None
    assert (config["r"], config["lora_alpha"]) == (RANK, 40)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": None}, r"r is None and lora_alpha 16; expected a whole number and a number"),
        ({"lora_alpha": "16"}, r"r is 4 and lora_alpha '16'"),
        ({"alpha_pattern": {"to_q": "x"}}, "alpha_pattern is .*; expected a number for each name of a layer"),
        ({"alpha_pattern": {"self_attn.q": 2}}, r"has 'self_attn\.q', which is none of its layers"),
        ({"alpha_pattern": {"to_(q": 2}}, r"which is no pattern"),
        ({"use_dora": True}, "use_dora is True, a field that is not run; take a plain LoRA"),
        ({"a_new_field": [1]}, r"a_new_field is \[1\], a field that is not run"),
        ({"bias": "all"}, "bias is 'all'; expected 'none'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'; expected True or"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; expected 'LORA'"),
        ({"r": 5}, "take an adapter that was trained for this model"),
    ],
)
def test_a_config_that_is_not_run_is_refused(
    changes: dict[str, Any], message: str, model: Any, tmp_path: Path
) -> None:
    path = save("peft", drawn(model, 1), tmp_path / "adapter_model.safetensors")
    facts = {"r": 4, "lora_alpha": 16, "target_modules": ["to_q"], "a_field_that_is_off": False} | changes
    write_json(tmp_path / "adapter_config.json", facts)
    with pytest.raises(ValueError, match=message):
        merge_loras(model, [Lora(path)])


def test_a_header_that_says_alpha_wrongly_is_refused(model: Any, tmp_path: Path) -> None:
    path = save("comfyui", drawn(model, 1), tmp_path / "adapter.safetensors")
    tensors = load_file(path)
    facts = json.dumps({"transformer.r": 4, "transformer.lora_alpha": 16})
    for header, message in (
        (facts, r"says alpha, and so does the tensor diffusion_model\.blocks.*\.alpha"),
        ("{", "lora_adapter_metadata of its header is not JSON"),
        ("[]", "lora_adapter_metadata of its header holds no object"),
    ):
        save_file(tensors, path, metadata={"lora_adapter_metadata": header})
        with pytest.raises(ValueError, match=message):
            read_adapter(path)


def test_a_strength_is_a_finite_number_and_an_expert_one_of_two() -> None:
    with pytest.raises(ValueError, match="its scale is nan; expected a finite number"):
        Lora(Path("a.safetensors"), float("nan"))
    with pytest.raises(ValueError, match=r"its expert is 2; expected None, 0 \(high noise\) or 1"):
        Lora(Path("a.safetensors"), expert=2)


def test_adapters_that_do_not_fit_are_refused(model: Any, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = tmp_path / "adapter.safetensors"
    with pytest.raises(FileNotFoundError, match="is missing"):
        merge_loras(model, [Lora(path)])
    path.write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        merge_loras(model, [Lora(path)])
    save_file({"unet.down.0.weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"holds unet\.down\.0\.weight; expected a LoRA"):
        merge_loras(model, [Lora(path)])
    save_file({"transformer.blocks.0.attn1.to_q.dora_scale": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="is a DoRA"):
        merge_loras(model, [Lora(path)])
    save_file({"transformer.blocks.0.attn1.to_q.lora_magnitude_vector": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="is a DoRA"):
        merge_loras(model, [Lora(path)])
    layers = {"blocks.7.attn1.to_q": (torch.ones((4, 32)), torch.ones((32, 4)))}
    with pytest.raises(ValueError, match=r"changes blocks\.7\.attn1\.to_q, which this transformer does not"):
        merge_loras(model, [Lora(save("diffusers", layers, path))])
    layers = {"blocks.0.attn1.to_q": (torch.ones((4, 64)), torch.ones((64, 4)))}
    with pytest.raises(ValueError, match="take an adapter that was trained for this model"):
        merge_loras(model, [Lora(save("diffusers", layers, path))])
    assert_same(dict(model.state_dict()), before)
