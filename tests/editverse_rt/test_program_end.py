"""A program that ends while requests run ends with its own exit code, at once, and says nothing of its own.

Each case is a program of its own. Without the waiting of `native_calls` nearly every one of them is aborted.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from editverse_rt import media

BEGIN = """
import atexit, os, signal, sys, threading
import numpy as np
from editverse_rt import Pipeline, RequestQueue

PATIENCE_S = 60
steps = {}

@atexit.register  # called last, because it was registered first
def report():
    for name, (handle, then) in steps.items():
        print(name, handle.num_steps_done - then, type(handle.exception(0)).__name__, flush=True)

pipeline = Pipeline.open("nano", "ort-cpu", num_threads=1)
frames = np.zeros((9, 64, 64, 3), np.uint8)
options = dict(video1=frames, num_inference_steps=500)
PROMPT = "<video1> Make it night"

def submit(queue, **more):
    begun = threading.Event()
    def note(*facts):
        begun.set()
    handle = queue.submit(PROMPT, callback_on_step_end=note, **(options | more))
    return handle, begun
"""
RUNNING = """
queue = RequestQueue(pipeline, num_workers=2)
handles = [submit(queue) for _ in range(4)]
for handle, begun in handles[:2]:
    assert begun.wait(PATIENCE_S)
"""
ENDS = {
    "at the end of the file": ("", 0, ""),
    "sys.exit": ("sys.exit(3)", 3, ""),
    "an error": ("raise ValueError('mine')", 1, "ValueError: mine"),
    "Ctrl-C": ("signal.raise_signal(signal.SIGINT)", -2, "KeyboardInterrupt"),
    "os._exit": ("os._exit(5)", 5, ""),
    "an error in a with block": ("with queue:\n    raise ValueError('mine')", 1, "ValueError: mine"),
    "after close": ("queue.close(cancel=True); pipeline.close(); sys.exit(3)", 3, ""),
}


def end_program(script: str, folder: Path) -> tuple[int, str, str]:
    """The exit code, standard output, and the last line of standard error."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BEGIN + script],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, (done.stderr.strip().splitlines() or [""])[-1]


@pytest.mark.parametrize("name", ENDS)
def test_a_program_with_a_running_queue_ends_with_its_own_exit_code(name: str, tmp_path: Path) -> None:
    script, code, last_line = ENDS[name]
    for _ in range(8 if name == "sys.exit" else 2):
        assert end_program(RUNNING + script, tmp_path) == (code, "", last_line)
    assert list(tmp_path.iterdir()) == []


def test_what_runs_and_what_waits_is_cancelled_before_the_next_graph(tmp_path: Path) -> None:
    note = "for name, (handle, _) in zip('abcd', handles): steps[name] = (handle, handle.num_steps_done)"
    code, out, error = end_program(RUNNING + note, tmp_path)
    assert (code, error) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert [(name, kind) for name, _, kind in rows] == [(name, "RequestCancelled") for name in "abcd"]
    # A step that was under way may be finished, and one may end while the numbers are noted.
    assert all(int(steps) <= 2 for _, steps, _ in rows), out


def test_a_graph_that_takes_long_is_waited_for(tmp_path: Path) -> None:
    script = """
queue = RequestQueue(pipeline)
handle, begun = submit(queue, video1=np.zeros((17, 128, 128, 3), np.uint8))
assert begun.wait(PATIENCE_S)
steps["long"] = (handle, handle.num_steps_done)
sys.exit(3)
"""
    code, out, error = end_program(script, tmp_path)
    assert (code, error) == (3, "")
    assert out.split() in [["long", steps, "RequestCancelled"] for steps in ("0", "1")]


def test_daemon_threads_of_the_program_itself(tmp_path: Path) -> None:
    script = """
begun = threading.Event()
def work():
    pipeline(PROMPT, callback_on_step_end=lambda *facts: begun.set(), **options)
threading.Thread(target=work, daemon=True).start()
assert begun.wait(PATIENCE_S)
sys.exit(3)
"""
    for _ in range(3):
        assert end_program(script, tmp_path) == (3, "", "")


def test_threads_that_are_no_daemons_are_finished(tmp_path: Path) -> None:
    """Python waits for them before anything is cancelled, and for what they wait for."""
    script = """
queue = RequestQueue(pipeline)
handle, begun = submit(queue, num_inference_steps=3)
threading.Thread(target=lambda: print(handle.result().frames.shape)).start()
sys.exit(3)
"""
    assert end_program(script, tmp_path) == (3, "(9, 64, 64, 3)\n", "")


def test_a_callback_that_never_returns_does_not_hold_the_program(tmp_path: Path) -> None:
    script = """
queue = RequestQueue(pipeline)
begun = threading.Event()
def wait(*facts):
    begun.set()
    threading.Event().wait()
queue.submit(PROMPT, callback_on_step_end=wait, **options)
assert begun.wait(PATIENCE_S)
sys.exit(3)
"""
    assert end_program(script, tmp_path) == (3, "", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_forked_child_does_not_wait_for_threads_that_it_has_not(tmp_path: Path) -> None:
    script = """
child = os.fork()
if child == 0:
    sys.exit(4)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert end_program(RUNNING + script, tmp_path) == (4, "", "")


def test_a_request_at_the_very_end_is_refused(tmp_path: Path) -> None:
    script = """
@atexit.register
def late():
    try:
        pipeline(PROMPT, **options)
    except Exception as error:
        print(error.code)
pipeline._native_calls.end()
"""
    assert end_program(script, tmp_path) == (0, "cancelled\n", "")


def test_media_in_a_worker(tmp_path: Path) -> None:
    """The program may end while a worker reads its file."""
    path = tmp_path / "in.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (30, 240, 320, 3), np.uint8)
    media.write_clip(path, frames, 8.0)
    script = f"""
queue = RequestQueue(pipeline, num_workers=2)
for _ in range(4):
    queue.submit(PROMPT, video1={str(path)!r}, num_inference_steps=50)
sys.exit(3)
"""
    for _ in range(3):
        assert end_program(script, tmp_path) == (3, "", "")
