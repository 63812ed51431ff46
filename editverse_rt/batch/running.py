"""Running a batch: which rows have their results, the others one after another, and what became of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from editverse_rt import media
from editverse_rt.batch.folder import BatchFolder, keep_result, save_result
from editverse_rt.batch.rows import BatchRow, Failure, KeyMaker
from editverse_rt.errors import EditVerseError, RequestCancelled, RequestError
from editverse_rt.file_run import FileRun
from editverse_rt.pipeline import Pipeline
from editverse_rt.request_queue import RequestQueue
from editverse_rt.window_parts import parts_folder

__all__ = [
    "BatchLog",
    "BatchProgress",
    "BatchReport",
    "SortedRows",
    "check_unchanged",
    "is_long",
    "run_batch",
    "sort_rows",
]

RowHandle = Future[Any]
"""Of a `Result`, or of a `FileRun` for a long video."""
BatchProgress = Callable[[int, int, int], object]
_GLANCE_S = 0.2
_WRITTEN_EVERY_S = 10.0
_FATAL = ("media.unwritable", "media.place", "backend.closed")
"""Codes that every later row would end with as well."""


@dataclass
class BatchReport:
    """What became of a batch: how many results are there, how many of them were there before, what failed,
    and how many rows are left because it was stopped."""

    num_done: int = 0
    num_found: int = 0
    num_left: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        return not self.failures and self.num_left == 0


@dataclass(frozen=True)
class SortedRows:
    """Rows whose result is there, rows to run, and rows whose inputs cannot be read; the first two have keys."""

    found: list[BatchRow]
    pending: list[BatchRow]
    failures: list[Failure]

    @property
    def known(self) -> list[BatchRow]:
        return sorted([*self.found, *self.pending], key=lambda row: row.line)


def sort_rows(
    rows: Iterable[BatchRow], make_key: KeyMaker, folder: BatchFolder, schedule: str | None
) -> SortedRows:
    """Give each row its key and look for its result. schedule: takes the place of every row's own."""
    split = SortedRows([], [], [])
    for row in rows:
        try:
            request = row.request if schedule is None else replace(row.request, schedule=schedule)
            keyed = replace(row, request=request, key=make_key(request))
        except EditVerseError as error:
            split.failures.append(Failure(row.id, row.line, error))
            continue
        (split.pending if folder.find(keyed) is None else split.found).append(keyed)
    return split


def run_batch(
    pipeline: Pipeline,
    rows: Iterable[BatchRow],
    folder: BatchFolder,
    *,
    failures: Iterable[Failure] = (),
    schedule: str | None = None,
    num_workers: int = 1,
    memory_budget_bytes: int | None = None,
    num_interrupts: Callable[[], int] = lambda: 0,
    on_progress: BatchProgress = lambda done, total, found: None,
) -> BatchReport:
    """Make the results that are missing; a row that fails does not stop the others.

    failures: rows that could not even be read, which `failed.jsonl` lists as well. schedule: takes the place of
    every row's own. num_workers, memory_budget_bytes: as in `RequestQueue`. num_interrupts: asked five times a
    second; from 1 on no row is begun, from 2 on those that run are cancelled. on_progress(done, total, found):
    called after each row; `done` counts rows that are over, `found` those whose result was there before.
    Raises what makes every row fail: MediaError if the folder cannot be written, RequestError for workers or a
    budget that the pipeline cannot have.
    """
    make_key = KeyMaker(pipeline.bundle)
    split = sort_rows(rows, make_key, folder, schedule)
    with (
        BatchLog(folder, split, failures, on_progress) as log,
        RequestQueue(
            pipeline, num_workers=num_workers, max_queue=1, memory_budget_bytes=memory_budget_bytes
        ) as queue,
    ):
        running: dict[RowHandle, BatchRow] = {}
        over: list[tuple[RowHandle, BatchRow]] = []
        while running or over or (log.waiting and num_interrupts() == 0):
            while log.waiting and len(running) < num_workers and num_interrupts() == 0:
                row = log.waiting.pop()
                try:
                    running[_submit(folder, row, pipeline, queue)] = row
                except EditVerseError as error:
                    log.fail(row, error)
            # Written while the next ones already run.
            for handle, row in over:
                _finish(folder, row, handle, make_key, log)
            if num_interrupts() > 1:
                for handle in running:
                    handle.cancel()
            done, _ = wait(running, timeout=_GLANCE_S, return_when=FIRST_COMPLETED)
            over = [(handle, row) for handle, row in running.items() if handle in done]
            running = {handle: row for handle, row in running.items() if handle not in done}
    return log.report


class BatchLog:
    """What became of the rows so far, kept in the two files while a batch runs; a context manager."""

    def __init__(
        self,
        folder: BatchFolder,
        split: SortedRows,
        failures: Iterable[Failure],
        on_progress: BatchProgress,
    ) -> None:
        self.waiting = split.pending[::-1]
        """Rows to begin, the next one last."""
        self.report = BatchReport(
            num_done=len(split.found), num_found=len(split.found), failures=[*failures, *split.failures]
        )
        self._folder, self._known, self._on_progress = folder, split.known, on_progress
        self._total = len(split.known) + len(self.report.failures)
        self._written_at = float("-inf")
        self._go_on()

    def __enter__(self) -> BatchLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self._written_at = float("-inf")
        # A folder that cannot be written is said by the error that ended the batch.
        with suppress(OSError) if exception[0] is not None else nullcontext():
            self._write()
        report = self.report
        report.num_left = self._total - report.num_done - len(report.failures)
        if report.is_complete:
            self._folder.drop_windows()

    def succeed(self) -> None:
        self.report.num_done += 1
        self._go_on()

    def fail(self, row: BatchRow, error: Exception) -> None:
        """Note why a row failed. Raises the error where every other row would end with it as well."""
        if isinstance(error, EditVerseError) and error.code in _FATAL:
            raise error
        self.report.failures.append(Failure(row.id, row.line, error))
        self._go_on()

    def _go_on(self) -> None:
        report = self.report
        self._on_progress(report.num_done + len(report.failures), self._total, report.num_found)
        self._write()

    def _write(self) -> None:
        report = self.report
        if time.monotonic() - self._written_at < _WRITTEN_EVERY_S:
            return
        report.failures.sort(key=lambda failure: failure.line)
        self._folder.write_results(self._known)
        self._folder.write_failures(report.failures)
        self._written_at = time.monotonic()


def is_long(pipeline: Pipeline, row: BatchRow) -> bool:
    """Whether a row has more windows than one, so that its result goes to a file.

    Raises EditVerseError for a row that cannot be run, or whose result could not be written.
    """
    inputs = pipeline.prepare(row.request).inputs
    inputs.close_files()
    if inputs.expected_frames != 1:
        media.check_rate(Path(row.stem + BatchFolder.SUFFIXES[False]), inputs.expected_fps)
    return inputs.expected_windows != 1


def _submit(folder: BatchFolder, row: BatchRow, pipeline: Pipeline, queue: RequestQueue) -> RowHandle:
    """Let a row wait for its turn. Raises EditVerseError."""
    if is_long(pipeline, row):
        path = folder.windows_path(row)
        return queue.submit_to_file(row.request, path, resume=parts_folder(path).exists())
    return queue.submit(row.request)


def _finish(folder: BatchFolder, row: BatchRow, handle: RowHandle, make_key: KeyMaker, log: BatchLog) -> None:
    """Write the result of a row that is over, or note why there is none."""
    try:
        result = handle.result()
        check_unchanged(row, make_key)
        if isinstance(result, FileRun):
            keep_result(folder.path, row, result.path)
        else:
            save_result(folder.path, row, result)
        log.succeed()
    except RequestCancelled:
        log.waiting.append(row)
    except Exception as error:
        log.fail(row, error)


def check_unchanged(row: BatchRow, make_key: KeyMaker) -> None:
    """Raise RequestError (`batch.changed`) if an input's content is no longer what the key was made of."""
    if make_key(row.request) != row.key:
        raise RequestError(
            f"an input of {row.id!r} was changed while it was used",
            hint="run the batch again",
            code="batch.changed",
            field="inputs",
        )
