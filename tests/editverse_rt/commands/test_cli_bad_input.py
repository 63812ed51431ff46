"""Every bad input: exit code 2, exactly one line on standard error, no traceback, nothing half-written."""

from __future__ import annotations

import dataclasses
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

import editverse_rt
from editverse_rt import media
from editverse_rt.bundle.description import BUNDLE_JSON
from editverse_rt.bundle.manifest import file_specs, load_bundle, write_bundle_json
from editverse_rt.commands import edit
from editverse_rt.commands.main import main
from editverse_rt.pipeline import Result
from editverse_rt.request.edit_request import EditRequest

Refuse = Callable[..., str]


@pytest.fixture
def bundle(fake_bundle: Any) -> Path:
    return Path(fake_bundle.root)


@pytest.fixture
def refuse(tmp_path: Path, bundle: Path, capfd: pytest.CaptureFixture[str]) -> Refuse:
    """Run the command line in this process on input that it has to refuse; return its one line."""

    def run(*argv: str | Path, says: str) -> str:
        if argv[:1] in (("edit",), ("generate",)) and "--bundle" not in str(argv):
            argv = (argv[0], "--bundle", bundle, *argv[1:])
        before = sorted(tmp_path.rglob("*"))
        capfd.readouterr()
        code = main([str(word) for word in argv])
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
    media.write_clip(path, moving_square(), 8.0)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    media.write_image(path, moving_square(1)[0])
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
    refuse("edit", clip, "green " * 24, "-o", out, says="tokens.*up to 24")


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
        ("--frames", "100000000"),
        ("--length", "long"),
        ("--frames", "many"),
        ("--fps", "0"),
        ("--fps", "nan"),
        ("--fps", "inf"),
        ("--start", "-1"),
        ("--num-inference-steps", "0"),
        ("--guidance-scale", "nan"),
        ("--guidance-scale", "-1"),
        ("--threads", "0"),
        ("--threads", "9" * 5000),
        ("--seed", "abc"),
        ("--seed", "-1"),
        ("--seed", str(2**63)),
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


@pytest.mark.parametrize("name", ["out.txt", "out.mp3"])
def test_output_of_unknown_type(refuse: Refuse, clip: Path, tmp_path: Path, name: str) -> None:
    refuse("edit", clip, "Make it grayscale", "-o", tmp_path / name, says=r"\.mp4")


def test_output_in_a_missing_folder(refuse: Refuse, clip: Path, tmp_path: Path) -> None:
    refuse("edit", clip, "Make it grayscale", "-o", tmp_path / "nowhere" / "out.mp4", says="nowhere")


def test_output_below_a_file(refuse: Refuse, clip: Path) -> None:
    refuse("edit", clip, "Make it grayscale", "-o", clip / "out.mp4", says="cannot|can be written")


def test_output_is_a_folder(refuse: Refuse, clip: Path, out: Path) -> None:
    out.mkdir()
    refuse("edit", clip, "Make it grayscale", "-o", out, says="folder")
    refuse("edit", clip, "Make it grayscale", "-o", clip.parent, says="not empty")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_in_a_read_only_folder(refuse: Refuse, clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    refuse("edit", clip, "Make it grayscale", "-o", folder / "out.mp4", says="locked")


def test_preview_of_unknown_type(refuse: Refuse, clip: Path, out: Path, tmp_path: Path) -> None:
    preview = tmp_path / "sheet.txt"
    refuse("edit", clip, "Make it grayscale", "-o", out, "--preview", preview, says=r"sheet\.txt.*\.png")


class PipelineOfNoise:
    """Computes nothing; its result is a real one, of frames that no encoder makes small."""

    @classmethod
    def open(cls, bundle: str, backend: str, *, num_threads: int | None, **_: bool) -> PipelineOfNoise:
        return cls()

    def __enter__(self) -> PipelineOfNoise:
        return self

    def __exit__(self, *exception: object) -> None: ...

    def info(self) -> dict[str, Any]:
        return {}

    def prepare(self, request: EditRequest) -> SimpleNamespace:
        return SimpleNamespace(
            request=request, inputs=SimpleNamespace(main=None, expected_windows=1, expected_fps=8.0)
        )

    def run(self, checked: SimpleNamespace, **_: Any) -> Result:
        shape = (checked.request.num_frames or 5, 64, 64, 3)
        frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        return Result(frames, 8.0, laid_out=None, timings={})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["out.mp4", "out.webm", "out.gif", "out.png", "out_%03d.png", "out"])
def test_full_disk(refuse: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A limit on the size of files stands in for a disk that fills up while the result is written."""
    monkeypatch.setattr(edit, "Pipeline", PipelineOfNoise)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        refuse("generate", "Noise", "-o", tmp_path / name, "--quiet", says=re.escape(name))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_standard_output_that_is_full(bundle: Path, tmp_path: Path) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = run_command("info", str(bundle), folder=tmp_path, stdout=full)
    assert done.returncode == 2
    assert re.fullmatch(r"editverse-rt: error: standard output: [^\n]*\n", done.stderr)


def test_reader_that_leaves(bundle: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as pipe:
        done = run_command("info", str(bundle), folder=tmp_path, stdout=pipe)
    assert done.returncode == 141
    assert done.stderr == ""


def test_an_output_that_exists_survives_a_failure(refuse: Refuse, clip: Path, out: Path) -> None:
    out.write_bytes(b"an earlier result")
    refuse("edit", clip, "<video1> Insert <image1>", "-o", out, says="image1")
    assert out.read_bytes() == b"an earlier result"


# --- bundles ----------------------------------------------------------------------------------------------


def generate(refuse: Refuse, bundle: Path, out: Path, says: str) -> None:
    refuse("generate", "A red circle", "-o", out, "--bundle", bundle, says=says)


def test_bundle_with_a_wrong_hash(refuse: Refuse, bundle: Path, out: Path) -> None:
    path = bundle / "tokenizer.model"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    generate(refuse, bundle, out, r"tokenizer\.model.*sha256")
    refuse("info", bundle, says=r"tokenizer\.model.*sha256")


def test_bundle_with_a_file_cut_short(refuse: Refuse, bundle: Path, out: Path) -> None:
    path = bundle / "graphs/transformer.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    generate(refuse, bundle, out, r"transformer\.onnx")


def test_bundle_with_a_missing_file(refuse: Refuse, bundle: Path, out: Path) -> None:
    (bundle / "graphs/transformer.onnx").unlink()
    generate(refuse, bundle, out, r"transformer\.onnx")


@pytest.mark.parametrize("path", ["../outside.onnx", "/etc/passwd", "a/../../outside.onnx"])
def test_bundle_with_a_path_that_leaves_it(refuse: Refuse, bundle: Path, out: Path, path: str) -> None:
    edit_json(bundle, '"graphs/transformer.onnx"', f'"{path}"')
    generate(refuse, bundle, out, "inside the bundle")


def test_bundle_with_a_link_that_leaves_it(refuse: Refuse, bundle: Path, tmp_path: Path, out: Path) -> None:
    outside = tmp_path / "outside.model"
    outside.write_bytes((bundle / "tokenizer.model").read_bytes()[:-1])
    (bundle / "tokenizer.model").unlink()
    (bundle / "tokenizer.model").symlink_to(outside)
    generate(refuse, bundle, out, r"tokenizer\.model")


def test_bundle_of_a_newer_format(refuse: Refuse, bundle: Path, out: Path) -> None:
    edit_json(bundle, r'"format_version":\s*2\b', '"format_version": 3')
    generate(refuse, bundle, out, "format_version is 3.*up to 2.*upgrade")


def test_bundle_json_that_is_no_json(refuse: Refuse, bundle: Path, out: Path) -> None:
    (bundle / BUNDLE_JSON).write_bytes(b'{"format_version": 1,')
    generate(refuse, bundle, out, r"bundle\.json")


def test_folder_that_is_no_bundle(refuse: Refuse, tmp_path: Path, out: Path) -> None:
    generate(refuse, tmp_path, out, r"bundle\.json")


def test_bundle_with_an_operator_that_is_not_there(refuse: Refuse, bundle: Path, out: Path) -> None:
    spec = load_bundle(bundle).spec
    (bundle / spec.graphs["text_encoder"].file).write_bytes(
        onnx_of_one_node("NoSuchOperator", "editverse.test")
    )
    write_bundle_json(bundle, dataclasses.replace(spec, files=file_specs(bundle)))
    generate(refuse, bundle, out, "NoSuchOperator")


def edit_json(bundle: Path, pattern: str, replacement: str) -> None:
    path = bundle / BUNDLE_JSON
    text, count = re.subn(pattern, replacement.replace("\\", r"\\"), path.read_text("utf-8"))
    assert count
    path.write_bytes(text.encode())


def onnx_of_one_node(op_type: str, domain: str) -> bytes:
    """A `text_encoder` graph, written by hand as protobuf, whose one node is of an operator nobody has."""

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
    node = message(1, message(1, "ids"), message(2, "text"), message(4, op_type), message(7, domain))
    ids, text = tensor(11, "ids", int64, "Lt"), tensor(12, "text", float32, "Lt", 6)
    graph = message(7, node, message(2, "text_encoder"), ids, text)
    opsets = message(8, message(1, ""), number(2, 23)) + message(8, message(1, domain), number(2, 1))
    return number(1, 10) + graph + opsets


# --- the process ------------------------------------------------------------------------------------------


def run_command(*argv: str, folder: Path, stdout: Any = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "editverse_rt", *argv],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(editverse_rt.__file__).parents[1])},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


def test_the_process_itself(tmp_path: Path) -> None:
    """What the tests above see in this process holds for the command: its code, its one line."""
    done = run_command("edit", "nowhere.mp4", "Make it grayscale", "-o", "out.mp4", folder=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"editverse-rt: error: nowhere\.mp4: no such file[^\n]*\n", done.stderr)
    assert list(tmp_path.iterdir()) == []
