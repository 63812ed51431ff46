"""The benchmarks on tiny sizes: what they count adds up, and what they compare is compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import peers, scaling, throughput, versus
from benchmarks.clock import Sample
from benchmarks.contenders import CONTENDERS, OURS, REFERENCE, why_missing
from benchmarks.machine import describe_machine, measure_matrix_peak
from benchmarks.results import read_results
from benchmarks.work import Work, draw_clip, draw_text, draw_transformer_inputs, prepare_work, tokens_of
from benchmarks.worker import Worker, WorkerError
from editverse_rt.backends import select_backend
from editverse_rt.bundle.interface import FAMILIES, interfaces_of
from editverse_rt.bundle.manifest import load_bundle
from editverse_rt.request.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
NANO = load_bundle("nano")
FORMS = {"bundle": str(NANO.root), "checkpoint": str(ROOT / "reference" / "nano" / "checkpoint")}
TEXT = Work("text", "nano", "text_encoder", tokens=4)


@pytest.mark.parametrize("count", [64, 1000, 1024, 4097])
def test_a_transformers_work_has_the_tokens_that_it_says(count: int):
    inputs = draw_transformer_inputs(NANO, count)
    tokens = tokens_of(inputs)
    assert tokens.total == count
    assert tokens.text + tokens.clean + tokens.noisy + 4 == count
    assert sorted(inputs["layout"].tolist())[:-3] == sorted(set(inputs["layout"].tolist()))[:-1]
    assert tokens.clean == tokens.noisy > 0.3 * (count - 40)


@pytest.mark.parametrize("count", [2, 24, 300])
def test_text_is_an_instruction_of_so_many_tokens(count: int):
    ids = draw_text(NANO, count)
    assert ids.shape == (count,)
    assert ids.dtype == np.int64
    assert ids[-1] == NANO.spec.tokenizer.eos_id
    tokenizer = Tokenizer(NANO.tokenizer_path(), NANO.spec.tokenizer.eos_id, 100)
    assert ids[0] == tokenizer.encode_segments(["Turn the red circle"])[0][0]


def test_too_few_tokens_are_refused():
    with pytest.raises(ValueError, match="at least 64"):
        draw_transformer_inputs(NANO, 63)


def test_work_that_the_vae_has_no_sizes_for_is_refused():
    with pytest.raises(ValueError, match=r"8 frames of 64x64.*1 \+ 4 k"):
        prepare_work(Work("w", "nano", "vae_encoder", frames=8, height_px=64, width_px=64), NANO, None)  # type: ignore[arg-type]


def test_the_vaes_work_goes_through_all_chunks():
    clip = draw_clip(9, 32, 32)
    assert clip.shape == (9, 32, 32, 3)
    with select_backend("ort-cpu", NANO).backend.open_runner(NANO, 1) as runner:
        work = Work("w", "nano", "vae_encoder", frames=9, height_px=32, width_px=32)
        patches = prepare_work(work, NANO, runner)()
        assert patches.shape == (3 * 2 * 2, NANO.spec.geometry.patch_dim)
        work = Work("w", "nano", "vae_decoder", frames=5, height_px=32, width_px=32)
        assert prepare_work(work, NANO, runner)().shape == (5, 32, 32, 3)


def test_a_result_is_held_to_pytorchs():
    frames = np.full((2, 8, 8, 3), 100, np.uint8)
    assert peers.compare_results(frames + 1, frames) == (0.0, peers.MAX_SHARE_OFF)
    assert peers.compare_results(frames + 2, frames)[0] == 1.0
    rows = np.full((4, 4), 2.0, np.float32)
    assert peers.compare_results(rows * 1.5, rows) == (0.5, peers.MAX_RELATIVE_ERROR)
    assert peers.compare_results(rows[:2], rows)[0] == float("inf")


@pytest.mark.parametrize(("decibels", "agrees"), [(30.2, True), (29.8, False)])
def test_another_schedule_is_held_to_30_db(decibels: float, agrees: bool):
    rng = np.random.default_rng(0)
    expected = rng.integers(60, 190, (4, 32, 32, 3), dtype=np.uint8)
    off = 255 * 10 ** (-decibels / 20)
    signs = rng.choice([-1, 1], expected.shape)
    # Of whole grey levels, mixed so that the mean square is that of `off`.
    low = int(off)
    share = (off**2 - low**2) / ((low + 1) ** 2 - low**2)
    size = low + (rng.random(expected.shape) < share)
    distance, tolerance = peers.compare_results(
        (expected + signs * size).astype(np.uint8), expected, by_other_schedule=True
    )
    assert (distance <= tolerance) is agrees
    assert -20 * np.log10(distance) == pytest.approx(decibels, abs=0.05)


def test_the_fast_schedule_is_set_against_the_references_own_loop():
    work = replace(next(work for work in peers.WORKS if work.name == "edit-fast"), frames=1, steps=2)
    rows = peers.measure_work(work, FORMS, [REFERENCE, "onnxruntime", OURS], threads=1, repeats=1)
    assert [row["contender"] for row in rows] == [REFERENCE, OURS]
    assert {row["tolerance"] for row in rows if row["contender"] == OURS} == {peers.MAX_DISTANCE}


def test_what_is_not_installed_is_named():
    missing = {name: why_missing(name) for name in CONTENDERS}
    assert missing[REFERENCE] is None
    assert missing[OURS] is None
    assert missing["openvino"] is None or "pip install '.[bench]'" in missing["openvino"]


def test_this_project_is_measured_beside_the_reference():
    rows = peers.measure_work(TEXT, FORMS, [REFERENCE, OURS], threads=1, repeats=1)
    by_name = {row["contender"]: row for row in rows}
    assert by_name[OURS]["agrees"]
    assert by_name[OURS]["error"] > 0, "two programs, not one twice"
    assert by_name[REFERENCE]["peak_bytes"] > by_name[OURS]["peak_bytes"] > 10_000_000


def test_work_that_needs_the_memory_runs_one_process_at_a_time():
    rows = peers.measure_work(TEXT, FORMS, [REFERENCE, OURS], threads=1, repeats=2, max_s=0, apart=True)
    assert [row["repeats"] for row in rows] == [1, 1], "max_s ends it after the first turn"
    assert all(row["agrees"] and row["first_wall_s"] > row["wall_s"] > 0 for row in rows)
    bad = Work("w", "nano", "vae_encoder", frames=2, height_px=32, width_px=32)
    with pytest.raises(WorkerError, match="pytorch failed to open"):
        peers.measure_work(bad, FORMS, [REFERENCE], threads=1, repeats=1, apart=True)


def test_a_bundle_is_as_fast_as_itself_and_gives_the_same_bytes():
    row = versus.measure_versus(TEXT, ("nano", str(NANO.root)), 1, 1)
    assert row["is_equal"]
    assert row["error"] == 0
    assert row["factor"] > 0
    assert len(row["peak_bytes"]) == 2


def test_transformers_are_compared_at_the_sizes_asked_for(tmp_path: Path):
    out = tmp_path / "versus.json"
    arguments = ["nano", "nano", "--tokens", "64", "70", "--repeats", "1", "--out", str(out)]
    assert versus.main(arguments) == 0
    rows = read_results(out).rows
    assert [row["work"] for row in rows] == ["transformer, 64 tokens", "transformer, 70 tokens"]


def test_a_worker_that_fails_says_at_what():
    bad = Work("w", "nano", "vae_encoder", frames=2, height_px=32, width_px=32)
    with pytest.raises(WorkerError, match=r"editverse-rt failed to open.*2 frames of 32x32"):
        Worker(OURS, bad, FORMS, 1).__enter__()
    with pytest.raises(WorkerError, match="enter it first"):
        Worker(OURS, TEXT, FORMS, 1).run()


@pytest.mark.parametrize("concurrency", [1, 2])
def test_the_throughput_of_a_request_adds_up(concurrency: int, tmp_path: Path):
    out = tmp_path / "throughput.json"
    size, turns = ["--frames", "5", "--size", "64x64", "--steps", "2"], ["--repeats", "1", "--batch", "2"]
    arguments = [*size, *turns, "--threads", "1", "--concurrency", str(concurrency)]
    assert throughput.main([*arguments, "--out", str(out)]) == 0
    results = read_results(out)
    stages = {row["stage"]: row for row in results.rows}
    own = [
        stage for stage in throughput.STAGES if stage != "condition"
    ]  # a control video's, which nano has none of
    assert list(stages) == [*own, "other", "end to end"]
    assert results.facts["requests"] == 2 * concurrency
    assert results.facts["evaluations"] == 4
    assert results.facts["peak_bytes"] > results.facts["bytes_before"]
    assert results.facts["cpu_s_per_request"] > 0
    counted = sum(row["flops"] for name, row in stages.items() if "flops" in row and name != "end to end")
    assert counted == stages["end to end"]["flops"] > 10**8
    assert stages["transformer"]["wall_s"] < stages["end to end"]["wall_s"]
    # The clock of CPU time is the process's: what another lane did meanwhile would be in it.
    of_cpu = {"cpu_s", "flops_per_cpu_s", "share_of_peak"}
    assert of_cpu & stages["transformer"].keys() == (of_cpu if concurrency == 1 else set())
    assert any(of_cpu & row.keys() for row in stages.values()) == (concurrency == 1)
    report = out.with_suffix(".md").read_text()
    assert report.startswith("nano on ort-cpu: 5 frames of 64x64, 2 steps")
    line = next(line for line in report.splitlines() if line.startswith("| transformer |"))
    _, _, _, cpu, _, _, share_of_peak = (cell.strip() for cell in line.strip("|").split("|"))
    assert (cpu != "", share_of_peak != "") == (concurrency == 1, concurrency == 1)
    assert out.with_suffix(".svg").read_text().startswith("<svg")


def test_every_graph_of_a_request_is_in_one_stage():
    staged = [graph for graphs in throughput.STAGES.values() for graph in graphs]
    assert len(staged) == len(set(staged))
    tables = [interfaces_of(family, "none", ()) for family in FAMILIES]
    tables.append(interfaces_of("wan", "control", ()))
    assert {graph for table in tables for graph in table} == set(staged)


@pytest.mark.parametrize("apart", [False, True])
def test_the_first_call_is_told_by_both_clocks(apart: bool, monkeypatch: pytest.MonkeyPatch):
    """Not the wall clock of the first call beside the CPU time of a later, warm one."""

    class Counted(Worker):
        calls = 0

        def run(self) -> Sample:
            super().run()
            self.calls += 1
            return Sample(100.0 / self.calls, 90.0 / self.calls)

    monkeypatch.setattr(peers, "Worker", Counted)
    (row,) = peers.measure_work(TEXT, FORMS, [REFERENCE], threads=1, repeats=1, apart=apart)
    assert (row["first_wall_s"], row["first_cpu_s"]) == (100.0, 90.0)
    assert row["wall_s"] < 60


def test_exponents_are_those_of_the_law_that_made_the_values():
    sizes = [1, 2, 4, 8]
    assert scaling.fit_exponent(sizes, [3 * size**2 for size in sizes]) == pytest.approx(2)
    assert scaling.fit_exponent(sizes, [7, 7, 7, 7]) == pytest.approx(0)
    with pytest.raises(ValueError, match="expected at least 2"):
        scaling.fit_exponent([4, 4], [1, 2])


def test_scaling_measures_points_in_processes_of_their_own(tmp_path: Path):
    out = tmp_path / "scaling.json"
    sizes = ["--tokens", "64", "128", "--frames", "5", "--side", "32", "--concurrency"]
    arguments = [*sizes, "--threads", "1", "--repeats", "1"]
    assert scaling.main([*arguments, "--out", str(out)]) == 0
    results = read_results(out)
    found = [(row["axis"], row["size"]) for row in results.rows]
    assert found == [("tokens", 64), ("tokens", 128), ("frames, encoder", 5), ("frames, decoder", 5)]
    assert list(results.facts["exponents"]) == ["tokens"]


def test_the_peak_of_this_machine_is_measured():
    peak = measure_matrix_peak(1, side=64, repeats=2)
    assert {"onnxruntime", "torch"} <= set(peak)
    assert all(values["flops_per_s"] > 0 for values in peak.values())
    facts = describe_machine()
    assert facts["cores"] >= 1
    assert facts["versions"]["onnxruntime"]
