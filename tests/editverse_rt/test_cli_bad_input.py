"""Every bad input: exit code 2, exactly one line on standard error, no traceback, nothing half-written."""

from __future__ import annotations

import dataclasses
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

import editverse_rt
from editverse_rt import cli, video
from editverse_rt.bundle import BUNDLE_JSON, file_specs, load_bundle, write_bundle_json

Refuse = Callable[..., str]


@pytest.fixture
def refuse(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Refuse:
    """Run the command line in this process on input that it has to refuse; return its one line."""

    def run(*argv: str | Path, says: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        capfd.readouterr()
        code = cli.main([str(word) for word in argv])
        out, err = capfd.readouterr()
        assert code == 2, err
        assert "Traceback" not in err
        assert len(err.splitlines()) == 1, err
        assert err.endswith("\n")
        assert re.search(says, err), err
        assert out == ""
        assert sorted(tmp_path.rglob("*")) == before, "something was left behind"
        return err

    return run


def moving_square(num_frames: int = 5, height_px: int = 64, width_px: int = 64) -> np.ndarray:
    frames = np.full((num_frames, height_px, width_px, 3), 40, np.uint8)
    for i in range(num_frames):
        frames[i, 8 : height_px // 2, 4 * i : 4 * i + width_px // 3] = (200, 60, 20)
    return frames


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "in.mp4"
    video.write_clip(path, moving_square(), 8.0)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    video.write_image(path, moving_square(1)[0])
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.mp4"


# --- inputs -----------------------------------------------------------------------------------------------


def test_missing_video(refuse: Refuse, tmp_path: Path, out: Path) -> None:
    refuse(
        "edit", tmp_path / "nowhere.mp4", "Make it grayscale", "-o", out, says=r"nowhere\.mp4.*no such file"
    )


def test_truncated_video(refuse: Refuse, clip: Path, out: Path) -> None:
    clip.write_bytes(clip.read_bytes()[:200])
    refuse("edit", clip, "Make it grayscale", "-o", out, says=r"in\.mp4")


def test_text_file_named_mp4(refuse: Refuse, clip: Path, out: Path) -> None:
    clip.write_text("This is not a video.\n" * 50)
    refuse("edit", clip, "Make it grayscale", "-o", out, says=r"in\.mp4")


def test_empty_file(refuse: Refuse, clip: Path, out: Path) -> None:
    clip.write_bytes(b"")
    refuse("edit", clip, "Make it grayscale", "-o", out, says=r"in\.mp4.*empty")


def test_folder_as_video(refuse: Refuse, tmp_path: Path, out: Path) -> None:
    refuse("edit", tmp_path, "Make it grayscale", "-o", out, says="folder")


def test_video_of_zero_frames(refuse: Refuse, tmp_path: Path, out: Path) -> None:
    path = tmp_path / "none.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
    refuse("edit", path, "Make it grayscale", "-o", out, says=r"none\.mkv")


def test_only_audio(refuse: Refuse, tmp_path: Path, out: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), format="fltp", layout="mono")
        frame.rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    refuse("edit", path, "Make it grayscale", "-o", out, says="audio")


def test_start_beyond_the_end(refuse: Refuse, clip: Path, out: Path) -> None:
    refuse("edit", clip, "Make it grayscale", "-o", out, "--start", "60", says=r"60 s")


# --- the instruction --------------------------------------------------------------------------------------


def test_tag_without_its_input(refuse: Refuse, clip: Path, out: Path) -> None:
    refuse("edit", clip, "<video1> Insert <image1>", "-o", out, says=r"<image1>.*no image1")


def test_input_without_its_tag(refuse: Refuse, clip: Path, picture: Path, out: Path) -> None:
    refuse("edit", clip, picture, "<video1> Insert it", "-o", out, says=r"image1 is given.*<image1>")


def test_tag_in_a_prompt_without_inputs(refuse: Refuse, out: Path) -> None:
    refuse("generate", "<video1> A red circle", "-o", out, says=r"<video1>.*no video1")


@pytest.mark.parametrize("instruction", ["", "   ", "<video1>", " <video1>\n"])
def test_empty_instruction(refuse: Refuse, clip: Path, out: Path, instruction: str) -> None:
    refuse("edit", clip, instruction, "-o", out, says="instruction is empty")


def test_instruction_beyond_the_token_limit(refuse: Refuse, clip: Path, out: Path) -> None:
    limit = load_bundle("nano").spec.tokenizer.max_tokens
    refuse("edit", clip, "green " * limit, "-o", out, says=rf"tokens.*up to {limit}")


# --- options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", ["100000x100000", "999999x16", "0x0", "0x64", "1x1", "64", "-64x64", "64x64x64", "x"]
)
def test_absurd_sizes(refuse: Refuse, out: Path, size: str) -> None:
    refuse("generate", "A red circle", "-o", out, f"--size={size}", says=r"error: .*(size|WIDTH|px|x)")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--frames", "0"),
        ("--frames", "-3"),
        ("--frames", "100000"),
        ("--frames", "many"),
        ("--fps", "0"),
        ("--fps", "nan"),
        ("--fps", "inf"),
        ("--start", "-1"),
        ("--num-inference-steps", "0"),
        ("--guidance-scale", "nan"),
        ("--guidance-scale", "-1"),
        ("--threads", "0"),
        ("--schedule", "no-such-schedule"),
        ("--backend", "no-such-backend"),
        ("--bundle", "no-such-bundle"),
        ("--no-such-option", "1"),
    ],
)
def test_options_that_make_no_sense(refuse: Refuse, clip: Path, out: Path, option: str, value: str) -> None:
    refuse("edit", clip, "Make it grayscale", "-o", out, f"{option}={value}", says=r"error: ")


@pytest.mark.parametrize(
    "argv", [[], ["no-such-command"], ["edit"], ["edit", "in.mp4"], ["generate", "-o", "x.mp4"]]
)
def test_unfinished_commands(refuse: Refuse, argv: list[str]) -> None:
    refuse(*argv, says="--help")


def test_more_than_one_prompt(refuse: Refuse, out: Path) -> None:
    refuse("generate", "A red circle", "a blue one", "-o", out, says="a blue one")


def test_several_frames_for_a_picture(refuse: Refuse, tmp_path: Path) -> None:
    refuse("generate", "A red circle", "-o", tmp_path / "out.png", "--frames", "5", says="holds 1 frame")


# --- outputs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out", "out.txt", "out.mp3"])
def test_output_of_unknown_type(refuse: Refuse, clip: Path, tmp_path: Path, name: str) -> None:
    refuse("edit", clip, "Make it grayscale", "-o", tmp_path / name, says=r"\.mp4")


def test_output_in_a_missing_folder(refuse: Refuse, clip: Path, tmp_path: Path) -> None:
    refuse("edit", clip, "Make it grayscale", "-o", tmp_path / "nowhere" / "out.mp4", says="nowhere")


def test_output_below_a_file(refuse: Refuse, clip: Path) -> None:
    refuse("edit", clip, "Make it grayscale", "-o", clip / "out.mp4", says="cannot|can be written")


def test_output_is_a_folder(refuse: Refuse, clip: Path, out: Path) -> None:
    out.mkdir()
    refuse("edit", clip, "Make it grayscale", "-o", out, says="folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_in_a_read_only_folder(refuse: Refuse, clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    refuse("edit", clip, "Make it grayscale", "-o", folder / "out.mp4", says="locked")


def test_preview_of_unknown_type(refuse: Refuse, clip: Path, out: Path, tmp_path: Path) -> None:
    preview = tmp_path / "sheet.txt"
    refuse("edit", clip, "Make it grayscale", "-o", out, "--preview", preview, says=r"sheet\.txt.*\.png")


@pytest.mark.parametrize("name", ["out.mp4", "out.webm", "out.gif", "out.png"])
def test_full_disk(refuse: Refuse, tmp_path: Path, name: str) -> None:
    """A limit on the size of files stands in for a disk that fills up while the result is written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, limits[1]))
    try:
        argv = ["A red circle over noise", "-o", tmp_path / name, "--num-inference-steps", "1", "--quiet"]
        frames = [] if name == "out.png" else ["--frames", "5"]
        refuse("generate", *argv, *frames, says=re.escape(name))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_an_output_that_exists_survives_a_failure(refuse: Refuse, clip: Path, out: Path) -> None:
    out.write_bytes(b"an earlier result")
    refuse("edit", clip, "<video1> Insert <image1>", "-o", out, says="image1")
    assert out.read_bytes() == b"an earlier result"


# --- bundles ----------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of nano that may share its files with the original: replace a file, never write into one."""
    copy = tmp_path / "bundle"
    shutil.copytree(load_bundle("nano").root, copy, copy_function=link_or_copy)
    return copy


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def replace_file(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def generate(refuse: Refuse, bundle: Path, out: Path, says: str) -> None:
    refuse("generate", "A red circle", "-o", out, "--bundle", bundle, says=says)


def test_bundle_with_a_wrong_hash(refuse: Refuse, bundle: Path, out: Path) -> None:
    path = bundle / "tokenizer.model"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    replace_file(path, bytes(content))
    generate(refuse, bundle, out, r"tokenizer\.model.*sha256")
    refuse("info", bundle, says=r"tokenizer\.model.*sha256")


def test_bundle_with_a_file_cut_short(refuse: Refuse, bundle: Path, out: Path) -> None:
    path = bundle / "transformer.onnx"
    replace_file(path, path.read_bytes()[:-1])
    generate(refuse, bundle, out, r"transformer\.onnx")


def test_bundle_with_a_missing_file(refuse: Refuse, bundle: Path, out: Path) -> None:
    (bundle / "transformer.onnx").unlink()
    generate(refuse, bundle, out, r"transformer\.onnx")


@pytest.mark.parametrize("path", ["../outside.onnx", "/etc/passwd", "a/../../outside.onnx"])
def test_bundle_with_a_path_that_leaves_it(refuse: Refuse, bundle: Path, out: Path, path: str) -> None:
    edit_json(bundle, '"transformer.onnx"', f'"{path}"')
    generate(refuse, bundle, out, "inside the bundle")


def test_bundle_with_a_link_that_leaves_it(refuse: Refuse, bundle: Path, tmp_path: Path, out: Path) -> None:
    outside = tmp_path / "outside.model"
    outside.write_bytes((bundle / "tokenizer.model").read_bytes()[:-1])
    (bundle / "tokenizer.model").unlink()
    (bundle / "tokenizer.model").symlink_to(outside)
    generate(refuse, bundle, out, r"tokenizer\.model")


def test_bundle_of_a_newer_format(refuse: Refuse, bundle: Path, out: Path) -> None:
    edit_json(bundle, r'"format_version":\s*1\b', '"format_version": 2')
    generate(refuse, bundle, out, "format_version is 2.*up to 1.*upgrade")


def test_bundle_json_that_is_no_json(refuse: Refuse, bundle: Path, out: Path) -> None:
    replace_file(bundle / BUNDLE_JSON, b'{"format_version": 1,')
    generate(refuse, bundle, out, r"bundle\.json")


def test_folder_that_is_no_bundle(refuse: Refuse, tmp_path: Path, out: Path) -> None:
    generate(refuse, tmp_path, out, r"bundle\.json")


def test_bundle_with_an_operator_that_is_not_there(refuse: Refuse, bundle: Path, out: Path) -> None:
    spec = load_bundle(bundle).spec
    replace_file(bundle / spec.graphs["noise"].file, onnx_of_one_node("NoSuchOperator", "editverse.test"))
    write_bundle_json(bundle, dataclasses.replace(spec, files=file_specs(bundle)))
    generate(refuse, bundle, out, "NoSuchOperator")


def edit_json(bundle: Path, pattern: str, replacement: str) -> None:
    path = bundle / BUNDLE_JSON
    text, count = re.subn(pattern, replacement.replace("\\", r"\\"), path.read_text("utf-8"))
    assert count
    replace_file(path, text.encode())


def onnx_of_one_node(op_type: str, domain: str) -> bytes:
    """A `noise` graph, written by hand as protobuf, whose one node is of an operator nobody has."""

    def varint(value: int) -> bytes:
        more = value >> 7
        return bytes([value & 127 | 128]) + varint(more) if more else bytes([value])

    def number(field: int, value: int) -> bytes:
        return varint(field << 3) + varint(value)

    def message(field: int, *parts: bytes | str) -> bytes:
        content = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
        return varint(field << 3 | 2) + varint(len(content)) + content

    def tensor(field: int, name: str, elem_type: int, *axes: int | str) -> bytes:
        dims = (message(1, number(1, axis) if isinstance(axis, int) else message(2, axis)) for axis in axes)
        shape = message(2, *dims)
        return message(field, message(1, name), message(2, message(1, number(1, elem_type), shape)))

    int64, float32 = 7, 1
    node = message(
        1,
        message(1, "seed"),
        message(1, "shape"),
        message(2, "noise"),
        message(4, op_type),
        message(7, domain),
    )
    graph = message(
        7,
        node,
        message(2, "noise"),
        tensor(11, "seed", int64),
        tensor(11, "shape", int64, 2),
        tensor(12, "noise", float32, "N", "P"),
    )
    opsets = message(8, message(1, ""), number(2, 23)) + message(8, message(1, domain), number(2, 1))
    return number(1, 10) + graph + opsets


# --- the process ------------------------------------------------------------------------------------------


def test_the_process_itself(tmp_path: Path) -> None:
    """What the tests above see in this process holds for the command: its code, its one line."""
    environment = {**os.environ, "PYTHONPATH": str(Path(editverse_rt.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "editverse_rt", "edit", "nowhere.mp4", "Make it grayscale", "-o", "out.mp4"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"editverse-rt: error: nowhere\.mp4: no such file[^\n]*\n", done.stderr)
    assert list(tmp_path.iterdir()) == []
