"""Batches on a pipeline in numpy: every row once and none twice, whatever was killed, changed or wrong."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_ray import FakeRay

from editverse_rt import media
from editverse_rt.batch import ray_batch
from editverse_rt.batch.folder import BatchFolder, save_result
from editverse_rt.batch.ray_batch import run_ray_batch
from editverse_rt.batch.rows import read_manifest, rows_of_folder
from editverse_rt.batch.running import BatchReport, run_batch
from editverse_rt.cluster import ClusterOptions
from editverse_rt.errors import MediaError, RequestError
from editverse_rt.pipeline import Pipeline

PROMPT = "Turn the circle green"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with a picture and a manifest of three rows: two pictures and a video."""
    folder = tmp_path / "source"
    folder.mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    media.write_image(folder / "in.png", picture)
    write_manifest(
        folder,
        {"id": "edit", "prompt": PROMPT, "inputs": {"image1": "in.png"}},
        {"id": "still", "prompt": PROMPT, "num_frames": 1, "seed": 3},
        {"id": "moving", "prompt": PROMPT, "num_frames": 5, "size": "48x48"},
    )
    return folder


def write_manifest(folder: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def run(pipeline: Pipeline, source: Path, out: Path, **options: Any) -> BatchReport:
    rows, failures = read_manifest(source / "rows.jsonl")
    with BatchFolder(out) as folder:
        return run_batch(pipeline, rows, folder, failures=failures, **options)


def results_in(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".png", ".mp4")}


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_every_row_has_its_result_and_a_second_run_makes_none(
    pipeline: Pipeline, runner: Any, source: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, int, int]] = []
    report = run(pipeline, source, tmp_path / "out", on_progress=lambda *numbers: seen.append(numbers))
    assert (report.num_done, report.num_found, report.failures, report.is_complete) == (3, 0, [], True)
    assert seen == [(n, 3, 0) for n in range(4)]
    first = results_in(tmp_path / "out")
    assert sorted(name.split("-")[0] + name[-4:] for name in first) == ["edit.png", "moving.mp4", "still.png"]
    listed = lines_of(tmp_path / "out" / "results.jsonl")
    assert [(row["id"], row["line"]) for row in listed] == [("edit", 1), ("still", 2), ("moving", 3)]
    assert {row["file"]: row["num_bytes"] for row in listed} == {
        name: len(data) for name, data in first.items()
    }
    assert not (tmp_path / "out" / "failed.jsonl").exists()
    assert not (tmp_path / "out" / ".partial").exists()
    calls = len(runner.calls)
    again = run(pipeline, source, tmp_path / "out")
    assert (again.num_done, again.num_found) == (3, 3)
    assert len(runner.calls) == calls
    assert results_in(tmp_path / "out") == first


def test_a_name_holds_the_digest_that_the_documentation_states(
    pipeline: Pipeline, source: Path, tmp_path: Path
) -> None:
    run(pipeline, source, tmp_path / "out")
    bundle = hashlib.sha256((pipeline.bundle.root / "bundle.json").read_bytes()).hexdigest()
    picture = hashlib.sha256((source / "in.png").read_bytes()).hexdigest()
    request = f'{{"inputs":{{"image1":"{picture}"}},"prompt":"<image1> {PROMPT}"}}'
    text = f'{{"bundle":"{bundle}","format":1,"request":{request}}}'
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert f"edit-{key}.png" in results_in(tmp_path / "out")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a copy of this process")
def test_a_kill_anywhere_leaves_whole_results_and_the_rest_is_made(
    pipeline: Pipeline, runner: Any, source: Path, tmp_path: Path
) -> None:
    """Before and after each rename, each flush to the disk and each file that is written, one after another."""
    run(pipeline, source, tmp_path / "whole")
    whole = results_in(tmp_path / "whole")
    places = 0
    while True:
        out = tmp_path / f"killed-{places}"
        code = in_a_copy(lambda out=out: run(pipeline, source, out), kill_at=places)  # type: ignore[misc]
        if code == 0:
            break
        assert code == -signal.SIGKILL
        there = results_in(out) if out.exists() else {}
        assert there.items() <= whole.items()
        before = runner.count("vae_decoder_first")
        report = run(pipeline, source, out)
        assert (report.num_done, report.num_found) == (3, len(there))
        assert runner.count("vae_decoder_first") - before == 3 - len(there)
        assert results_in(out) == whole
        assert sorted(row["file"] for row in lines_of(out / "results.jsonl")) == sorted(whole)
        assert not (out / ".partial").exists()
        places += 1
    assert places >= 20


def in_a_copy(work: Callable[[], object], *, kill_at: int) -> int:
    """Run in a fork of this process that kills itself at that place; its exit code, or minus the signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            kill_at_place(kill_at)
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at_place(number: int) -> None:
    left = [number]

    def place() -> None:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    for owner, name in ((os, "replace"), (os, "fsync"), (Path, "write_text"), (media, "write_clip")):
        original = getattr(owner, name)

        def wrapped(*args: Any, original: Any = original, **options: Any) -> Any:
            place()
            result = original(*args, **options)
            place()
            return result

        setattr(owner, name, wrapped)


def test_a_changed_input_is_made_again(pipeline: Pipeline, source: Path, tmp_path: Path) -> None:
    run(pipeline, source, tmp_path / "out")
    media.write_image(source / "in.png", np.zeros((48, 48, 3), np.uint8))
    report = run(pipeline, source, tmp_path / "out")
    assert (report.num_done, report.num_found) == (3, 2)
    assert len(results_in(tmp_path / "out")) == 4
    assert len(lines_of(tmp_path / "out" / "results.jsonl")) == 3


def test_another_bundle_or_schedule_makes_all_again(pipeline: Pipeline, source: Path, tmp_path: Path) -> None:
    run(pipeline, source, tmp_path / "out")
    assert run(pipeline, source, tmp_path / "out", schedule="interval").num_found == 0
    assert run(pipeline, source, tmp_path / "out", schedule="interval").num_found == 3
    path = pipeline.bundle.root / "bundle.json"
    path.write_text(path.read_text("utf-8") + "\n", "utf-8")
    assert run(pipeline, source, tmp_path / "out").num_found == 0


def test_an_input_that_changes_while_it_is_used_is_no_result(
    pipeline: Pipeline, runner: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = runner.vae_decoder_first

    def change_and_decode(patches: Any) -> Any:
        media.write_image(source / "in.png", np.zeros((48, 48, 3), np.uint8))
        return decode(patches)

    monkeypatch.setattr(runner, "vae_decoder_first", change_and_decode)
    report = run(pipeline, source, tmp_path / "out")
    assert [failure.to_json()["code"] for failure in report.failures] == ["batch.changed"]
    assert sorted(name.split("-")[0] for name in results_in(tmp_path / "out")) == ["moving", "still"]


def test_bad_rows_do_not_stop_the_others(pipeline: Pipeline, source: Path, tmp_path: Path) -> None:
    (source / "text.png").write_text("no picture")
    path = write_manifest(
        source,
        "{",
        {"id": "missing", "prompt": PROMPT, "inputs": {"image1": "nowhere.png"}},
        {"id": "field", "prompt": PROMPT, "sed": 1},
        {"id": "range", "prompt": PROMPT, "seed": -(10**400)},
        {"id": "../up", "prompt": PROMPT},
        {"prompt": PROMPT},
        {"id": "damaged", "prompt": PROMPT, "inputs": {"image1": "text.png"}},
        "",
        {"id": "good", "prompt": PROMPT, "num_frames": 1},
        {"id": "long", "prompt": PROMPT * 100},
        '{"id": "digits", "prompt": "x", "seed": 1' + "0" * 5000 + "}",
    )
    report = run(pipeline, source, tmp_path / "out")
    assert (report.num_done, report.num_left, report.is_complete) == (1, 0, False)
    failed = {row["line"]: row for row in lines_of(tmp_path / "out" / "failed.jsonl")}
    assert {line: (row["id"], row["code"]) for line, row in failed.items()} == {
        1: ("", "request"),
        2: ("missing", "media.not_found"),
        3: ("field", "request.field"),
        4: ("range", "request.option"),
        5: ("", "batch.id"),
        6: ("", "request.field"),
        7: ("damaged", "media.undecodable"),
        10: ("long", "request.prompt_length"),
        11: ("", "request"),
    }
    assert all(row["message"] for row in failed.values())
    assert f"{path}:3" in failed[3]["message"]
    assert failed[11]["message"].endswith(": a whole number of 5001 digits; correct the row")
    write_manifest(source, {"id": "good", "prompt": PROMPT, "num_frames": 1})
    assert run(pipeline, source, tmp_path / "out").is_complete
    assert not (tmp_path / "out" / "failed.jsonl").exists()


def test_a_bug_in_one_row_is_said_and_the_others_go_on(
    pipeline: Pipeline, runner: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "vae_encoder_first", lambda frames: 1 / 0)
    report = run(pipeline, source, tmp_path / "out")
    (failure,) = report.failures
    assert (failure.id, failure.to_json()["code"]) == ("edit", "internal")
    assert "ZeroDivisionError" in failure.to_json()["message"]
    assert report.num_done == 2


@pytest.mark.parametrize("other", ["a1", "A1"])
def test_an_id_that_stands_twice_refuses_the_batch(source: Path, other: str) -> None:
    rows = [{"id": "a1", "prompt": PROMPT}, {"id": "b", "prompt": PROMPT}, {"id": other, "prompt": PROMPT}]
    with pytest.raises(RequestError, match="line 3 stands in line 1") as error:
        read_manifest(write_manifest(source, *rows))
    assert error.value.code == "batch.id"


@pytest.mark.parametrize("interrupts", [1, 2])
def test_an_interrupt_begins_no_row_and_a_second_cancels(
    pipeline: Pipeline, runner: Any, source: Path, tmp_path: Path, interrupts: int
) -> None:
    seen: list[int] = []
    encode = runner.text_encoder

    def encode_and_interrupt(ids: Any) -> Any:
        seen.extend([signal.SIGINT] * interrupts)
        if interrupts == 2:
            # The batch looks five times a second, and cancels before the next graph.
            stopped.wait(20)
        return encode(ids)

    stopped = threading.Event()
    runner.text_encoder = encode_and_interrupt

    def count() -> int:
        if len(seen) > 1:
            looks.append(1)
            if len(looks) > 3:
                stopped.set()
        return len(seen)

    looks: list[int] = []
    report = run(pipeline, source, tmp_path / "out", num_interrupts=count)
    assert (report.num_done, report.num_left, report.failures) == (
        (1, 2, []) if interrupts == 1 else (0, 3, [])
    )
    assert len(results_in(tmp_path / "out")) == report.num_done
    assert not report.is_complete
    runner.text_encoder = encode
    assert run(pipeline, source, tmp_path / "out").is_complete


def test_two_batches_do_not_share_a_folder(tmp_path: Path) -> None:
    with BatchFolder(tmp_path / "out"), pytest.raises(RequestError) as error:
        BatchFolder(tmp_path / "out")
    assert error.value.code == "batch.locked"
    with BatchFolder(tmp_path / "out"):
        pass


def test_a_folder_that_cannot_be_written_ends_the_batch(
    pipeline: Pipeline, runner: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise MediaError("the disk is full", code="media.unwritable")

    monkeypatch.setattr(media, "write_clip", refuse)
    with pytest.raises(MediaError, match="the disk is full"):
        run(pipeline, source, tmp_path / "out")
    monkeypatch.undo()
    assert runner.count("vae_decoder_first") <= 2
    assert run(pipeline, source, tmp_path / "out").num_done == 3
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MediaError, match="cannot be used as a folder"):
        BatchFolder(tmp_path / "file")


def test_a_folder_of_clips_is_rows_with_one_instruction(
    source: Path, blocky_clip: Callable[..., Any]
) -> None:
    media.write_clip(source / "in.mp4", blocky_clip(5), 8.0)
    media.write_clip(source / "ängste.mp4", blocky_clip(5), 8.0)
    (source / "broken.png").write_bytes(b"x")
    (source / "notes.txt").write_bytes(b"x")
    (source / ".hidden.png").write_bytes(b"x")
    rows, failures = rows_of_folder(source, "Make it night")
    assert [(row.id, row.request.prompt, list(row.request.inputs)) for row in rows] == [
        ("in.mp4", "<video1> Make it night", ["video1"]),
        ("in.png", "<image1> Make it night", ["image1"]),
        ("ängste", "<video1> Make it night", ["video1"]),
    ]
    assert [failure.id for failure in failures] == ["broken"]


def test_workers_are_the_queue_s(pipeline: Pipeline, source: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="num_workers is 2"):
        run(pipeline, source, tmp_path / "out", num_workers=2)


def test_over_a_cluster_results_are_those_of_a_queue_and_either_goes_on(
    pipeline: Pipeline,
    runner: Any,
    source: Path,
    tmp_path: Path,
    fake_ray: FakeRay,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Opener:
        @staticmethod
        def open(bundle: str, backend: str, **options: Any) -> Pipeline:
            opened.append((bundle, backend, options))
            return pipeline

    def run_on_cluster(out: Path, interrupts: list[int]) -> BatchReport:
        rows, failures = read_manifest(source / "rows.jsonl")
        options = ClusterOptions(None, str(pipeline.bundle.root), "ort-cpu", {"num_threads": 1})
        with BatchFolder(out) as folder:
            return run_ray_batch(
                rows, folder, options, failures=failures, num_interrupts=lambda: len(interrupts),
                on_progress=lambda *numbers: interrupts.append(1) if numbers[0] == stop_at else None,
            )  # fmt: skip

    opened: list[Any] = []
    monkeypatch.setattr(ray_batch, "Pipeline", Opener)
    write_manifest(
        source,
        *(source / "rows.jsonl").read_text("utf-8").splitlines(),
        {"id": "bad", "prompt": PROMPT, "schedule": "none"},
    )
    run(pipeline, source, tmp_path / "queue")
    expected = results_in(tmp_path / "queue")
    assert len(expected) == 3

    # Stopped in the middle, then finished by a queue, then there is nothing to do.
    stop_at = 1
    report = run_on_cluster(tmp_path / "out", [])
    assert (report.num_done, report.num_left) == (2, 2)  # the one that ran beside it is finished
    assert opened == [(str(pipeline.bundle.root), "ort-cpu", {"num_threads": 1})] * 2
    assert run(pipeline, source, tmp_path / "out").num_found == 2
    stop_at = -1
    report = run_on_cluster(tmp_path / "out", [])
    assert (report.num_done, report.num_found) == (3, 3)
    assert [(failure.id, failure.to_json()["code"]) for failure in report.failures] == [
        ("bad", "request.unknown_schedule")
    ]
    assert results_in(tmp_path / "out") == expected

    # From nothing, with a process that ends at one row.
    encode = runner.text_encoder

    def end(ids: Any) -> Any:
        runner.text_encoder = encode
        raise SystemExit(1)

    runner.text_encoder = end
    report = run_on_cluster(tmp_path / "ray", [])
    codes = {failure.id: failure.to_json()["code"] for failure in report.failures}
    assert codes == {"edit": "backend.process", "bad": "request.unknown_schedule"}
    run_on_cluster(tmp_path / "ray", [])
    assert results_in(tmp_path / "ray") == expected
    assert not fake_ray.is_initialized()


def test_two_processes_that_write_one_row_do_not_touch_each_other(
    pipeline: Pipeline, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the process of a driver that was killed still writes when the next run has come to the same row."""
    (row,) = [row for row in read_manifest(source / "rows.jsonl")[0] if row.id == "still"]
    result = pipeline(row.request)
    real, inside = os.replace, []

    def replace(partial: Path, path: Path) -> None:
        if not inside and Path(path).parent == tmp_path:
            inside.append(partial)
            save_result(tmp_path, row, result)  # the other one, from its beginning to its end
        real(partial, path)

    monkeypatch.setattr(os, "replace", replace)
    path = save_result(tmp_path, row, result)
    assert inside
    assert len(list(tmp_path.glob("*.png"))) == 1
    assert np.array_equal(
        media.read_clip(path, num_frames=1, height_px=48, width_px=48).frames, result.frames
    )
