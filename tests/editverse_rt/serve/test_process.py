"""A worker's process as the server sees it: started again whatever has failed, its lines in order before its end."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from editverse_rt.serve import process
from editverse_rt.serve.process import Message, WorkerOptions, WorkerProcess

READY = 'print_line({"event": "ready", "models": [], "slots": 1, "weight_bytes": 0})'
SCRIPT = """
import json, socket, sys, time
link = socket.socket(fileno=int(sys.argv[-1]))
def print_line(facts):
    link.sendall(json.dumps(facts).encode() + b"\\n")
"""


class Heard:
    """What a worker's process is heard to say, and its end, in one list."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, script: str, open_s: float = 60.0) -> None:
        monkeypatch.setattr(process, "WORKER", (sys.executable, "-c", SCRIPT + script))
        self.told: list[Any] = []
        self.texts: list[str] = []
        options = WorkerOptions(("nano",), open_s=open_s)
        self.worker = WorkerProcess(options, self._on_event, self._on_end)

    def _on_event(self, worker: WorkerProcess, message: Message) -> None:
        self.texts += [message["text"]] if message["event"] == "log" else []
        self.told.append(message["event"] if message["event"] != "line" else message["number"])

    def _on_end(self, worker: WorkerProcess, reason: str, was_asked: bool) -> None:
        self.told.append(reason)

    async def run_until(self, count: int) -> None:
        """Keep the process running until so much was told."""
        running = asyncio.ensure_future(self.worker.keep_running(asyncio.get_running_loop().create_future()))

        async def wait() -> None:
            while len(self.told) < count:
                await asyncio.sleep(0.01)

        await asyncio.wait_for(wait(), 60)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def test_all_lines_come_before_the_end_and_none_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process writes much and dies at once: its lines are still in the socket when its death can be noticed."""
    lines = 3000
    script = f'{READY}\nfor i in range({lines}): print_line({{"event": "line", "number": i}})\nimport os; os._exit(7)'
    heard = Heard(monkeypatch, script)

    asyncio.run(heard.run_until(2 + lines))
    assert heard.told[: 1 + lines] == ["ready", *range(lines)]
    # 255 where a process that has ended is killed in vain, which takes its exit code away from asyncio.
    assert heard.told[1 + lines] in ("exit 7", "exit 255")


def test_lines_of_a_process_that_was_killed_come_before_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    script = f'{READY}\nfor i in range(10): print_line({{"event": "line", "number": i}})\ntime.sleep(600)'
    heard = Heard(monkeypatch, script)
    real = heard._on_event

    def on_event(worker: WorkerProcess, message: Message) -> None:
        if message.get("number") == 0:
            worker.kill("silent")
        real(worker, message)

    heard.worker._on_event = on_event
    asyncio.run(heard.run_until(12))
    assert heard.told[:1] == ["ready"]
    numbers = heard.told[1 : heard.told.index("silent")]
    assert numbers == list(range(len(numbers)))
    assert numbers


@pytest.mark.parametrize("first", ["print('to nowhere'); link.sendall(b'no JSON\\n')", "raise SystemExit(1)"])
def test_a_process_that_does_not_begin_well_is_started_again(
    monkeypatch: pytest.MonkeyPatch, first: str, tmp_path: Any
) -> None:
    mark = tmp_path / "begun"
    script = f"""
from pathlib import Path
mark = Path({str(mark)!r})
if not mark.exists():
    mark.touch()
    {first}
    raise SystemExit(1)
{READY}
time.sleep(600)
"""
    heard = Heard(monkeypatch, script)

    async def act() -> None:
        is_up = asyncio.get_running_loop().create_future()
        running = asyncio.ensure_future(heard.worker.keep_running(is_up))
        await asyncio.wait_for(is_up, 60)
        assert heard.worker.is_up
        assert heard.worker.num_restarts == 1
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(act())


def test_a_system_without_room_for_a_process_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard(monkeypatch, f"{READY}\ntime.sleep(600)")
    real, refusals = heard.worker._connect, []

    async def connect(command: tuple[str, ...]) -> Any:
        if len(refusals) < 2:
            refusals.append(command)
            raise OSError(24, "Too many open files")
        return await real(command)

    monkeypatch.setattr(heard.worker, "_connect", connect)
    asyncio.run(heard.run_until(3))
    assert heard.told[:3] == ["log", "log", "ready"]


@pytest.mark.parametrize("stuck", [1, 2])
def test_a_process_that_does_not_open_its_bundles_in_time_is_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, stuck: int
) -> None:
    script = f"""
from pathlib import Path
marks = sorted(Path({str(tmp_path)!r}).iterdir())
if len(marks) < {stuck}:
    (Path({str(tmp_path)!r}) / str(len(marks))).touch()
    time.sleep(600)
{READY}
time.sleep(600)
"""
    heard = Heard(monkeypatch, script, open_s=1.0)
    asyncio.run(heard.run_until(2 * stuck + 1))
    assert heard.told[: 2 * stuck + 1] == [*["log", "silent"] * stuck, "ready"]
    assert heard.worker.num_restarts == stuck
    assert all("has not opened its bundles within 1 s" in text for text in heard.texts)
    assert all("--worker-open-s" in text for text in heard.texts)
