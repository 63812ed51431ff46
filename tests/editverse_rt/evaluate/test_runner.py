"""Runs from data to report: resuming after a kill, bad input, judges that fail, and edits by nano."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from editverse_rt.commands.main import main
from editverse_rt.errors import BackendError, RequestError
from editverse_rt.evaluate.benchmarks import BENCHMARKS
from editverse_rt.evaluate.clips import read_clip_shown, read_clip_stored, write_pictures
from editverse_rt.evaluate.judge import JudgeOptions, ServerJudge
from editverse_rt.evaluate.offline_judge import OfflineJudge
from editverse_rt.evaluate.runner import RunOptions, choose_items, dry_run, run_benchmark
from editverse_rt.evaluate.scoring import Scorer, score_path

pytest.importorskip("skimage", reason="the extra evaluate is not installed")
BENCH = BENCHMARKS["editverse-bench"]


@pytest.fixture
def data(tmp_path: Path, miniature: SimpleNamespace) -> Path:
    """Four items with results: right, right, a copy of the source, and right."""
    folder = tmp_path / "data"
    folder.mkdir()
    miniature.write_benchmark(folder)
    for index in range(4):
        source = miniature.draw_clip(index)
        miniature.write_result(tmp_path / "results", str(index), source if index == 2 else 255 - source)
    return folder


def run(data: Path, *, allow_missing: bool = False, judge: Any = None, name: str = "out") -> dict[str, Any]:
    options = RunOptions(data.parent / "results", data.parent / name, allow_missing=allow_missing)
    return run_benchmark(BENCH, choose_items(BENCH, data), options, judge=judge or OfflineJudge())


def test_right_results_are_told_from_copies(data: Path) -> None:
    report = run(data)
    success = {item["key"]: item["values"]["success"] for item in report["items"]}
    assert success == {"0": 1.0, "1": 1.0, "2": 0.0, "3": 1.0}
    assert report["metrics"]["success"]["mean"] == 0.75
    judged = {item["key"]: item["values"]["judge"] for item in report["items"]}
    assert judged["2"] < min(judged["0"], judged["1"], judged["3"])
    out = data.parent / "out"
    assert {path.name for path in (out / "plots").iterdir()} == {
        f"{name}.svg" for name in ("judge", "psnr_db", "ssim", "success")
    }
    page = (out / "page.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 8
    assert page.index("<b>2 ") < page.index("<b>0 ")
    assert json.loads((out / "report.json").read_text(encoding="utf-8")) == report


KILLED = """
import os, signal, sys
from pathlib import Path
from editverse_rt.evaluate.offline_judge import OfflineJudge
from editverse_rt.evaluate.benchmarks import BENCHMARKS
from editverse_rt.evaluate.runner import RunOptions, choose_items, run_benchmark
class Killer(OfflineJudge):
    count = 0
    def judge(self, edit):
        self.count += 1
        if self.count == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().judge(edit)
data = Path(sys.argv[1])
bench = BENCHMARKS["editverse-bench"]
run_benchmark(bench, choose_items(bench, data),
              RunOptions(data.parent / "results", data.parent / "out"), judge=Killer())
"""


class Counting(OfflineJudge):
    def __init__(self) -> None:
        self.asked = 0

    def judge(self, edit: Any) -> Any:
        self.asked += 1
        return super().judge(edit)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no kill -9")
def test_a_killed_run_loses_the_item_that_ran_and_no_other(data: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(data)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = sorted(path.name for path in (data.parent / "out" / "scores").iterdir())
    assert kept == ["0.json", "1.json"]
    judge = Counting()
    report = run(data, judge=judge)
    assert judge.asked == 2
    fresh = run(data, name="fresh")
    assert [item["values"] for item in report["items"]] == [item["values"] for item in fresh["items"]]


def test_kept_scores_are_of_this_result_and_this_protocol(data: Path, miniature: SimpleNamespace) -> None:
    run(data)
    judge = Counting()
    run(data, judge=judge)
    assert judge.asked == 0
    miniature.write_result(data.parent / "results", "1", miniature.draw_clip(1))
    score_path(data.parent / "out", "3").write_text("{", encoding="utf-8")
    report = run(data, judge=judge)
    assert judge.asked == 2
    assert report["items"][1]["values"]["success"] == 0.0
    scorer = Scorer(BENCH, data.parent / "results", data.parent / "out")
    assert all("judge" not in score.values for score in scorer.score_all(choose_items(BENCH, data).items))


def test_missing_results_stop_the_run_or_are_counted(data: Path) -> None:
    (data.parent / "results/1/generate.mp4").unlink()
    (data.parent / "results/3/generate.mp4").write_bytes(b"")
    with pytest.raises(RequestError, match="2 of 4 results are missing, the first of item 1") as caught:
        run(data)
    assert caught.value.code == "request.results_missing"
    report = run(data, allow_missing=True)
    assert report["subset"]["num_scored"] == 2
    assert [entry["key"] for entry in report["missing"]] == ["1", "3"]
    assert report["metrics"]["success"]["missing"] == 2


def test_odd_results_are_scored_or_say_why_not(data: Path, miniature: SimpleNamespace) -> None:
    results = data.parent / "results"
    answer = 255 - miniature.draw_clip(0)
    miniature.write_result(results, "0", answer[:2])
    miniature.write_result(results, "1", (255 - miniature.draw_clip(1))[:1])
    miniature.write_result(results, "2", miniature.draw_clip(2, height=48, width=32))
    (results / "3/generate.mp4").write_bytes(b"no video at all")
    report = run(data)
    notes = {item["key"]: item["notes"] for item in report["items"]}
    assert "2 frames, its source 3" in notes["0"]["clip"]
    assert "1 frames, its source 3" in notes["1"]["clip"]
    assert "32x48" in notes["2"]["psnr_db"]
    assert "no video or image" in notes["3"]["clip"]
    assert all("\n" not in note for one in notes.values() for note in one.values())
    assert report["metrics"]["psnr_db"]["count"] == 0
    assert report["metrics"]["psnr_db"]["missing"] == 4
    assert report["metrics"]["judge"]["mean"] is None


def test_a_missing_source_is_said(data: Path) -> None:
    (data / "videos/0.mp4").unlink()
    report = run(data)
    assert "videos/0.mp4" in report["items"][0]["notes"]["clip"]
    assert report["items"][1]["values"]["success"] == 1.0


@pytest.fixture
def server() -> Iterator[Callable[[int, bytes], str]]:
    """Starts servers that answer every request alike; a status of 0 is never answered."""
    servers = []

    def start(status: int, body: bytes) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                if status == 0:
                    stop.wait(20)
                    return
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        stop = threading.Event()
        one = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=one.serve_forever, daemon=True).start()
        servers.append((one, stop))
        return f"http://127.0.0.1:{one.server_port}/v1"

    yield start
    for one, stop in servers:
        stop.set()
        one.shutdown()
        one.server_close()


def server_judge(url: str) -> ServerJudge:
    options = JudgeOptions(url, "m", tries=2, timeout_s=0.2)
    return ServerJudge(options, sleep=lambda seconds: None)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b'{"choices": [{"message": {"content": "lovely"}}]}', "without three scores"),
        (429, b"", "status 429"),
        (0, b"", "no answer"),
    ],
)
def test_a_judge_that_fails_is_missing_and_asked_again_next_time(
    data: Path, server: Callable[[int, bytes], str], status: int, body: bytes, said: str
) -> None:
    (data / "test.json").write_text(
        json.dumps({"0": json.loads((data / "test.json").read_text("utf-8"))["0"]}), encoding="utf-8"
    )
    report = run(data, judge=server_judge(server(status, body)))
    (item,) = report["items"]
    assert item["values"]["judge"] is None
    assert said in item["notes"]["judge"]
    assert item["values"]["success"] == 1.0
    assert report["metrics"]["judge"]["missing"] == 1
    assert not score_path(data.parent / "out", "0").exists()


def test_a_judge_that_answers_gives_scores_with_its_protocol(
    data: Path, server: Callable[[int, bytes], str]
) -> None:
    text = "Prompt following: 3\\nEdit quality: 2\\nBackground consistency: 1\\nTotal: 6"
    judge = server_judge(server(200, f'{{"choices": [{{"message": {{"content": "{text}"}}}}]}}'.encode()))
    report = run(data, judge=judge)
    assert report["metrics"]["judge"]["mean"] == 6.0
    assert report["judge"]["profile"] == "own"
    assert len(report["judge"]["prompt_sha256"]) == 64


def test_a_judge_that_refuses_stops_the_run(data: Path, server: Callable[[int, bytes], str]) -> None:
    with pytest.raises(BackendError, match="401"):
        run(data, judge=server_judge(server(401, b"wrong key")))


def test_a_dry_run_counts_calls_and_writes_nothing(data: Path) -> None:
    options = RunOptions(data.parent / "nothing", data.parent / "out")
    lines = dry_run(BENCH, choose_items(BENCH, data), options, judge=server_judge("http://127.0.0.1:9/v1"))
    assert lines[0] == "4 items, 4 without a result"
    assert lines[-1].startswith("judge: 12 calls (0 answers are cached)")
    assert not (data.parent / "out").exists()
    assert not (data.parent / "nothing").exists()


def test_items_are_chosen_by_category_and_number(data: Path) -> None:
    chosen = choose_items(BENCH, data, categories=["stylization"], limit=1)
    assert [item.key for item in chosen.items] == ["0"]
    with pytest.raises(RequestError, match="stylization, add object"):
        choose_items(BENCH, data, categories=["style"])


def test_folders_of_pictures_are_read_in_order(tmp_path: Path, miniature: SimpleNamespace) -> None:
    clip = miniature.draw_clip(0, frames=12)
    clip[:] = (20 * (1 + 0 * clip[..., :1]) + 15 * (0 * clip + 1).cumsum(0)).astype("uint8")
    write_pictures(tmp_path / "a/b/style", clip)
    assert (tmp_path / "a/b/style/00000.jpg").is_file()
    levels = read_clip_shown(tmp_path / "a/b/style").mean((1, 2, 3))
    assert len(levels) == 12
    assert (levels[1:] > levels[:-1]).all()
    assert read_clip_stored(tmp_path / "a/b/style").shape == clip.shape


def test_the_command_edits_scores_and_compares(
    miniature: SimpleNamespace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    entries = miniature.write_benchmark(data, frames=5, height=48, width=80)
    entries["1"]["<text>"] = "<video1> " + "very " * 2000 + "red"
    entries["2"]["<text>"] = 7
    (data / "test.json").write_text(json.dumps(entries), encoding="utf-8")
    outputs = [str(tmp_path / name) for name in ("one", "two")]
    common = ["editverse-bench", "--data", str(data), "--judge", "offline", "--num-inference-steps", "2"]
    common += ["--threads", "1", "--quiet"]
    assert main(["evaluate", *common, "-o", outputs[0]]) == 2
    assert "1 of 3 results are missing, the first of item 1" in capsys.readouterr().err
    begin = os.stat(Path(outputs[0], "results/0/generate.mp4")).st_mtime_ns
    assert main(["evaluate", *common, "-o", outputs[0], "--allow-missing"]) == 0
    assert os.stat(Path(outputs[0], "results/0/generate.mp4")).st_mtime_ns == begin
    report = json.loads(Path(outputs[0], "report.json").read_text("utf-8"))
    assert "tokens" in report["missing"][0]["reason"]
    assert report["problems"][0].startswith("item 2: ")
    assert set(report["time"]["estimates"]) == {"rtx4090", "h100"}
    assert report["time"]["estimates"]["h100"]["num_items"] == 200
    # Another seed into the same folder would mix two runs.
    capsys.readouterr()
    assert main(["evaluate", *common, "-o", outputs[0], "--seed", "5"]) == 2
    assert "other options" in capsys.readouterr().err
    results = str(Path(outputs[0], "results"))
    score = ["evaluate", "score", results, "--benchmark", "editverse-bench", "--data", str(data)]
    assert main([*score, "--judge", "offline", "--allow-missing", "-o", outputs[1], "--quiet"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "compare", *outputs]) == 0
    assert "no item differs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing", "--data", ".", "-o", "x"], "editverse-bench"),
        (["editverse-bench", "-o", "x"], "--data"),
        (["tgve", "--data", "."], "--output"),
        (["score", "results", "--data", ".", "-o", "x"], "--benchmark"),
        (["compare", "a"], "A B"),
        (["compare", "a", "b"], "UTF-8 JSON"),
        (["folder", "nowhere", "-o", "x"], "items.jsonl"),
        (["editverse-bench", "--data", "nowhere", "-o", "x"], "test.json"),
    ],
)
def test_the_command_refuses_in_one_line(
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert not list(tmp_path.iterdir())
