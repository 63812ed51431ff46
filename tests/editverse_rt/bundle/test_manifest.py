from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from editverse_rt.bundle import manifest as bundle_module
from editverse_rt.bundle.description import json_from_spec, spec_from_json
from editverse_rt.bundle.manifest import file_specs, load_bundle, shipped_bundles, write_bundle_json
from editverse_rt.errors import BundleError


def edit_json(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = root / "bundle.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def set_field(value: Any, dotted: str, new: object) -> None:
    *parents, last = [int(part) if part.isdigit() else part for part in dotted.split("/")]
    for part in parents:
        value = value[part]
    value[last] = new


def test_a_bundle_reads_back_as_it_was_written(fake_bundle: Any) -> None:
    bundle = load_bundle(fake_bundle.root)
    assert bundle.spec == fake_bundle.spec
    assert bundle.root == fake_bundle.root
    assert bundle.graph_path("noise").read_bytes() == b"graph noise"


def test_a_bundle_may_be_given_as_a_string(fake_bundle: Any) -> None:
    assert load_bundle(str(fake_bundle.root)).spec.name == "fake"


def test_file_specs_lists_every_file_but_bundle_json(fake_bundle: Any) -> None:
    specs = file_specs(fake_bundle.root)
    assert [spec.path for spec in specs] == sorted(
        [*(f"graphs/{name}.onnx" for name in fake_bundle.spec.graphs), "tokenizer.model"]
    )
    content = (fake_bundle.root / specs[0].path).read_bytes()
    assert specs[0].num_bytes == len(content)
    assert specs[0].sha256 == hashlib.sha256(content).hexdigest()


def test_hashes_of_files_longer_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("editverse_rt.files._CHUNK_BYTES", 7)
    content = bytes(range(256))
    (tmp_path / "weights").write_bytes(content)
    assert file_specs(tmp_path)[0].sha256 == hashlib.sha256(content).hexdigest()


def test_writing_checks_what_it_writes(fake_bundle: Any) -> None:
    value = json_from_spec(fake_bundle.spec)
    spec = spec_from_json(json.loads(json.dumps(value)))
    spec.model["betas"] = (0.9, 0.95)
    with pytest.raises(BundleError, match="JSON types"):
        write_bundle_json(fake_bundle.root, spec)
    assert load_bundle(fake_bundle.root).spec == fake_bundle.spec


def test_no_such_bundle_names_those_that_ship(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no such folder; give the folder of a bundle"):
        load_bundle(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"no bundle\.json in it"):
        load_bundle(tmp_path)


def test_a_shipped_name_wins_over_a_folder_of_that_name(
    fake_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    shutil.copytree(fake_bundle.root, package / "bundles" / "fake")
    (package / "bundles" / "notes").mkdir()
    monkeypatch.setattr(bundle_module.resources, "files", lambda name: package)
    monkeypatch.chdir(tmp_path)
    assert shipped_bundles() == ("fake",)
    assert load_bundle("fake").root == package / "bundles" / "fake"
    assert load_bundle("./fake").root == Path("fake")
    assert load_bundle(Path("fake")).root == Path("fake")
    with pytest.raises(BundleError, match=r'"other": no such folder; .* or a name that ships: "fake"'):
        load_bundle("other")


def test_a_newer_format_is_refused_before_anything_else(fake_bundle: Any) -> None:
    (fake_bundle.root / "bundle.json").write_text('{"format_version": 3, "what": "ever"}')
    with pytest.raises(BundleError, match=r"format_version is 3, made by a newer version .* upgrade"):
        load_bundle(fake_bundle.root)


def test_an_older_format_is_refused_with_the_way_to_convert_it(fake_bundle: Any) -> None:
    (fake_bundle.root / "bundle.json").write_text('{"format_version": 1, "what": "ever"}')
    with pytest.raises(BundleError, match=r"format_version is 1, made by an older .* export.convert_bundle"):
        load_bundle(fake_bundle.root)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "nonsense", '{"a": 1, "a": 2}', '{"format_version": NaN}', "\ufeff{}", "[" * 100_000],
)
def test_what_is_not_a_json_object(fake_bundle: Any, text: str) -> None:
    (fake_bundle.root / "bundle.json").write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match=r"bundle\.json"):
        load_bundle(fake_bundle.root)


def test_json_that_is_not_utf8(fake_bundle: Any) -> None:
    (fake_bundle.root / "bundle.json").write_bytes(b'{"name": "\xff"}')
    with pytest.raises(BundleError, match="UTF-8 JSON"):
        load_bundle(fake_bundle.root)


FREE = ("model", "costs", "made", "quality", "emulates")
"""Objects whose fields are not the format's own."""


def iterate_fields(value: Any, prefix: str = "") -> list[str]:
    """Every field that the format knows; the free objects count as one each."""
    fields = []
    for name, child in value.items():
        path = f"{prefix}{name}"
        fields.append(path)
        if name in FREE:
            continue
        if isinstance(child, dict):
            fields += iterate_fields(child, f"{path}/")
        if isinstance(child, list) and child and isinstance(child[0], dict):
            fields += iterate_fields(child[0], f"{path}/0/")
    return fields


# Every field of the format is tried, and the table must not shrink unnoticed.
FIELDS = [
    *("format_version", "name", "model", "geometry", "tokenizer", "graphs", "schedules", "default_schedule"),
    *("family", "conditioning", "unconditional", "default_negative_prompt", "capabilities"),
    *(f"capabilities/{name}" for name in ("generates", "edits", "negative_prompt", "strength", "attention")),
    *(f"capabilities/{name}" for name in ("convolutions", "dtype", "weights", "emulates")),
    *("files", "costs", "made", "quality", "files/0/path", "files/0/num_bytes", "files/0/sha256"),
    *(f"tokenizer/{name}" for name in ("file", "eos_id", "max_tokens")),
    *(f"geometry/{name}" for name in ("temporal_ratio", "spatial_ratio", "patch_size", "patch_dim")),
    "geometry/clean_dim",
    *(f"geometry/{name}" for name in ("min_area_px", "max_area_px", "max_side_px", "max_frames")),
    *(f"geometry/{name}" for name in ("default_height_px", "default_width_px", "default_frames")),
    "geometry/default_fps",
    "geometry/shared_frames",
    *(f"schedules/paper/{name}" for name in ("graph", "guidance_scale", "options", "table")),
    *(f"schedules/paper/table/{name}" for name in ("times", "timesteps", "guidance", "matrices", "experts")),
    *(f"graphs/noise/{name}" for name in ("file", "inputs", "outputs")),
    *(f"graphs/noise/inputs/0/{name}" for name in ("name", "dtype", "shape")),
]


BOOLEANS = tuple(f"capabilities/{name}" for name in ("generates", "edits", "negative_prompt", "strength"))


def test_the_fields_tried_are_those_of_the_format(fake_bundle: Any) -> None:
    known = iterate_fields(json_from_spec(fake_bundle.spec))
    tried = {field for field in FIELDS if not field.startswith(("graphs/", "schedules/"))}
    assert tried == {field for field in known if not field.startswith(("graphs/", "schedules/"))}


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_field_is_named(fake_template: Any, field: str) -> None:
    value = json_from_spec(fake_template.spec)
    *parents, last = field.split("/")
    parent: Any = value
    for part in parents:
        parent = parent[int(part) if part.isdigit() else part]
    del parent[last]
    with pytest.raises(BundleError, match=last):
        spec_from_json(value)


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_a_wrong_type_is_named(fake_template: Any, field: str) -> None:
    for wrong in (None, True, -1, 1.5, "", [[]], [None], {"": 0}):
        if wrong == 1.5 and field == "geometry/default_fps":
            continue
        if isinstance(wrong, dict) and field.split("/")[-1] in FREE:
            continue
        if isinstance(wrong, bool) and field in BOOLEANS:
            continue
        if wrong == "" and field == "default_negative_prompt":
            continue
        if wrong == 1.5 and field == "schedules/paper/guidance_scale":
            continue
        value = json.loads(json.dumps(json_from_spec(fake_template.spec)))
        set_field(value, field, wrong)
        with pytest.raises(BundleError) as error:
            spec_from_json(value, "here")
        message = str(error.value)
        assert "\n" not in message
        assert message.startswith("here: field ")
        assert field.split("/")[-1] in message


@pytest.mark.parametrize(
    "field", ["extra", "geometry/max_frame", "tokenizer/bos_id", "schedules/paper/sigma"]
)
def test_a_field_that_the_format_does_not_know_is_refused(fake_template: Any, field: str) -> None:
    value = json.loads(json.dumps(json_from_spec(fake_template.spec)))
    set_field(value, field, 1)
    with pytest.raises(
        BundleError, match=rf'"{field.replace("/", ".")}" is 1; expected no field of this name'
    ):
        spec_from_json(value)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("geometry/default_fps", "a number above 0"),
        ("geometry/max_frames", "a whole number from 1"),
        ("schedules/paper/guidance_scale", "a number of at least 0"),
        ("schedules/paper/options/shift", "a number"),
        ("schedules/paper/table/guidance/1", "a list of numbers"),
        ("schedules/paper/table/matrices/0/0/0", "a list of numbers"),
    ],
)
def test_a_number_that_no_float_holds_is_refused(fake_template: Any, field: str, expected: str) -> None:
    for wrong in (10**400, -(10**400)):
        value = json.loads(json.dumps(json_from_spec(fake_template.spec)))
        set_field(value, field, wrong)
        with pytest.raises(BundleError, match=expected) as caught:
            spec_from_json(json.loads(json.dumps(value)))
        assert len(str(caught.value)) < 300


EULER = [[1, 0, 0, 0.25], [0, 0, 0, 1], [0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("field", "wrong", "expected"),
    [
        ("geometry/min_area_px", 99999, "at most max_area_px"),
        ("geometry/default_width_px", 40, "a multiple of 16"),
        ("geometry/default_height_px", 160, "up to max_side_px"),
        ("geometry/max_area_px", 48 * 48 - 1, "an area from min_area_px = 1024 to max_area_px = 2303"),
        ("geometry/min_area_px", 48 * 48 + 1, "an area from min_area_px = 2305 to max_area_px = 4096"),
        ("geometry/max_frames", 8, r"1 \+ 4 \* k"),
        ("geometry/default_frames", 13, "up to max_frames"),
        ("default_schedule", "fast", "one of paper, interval"),
        ("family", "vase", "one of editverse"),
        ("conditioning", "adapter", "interleaved"),
        ("unconditional", "zeros", "drop_text"),
        ("capabilities/attention", "flash", "inline"),
        ("capabilities/dtype", "float8", "bfloat16"),
        ("schedules/paper/graph", "schedule_heun", "one of the graphs"),
        ("schedules/paper/graph", "", "schedules.paper.graph"),
        ("schedules/paper/guidance_scale", -1.0, "at least 0"),
        ("schedules/paper/graph", "noise", "one of the graphs schedule_euler"),
        ("schedules/paper/options", {"shift": "1"}, "options.shift"),
        ("schedules/paper/options", {"shift": 1}, "values of guided_from, guided_until, shift"),
        ("schedules/paper/table/timesteps", [0.0, 0.5, 0.4, 0.75], "none below the one before"),
        ("schedules/paper/table/timesteps", [0.0, 0.25, 0.5, 1.0], r"times in \[0, 1\)"),
        ("schedules/paper/table/timesteps", [], r"times in \[0, 1\)"),
        ("schedules/paper/table/matrices", [EULER] * 3, "4, one for each of the timesteps"),
        ("schedules/paper/table/matrices", [EULER[:2]] * 4, "matrices of 3 rows of 4 numbers"),
        ("schedules/paper/table/matrices", [[row[:3] for row in EULER]] * 4, "matrices of 3 rows of 4 num"),
        ("schedules/paper/table/matrices", [[*EULER[:2], EULER[2][:3]]] * 4, "matrices of 3 rows of 4 num"),
        ("schedules/paper/table/guidance", [5.0], "4, one for each of the timesteps"),
        ("schedules/paper/table/guidance", [5.0, 5.0, -1.0, 5.0], "numbers of at least 0"),
        ("schedules/paper/table/experts", [0, 0, 0], "4, one for each of the timesteps"),
        ("schedules/paper/table/experts", [0, 0, 2, 0], "0 or 1 for each step"),
        ("schedules/paper/table/experts", [0, 0, 0.5, 0], "0 or 1 for each step"),
        ("schedules/paper/table/experts", [0, 0, 1, 0], '0 for each step without a graph "transformer_2"'),
        ("files/0/sha256", "A" * 64, "lower-case"),
        ("tokenizer/file", "other.model", "list of files"),
        ("graphs/noise/file", "noise.onnx", "list of files"),
        ("graphs/noise/inputs/0/dtype", "float32", "seed int64"),
        ("graphs/noise/inputs/0/name", "sede", "seed int64"),
        ("graphs/transformer/inputs/4/shape", ["L", 3], r"positions int64 \['L', 4\]"),
        ("graphs/transformer/inputs/1/shape", ["Lc", 48], r"clean float32 \['Lc', 64\]"),
        ("graphs/transformer/inputs/1/shape", [256, 64], r"clean float32 \['Lc', 64\]"),
        ("graphs/transformer/inputs/0/shape", ["Lt", "Dt"], "last axis is a whole number"),
        ("graphs/text_encoder/outputs/0/shape", ["Lt", 7], r"text float32 \['Lt', 6\]"),
        (
            "graphs/vae_encoder_next/inputs/0/shape",
            [2, "H", "W", 3],
            r"frames uint8 \[4, '16\*h', '16\*w', 3\]",
        ),
        ("graphs/vae_encoder_next/inputs/1/dtype", "float16", "caches"),
        ("graphs/vae_encoder_next/inputs/1/name", "cache_7", "cache_0, cache_1"),
        ("graphs/vae_decoder_first/outputs/2/name", "next_cache_2", "next_cache_0, next_cache_1"),
        ("graphs/vae_decoder_first/outputs/2/shape", [1, 2], "caches"),
    ],
)
def test_a_value_that_contradicts_the_rest_is_named(
    fake_template: Any, field: str, wrong: object, expected: str
) -> None:
    value = json.loads(json.dumps(json_from_spec(fake_template.spec)))
    set_field(value, field, wrong)
    with pytest.raises(BundleError, match=expected):
        spec_from_json(value)


@pytest.mark.parametrize("name", ["text_encoder", "vae_decoder_next", "transformer", "noise", "solver_step"])
def test_a_missing_graph_is_named(fake_template: Any, name: str) -> None:
    value: Any = json_from_spec(fake_template.spec)
    del value["graphs"][name]
    with pytest.raises(BundleError, match=f'a graph "{name}" among them'):
        spec_from_json(value)


def test_a_file_that_is_listed_twice(fake_template: Any) -> None:
    value: Any = json_from_spec(fake_template.spec)
    value["files"].append(value["files"][0])
    with pytest.raises(BundleError, match="each file once"):
        spec_from_json(value)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../outside",
        "graphs/../../outside",
        "a//b",
        "./a",
        "a/",
        "..",
        ".",
        "C:/x",
        "C:x",
        "a\\b",
        "\\\\host\\x",
        "a\0b",
    ],
)
@pytest.mark.parametrize("field", ["files/0/path", "tokenizer/file", "graphs/noise/file"])
def test_a_path_that_leaves_the_bundle(fake_template: Any, field: str, path: str) -> None:
    value = json.loads(json.dumps(json_from_spec(fake_template.spec)))
    set_field(value, field, path)
    with pytest.raises(BundleError, match="a relative path with forward slashes that stays inside"):
        spec_from_json(value)


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_link_that_leaves_the_bundle(fake_bundle: Any, tmp_path: Path, as_folder: bool) -> None:
    outside = tmp_path / "outside"
    if as_folder:
        (fake_bundle.root / "graphs").rename(outside)
        (fake_bundle.root / "graphs").symlink_to(outside, target_is_directory=True)
    else:
        (fake_bundle.root / "graphs" / "noise.onnx").rename(outside)
        (fake_bundle.root / "graphs" / "noise.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="a link that leaves the bundle"):
        load_bundle(fake_bundle.root)


def test_a_link_inside_the_bundle_is_a_file_like_others(fake_bundle: Any) -> None:
    path = fake_bundle.root / "graphs" / "noise.onnx"
    path.rename(fake_bundle.root / "stored")
    path.symlink_to(os.path.join("..", "stored"))
    assert load_bundle(fake_bundle.root).graph_path("noise").read_bytes() == b"graph noise"


def test_a_missing_file(fake_bundle: Any) -> None:
    (fake_bundle.root / "graphs" / "noise.onnx").unlink()
    with pytest.raises(BundleError, match=r"noise\.onnx is missing"):
        load_bundle(fake_bundle.root)


def test_a_folder_in_a_files_place(fake_bundle: Any) -> None:
    (fake_bundle.root / "graphs" / "noise.onnx").unlink()
    (fake_bundle.root / "graphs" / "noise.onnx").mkdir()
    with pytest.raises(BundleError, match=r"noise\.onnx is missing"):
        load_bundle(fake_bundle.root)


def test_a_file_that_was_cut_short(fake_bundle: Any) -> None:
    (fake_bundle.root / "graphs" / "noise.onnx").write_bytes(b"graph noi")
    with pytest.raises(BundleError, match=r"noise\.onnx has 9 bytes, expected 11"):
        load_bundle(fake_bundle.root)


def test_a_file_that_was_altered(fake_bundle: Any) -> None:
    (fake_bundle.root / "graphs" / "noise.onnx").write_bytes(b"graph noisy"[:11])
    with pytest.raises(
        BundleError, match=r"noise\.onnx was altered: sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"
    ):
        load_bundle(fake_bundle.root)


def test_a_file_that_is_not_listed_matters_only_if_a_graph_refers_to_it(fake_bundle: Any) -> None:
    (fake_bundle.root / "README.txt").write_text("hello")
    (fake_bundle.root / "graphs" / "noise.weights").write_bytes(b"1234")
    assert load_bundle(fake_bundle.root).spec == fake_bundle.spec
    graph = fake_bundle.root / "graphs" / "transformer.onnx"
    graph.write_bytes(b"\x0a\x08location\x12\x0dnoise.weights")
    files = [spec for spec in file_specs(fake_bundle.root) if spec.path.endswith((".onnx", ".model"))]
    edit_json(fake_bundle.root, lambda value: value.update(files=[vars(spec) for spec in files]))
    with pytest.raises(
        BundleError, match=r'noise\.weights is not in the list .* graph "transformer" refers to it'
    ):
        load_bundle(fake_bundle.root)


def test_a_graph_that_is_not_there(fake_bundle: Any) -> None:
    with pytest.raises(BundleError, match=r'no graph "upscaler", only text_encoder, '):
        load_bundle(fake_bundle.root).graph_path("upscaler")
