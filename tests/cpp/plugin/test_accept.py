"""The acceptance of the GPU parts, without one: what runs, what is left out and why, what is written."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cpp.plugin import accept, acceptance_ort, acceptance_reference
from cpp.plugin.acceptance_report import Report
from reference.families.editverse import CONFIGS

ROOT = Path(__file__).parents[3]


def test_a_section_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    sections = {section.name: section for section in accept.SECTIONS}
    built, nothing = accept.Libraries(*[Path("library.so")] * 3), accept.Libraries()
    here = {"torch", "onnx", "onnx_ir", "onnxruntime"}
    monkeypatch.setattr(accept.importlib.util, "find_spec", lambda name: object() if name in here else None)

    def find(name: str, libraries: accept.Libraries, has_gpu: bool) -> str | None:
        return accept.find_obstacle(sections[name], libraries, has_gpu)

    assert find("tensorrt", built, True) == "tensorrt not installed"
    assert find("emulation", built, False) is None
    assert find("emulation", nothing, False) == "needs a C++ compiler"
    assert find("bits", nothing, True) == "needs nvcc, CMake and a C++ compiler"
    assert [name for name in sections if find(name, built, False) is None] == ["emulation"]
    assert [name for name in sections if find(name, built, True) is not None] == ["tensorrt"]
    here.remove("onnx_ir")
    assert [name for name in sections if find(name, built, True) is not None] == ["emulation", "tensorrt"]


def test_what_was_found_is_written_at_once(tmp_path: Path) -> None:
    report = Report(tmp_path / "folder" / "acceptance.md", ["a machine"])
    report.run("first", "a check", lambda: (True, "as it | should\nbe"))
    text = report.file.read_text()
    assert "| first | passed | a check: as it / should be |" in text
    assert not report.failed

    def fail() -> tuple[bool, str]:
        raise RuntimeError("the device is gone")

    report.run("second", "a check", fail)
    for tokens in (1, 2):
        report.add_row("Milliseconds", ("tokens", "ours"), (tokens, 0.5))
    text = report.file.read_text()
    assert "| second | FAILED | a check: RuntimeError: the device is gone |" in text
    assert "| tokens | ours |\n| --- | --- |\n| 1 | 0.5 |\n| 2 | 0.5 |" in text
    assert report.failed


def test_a_section_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    class Module:
        @staticmethod
        def run(report: Report, libraries: accept.Libraries) -> None:
            ran.append("run")
            if len(ran) == 1:
                raise RuntimeError("no kernel image")
            report.add("second", "passed", "fine")

    sections = [accept.Section(name, "a_module", (), needs_gpu=False) for name in ("first", "second")]
    monkeypatch.setattr(accept, "SECTIONS", sections)
    monkeypatch.setattr(accept, "build", lambda folder, report: accept.Libraries())
    monkeypatch.setattr(accept.importlib, "import_module", lambda name: Module)
    monkeypatch.setattr(sys, "argv", ["accept", "--build", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        accept.main()
    assert stopped.value.code == 1
    text = (tmp_path / "acceptance.md").read_text()
    assert "| first | FAILED | RuntimeError: no kernel image |" in text
    assert "| second | passed | fine |" in text


def test_a_bare_machine_needs_no_av_nor_the_exports_packages() -> None:
    """Only PyTorch and numpy, onnxruntime for its own section."""
    absent = (
        "av",
        "sentencepiece",
        "onnx",
        "onnx_ir",
        "onnxscript",
        "safetensors",
        "diffusers",
        "transformers",
    )
    modules = ("accept", "acceptance_kernels", "acceptance_torch", "acceptance_reference", "acceptance_ort")
    script = f"import sys, importlib\nfor n in {absent}: sys.modules[n] = None\n"
    script += f"for n in {modules}: importlib.import_module('cpp.plugin.' + n)\nprint('imported')"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "imported\n", done.stderr


def test_the_comparison_of_graphs_on_the_cpu_twice(tmp_path: Path) -> None:
    report = Report(tmp_path / "acceptance.md")
    acceptance_ort.run(report, accept.Libraries(), backend="ort-cpu")
    assert not report.failed
    compared = {detail.split(",")[0] for _, _, detail in report.lines}
    assert {"transformer", "solver_step", "text_encoder", "vae_encoder_next", "vae_decoder_next"} <= compared
    assert "noise" not in compared
    assert all("off by 0.0e+00" in detail for *_, detail in report.lines)


def test_a_backend_that_is_not_here_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state: Any = accept.argparse.Namespace(name="ort-cuda", reason="no CUDA here", version=None)
    monkeypatch.setattr(acceptance_ort, "list_backends", lambda: (state,))
    report = Report(tmp_path / "acceptance.md")
    acceptance_ort.run(report, accept.Libraries())
    assert report.lines == [("ort-cuda", "not run", "no CUDA here")]


def test_the_reference_is_timed_on_inputs_that_it_takes() -> None:
    """Two small blocks on the CPU in the place of the 2 B model on a GPU."""
    config = dataclasses.replace(
        CONFIGS["editverse-2b"], width=64, num_blocks=2, num_heads=2, mlp_width=64, time_width=32, text_dim=32
    )
    network = acceptance_reference.make_network(config, "cpu")
    inputs = acceptance_reference.make_inputs(config, 101, "cpu")
    layout, positions = inputs[3], inputs[4]
    assert sorted(set(layout.tolist())) == list(range(101 - 2)), "every row, and two marks twice"
    assert len(layout) == len(positions) == 101
    assert len(acceptance_reference.time_evaluation(network, inputs, 2)) == 2
