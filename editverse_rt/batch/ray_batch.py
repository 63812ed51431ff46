"""A batch over a Ray cluster: one actor a device, each with a pipeline of its own.

Which rows are left is decided as in `run_batch`, by the names of results, so a batch may go on with Ray or without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from editverse_rt.batch.folder import BatchFolder, keep_result, partial_path, save_result
from editverse_rt.batch.rows import BatchRow, Failure, KeyMaker
from editverse_rt.batch.running import (
    BatchLog,
    BatchProgress,
    BatchReport,
    check_unchanged,
    is_long,
    sort_rows,
)
from editverse_rt.bundle.manifest import load_bundle
from editverse_rt.cluster import ClusterOptions, run_on_devices
from editverse_rt.file_run import run_to_file
from editverse_rt.pipeline import Pipeline

__all__ = ["RowRunner", "run_ray_batch"]


class RowRunner:
    """What each actor is: a pipeline on one device, which makes results one after another."""

    def __init__(self, bundle: str, backend: str, open_options: Mapping[str, Any], folder: str) -> None:
        self._pipeline = Pipeline.open(bundle, backend, **open_options)
        self._make_key = KeyMaker(self._pipeline.bundle)
        self._folder = Path(folder)

    def run(self, row: BatchRow) -> Exception | None:
        """Write a row's result; the error where there is none."""
        try:
            check_unchanged(row, self._make_key)
            if is_long(self._pipeline, row):
                partial = partial_path(self._folder, row)
                run_to_file(self._pipeline, row.request, partial)
                check_unchanged(row, self._make_key)
                keep_result(self._folder, row, partial)
            else:
                result = self._pipeline(row.request)
                check_unchanged(row, self._make_key)
                save_result(self._folder, row, result)
        except Exception as error:
            return error
        return None


def run_ray_batch(
    rows: Iterable[BatchRow],
    folder: BatchFolder,
    cluster: ClusterOptions,
    *,
    failures: Iterable[Failure] = (),
    schedule: str | None = None,
    num_interrupts: Callable[[], int] = lambda: 0,
    on_progress: BatchProgress = lambda done, total, found: None,
) -> BatchReport:
    """Make the results that are missing, as `run_batch` does, on the devices of a cluster.

    Raises as `run_batch`, and as `run_on_devices`.
    """
    here = load_bundle(cluster.bundle)
    absolute = [replace(row, request=row.request.with_paths_from(Path.cwd())) for row in rows]
    split = sort_rows(absolute, KeyMaker(here), folder, schedule)
    with BatchLog(folder, split, failures, on_progress) as log:

        def take(row: BatchRow, outcome: Exception | None) -> None:
            if outcome is None:
                log.succeed()
            else:
                log.fail(row, outcome)

        run_on_devices(
            RowRunner,
            (str(folder.path.absolute()),),
            replace(cluster, bundle=str(here.root)),
            log.waiting,
            take,
            num_interrupts,
        )
    return log.report
