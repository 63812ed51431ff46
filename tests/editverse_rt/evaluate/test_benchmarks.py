"""Each adapter on a fixture of its layout: items, results' places, and entries that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from editverse_rt.errors import RequestError
from editverse_rt.evaluate.benchmarks import BENCHMARKS, find_benchmark
from editverse_rt.evaluate.judging import PROFILES
from editverse_rt.evaluate.metrics import METRICS


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def test_every_benchmark_names_metrics_and_profiles_that_exist() -> None:
    for benchmark in BENCHMARKS.values():
        assert set(benchmark.metrics) <= set(METRICS)
        assert benchmark.judge_profile is None or benchmark.judge_profile in PROFILES
        for row in benchmark.published.values():
            assert set(row) <= {"judge", *benchmark.metrics}
    with pytest.raises(RequestError, match="editverse-bench"):
        find_benchmark("editversebench")


def test_editverse_bench(tmp_path: Path) -> None:
    entry = {
        "<text>": "<video1> Change what <video2> marks to <image1>",
        "<video1>": "videos/a.mp4",
        "<video2>": "masks/a.mp4",
        "<image1>": "images/a.png",
        "<video1> link": "https://example.org/a",
        "direction": "vertical",
        "type": "edit with mask",
        "source_prompt": "a dog",
        "target_prompt": "a cat",
    }
    write_json(tmp_path / "test.json", {"0": entry})
    benchmark = BENCHMARKS["editverse-bench"]
    (item,) = benchmark.load(tmp_path).items
    assert (item.key, item.category, item.groups) == ("0", "edit with mask", {"direction": "vertical"})
    assert item.inputs == {
        "video1": tmp_path / "videos/a.mp4",
        "video2": tmp_path / "masks/a.mp4",
        "image1": tmp_path / "images/a.png",
    }
    assert (item.source, item.masks, item.references) == ("video1", ("video2",), ("image1",))
    assert (item.source_prompt, item.target_prompt) == ("a dog", "a cat")
    assert benchmark.result(Path("r"), item) == Path("r/0/generate.mp4")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (3, "an object"),
        ({"<text>": "Make it night", "type": "x"}, "<video1>"),
        ({"<text>": "<video1> <video2> Swap", "<video1>": "a.mp4", "type": "x"}, "<video2>"),
        ({"<text>": "<video1> Go", "<video1>": "../a.mp4", "type": "x"}, "inside the benchmark's folder"),
        ({"<text>": "<video1> Go", "<video1>": "a.mp4"}, "type"),
    ],
)
def test_an_entry_that_cannot_be_read_is_a_problem_and_the_others_are_kept(
    tmp_path: Path, entry: object, expected: str
) -> None:
    good = {"<text>": "<video1> Go", "<video1>": "a.mp4", "type": "x"}
    write_json(tmp_path / "test.json", {"0": good, "1": entry, "2": good})
    found = BENCHMARKS["editverse-bench"].load(tmp_path)
    assert [item.key for item in found.items] == ["0", "2"]
    (problem,) = found.problems
    assert problem.startswith("item 1: ")
    assert expected in problem
    assert "\n" not in problem


@pytest.mark.parametrize("text", ["", "[]", "{", '{"0": {}, "0": {}}', "null"])
def test_a_broken_test_json_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "test.json").write_text(text, encoding="utf-8")
    with pytest.raises(RequestError) as caught:
        BENCHMARKS["editverse-bench"].load(tmp_path)
    assert "test.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_is_a_plain_name(tmp_path: Path) -> None:
    good = {"<text>": "<video1> Go", "<video1>": "a.mp4", "type": "x"}
    write_json(tmp_path / "test.json", {"../0": good, ".": good, "a/b": good})
    found = BENCHMARKS["editverse-bench"].load(tmp_path)
    assert not found.items
    assert len(found.problems) == 3


def test_tgve(tmp_path: Path) -> None:
    (tmp_path / "DAVIS_480p/480p_frames/stunt").mkdir(parents=True)
    (tmp_path / "youtube_480p/480p_videos").mkdir(parents=True)
    (tmp_path / "youtube_480p/480p_videos/cat.mp4").write_bytes(b"x")
    (tmp_path / "LOVEU-TGVE-2023_Dataset.csv").write_text(
        "Video name,Our GT caption,Style Change Caption,Object Change Caption,"
        "Background Change Caption,Multiple Changes Caption\n"
        "DAVIS Videos:,,,,,\n"
        "stunt,a man rides,a man rides in anime,a bear rides,a man rides on Mars,\n"
        ",,,,,\n"
        "Youtube Videos:,,,,,\n"
        "cat,a cat,a,b,c,d\n",
        encoding="utf-8",
    )
    benchmark = BENCHMARKS["tgve"]
    found = benchmark.load(tmp_path)
    assert len(found.items) == 7
    assert found.problems == ("item DAVIS_480p/stunt/multiple: found no caption of the edit",)
    first, last = found.items[0], found.items[-1]
    assert (first.key, first.category) == ("DAVIS_480p/stunt/style", "style")
    assert (first.source_prompt, first.target_prompt) == ("a man rides", "a man rides in anime")
    assert first.inputs == {"video1": tmp_path / "DAVIS_480p/480p_frames/stunt"}
    assert last.inputs == {"video1": tmp_path / "youtube_480p/480p_videos/cat.mp4"}
    assert benchmark.result(Path("r"), first) == Path("r/DAVIS_480p/stunt/style")
    assert benchmark.size == (480, 480)


@pytest.mark.parametrize("names", [("task", "video_file"), ("Edit Type", "Video Path")])
def test_tgve_plus_finds_its_columns_by_name(tmp_path: Path, names: tuple[str, str]) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra evaluate is not installed")
    from pyarrow import parquet

    table = {
        "instruction": ["Add a hat", "", "Remove it"],
        names[0]: ["addition", "removal", "removal"],
        names[1]: ["DAVIS_480p/a.mp4", "DAVIS_480p/b.mp4", "../../c.mp4"],
        "input_caption": ["a man", "a", "b"],
        "output_caption": ["a man with a hat", "c", "d"],
    }
    parquet.write_table(pyarrow.table(table), tmp_path / "test.parquet")
    found = BENCHMARKS["tgve-plus"].load(tmp_path)
    (item,) = found.items
    assert (item.key, item.category) == ("DAVIS_480p/a/addition", "addition")
    assert (item.instruction, item.source_prompt) == ("Add a hat", "a man")
    assert item.target_prompt == "a man with a hat"
    assert item.inputs == {"video1": tmp_path / "DAVIS_480p/a.mp4"}
    assert len(found.problems) == 2
    parquet.write_table(pyarrow.table({"instruction": ["x"]}), tmp_path / "test.parquet")
    with pytest.raises(RequestError, match="edit_type"):
        BENCHMARKS["tgve-plus"].load(tmp_path)


def test_openve_bench(tmp_path: Path) -> None:
    (tmp_path / "benchmark_videos.csv").write_text(
        "edited_type,prompt,original_video\n"
        'global_style,"Make it, please, Ukiyo-e",videos/0000_a.mp4\n'
        "local_add,,videos/0001_b.mp4\n",
        encoding="utf-8",
    )
    benchmark = BENCHMARKS["openve-bench"]
    found = benchmark.load(tmp_path)
    (item,) = found.items
    assert (item.key, item.category) == ("0000_a", "global_style")
    assert item.instruction == "Make it, please, Ukiyo-e"
    assert found.problems == ("line 3: found no prompt",)
    (tmp_path / "benchmark_videos.csv").write_text("prompt\nx\n", encoding="utf-8")
    with pytest.raises(RequestError, match="edited_type, original_video"):
        benchmark.load(tmp_path)


def test_folder(tmp_path: Path) -> None:
    lines = [
        {"instruction": "Make it night", "inputs": {"video1": "a.mp4"}},
        {
            "instruction": "Add it",
            "inputs": {"video1": "b.mp4", "image1": "c.png"},
            "key": "hat",
            "category": "add",
        },
        {"instruction": "Again", "inputs": {"video1": "b.mp4"}, "key": "hat"},
        {"instruction": "Typo", "inputs": {"video1": "b.mp4"}, "kategory": "x"},
    ]
    text = "\n".join([*map(json.dumps, lines), "{", ""])
    (tmp_path / "items.jsonl").write_text(text, encoding="utf-8")
    found = BENCHMARKS["folder"].load(tmp_path)
    assert [item.key for item in found.items] == ["0001", "hat"]
    assert found.items[1].references == ("image1",)
    assert len(found.problems) == 3
    assert all("items.jsonl" in line or "hat" in line for line in found.problems)
