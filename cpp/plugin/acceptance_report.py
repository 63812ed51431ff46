"""The report of `accept.py`: a line for each check and tables of times, written after each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Report"]


@dataclass
class Report:
    """Lines and tables. file: where they are written whenever one is added, so that a run that is cut short leaves
    what it found."""

    file: Path
    machine: list[str] = field(default_factory=list)
    lines: list[tuple[str, str, str]] = field(default_factory=list)
    tables: dict[str, list[str]] = field(default_factory=dict)

    def add(self, check: str, status: str, detail: str) -> None:
        """Note one line. status: passed, FAILED, measured or not run."""
        self.lines.append((check, status, " ".join(detail.replace("|", "/").split())))
        print(f"{status:8} {check:10} {self.lines[-1][2]}", flush=True)
        self._write()

    def add_row(self, table: str, header: tuple[str, ...], values: tuple[object, ...]) -> None:
        """Note one row of a table, which begins with its first row. table: its title."""
        if table not in self.tables:
            self.tables[table] = [_row(header), _row(("---",) * len(header))]
        self.tables[table].append(_row(values))
        print(f"measured {table}: {self.tables[table][-1]}", flush=True)
        self._write()

    def run(self, check: str, detail: str, action: Callable[[], tuple[bool, str]]) -> None:
        """Note what `action` finds; an error of it fails this line and not those after it."""
        try:
            passed, found = action()
        except Exception as error:
            passed, found = False, f"{type(error).__name__}: {error}"
        self.add(check, "passed" if passed else "FAILED", f"{detail}: {found}")

    @property
    def failed(self) -> bool:
        return any(status == "FAILED" for _, status, _ in self.lines)

    def _write(self) -> None:
        text = [
            "# Acceptance of the GPU parts",
            "",
            *self.machine,
            "",
            _row(("check", "", "")),
            _row(("---",) * 3),
        ]
        text += [_row(line) for line in self.lines]
        for title, rows in self.tables.items():
            text += ["", title, "", *rows]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text("\n".join([*text, ""]), "utf-8")


def _row(values: tuple[object, ...]) -> str:
    return f"| {' | '.join(map(str, values))} |"
