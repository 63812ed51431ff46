"""`editverse-rt --server URL edit ...` against a live server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from live_server import LiveServer

from editverse_rt import media
from editverse_rt.commands import remote
from editverse_rt.commands.main import main


@pytest.fixture
def clip(video: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "in.mp4"
    path.write_bytes(video)
    return path


def test_an_edit_on_a_server_gives_the_bytes_of_a_local_one(
    server: LiveServer, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["edit", str(clip), "Make it night", "--schedule", "fast", "--seed", "5", "--json", "-o"]
    assert main(["--server", server.url, *words, str(tmp_path / "remote.mp4")]) == 0
    shown = capsys.readouterr()
    assert "100%" in shown.err
    remote = json.loads(shown.out)
    assert main([*words, str(tmp_path / "local.mp4"), "--threads", "1"]) == 0
    local = json.loads(capsys.readouterr().out)
    for name in ("prompt", "seed", "frames", "height", "width", "fps"):
        assert remote[name] == local[name], name
    assert remote["server"]["model"] == "nano"
    assert (tmp_path / "remote.mp4").read_bytes() == (tmp_path / "local.mp4").read_bytes()


def test_a_video_of_several_windows_is_edited_whole_on_a_server(
    server: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes as here, progress that only grows, and the whole source to compare with."""
    rows, columns = np.mgrid[0:64, 0:64]
    picture = np.stack([rows * 3, columns * 3, np.full_like(rows, 90)], -1).astype(np.uint8)
    media.write_clip(tmp_path / "in.mp4", np.stack([picture] * 40), 8.0)
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(remote.Progress, "show", lambda self, done, total: told.append((done, total)))
    words = ["edit", str(tmp_path / "in.mp4"), "Make it night", "--schedule", "fast", "--json", "-o"]
    assert main(["--server", server.url, *words, str(tmp_path / "remote.mp4")]) == 0
    assert told == sorted(told)
    assert {total for _, total in told} == {3 * 2}
    shown = json.loads(capsys.readouterr().out)
    assert main([*words, str(tmp_path / "local.mp4"), "--threads", "1"]) == 0
    assert (tmp_path / "remote.mp4").read_bytes() == (tmp_path / "local.mp4").read_bytes()
    with server.client() as client:
        job = client.get(f"/v1/jobs/{shown['server']['job']}").json()
        assert (job["num_windows"], job["result"]["num_frames"]) == (3, 40)
        source = client.get(f"/v1/jobs/{job['id']}/content", params={"variant": "source"})
    (tmp_path / "source.mp4").write_bytes(source.content)
    assert media.probe(tmp_path / "source.mp4").num_frames == 40


def test_a_picture_is_generated_on_a_server(server: LiveServer, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    words = [
        "generate",
        "A yellow square",
        "-o",
        str(out),
        "--size",
        "64x48",
        "--schedule",
        "fast",
        "--quiet",
    ]
    assert main([words[0], f"--server={server.url}", *words[1:]]) == 0
    assert media.probe(out).kind == "image"


@pytest.mark.parametrize("output", ["frames", "frame_%03d.png", "frame_%02d.jpg"])
def test_frames_as_pictures_are_those_of_a_local_run(
    server: LiveServer, clip: Path, tmp_path: Path, output: str
) -> None:
    words = ["edit", str(clip), "Make it night", "--schedule", "fast", "--seed", "5", "--quiet", "-o"]
    for name in ("remote", "local"):
        (tmp_path / name).mkdir()
    assert main(["--server", server.url, *words, str(tmp_path / "remote" / output)]) == 0
    assert main([*words, str(tmp_path / "local" / output), "--threads", "1"]) == 0
    found = {path.relative_to(tmp_path / "remote"): path for path in (tmp_path / "remote").rglob("*.*g")}
    assert len(found) == 9
    for name, path in found.items():
        assert path.read_bytes() == (tmp_path / "local" / name).read_bytes(), name


@pytest.mark.parametrize("output", ["out.mp4", "frames"])
def test_a_preview_is_that_of_a_local_run_but_for_the_videos_loss(
    server: LiveServer, clip: Path, tmp_path: Path, output: str
) -> None:
    words = ["edit", str(clip), "Make it night", "--schedule", "fast", "--seed", "5", "--quiet"]
    sheets = []
    for name, more in (("remote", ["--server", server.url]), ("local", ["--threads", "1"])):
        (tmp_path / name).mkdir()
        sheet = tmp_path / name / "sheet.png"
        assert main([*words, "-o", str(tmp_path / name / output), "--preview", str(sheet), *more]) == 0
        info = media.probe(sheet)
        size = {"height_px": info.height_px, "width_px": info.width_px}
        sheets.append(media.read_clip(sheet, num_frames=1, **size).frames.astype(int))
    remote, local = sheets
    assert remote.shape == local.shape
    # H.264 at a quality that differs from the frames by about 1 level; the mean of unlike sheets is above 20.
    assert np.abs(remote - local).mean() < 3


@pytest.mark.parametrize(
    "options",
    [["--schedule", "nothing"], ["--size", "8x8"], ["--frames", "0"]],
    ids=lambda words: words[0],
)
def test_errors_are_the_lines_of_a_local_run(
    server: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    words = ["generate", "A circle", "-o", str(tmp_path / "out.mp4"), *options]
    assert main(words) == 2
    local = capsys.readouterr().err
    assert main(["--server", server.url, *words]) == 2
    assert capsys.readouterr().err == local
    assert local.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--threads", "2"], "--threads and --server are both given"),
        (["--device", "0"], "--device and --server are both given"),
        (["--backend", "ort-cpu"], "--backend and --server are both given"),
        (["--plugin", "x.so"], "--plugin and --server are both given"),
        (["--api-key", "empty"], "empty holds no key"),
        (["--api-key", "missing"], "missing: No such file"),
        (["--bundle", "other"], "other"),
        (["--server", "ftp://x"], "ftp://x"),
    ],
)
def test_what_a_server_does_not_take_is_told(
    server: LiveServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    found: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").write_text("\n")
    assert main(["--server", server.url, "generate", "A circle", "-o", "out.mp4", *words]) == 2
    error = capsys.readouterr().err
    assert found in error
    assert error.count("\n") == 1
    assert not Path("out.mp4").exists()


def test_a_key_without_a_server_and_a_command_that_has_none_are_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["generate", "A circle", "-o", "out.mp4", "--api-key", "file"]) == 2
    assert "--api-key is given without --server" in capsys.readouterr().err
    assert main(["--server", "http://127.0.0.1:9", "doctor"]) == 2
    assert "--server" in capsys.readouterr().err


def test_the_key_of_the_environment_and_of_a_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from editverse_rt.commands.remote import _read_key

    monkeypatch.setenv("EDITVERSE_API_KEY", " of-the-environment\n")
    assert _read_key(None) == "of-the-environment"
    (tmp_path / "key").write_text("of-a-file\n")
    assert _read_key(tmp_path / "key") == "of-a-file"
    monkeypatch.delenv("EDITVERSE_API_KEY")
    assert _read_key(None) is None


def test_ctrl_c_cancels_the_job(server: LiveServer, client: httpx.Client, tmp_path: Path) -> None:
    before = {job["id"] for job in client.get("/v1/jobs", params={"limit": 100}).json()["data"]}
    words = ["generate", "A circle", "-o", str(tmp_path / "out.mp4"), "--num-inference-steps", "5000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "editverse_rt", "--server", server.url, *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    end = time.monotonic() + 60
    while time.monotonic() < end:
        jobs = client.get("/v1/jobs", params={"limit": 100}).json()["data"]
        mine = [job for job in jobs if job["id"] not in before]
        # At step 1 the client has had its answer long ago.
        if mine and mine[0]["step"]:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stderr is not None
    assert "stopped by Ctrl-C" in process.stderr.read()
    assert client.get(f"/v1/jobs/{mine[0]['id']}").json()["state"] == "cancelled"
    assert list(tmp_path.iterdir()) == []
