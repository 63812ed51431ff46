"""The judge behind a server, against a local one that answers well, badly, late or not at all."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from editverse_rt.errors import BackendError, RequestError
from editverse_rt.evaluate import prompts
from editverse_rt.evaluate.judge import JudgeOptions, ServerJudge
from editverse_rt.evaluate.judging import EditToJudge
from editverse_rt.media.frames import Frames

GOOD = "prompt_following: 3\nedit_quality: 2\nbackground_consistency: 2\ntotal_score: 7"
KEY = "secret-key-1"
Reply = Callable[[BaseHTTPRequestHandler], None]


def says(text: str) -> Reply:
    return sends(200, json.dumps({"choices": [{"message": {"content": text}}]}))


def sends(status: int, body: str, **headers: str) -> Reply:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body.encode())))
        handler.end_headers()
        handler.wfile.write(body.encode())

    return reply


class Server:
    """Gives its replies in order, the last one again and again, and keeps what it was asked."""

    def __init__(self) -> None:
        self.replies: list[Reply] = [says(GOOD)]
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.closing = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append((self.path, dict(self.headers), body))
                replies = server.replies
                reply = replies.pop(0) if len(replies) > 1 else replies[0]
                reply(self)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    thread = threading.Thread(target=found.http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield found
    found.closing.set()
    found.http.shutdown()
    found.http.server_close()
    thread.join()


def clip(num_frames: int) -> Frames:
    """Red pictures, brighter from frame to frame."""
    frames = np.zeros((num_frames, 16, 24, 3), np.uint8)
    frames[..., 0] = 100 + 10 * np.arange(num_frames)[:, None, None]
    return frames


def edit(num_frames: int = 3) -> EditToJudge:
    return EditToJudge("<video1> Make it red", clip(num_frames), clip(num_frames))


def open_judge(server: Server, waits: list[float] | None = None, **options: Any) -> ServerJudge:
    facts: dict[str, Any] = {"base_url": server.url, "model": "tiny", "api_key": KEY, "timeout_s": 5.0}
    return ServerJudge(
        JudgeOptions(**{**facts, **options}), sleep=(waits if waits is not None else []).append
    )


def pictures_of(body: dict[str, Any]) -> list[Frames]:
    found = []
    for part in body["messages"][0]["content"][1:]:
        data = base64.b64decode(part["image_url"]["url"].removeprefix("data:image/jpeg;base64,"))
        decoder = av.CodecContext.create("mjpeg", "r")
        (frame,) = [*decoder.decode(av.Packet(data))] or [*decoder.decode(None)]
        found.append(frame.to_ndarray(format="rgb24"))
    return found


def test_a_question_has_the_instruction_and_both_pictures_and_the_score_is_the_mean_sum(
    server: Server,
) -> None:
    server.replies = [says(GOOD), says(GOOD.replace("edit_quality: 2", "edit_quality: 3")), says(GOOD)]
    found = open_judge(server).judge(edit(7))
    assert found.score == pytest.approx((7 + 8 + 7) / 3)
    assert [frame.frame for frame in found.frames] == [1, 3, 5]
    assert found.num_differing_sums == 1
    path, headers, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["temperature"]) == ("tiny", 0.0)
    assert "<video1> Make it red" in body["messages"][0]["content"][0]["text"]
    before, after = pictures_of(body)
    assert before.shape == after.shape == (16, 24, 3)
    # Frame 1 is 110 of red; JPEG keeps a flat picture to a few levels.
    assert np.abs(after.astype(int) - [110, 0, 0]).max() <= 4


def test_the_published_profile_exchanges_channels_and_takes_the_stated_total_of_four_frames(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "Judge {editing_prompt}"
    monkeypatch.setattr(prompts, "PAPER_PROMPT_SHA256", hashlib.sha256(template.encode()).hexdigest())
    (tmp_path / "vlm.py").write_text(f"x = f'{template}'")
    server.replies = [says(GOOD.replace("total_score: 7", "total_score: 9"))]
    found = open_judge(server, profile="published", paper_clone=tmp_path).judge(edit(7))
    assert [frame.frame for frame in found.frames] == [0, 2, 4, 6]
    assert found.score == 9
    assert found.num_differing_sums == 4
    body = server.asked[0][2]
    assert body["messages"][0]["content"][0]["text"] == "Judge <video1> Make it red"
    assert np.abs(pictures_of(body)[1].astype(int) - [0, 0, 100]).max() <= 4
    corrected = open_judge(server, profile="corrected", paper_clone=tmp_path).judge(edit(7))
    assert (len(corrected.frames), corrected.score) == (3, 7)


def test_an_answer_is_cached_by_what_it_depends_on(server: Server, tmp_path: Path) -> None:
    first = open_judge(server, cache=tmp_path).judge(edit())
    assert len(server.asked) == 3
    again = open_judge(server, cache=tmp_path, tries=1, api_key=None).judge(edit())
    assert again.score == first.score
    assert [frame.tries for frame in again.frames] == [0, 0, 0]
    assert len(server.asked) == 3
    for changed in ({"model": "other"}, {"temperature": 0.5}, {"max_tokens": 99}):
        before = len(server.asked)
        open_judge(server, cache=tmp_path, **changed).judge(edit())
        assert len(server.asked) == before + 3
    other = EditToJudge("<video1> Make it blue", clip(3), clip(3))
    assert open_judge(server, cache=tmp_path).dry_run([other, edit()]).calls == 3
    assert KEY not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_a_damaged_entry_of_the_cache_is_asked_again(server: Server, tmp_path: Path) -> None:
    open_judge(server, cache=tmp_path).judge(edit())
    for path in tmp_path.iterdir():
        path.write_text("{")
    assert open_judge(server, cache=tmp_path).judge(edit()).score == 7
    assert len(server.asked) == 6


def test_a_dry_run_asks_nothing_and_counts(server: Server) -> None:
    found = open_judge(server).dry_run([edit(), edit(5)])
    assert server.asked == []
    assert (found.questions, found.calls) == (6, 6)
    # Six questions with two pictures of one tile each, and some 300 tokens of text.
    assert 6 * 2 * 255 < found.input_tokens < 6 * (2 * 255 + 500)
    assert found.output_tokens > 0


def test_nonsense_is_tried_five_times_with_growing_waits_and_is_then_missing(server: Server) -> None:
    server.replies = [says("I cannot judge this.")]
    waits: list[float] = []
    found = open_judge(server, waits).judge(edit(1))
    assert found.score is None
    assert len(server.asked) == 15
    assert waits == [2.0, 4.0, 8.0, 16.0] * 3
    assert "5 tries" in str(found.missing)
    assert "I cannot judge" in str(found.missing)


def test_partial_scores_are_no_answer_but_a_later_whole_one_is(server: Server) -> None:
    server.replies = [says("prompt_following: 3\nedit_quality: 2"), says(GOOD)]
    found = open_judge(server).judge(edit())
    assert found.score == 7
    assert [frame.tries for frame in found.frames] == [2, 1, 1]


@pytest.mark.parametrize(
    ("reply", "wait_s"),
    [
        (sends(429, "slow down", Retry_After="7"), 7.0),
        (sends(429, "slow down"), 2.0),
        (sends(500, "oops"), 2.0),
        (sends(503, "later", Retry_After="99999"), 120.0),
        (sends(503, "later", Retry_After="soon"), 2.0),
        (sends(429, "x", Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), 0.0),
        (sends(200, "not json"), 2.0),
        (sends(200, '{"choices": []}'), 2.0),
        (sends(200, '{"choices": [{"message": {"content": null}}]}'), 2.0),
    ],
)
def test_a_server_that_is_busy_or_breaks_is_asked_again_after_a_wait(
    server: Server, reply: Reply, wait_s: float
) -> None:
    server.replies = [reply, says(GOOD)]
    waits: list[float] = []
    assert open_judge(server, waits).judge(edit()).score == 7
    assert waits == [wait_s]


def test_one_missing_frame_leaves_the_clip_without_a_score(server: Server) -> None:
    server.replies = [says(GOOD), says(GOOD), says("no")]
    found = open_judge(server, tries=2).judge(edit())
    assert found.score is None
    assert [frame.answer is None for frame in found.frames] == [False, False, True]


def test_a_server_that_never_answers_ends_in_missing(server: Server) -> None:
    def never(handler: BaseHTTPRequestHandler) -> None:
        server.closing.wait(10)

    server.replies = [never]
    begin = time.monotonic()
    found = open_judge(server, tries=2, timeout_s=0.1).judge(edit())
    assert found.score is None
    assert "no answer" in str(found.missing)
    assert time.monotonic() - begin < 8


def test_a_server_that_sends_a_little_now_and_then_ends_in_missing(server: Server) -> None:
    def drips(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while not server.closing.wait(0.05):
                handler.wfile.write(b" ")
        except OSError:
            pass

    server.replies = [drips]
    found = open_judge(server, tries=1, timeout_s=0.3).judge(edit())
    assert "does not end" in str(found.missing)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 302])
def test_a_request_that_is_wrong_in_itself_stops_at_once_and_never_shows_the_key(
    server: Server, status: int
) -> None:
    server.replies = [sends(status, f"wrong key {KEY}", Location="http://127.0.0.1:9/elsewhere")]
    with pytest.raises(BackendError, match=f"status {status}") as caught:
        open_judge(server).judge(edit())
    assert caught.value.code == "backend.judge"
    assert KEY not in str(caught.value)
    assert len(server.asked) == 1


def test_no_server_at_all_is_missing() -> None:
    options = JudgeOptions("http://127.0.0.1:9/v1", "tiny", tries=2, timeout_s=1.0)
    found = ServerJudge(options, sleep=lambda _: None).judge(edit())
    assert "no answer" in str(found.missing)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"base_url": "localhost"}, "base_url"),
        ({"base_url": "file:///etc/passwd"}, "base_url"),
        ({"model": ""}, "model"),
        ({"profile": "best"}, "profile"),
        ({"tries": 0}, "tries"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"api_key": "a\nb"}, "api_key"),
    ],
)
def test_options_that_cannot_work_are_refused(changed: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError) as caught:
        ServerJudge(JudgeOptions(**{"base_url": "http://x/v1", "model": "m", **changed}))
    assert caught.value.field == field


def test_the_papers_profile_needs_a_clone_and_options_do_not_print_the_key() -> None:
    with pytest.raises(RequestError, match="no clone"):
        ServerJudge(JudgeOptions("http://x/v1", "m", "published"))
    assert KEY not in repr(JudgeOptions("http://x/v1", "m", api_key=KEY))
