"""Reading JSON, and objects of JSON or TOML field by field, so that an error names file and field."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import NoReturn

from editverse_rt.errors import BundleError, EditVerseError, RequestError

__all__ = ["EXPORT_AGAIN", "LARGEST", "Fields", "finite_number", "json_from_text", "read_json"]

EXPORT_AGAIN = "export the bundle again"
LARGEST = 2**63 - 1  # what a host in another language can hold
_MOST_DIGITS = 1000
"""Of a whole number: more than any float has, and far fewer than take time to read."""


def read_json(path: Path, *, error: type[EditVerseError] = BundleError, fix: str = EXPORT_AGAIN) -> object:
    """The value of a JSON file, as strict as every host has to be: UTF-8, no field twice, no NaN.

    error, fix: what is raised, and what its message tells to do. Raises it for a file that cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as cause:
        raise _unreadable(str(path), cause, error, fix) from cause
    return json_from_text(text, str(path), error=error, fix=fix)


def json_from_text(
    text: str, where: str, *, error: type[EditVerseError] = BundleError, fix: str = EXPORT_AGAIN
) -> object:
    """The value of a JSON text, as strict as `read_json`. where: stands at the head of errors."""

    def refuse_constant(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        names = [name for name, _ in pairs]
        if len(set(names)) != len(names):
            raise ValueError(f"a field stands twice among {', '.join(names)}")
        return dict(pairs)

    def whole_number(digits: str) -> int:
        if len(digits) > _MOST_DIGITS:
            raise ValueError(f"a whole number of {len(digits)} digits")
        return int(digits)

    try:
        value: object = json.loads(
            text, parse_constant=refuse_constant, parse_int=whole_number, object_pairs_hook=unique
        )
    except (ValueError, RecursionError) as cause:
        raise _unreadable(where, cause, error, fix) from cause
    return value


def finite_number(value: object) -> float | None:
    """A number of JSON as a float; None for another value, and for a number that is too large for one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _unreadable(where: str, cause: Exception, error: type[EditVerseError], fix: str) -> EditVerseError:
    line = str(cause).splitlines()[0]
    # A request is its caller's own; bundles and plans are published.
    hint = fix if issubclass(error, RequestError) else f"fetch or {fix}"
    return error(f"{where} cannot be read as UTF-8 JSON: {line}", hint=hint)


class Fields:
    """Takes the fields of one object, each with its type.

    where: the file, at the head of errors. name: of the object in it, "" for the outermost.
    error, fix: what is raised, and what its message tells to do. Every method raises it for a field that is
    missing or of another kind.
    """

    def __init__(
        self,
        value: object,
        where: str,
        name: str,
        *,
        error: type[EditVerseError] = BundleError,
        fix: str = EXPORT_AGAIN,
    ) -> None:
        self._where = where
        self._name = name
        self._error = error
        self._fix = fix
        if not isinstance(value, dict):
            self.refuse("", value, "an object")
        self._values: dict[str, object] = dict(value)
        self._taken: set[str] = set()

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __contains__(self, field: str) -> bool:
        return field in self._values

    def _inner(self, value: object, name: str) -> Fields:
        return Fields(value, self._where, name, error=self._error, fix=self._fix)

    def _full_name(self, field: str) -> str:
        return ".".join(part for part in (self._name, field) if part)

    def refuse(self, field: str, found: object, expected: str) -> NoReturn:
        """Raise the error about a field of this object."""
        shown = json.dumps(found, default=str)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        name = self._full_name(field)
        raise self._error(
            f'{self._where}: field "{name}" is {shown}',
            expected=expected,
            hint=self._fix,
            code=f"{self._error.default_code}.field",
            field=name,
        )

    def _take(self, field: str) -> object:
        if field not in self._values:
            name = self._full_name(field)
            raise self._error(
                f'{self._where}: field "{name}" is missing',
                hint=self._fix,
                code=f"{self._error.default_code}.field",
                field=name,
            )
        self._taken.add(field)
        return self._values[field]

    def named_children_of(self) -> Iterator[tuple[str, Fields]]:
        """Every field of this object as an object."""
        for name in self._values:
            yield name, self.child(name)

    def value(self, field: str) -> object:
        """A value of any type."""
        return self._take(field)

    def finish(self) -> None:
        """Refuse what nobody took: a misspelt field must not pass as absent."""
        for field in self._values:
            if field not in self._taken:
                self.refuse(field, self._values[field], "no field of this name")

    def string(self, field: str) -> str:
        value = self._take(field)
        if not isinstance(value, str) or not value:
            self.refuse(field, value, "a string that is not empty")
        return value

    def text(self, field: str) -> str:
        """A string that may be empty."""
        value = self._take(field)
        if not isinstance(value, str):
            self.refuse(field, value, "a string")
        return value

    def path(self, field: str) -> str:
        value = self.string(field)
        # One spelling for every platform; a backslash or a drive would be a way out of the bundle on some.
        parts = PurePosixPath(value).parts
        if re.search(r"[\\:\x00-\x1f]|^/", value) or value != "/".join(parts) or ".." in parts:
            self.refuse(field, value, "a relative path with forward slashes that stays inside the bundle")
        return value

    def integer(self, field: str, minimum: int, maximum: int = LARGEST) -> int:
        value = self._take(field)
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
            limits = f"of at least {minimum}" if maximum == LARGEST else f"from {minimum} to {maximum}"
            self.refuse(field, value, f"a whole number {limits}")
        return value

    def boolean(self, field: str) -> bool:
        value = self._take(field)
        if not isinstance(value, bool):
            self.refuse(field, value, "true or false")
        return value

    def choice(self, field: str, choices: Collection[str]) -> str:
        value = self._take(field)
        if not isinstance(value, str) or value not in choices:
            self.refuse(field, value, f"one of {', '.join(choices)}")
        return value

    def number(self, field: str, minimum: float = -math.inf) -> float:
        value = self._take(field)
        number = finite_number(value)
        if number is None or number < minimum:
            self.refuse(
                field, value, "a number" if minimum == -math.inf else f"a number of at least {minimum:g}"
            )
        return number

    def positive_number(self, field: str) -> float:
        value = self._take(field)
        number = finite_number(value)
        if number is None or number <= 0:
            self.refuse(field, value, "a number above 0")
        return number

    def numbers(self, field: str) -> tuple[float, ...]:
        return self._numbers(field, self._take(field))

    def number_rows(self, field: str) -> tuple[tuple[float, ...], ...]:
        return tuple(self._numbers(f"{field}[{i}]", row) for i, row in enumerate(self.array(field)))

    def matrices(self, field: str) -> tuple[tuple[tuple[float, ...], ...], ...]:
        return tuple(
            tuple(self._numbers(f"{field}[{i}][{j}]", row) for j, row in enumerate(rows))
            if isinstance(rows, list)
            else self.refuse(f"{field}[{i}]", rows, "a list of rows")
            for i, rows in enumerate(self.array(field))
        )

    def _numbers(self, field: str, value: object) -> tuple[float, ...]:
        found = [finite_number(x) for x in value] if isinstance(value, list) else [None]
        numbers = [number for number in found if number is not None]
        if len(numbers) != len(found):
            self.refuse(field, value, "a list of numbers")
        return tuple(numbers)

    def array(self, field: str) -> list[object]:
        value = self._take(field)
        if not isinstance(value, list):
            self.refuse(field, value, "a list")
        return value

    def mapping(self, field: str) -> dict[str, object]:
        value = self._take(field)
        if not isinstance(value, dict):
            self.refuse(field, value, "an object")
        return value

    def child(self, field: str) -> Fields:
        return self._inner(self._take(field), self._full_name(field))

    def children(self, field: str) -> Iterator[Fields]:
        for i, value in enumerate(self.array(field)):
            yield self._inner(value, f"{self._full_name(field)}[{i}]")

    def named_children(self, field: str) -> Iterator[tuple[str, Fields]]:
        for name, value in self.mapping(field).items():
            yield name, self._inner(value, f"{self._full_name(field)}.{name}")
