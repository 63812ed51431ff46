"""Words in the wrong place: an instruction without quotes or in front, and options that are called otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from editverse_rt.commands.main import main


@pytest.fixture
def clip(tmp_path: Path) -> str:
    """The path of a file that is there; nothing here opens it."""
    path = tmp_path / "in.mp4"
    path.write_bytes(b"video")
    return str(path)


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a command that is refused."""
    assert main(list(words)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    "words",
    [["CLIP", "Make", "it", "night"], ["Make it night", "CLIP"], ["Make", "it", "night", "CLIP"]],
    ids=["no quotes", "in front", "in front without quotes"],
)
def test_an_instruction_among_the_inputs_is_told_its_place(
    words: list[str], clip: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = [clip if word == "CLIP" else word for word in words]
    line = complaint(capsys, "edit", *given, "-o", str(tmp_path / "out.mp4"))
    assert "Make" in line
    assert "the instruction in quotes" in line


def test_a_video_that_is_missing_is_a_missing_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = complaint(
        capsys, "edit", str(tmp_path / "no.mp4"), "Make it night", "-o", str(tmp_path / "out.mp4")
    )
    assert "no.mp4: no such file" in line
    assert "quotes" not in line


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("--steps", "--num-inference-steps"),
        ("--steps=4", "--num-inference-steps"),
        ("--guidance", "--guidance-scale"),
        ("--sed", "--seed"),
        ("--num-frame", "--frames"),
        ("--zzz", "--help lists the options"),
    ],
)
def test_an_option_that_does_not_exist_is_led_to_one_that_does(
    word: str, advice: str, clip: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = complaint(capsys, "edit", clip, "Make it night", "-o", str(tmp_path / "out.mp4"), word)
    assert repr(word) in line
    assert advice in line


def test_a_prompt_without_quotes_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = complaint(capsys, "generate", "hi", "there", "-o", str(tmp_path / "out.mp4"))
    assert "'there'" in line
    assert "quotes" in line
