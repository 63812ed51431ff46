"""Tables in Parquet files, by pyarrow, which is an optional package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from editverse_rt.errors import BackendError, RequestError

__all__ = ["read_parquet"]


def read_parquet(path: Path, *, code: str) -> list[dict[str, Any]]:
    """The rows of a table, each by the names of its columns.

    code: of the RequestError for a file that cannot be read. Raises BackendError (`backend.package_missing`) without
    pyarrow.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise BackendError(
            "the package pyarrow is not installed",
            hint="install it with: pip install pyarrow",
            code="backend.package_missing",
        ) from error
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RequestError(
            f"{path} cannot be read as a Parquet table ({reason})", hint="check the file", code=code
        ) from error
    return rows
