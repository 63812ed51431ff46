"""The command line with a pipeline that records what it is asked for and computes nothing."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from editverse_rt import media
from editverse_rt.commands import edit
from editverse_rt.commands.arguments import parse_arguments
from editverse_rt.commands.main import COMMANDS, main
from editverse_rt.errors import BackendError, BundleError, RequestCancelled, RequestError
from editverse_rt.request.edit_request import EditRequest
from editverse_rt.request.options import OPTIONS, Option
from editverse_rt.request.prompt import parse_prompt


@dataclass
class FakeResult:
    frames: np.ndarray
    fps: float = 8.0
    timings: dict[str, float] = field(default_factory=lambda: {"total": 1.0})
    sources: tuple[np.ndarray, ...] = ()
    notices: tuple[str, ...] = (
        "took the first 5 of 90 frames; choose others with --start, --frames or --fps",
    )

    def save(self, path: Path, *, audio: bool, is_cancelled: Any) -> tuple[str, ...]:
        Path(path).write_bytes(b"saved")
        return ("the sound was left out",)


class FakePipeline:
    """Stands in for Pipeline; class attributes hold what the last one was asked for."""

    opened: tuple[Any, ...] = ()
    prompt = ""
    asked: dict[str, Any] = {}  # noqa: RUF012
    failure: BaseException | None = None
    closed = False

    @classmethod
    def open(cls, bundle: str, backend: str, *, num_threads: int | None, **_: bool) -> FakePipeline:
        FakePipeline.opened = (bundle, backend, num_threads)
        FakePipeline.closed = False
        return cls()

    def __enter__(self) -> FakePipeline:
        return self

    def __exit__(self, *exception: object) -> None:
        FakePipeline.closed = True

    def info(self) -> dict[str, Any]:
        return {"bundle": "nano", "backend": "ort-cpu"}

    def prepare(self, request: EditRequest) -> SimpleNamespace:
        return SimpleNamespace(
            request=request, inputs=SimpleNamespace(main=None, expected_windows=1, expected_fps=8.0)
        )

    def run(self, checked: SimpleNamespace, *, callback_on_step_end: Any, is_cancelled: Any) -> FakeResult:
        request: EditRequest = checked.request
        asked: dict[str, Any] = {option.name: getattr(request, option.name) for option in OPTIONS}
        FakePipeline.prompt, FakePipeline.asked = (
            request.prompt,
            {**asked, **{name: os.fspath(path) for name, path in request.inputs.items()}},
        )
        for step in range(4):
            if callback_on_step_end is not None:
                facts = {"num_inference_steps": 4, "window": 0, "num_windows": 1}
                assert callback_on_step_end(self, step, step / 4, facts) is not False
            if FakePipeline.failure is not None:
                raise FakePipeline.failure
        height, width = asked["size"] or (32, 48)
        frames = np.zeros((asked["num_frames"] or 5, height, width, 3), np.uint8)
        return FakeResult(frames, sources=(frames,) * len(request.inputs))


@pytest.fixture(autouse=True)
def fake_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edit, "Pipeline", FakePipeline)
    monkeypatch.setattr(FakePipeline, "failure", None)


@pytest.fixture
def clip(tmp_path: Path) -> str:
    path = tmp_path / "clip.mp4"
    media.write_clip(path, np.full((3, 32, 32, 3), 90, np.uint8), 8.0)
    return str(path)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    media.write_image(path, np.full((32, 32, 3), 90, np.uint8))
    return str(path)


@pytest.fixture
def out(tmp_path: Path) -> str:
    return str(tmp_path / "out.mp4")


# --- what the pipeline is asked for -----------------------------------------------------------------------


def test_inputs_are_named_by_kind_and_order(clip: str, picture: str, out: str) -> None:
    assert main(["edit", picture, clip, picture, clip, "Blend <video2> all", "-o", out]) == 0
    inputs = {name: path for name, path in FakePipeline.asked.items() if name[-1].isdigit()}
    assert inputs == {"image1": picture, "video1": clip, "image2": picture, "video2": clip}
    assert FakePipeline.prompt == "Blend <video2> all"


def test_instruction_without_tags_gets_them_in_front(clip: str, picture: str, out: str) -> None:
    assert main(["edit", picture, clip, "Insert it", "-o", out]) == 0
    assert FakePipeline.prompt == "<image1> <video1> Insert it"


@pytest.mark.parametrize(
    ("instruction", "line"),
    [
        ("Insert it", None),
        ("<image1> Insert it in <video1>", None),
        ("<video1> Insert it", "image1 is given, but the instruction does not mention <image1>"),
        ("<Video1> Insert it", 'the instruction has "<Video1>", which is not a tag'),
        ("", "the instruction is empty"),
    ],
)
def test_plan_takes_and_refuses_the_instructions_that_edit_does(
    instruction: str, line: str | None, clip: str, picture: str, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pipeline is a stand-in here, so what it would refuse is asked of `parse_prompt`."""
    assert main(["edit", picture, clip, instruction, "-o", out, "--quiet"]) == 0
    if line is None:
        parse_prompt(FakePipeline.prompt, ["image1", "video1"])
    else:
        with pytest.raises(RequestError, match=re.escape(line)):
            parse_prompt(FakePipeline.prompt, ["image1", "video1"])
    capsys.readouterr()
    code = main(["plan", "--input", picture, "--input", clip, "--prompt", instruction])
    errors = capsys.readouterr().err
    assert code == (0 if line is None else 2), errors
    assert (line or "") in errors


def test_options_reach_the_pipeline(clip: str, out: str) -> None:
    options = (
        "--num-inference-steps 12 --guidance-scale 2.5 --seed 7 --frames 9 --size 128x96 --fps 12.5 "
        "--start 1.5 --negative-prompt blur --strength 0.5 --bundle my/bundle --backend ort-cpu "
        "--schedule fast --threads 2"
    )
    assert main(["edit", clip, "Invert it", "-o", out, *options.split()]) == 0
    assert FakePipeline.opened == ("my/bundle", "ort-cpu", 2)
    assert FakePipeline.asked == {
        "negative_prompt": "blur",
        "strength": 0.5,
        "num_inference_steps": 12,
        "guidance_scale": 2.5,
        "seed": 7,
        "schedule": "fast",
        "size": (96, 128),
        "num_frames": 9,
        "length": None,
        "fps": 12.5,
        "start_s": 1.5,
        "video1": clip,
    }
    assert FakePipeline.closed


def test_what_is_not_given_is_left_to_the_bundle(out: str) -> None:
    assert main(["generate", "A red circle", "-o", out]) == 0
    assert FakePipeline.opened == ("nano", "auto", None)
    defaults = dict.fromkeys(option.name for option in OPTIONS if option.default is None)
    assert FakePipeline.asked == {**defaults, "seed": 0, "start_s": 0.0}
    assert FakePipeline.prompt == "A red circle"


@pytest.mark.parametrize(
    "order",
    [
        "edit CLIP TEXT -o OUT --seed 3",
        "edit -o OUT --seed 3 CLIP TEXT",
        "edit CLIP -o OUT TEXT --seed 3",
        "edit --seed 3 CLIP -o OUT TEXT",
        "edit -o OUT --seed 3 -- CLIP TEXT",
    ],
)
def test_options_may_stand_anywhere(clip: str, out: str, order: str) -> None:
    words = {"CLIP": clip, "TEXT": "Turn the circle green", "OUT": out}
    assert main([words.get(word, word) for word in order.split()]) == 0
    assert FakePipeline.prompt == "<video1> Turn the circle green"
    assert FakePipeline.asked["seed"] == 3
    assert FakePipeline.asked["video1"] == clip


@pytest.mark.parametrize(
    ("name", "num_frames"), [("out.PNG", 1), ("100%.png", 1), ("out_%04d.png", None), ("out_%04d.jpg", None)]
)
def test_a_picture_as_output_is_one_frame(
    clip: str, tmp_path: Path, name: str, num_frames: int | None
) -> None:
    assert main(["edit", clip, "Invert it", "-o", str(tmp_path / name)]) == 0
    assert FakePipeline.asked["num_frames"] == num_frames


@given(width=st.integers(0, 999_999), height=st.integers(0, 999_999), letter=st.sampled_from("xX"))
def test_size_is_width_by_height(width: int, height: int, letter: str) -> None:
    _, args = parse_arguments(
        ["generate", "x", "-o", "x.mp4", "--size", f"{width}{letter}{height}"], COMMANDS
    )
    assert args.size == (height, width)


@pytest.mark.parametrize("option", OPTIONS, ids=[option.name for option in OPTIONS])
def test_an_option_is_refused_by_its_flag(
    option: Option, clip: str, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the library's words with the flag for the name; a text may be anything."""
    if option.kind == "text":
        return
    assert main(["edit", clip, "x", "-o", out, f"{option.flag}=-x"]) == 2
    said = f"editverse-rt: error: {option.flag} is '-x'; expected {option.expected}\n"
    assert capsys.readouterr().err == said


def test_help_shows_every_option_with_its_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["edit", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for option in OPTIONS:
        assert f"{option.flag} {option.metavar}" in text
        assert option.help.split(" (")[0] in text.replace("- ", "-")


# --- a request from a file ------------------------------------------------------------------------------


def write_request(folder: Path, **fields: Any) -> str:
    path = folder / "request.json"
    path.write_text(json.dumps(fields), "utf-8")
    return str(path)


def test_a_request_file_is_relative_to_itself_and_the_command_line_wins(
    clip: str, picture: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_request(
        tmp_path, prompt="Insert it", inputs={"video1": "clip.mp4"}, seed=3, strength=0.25, fps=12
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["edit", "--request", file, "-o", out, "--seed", "0", "--negative-prompt", "blur"]) == 0
    assert FakePipeline.prompt == "<video1> Insert it"
    wanted = {"seed": 0, "strength": 0.25, "fps": 12.0, "negative_prompt": "blur", "video1": clip}
    assert wanted.items() <= FakePipeline.asked.items()
    assert main(["edit", "--request", file, "-o", out, "Make it night"]) == 0
    assert (FakePipeline.prompt, FakePipeline.asked["video1"]) == ("<video1> Make it night", clip)
    assert main(["edit", picture, "Make it night", "--request", file, "-o", out]) == 0
    assert FakePipeline.prompt == "<image1> Make it night"
    assert "video1" not in FakePipeline.asked
    assert FakePipeline.asked["seed"] == 3


def test_a_request_file_generates(out: str, tmp_path: Path) -> None:
    file = write_request(tmp_path, prompt="A red circle", size="64x48")
    assert main(["generate", "--request", file, "-o", out]) == 0
    assert (FakePipeline.prompt, FakePipeline.asked["size"]) == ("A red circle", (48, 64))


@pytest.mark.parametrize(
    ("command", "fields", "line"),
    [
        ("edit", {"prompt": "x", "sed": 1}, 'field "sed" is 1; expected no field of this name'),
        ("edit", {"inputs": {}}, 'field "prompt" is missing'),
        ("edit", {"prompt": "x", "seed": "1"}, "--seed is '1'; expected a whole number"),
        ("edit", {"prompt": "x", "inputs": {"video": "clip.mp4"}}, 'an input is called "video"'),
        (
            "generate",
            {"prompt": "x", "inputs": {"video1": "clip.mp4"}},
            "has inputs; expected a request without",
        ),
    ],
)
def test_a_request_file_is_refused_by_field(
    command: str, fields: Any, line: str, out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--request", write_request(tmp_path, **fields), "-o", out]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "words", [["edit", "-o", "x.mp4"], ["generate", "-o", "x.mp4"], ["edit", "x", "-o", "x.mp4"]]
)
def test_words_or_a_request_file_are_needed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "--request" in capsys.readouterr().err


# --- what is printed --------------------------------------------------------------------------------------


def test_result_and_notices_are_told(clip: str, out: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["edit", clip, "Invert it", "-o", out]) == 0
    stdout, stderr = capsys.readouterr()
    assert stdout.startswith(f"{out}: 48x32, 5 frames at 8 fps, seed 0, ")
    assert len(stdout.splitlines()) == 1
    notices = [line for line in stderr.splitlines() if line.startswith("editverse-rt: ")]
    assert [line.split()[1] for line in notices] == ["took", "the"]
    assert "100%|##########| 4/4 [" in stderr
    assert Path(out).read_bytes() == b"saved"


def test_quiet_prints_nothing(clip: str, out: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["edit", clip, "Invert it", "-o", out, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_json_is_one_object(clip: str, out: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["edit", clip, "Invert it", "-o", out, "--json", "--seed", "5"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["output"] == out
    assert facts["prompt"] == "<video1> Invert it"
    assert (facts["frames"], facts["height"], facts["width"], facts["fps"]) == (5, 32, 48, 8.0)
    assert facts["seed"] == 5
    assert facts["timings"] == {"total": 1.0}
    assert len(facts["notices"]) == 2
    assert facts["pipeline"]["backend"] == "ort-cpu"


def test_preview_shows_source_over_result(clip: str, out: str, tmp_path: Path) -> None:
    preview = tmp_path / "sheet.png"
    assert main(["edit", clip, "Invert it", "-o", out, "--preview", str(preview), "--quiet"]) == 0
    both = media.probe(preview)
    assert main(["generate", "Invert it", "-o", out, "--preview", str(preview), "--quiet"]) == 0
    assert both.kind == "image"
    assert both.height_px > media.probe(preview).height_px


@pytest.mark.parametrize("command", ["edit", "generate", "info", "doctor"])
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main([command, "--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    assert f"  editverse-rt {command}" in text
    assert "exit codes" in text


# --- exit codes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [BundleError, BackendError])
def test_errors_of_the_tree_are_exit_code_2(
    out: str, error: type[Exception], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakePipeline, "failure", error("one thing was found,\nanother expected"))
    assert main(["generate", "A red circle", "-o", out, "--quiet"]) == 2
    assert capsys.readouterr().err == "editverse-rt: error: one thing was found, another expected\n"
    assert FakePipeline.closed
    assert not Path(out).exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RequestCancelled("stopped by Ctrl-C")])
def test_interruption_is_exit_code_130(
    out: str, error: BaseException, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakePipeline, "failure", error)
    assert main(["generate", "A red circle", "-o", out, "--quiet"]) == 128 + signal.SIGINT
    assert capsys.readouterr().err.startswith("editverse-rt: error: stopped by Ctrl-C")
    assert not Path(out).exists()


def test_a_bug_is_not_dressed_up(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakePipeline, "failure", ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        main(["generate", "A red circle", "-o", out, "--quiet"])


def test_nothing_is_opened_for_an_output_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakePipeline, "opened", ("not opened",))
    assert main(["generate", "A red circle", "-o", str(tmp_path / "nowhere" / "out.mp4")]) == 2
    assert FakePipeline.opened == ("not opened",)
