"""Fields of OpenAI's form as options of an edit request; multipart gives all of them as text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from editverse_rt.request.options import OPTIONS
from editverse_rt.serve.problems import HttpError

__all__ = ["check_known", "option_values", "unsupported"]

_NAMES = frozenset(option.name for option in OPTIONS)


def option_values(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an edit request among the fields; numbers as text become numbers where they are such."""
    values: dict[str, Any] = {}
    for option in OPTIONS:
        if option.name not in fields:
            continue
        value = fields[option.name]
        if isinstance(value, str):
            if option.kind == "int" and re.fullmatch(r"[+-]?[0-9]{1,30}", value):
                value = int(value)
            elif option.kind == "float" and re.fullmatch(r"[+-]?[0-9.]{1,30}(e[+-]?[0-9]{1,3})?", value):
                try:
                    value = float(value)
                except ValueError:
                    continue
        if option.name == "size" and value == "auto":
            continue
        values[option.name] = value
    return values


def check_known(fields: Mapping[str, Any], known: set[str], supported: str) -> None:
    """Raises HttpError (400) that names a field which is neither known nor an option of a request."""
    for name in fields:
        if name not in known and name not in _NAMES:
            raise unsupported(name, supported)


def unsupported(name: str, supported: str) -> HttpError:
    return HttpError(
        400,
        "it is not supported",
        expected=supported,
        hint="leave it out",
        code="serve.field",
        field=name[:60],
    )
