"""The errors that a caller can act on, as data.

    EditVerseError               base of all that the runtime raises on purpose
    ├── BundleError              a bundle is missing, incomplete, altered, or of another format
    ├── MediaError               a video or an image cannot be read or written
    ├── RequestError             a request contradicts itself or exceeds what the bundle declares
    ├── BackendError             a backend is not available here, or cannot run one of the graphs
    ├── RequestCancelled         a request was stopped by its callback, its handle or Ctrl-C
    └── QueueFull                as many requests wait as may; submit again later

Each carries what a program needs (`code`, `field`) and what a person needs (`found`, `expected`, `hint`). The
text of the exception is made from the latter: one line that says what was found, what was expected, and what
to do. docs/errors.md lists the codes; a code is stable, a text is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

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
    """Base of all errors raised on purpose by the runtime.

    found: what was found, as a clause without a full stop; with `is_value` the value of `field` alone, so
    that the text begins with "<field> is <found>". expected: what is right instead. hint: what to do. code:
    for programs; the class has one for where no finer one is needed. field: the option, or a file's field,
    that is wrong, by the library's own name ("num_frames", "geometry.max_frames"); "" for none.
    """

    default_code: ClassVar[str] = "error"

    def __init__(
        self,
        found: str,
        *,
        expected: str = "",
        hint: str = "",
        code: str = "",
        field: str = "",
        is_value: bool = False,
    ) -> None:
        self.code = code or self.default_code
        self.field = field
        self.found = found
        self.expected = expected
        self.hint = hint
        self.is_value = is_value
        super().__init__(self.describe())

    def describe(self, names: Mapping[str, str] | None = None) -> str:
        """The text in one line. names: what to call fields instead, such as the flags of a command line."""
        found = self.found
        if self.is_value:
            found = f"{(names or {}).get(self.field, self.field)} is {found}"
        expected = f"expected {self.expected}" if self.expected else ""
        return "; ".join(part for part in (found, expected, self.hint) if part)

    def with_hint(self, hint: str) -> EditVerseError:
        """The same error with more advice."""
        joined = "; ".join(part for part in (self.hint, hint) if part)
        return type(self)(
            self.found,
            expected=self.expected,
            hint=joined,
            code=self.code,
            field=self.field,
            is_value=self.is_value,
        )

    def to_json(self) -> dict[str, str]:
        """The error as a JSON object: code, field, found, expected, hint, and message, the whole text."""
        return {
            "code": self.code,
            "field": self.field,
            "found": self.found,
            "expected": self.expected,
            "hint": self.hint,
            "message": str(self),
        }

    def __reduce__(self) -> tuple[object, ...]:
        # An exception with keyword arguments does not survive pickling, between processes, by itself.
        return _restore, (type(self), self.__dict__.copy())


def _restore(kind: type[EditVerseError], facts: dict[str, object]) -> EditVerseError:
    error = kind.__new__(kind)
    error.__dict__.update(facts)
    Exception.__init__(error, error.describe())
    return error


class BundleError(EditVerseError):
    """A bundle is missing, incomplete, altered, or of a format that this version cannot read."""

    default_code = "bundle"


class MediaError(EditVerseError):
    """A video or an image cannot be read or written."""

    default_code = "media"


class RequestError(EditVerseError):
    """A request contradicts itself or exceeds what the bundle declares."""

    default_code = "request"


class BackendError(EditVerseError):
    """A backend is not available here, or cannot run one of the bundle's graphs."""

    default_code = "backend"


class RequestCancelled(EditVerseError):  # noqa: N818 - the caller asked for it; nothing went wrong
    """A request was stopped by its callback, its handle or Ctrl-C; nothing was written, the pipeline stays
    usable."""

    default_code = "cancelled"


class QueueFull(EditVerseError):  # noqa: N818 - as queue.Full of the standard library
    """As many requests wait as may; the same one may be submitted again later."""

    default_code = "queue_full"
