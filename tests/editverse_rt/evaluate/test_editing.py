"""Items are edited over a cluster as through a queue: the same files, problems and refusals, and either goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_ray import FakeRay

from editverse_rt import media
from editverse_rt.cluster import ClusterOptions
from editverse_rt.commands.main import main
from editverse_rt.errors import RequestError
from editverse_rt.evaluate import editing
from editverse_rt.evaluate.benchmarks import BENCHMARKS, Benchmark
from editverse_rt.evaluate.clips import write_pictures
from editverse_rt.evaluate.editing import Edited, EditingOptions, edit_missing
from editverse_rt.pipeline import Pipeline

FOLDER = BENCHMARKS["folder"]
TGVE = replace(BENCHMARKS["tgve"], size=None)
CAPTIONS = (
    "Video name,Our GT caption,Style Change Caption,Object Change Caption,Background Change Caption,Multiple"
)
PROMPT = "Turn the circle green"


@pytest.fixture
def data(tmp_path: Path, blocky_clip: Callable[..., Any]) -> Path:
    """A video, a folder of pictures, a picture that is none, a video with a picture beside it; TGVE's layout of it."""
    folder = tmp_path / "data"
    (folder / "DAVIS/480p_videos").mkdir(parents=True)
    media.write_clip(folder / "a.mp4", blocky_clip(5, 48, 64), 8.0)
    write_pictures(folder / "frames", blocky_clip(5, 48, 64, seed=1))
    write_pictures(folder / "DAVIS/480p_frames/stunt", blocky_clip(5, 48, 64, seed=2))
    (folder / "bad.png").write_bytes(b"no picture")
    media.write_image(folder / "b.png", blocky_clip(1, 48, 64, seed=3)[0])
    inputs: list[Any] = [
        {"video1": "a.mp4"}, {"video1": "frames"}, {"image1": "bad.png"}, {"video1": "a.mp4", "image1": "b.png"}
    ]  # fmt: skip
    lines = [json.dumps({"instruction": PROMPT, "inputs": one}) for one in inputs]
    (folder / "items.jsonl").write_text("\n".join(lines), "utf-8")
    (folder / "t.csv").write_text(
        f"{CAPTIONS} Changes Caption\nDAVIS Videos:,,,,,\nstunt,a,{PROMPT},{PROMPT},{PROMPT},\n", "utf-8"
    )
    return folder


@pytest.fixture
def edit(
    data: Path, pipeline: Pipeline, fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Edited]:
    """edit(benchmark, results, on_cluster, where=data, **options): edits what is missing."""

    class Opener:
        @staticmethod
        def open(bundle: str, backend: str, **options: Any) -> Pipeline:
            assert (bundle, backend, options) == ("my-bundle", "auto", {"num_threads": 1})
            return pipeline

    def run(
        benchmark: Benchmark, results: Path, on_cluster: bool, where: Path = data, **options: Any
    ) -> Edited:
        items = benchmark.load(where).items
        cluster = ClusterOptions("auto", "my-bundle", open_options={"num_threads": 1}) if on_cluster else None
        return edit_missing(
            benchmark,
            items,
            results,
            pipeline,
            EditingOptions(num_inference_steps=2, **options),
            cluster=cluster,
        )

    monkeypatch.setattr(editing, "Pipeline", Opener)
    return run


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("benchmark", [FOLDER, TGVE], ids=["files", "folders"])
def test_results_are_those_of_the_queue(
    edit: Callable[..., Edited], tmp_path: Path, benchmark: Benchmark, fake_ray: FakeRay
) -> None:
    alone = edit(benchmark, tmp_path / "queue", False)
    spread = edit(benchmark, tmp_path / "cluster", True)
    assert files_in(tmp_path / "cluster") == files_in(tmp_path / "queue")
    assert spread.num_edited == alone.num_edited == 3
    assert spread.problems == alone.problems
    assert list(alone.problems) == (["0003"] if benchmark is FOLDER else [])
    assert (alone.num_at_once, spread.num_at_once) == (1, 2)
    assert spread.made_with == alone.made_with
    assert fake_ray.inits == ["auto"]
    assert all(actor.is_killed for actor in fake_ray.actors)


def test_either_goes_on_where_the_other_was(
    edit: Callable[..., Edited], tmp_path: Path, fake_ray: FakeRay
) -> None:
    edit(FOLDER, tmp_path / "whole", False)
    expected = files_in(tmp_path / "whole")
    for first in (True, False):
        out = tmp_path / f"out-{first}"
        edit(FOLDER, out, first)
        (out / "0002/generate.mp4").unlink()
        times = {path: os.stat(path).st_mtime_ns for path in out.rglob("generate.mp4")}
        assert edit(FOLDER, out, not first).num_edited == 1
        assert files_in(out) == expected
        assert {path: os.stat(path).st_mtime_ns for path in times} == times
    # Everything is there but the one that cannot be; then nothing is.
    again = edit(FOLDER, tmp_path / "out-True", True)
    assert (again.num_edited, again.made_with, list(again.problems)) == (0, None, ["0003"])
    inits = len(fake_ray.inits)
    edit(TGVE, tmp_path / "tgve", False)
    assert edit(TGVE, tmp_path / "tgve", True).num_edited == 0
    assert len(fake_ray.inits) == inits


def test_results_of_another_run_are_refused_before_anything_is_connected_to(
    edit: Callable[..., Edited], tmp_path: Path, fake_ray: FakeRay
) -> None:
    edit(FOLDER, tmp_path / "out", False)
    (tmp_path / "out/0001/generate.mp4").unlink()
    with pytest.raises(RequestError, match="other options"):
        edit(FOLDER, tmp_path / "out", True, seed=5)
    assert fake_ray.inits == []


def test_nodes_get_whole_paths(
    edit: Callable[..., Edited],
    data: Path,
    tmp_path: Path,
    fake_ray: FakeRay,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their working directory is another one."""
    real = fake_ray.wait
    (tmp_path / "elsewhere").mkdir()

    def wait(*given: Any, **named: Any) -> Any:
        os.chdir(tmp_path / "elsewhere")
        try:
            return real(*given, **named)
        finally:
            os.chdir(tmp_path)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fake_ray, "wait", wait)
    monkeypatch.setattr(editing, "request_of", checked := CheckedRequests())
    edit(FOLDER, Path("out"), True, Path("data"))
    assert checked.num_seen == 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "0001",
        "0002",
        "0004",
        "edits.json",
    ]


class CheckedRequests:
    def __init__(self) -> None:
        self.num_seen = 0
        self._real = editing.request_of

    def __call__(self, benchmark: Any, item: Any, options: Any) -> Any:
        assert all(path.is_absolute() for path in item.inputs.values())
        self.num_seen += 1
        return self._real(benchmark, item, options)


def test_a_process_that_ends_is_a_problem_and_the_others_go_on(
    edit: Callable[..., Edited], tmp_path: Path, runner: Any
) -> None:
    encode = runner.text_encoder

    def end(ids: Any) -> Any:
        runner.text_encoder = encode
        raise SystemExit(1)

    runner.text_encoder = end
    edited = edit(FOLDER, tmp_path / "out", True)
    assert edited.num_edited == 2
    assert "the process that did it has ended" in edited.problems["0001"]
    assert edit(FOLDER, tmp_path / "out", True).num_edited == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["folder", "DATA", "-o", "out", "--workers", "2"], "--workers is given with --ray"),
        (["folder", "DATA", "-o", "out", "--device", "0"], "--device is given with --ray"),
        (
            ["score", "DATA", "--benchmark", "folder", "--data", "DATA", "-o", "out"],
            "score, which edits nothing",
        ),
        (["compare", "a", "b"], "compare, which edits nothing"),
    ],
)
def test_what_ray_decides_is_refused(
    words: list[str], said: str, data: Path, capsys: pytest.CaptureFixture[str], fake_ray: FakeRay
) -> None:
    assert main(["evaluate", *(str(data) if word == "DATA" else word for word in words), "--ray"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert fake_ray.inits == []


def test_the_command_edits_on_the_address_that_is_given(
    data: Path, tmp_path: Path, fake_ray: FakeRay, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("skimage", reason="the extra evaluate is not installed")
    words = [
        "evaluate",
        "folder",
        str(data),
        "-o",
        str(tmp_path / "out"),
        "--ray",
        "head:6379",
        "--limit",
        "1",
    ]
    words += ["--num-inference-steps", "1", "--judge", "offline", "--threads", "1"]
    assert main([*words, "--dry-run"]) == 0
    assert "1 items, 1 without a result" in capsys.readouterr().out
    assert fake_ray.inits == []
    assert main([*words, "--quiet"]) == 0
    assert fake_ray.inits == ["head:6379"]
    report = json.loads((tmp_path / "out/report.json").read_text("utf-8"))
    assert report["run"]["pipeline"]["backend"] == "ort-cpu"
    assert report["time"]["num_workers"] == 2
