"""The error tree: every failure a caller can act on derives from `EditVerseError`.

Each message is one line that says what was found, what was expected, and what to do.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "BundleError",
    "EditVerseError",
    "MediaError",
    "QueueFull",
    "RequestCancelled",
    "RequestError",
]


class EditVerseError(Exception):
    """Base of all errors raised on purpose by the runtime."""


class BundleError(EditVerseError):
    """A bundle is missing, incomplete, altered, or of a format that this version cannot read."""


class MediaError(EditVerseError):
    """A video or an image cannot be read or written."""


class RequestError(EditVerseError):
    """A request contradicts itself or exceeds what the bundle declares."""


class BackendError(EditVerseError):
    """A backend is not available here, or cannot run one of the bundle's graphs."""


class RequestCancelled(EditVerseError):  # noqa: N818 - the caller asked for it; nothing went wrong
    """A request was stopped by its callback, its handle or Ctrl-C; nothing was written, the pipeline stays
    usable."""


class QueueFull(EditVerseError):  # noqa: N818 - as queue.Full of the standard library
    """As many requests wait as may; the same one may be submitted again later."""
