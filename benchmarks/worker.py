"""A process of its own for one contender and one piece of work, so that its memory is its own.

It answers a line of JSON on standard output for each line on standard input: open, run, save, memory.
`Worker` is the other end. Whatever libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

if not __package__:  # run as a file: `python benchmarks/worker.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks import memory
from benchmarks.clock import Sample, time_call
from benchmarks.contenders import CONTENDERS, open_contender
from benchmarks.work import Work, prepare_work

__all__ = ["Worker", "WorkerError"]


class WorkerError(RuntimeError):
    """A worker that failed or is gone; the message says at what, and the last that it said."""


class Worker:
    """The other end of one process; a context manager."""

    def __init__(self, contender: str, work: Work, forms: dict[str, str], num_threads: int) -> None:
        """forms: the folders of the model's forms, by name ("checkpoint", "bundle", "plain")."""
        self.name = contender
        self._open = {
            "do": "open", "contender": contender, "work": asdict(work), "forms": forms,
            "threads": num_threads,
        }  # fmt: skip
        self._threads = num_threads
        self.opened = Sample(0.0, 0.0)
        """What it took to import libraries, to load the model and to draw the inputs."""
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Worker:
        threads = str(self._threads)
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
        )
        try:
            self.opened = Sample(**self._ask(self._open))
        except WorkerError:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._process is not None:
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process.wait()
            self._process = None

    def run(self) -> Sample:
        """Do the work once, timed inside the process."""
        return Sample(**self._ask({"do": "run"}))

    def save(self, path: Path) -> None:
        """Write the last result as .npy."""
        self._ask({"do": "save", "path": str(path)})

    def peak_bytes(self) -> int:
        """The process's peak of resident memory since it began."""
        return int(self._ask({"do": "memory"})["peak_bytes"])

    def _ask(self, question: dict[str, Any]) -> Any:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise WorkerError(f"{self.name} is asked to {question['do']} and has no process; enter it first")
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            code = process.wait()
            why = "it was killed, for memory perhaps" if code == -9 else f"exit code {code}"
            raise WorkerError(f"{self.name} ended while asked to {question['do']}: {why}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name} failed to {question['do']}: {answer['error']}")
        return answer


class _Served:
    """What the process holds between two lines."""

    def __init__(self) -> None:
        self._call: Callable[[], Any] | None = None
        self._result: Any = None

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        if question["do"] == "open":
            name, forms = question["contender"], question["forms"]
            form, bundle = Path(forms[CONTENDERS[name].form]), Path(forms["bundle"])

            def prepare() -> Callable[[], Any]:
                opened, runner = open_contender(name, form, bundle, question["threads"])
                return prepare_work(Work(**question["work"]), opened, runner)

            sample, self._call = time_call(prepare)
            return asdict(sample)
        if question["do"] == "run" and self._call is not None:
            # Not held beside the next one, which would count as its memory.
            self._result = None
            sample, self._result = time_call(self._call)
            return asdict(sample)
        if question["do"] == "save":
            np.save(question["path"], self._result)
            return {"saved": question["path"]}
        if question["do"] == "memory":
            return {"peak_bytes": memory.peak_bytes()}
        raise ValueError(f"a worker was asked to {question['do']!r}; expected open, run, save or memory")


def main() -> int:
    # The answers' way out, and nobody else's: libraries print to file descriptor 1, too.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    served = _Served()
    for line in sys.stdin:
        try:
            answer = served.answer(json.loads(line))
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
