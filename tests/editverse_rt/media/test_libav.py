"""One path is one file: nothing that is opened can make the reader open another."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from media_samples import encode, grey_frames, patchwork

from editverse_rt.errors import MediaError
from editverse_rt.files import OpenFile
from editverse_rt.media import open_media, probe, read_clip, write_image
from editverse_rt.media.libav import DEMUXERS


def lists(other: Path) -> dict[str, str]:
    return {
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\n{other}\n#EXT-X-ENDLIST\n",
        "list.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\nfile://{other}\n#EXT-X-ENDLIST\n",
        "upload.mp4": f"ffconcat version 1.0\nfile {other.name}\n",
        "upload.png": f"ffconcat version 1.0\nfile '{other}'\n",
        "list.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
        f"<AdaptationSet><Representation id='1' bandwidth='1'><BaseURL>{other.name}</BaseURL></Representation>"
        "</AdaptationSet></Period></MPD>",
        "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        "list.pls": f"[playlist]\nFile1={other}\n",
    }


@pytest.mark.parametrize("name", [*lists(Path("x"))])
def test_a_list_of_files_reads_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    other = encode(tmp_path / "other.ts", grey_frames(5))
    (tmp_path / name).write_text(lists(other)[name])
    for opened in (Path(name), tmp_path / name):
        with pytest.raises(MediaError) as caught:
            read_clip(opened, num_frames=1, height_px=16, width_px=16)
        assert caught.value.code in ("media.unsupported", "media.undecodable")


@pytest.mark.parametrize(
    "name", ["shot%03d.png", "shot*.png", "50% done.png", "a?b.png", "file:x.png", "-.png"]
)
def test_a_name_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "shot001.png", np.zeros((32, 32, 3), np.uint8))
    write_image(tmp_path / "right.png", patchwork())
    (tmp_path / "right.png").replace(tmp_path / name)
    for path in (name, tmp_path / name):
        assert (read_clip(path, num_frames=1, height_px=96, width_px=160).frames[0] == patchwork()).all()


@pytest.mark.parametrize("suffix", [".mp4", ".txt", ".m3u8", "", ".wav"])
def test_the_type_is_found_in_the_content_and_not_in_the_suffix(tmp_path: Path, suffix: str) -> None:
    source = encode(tmp_path / "in.mkv", grey_frames(5))
    path = source.rename(tmp_path / f"other{suffix}")
    assert (probe(path).kind, probe(path).fps) == ("video", 25.0)


def test_no_demuxer_that_opens_other_files_is_allowed() -> None:
    allowed = {name for names in DEMUXERS for name in names.split(",")}
    assert not allowed & {"hls", "applehttp", "concat", "dash", "imf", "sdp", "rtsp", "rtp", "image2", "tty"}
    assert not allowed & {
        "image2pipe",
        "lavfi",
        "mpjpeg",
        "sap",
        "tedcaptions",
        "webm_dash_manifest",
        "bluray",
    }


def test_a_matroska_file_is_read_by_content_where_ffmpeg_would_follow_a_protocol(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no such file"):
        probe("https://localhost:9/in.mp4")
    with pytest.raises(MediaError, match="no such file"):
        probe(f"concat:{tmp_path}/a|{tmp_path}/b")


def test_what_was_opened_stays_although_the_name_goes(tmp_path: Path) -> None:
    path = encode(tmp_path / "in.mkv", grey_frames(6), sine_s=0.2)
    with open_media(path) as file:
        path.unlink()
        encode(tmp_path / "in.mkv", grey_frames(2))
        assert file.info.has_audio
        clip = file.read_clip(num_frames=9, height_px=48, width_px=64)
        assert len(clip.frames) == 6
        sound = file.read_sound()
    assert sound is not None
    assert sound.codec_name == "aac"


def test_readers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(bytes(range(100)))
    file = OpenFile(str(tmp_path / "in"))
    one, two = file.reader(), file.reader()
    assert one.read(3) == bytes([0, 1, 2])
    assert two.seek(-2, 2) == 98
    assert one.read(2) == bytes([3, 4])
    assert two.read(5) == bytes([98, 99])
    assert (one.tell(), two.tell()) == (5, 100)
    file.close()
    file.close()
    with pytest.raises(MediaError, match="closed"):
        one.read(1)


def test_a_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "in.mp4", grey_frames(9))
    opened: list[object] = []
    original = av.open
    monkeypatch.setattr(av, "open", lambda file, *a, **k: (opened.append(file), original(file, *a, **k))[1])
    with open_media(path) as file:
        file.read_clip(start_s=0.1, num_frames=3, height_px=16, width_px=16)
    assert opened
    assert not any(isinstance(name, (str, Path)) for name in opened)
