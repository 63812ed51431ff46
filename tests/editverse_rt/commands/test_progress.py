"""The bar of progress: redrawn on a terminal, a few lines elsewhere."""

from __future__ import annotations

import io
import re

from hypothesis import given
from hypothesis import strategies as st

from editverse_rt.commands import terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_redrawn_on_a_terminal() -> None:
    stream = Terminal()
    progress = terminal.Progress(stream)
    for step in range(20):
        progress(None, step, step / 20, {"num_inference_steps": 20})
    progress.close()
    progress.close()
    assert stream.getvalue().count("\r") >= 2
    assert stream.getvalue().count("\n") == 1
    last = stream.getvalue().rstrip("\n").split("\r")[-1]
    assert re.match(r"100%\|[^|]*\| 20/20 \[00:0\d<00:00, +[^]]*step/s", last)


def test_progress_is_few_lines_elsewhere() -> None:
    stream = io.StringIO()
    progress = terminal.Progress(stream)
    for step in range(50):
        progress(None, step, step / 50, {"num_inference_steps": 50})
    progress.close()
    assert "\r" not in stream.getvalue()
    steps = [line.split("| ")[1].split()[0] for line in stream.getvalue().splitlines()]
    assert steps == ["1/50", *(f"{n}/50" for n in range(5, 51, 5))]


@given(total=st.integers(1, 300), initial=st.integers(0, 300))
def test_progress_elsewhere_ends_with_the_last_and_has_eleven_lines_at_most(total: int, initial: int) -> None:
    stream = io.StringIO()
    progress = terminal.Progress(stream, unit="edit", initial=min(initial, total - 1))
    for done in range(min(initial, total - 1) + 1, total + 1):
        progress.show(done, total)
    lines = stream.getvalue().splitlines()
    assert 1 <= len(lines) <= 11
    assert f"| {total}/{total} [" in lines[-1]


def test_progress_outlives_its_stream() -> None:
    for stream in (io.StringIO(), Terminal()):
        progress = terminal.Progress(stream)
        stream.isatty()
        stream.close()
        for step in range(3):
            progress(None, step, 0.0, {"num_inference_steps": 3})
        progress.close()
