"""A worker's process as the server sees it: started, spoken to, and started again when it ends."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from editverse_rt.errors import EditVerseError, RequestError
from editverse_rt.serve.checking import Limits
from editverse_rt.serve.problems import HttpError

__all__ = ["STOPPED", "Message", "WorkerOptions", "WorkerProcess"]

Message = dict[str, Any]
WORKER = (sys.executable, "-m", "editverse_rt.serve.worker")
"""The command of a worker's process, without the handle of its socket."""
STOPPED = "stopped"
"""The reason of an end that the server wanted."""
_MAX_LINE_BYTES = 1 << 22
_LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker opens. slots: jobs at once, 0 for one a core where the backend can; bytes: RLIMIT_AS.

    label: its name in metrics, "" for that of its device. open_s: seconds that it has to open its bundles.
    """

    bundles: tuple[str, ...]
    backend: str = "auto"
    device: int | None = None
    slots: int = 0
    address_space_bytes: int | None = None
    limits: Limits = field(default_factory=Limits)
    label: str = ""
    open_s: float = 1800.0

    @property
    def name(self) -> str:
        if self.label:
            return self.label
        return "cpu" if self.device is None else f"gpu{self.device}"


class WorkerProcess:
    """One process and the link to it.

    on_event(worker, message): told of each message that is no answer to `ask`. on_end(worker, reason,
    was_asked): told when the process has ended; was_asked: whether a question to it was open then.
    """

    def __init__(
        self,
        options: WorkerOptions,
        on_event: Callable[[WorkerProcess, Message], None],
        on_end: Callable[[WorkerProcess, str, bool], None],
    ) -> None:
        self.options = options
        self.is_up = False
        self.slots = 0
        self.weight_bytes = 0
        self.models: list[dict[str, Any]] = []
        self.num_restarts = 0
        self._on_event, self._on_end = on_event, on_end
        self._process: Any = None
        self._writer: Any = None
        self._asked: dict[int, asyncio.Future[Message]] = {}
        self._num_asked = 0
        self._reason = ""

    @property
    def name(self) -> str:
        return self.options.name

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def keep_running(self, is_first_up: asyncio.Future[None]) -> None:
        """Start the process, and again whenever it ends, after a pause that grows; runs until cancelled.

        is_first_up: set when it is ready for the first time, or to the error that it cannot open with.
        """
        num_failed = 0
        try:
            while True:
                try:
                    reader = await self._start()
                    ready = json.loads(await self._first_line(reader) or b'{"event": "ended"}')
                    if ready["event"] == "failed_to_open" and not is_first_up.done():
                        is_first_up.set_exception(_opening_error(ready["error"]))
                        return
                    if ready["event"] == "ready":
                        num_failed = 0
                        self.models, self.slots = ready["models"], ready["slots"]
                        self.weight_bytes, self.is_up = ready["weight_bytes"], True
                        if not is_first_up.done():
                            is_first_up.set_result(None)
                        self._on_event(self, ready)
                        await self._listen(reader)
                except asyncio.CancelledError:
                    self._reason = self._reason or STOPPED
                    raise
                except Exception as error:  # no memory or no handle for a process, say, or no JSON of it
                    text = "".join(traceback.format_exception(error))
                    self._on_event(self, {"event": "log", "level": "error", "text": text})
                finally:
                    await self._end()
                num_failed += 1
                self.num_restarts += 1
                await asyncio.sleep(min(_LONGEST_PAUSE_S, 0.1 * 2**num_failed) if num_failed > 1 else 0)
        except asyncio.CancelledError:
            await self._end()
            raise

    def send(self, message: Message) -> None:
        """Send a message; lost where the process ends, which is told by on_end."""
        if self._writer is not None:
            with suppress(OSError, RuntimeError):
                self._writer.write(json.dumps(message).encode() + b"\n")

    async def ask(self, message: Message, timeout_s: float) -> Message:
        """Send a question and wait for its answer; a process that does not answer in time is ended.

        Raises HttpError where there is no process, or it ends meanwhile.
        """
        if not self.is_up:
            raise HttpError(
                503,
                f"the worker of {self.name} is being started",
                hint="try again",
                code="serve.starting",
                retry_after_s=2,
            )
        self._num_asked += 1
        number = self._num_asked
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            self.send({**message, "id": number})
            return await asyncio.wait_for(answer, timeout_s)
        except asyncio.TimeoutError as error:
            self.kill("silent")
            raise HttpError(
                400,
                f"the inputs could not be looked at within {timeout_s:g} s",
                hint="convert them to another type",
                code="serve.input_crash",
            ) from error
        finally:
            self._asked.pop(number, None)

    def kill(self, reason: str) -> None:
        """End the process at once; it is started again."""
        self._reason = self._reason or reason
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def _connect(self, command: tuple[str, ...]) -> tuple[asyncio.StreamReader, Any, Any]:
        """Start a process; reader and writer of the link to it, and the process."""
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours, limit=_MAX_LINE_BYTES)
        return reader, writer, process

    async def _start(self) -> asyncio.StreamReader:
        self._reason = ""
        reader, self._writer, self._process = await self._connect(WORKER)
        options = self.options
        self.send(
            {
                "do": "open",
                "bundles": [os.fspath(bundle) for bundle in options.bundles],
                "backend": options.backend,
                "device": options.device,
                "slots": options.slots,
                "address_space_bytes": options.address_space_bytes,
                "limits": asdict(options.limits),
            }
        )
        return reader

    async def _first_line(self, reader: asyncio.StreamReader) -> bytes:
        """What the process says of its bundles; b"" where it has ended, or is ended because it says nothing."""
        try:
            return await asyncio.wait_for(reader.readline(), self.options.open_s)
        except asyncio.TimeoutError:
            text = (
                f"the worker of {self.name} has not opened its bundles within {self.options.open_s:g} s, and is "
                "started again; give --worker-open-s more where the disk is slow"
            )
            self._on_event(self, {"event": "log", "level": "error", "text": text})
            self.kill("silent")
            return b""

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError, ValueError):
            while line := await reader.readline():
                message = json.loads(line)
                if "id" in message:
                    answer = self._asked.get(message["id"])
                    if answer is not None and not answer.done():
                        answer.set_result(message)
                else:
                    self._on_event(self, message)

    async def _end(self) -> None:
        """See to it that the process is gone, and tell. Where this is cancelled, call it again: it waits on."""
        process = self._process
        if process is None:
            return
        was_up, self.is_up = self.is_up, False
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        code = await process.wait()
        self._process = None
        was_asked = bool(self._asked)
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(
                    HttpError(
                        400,
                        "the process that looked at the inputs ended",
                        expected="files that can be decoded",
                        hint="convert them to another type, or try again",
                        code="serve.input_crash",
                    )
                )
        if was_up or self._reason:
            self._on_end(self, self._reason or f"exit {code}", was_asked)


def _opening_error(facts: dict[str, str]) -> EditVerseError:
    return RequestError(
        facts["found"],
        expected=facts["expected"],
        hint=facts["hint"],
        code=facts["code"],
        field=facts["field"],
    )
