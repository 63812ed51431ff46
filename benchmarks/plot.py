"""Plots as SVG text: bars in groups, curves or points in a plane, pairs; no library behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

__all__ = ["Point", "draw_bars", "draw_pairs", "draw_plane"]

WIDTH = 760
# Distinct also for those who see colours differently (Okabe and Ito).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999")
FONT = 'font-family="Helvetica, Arial, sans-serif"'


@dataclass(frozen=True)
class Point:
    """One point of a plane; a label stands beside it, and a marked one is drawn larger."""

    x: float
    y: float
    label: str = ""
    is_marked: bool = False


def draw_bars(title: str, groups: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """Horizontal bars: a group of them under each name, each of a series with a colour of its own."""
    series = list(dict.fromkeys(name for group in groups.values() for name in group))
    longest = max((value for group in groups.values() for value in group.values()), default=1.0) or 1.0
    left, right, bar, gap = 190, 90, 14, 12
    parts, top = [*_legend(series, 40)], 62
    for name, group in groups.items():
        middle = top + len(group) * bar / 2 + 4
        parts.append(_text(left - 8, middle, name, anchor="end"))
        for label, value in group.items():
            length = value / longest * (WIDTH - left - right)
            colour = _colour(series.index(label))
            parts.append(
                f'<rect x="{left}" y="{top}" width="{length:.1f}" height="{bar - 2}" fill="{colour}"/>'
            )
            parts.append(_text(left + length + 5, top + bar - 4, f"{_number(value)} {unit}".strip(), size=11))
            top += bar
        top += gap
    return _frame(title, parts, top + 4)


def draw_plane(
    title: str,
    series: Mapping[str, Sequence[Point]],
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    is_joined: bool = True,
) -> str:
    """Curves, or points with labels, over two axes; an axis may be logarithmic."""
    height, left, right, top, bottom = 420, 70, 40, 66, 50
    points = [point for line in series.values() for point in line]
    x_axis = _Axis([p.x for p in points], left, WIDTH - right, is_log=log_x)
    y_axis = _Axis([p.y for p in points], height - bottom, top, is_log=log_y)
    parts = [*_legend(list(series), 40)]
    for value in x_axis.ticks():
        x = x_axis.place(value)
        parts.append(f'<path d="M{x:.1f} {top}V{height - bottom}" stroke="#ddd"/>')
        parts.append(_text(x, height - bottom + 16, _number(value), anchor="middle", size=11))
    for value in y_axis.ticks():
        y = y_axis.place(value)
        parts.append(f'<path d="M{left} {y:.1f}H{WIDTH - right}" stroke="#ddd"/>')
        parts.append(_text(left - 6, y + 4, _number(value), anchor="end", size=11))
    for index, line in enumerate(series.values()):
        colour = _colour(index)
        places = [(x_axis.place(p.x), y_axis.place(p.y), p) for p in line]
        if is_joined and places:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in places)
            parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, y, point in places:
            radius = 6 if point.is_marked else 3.5
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"/>')
            if point.label:
                parts.append(_text(x + 8, y - 6, point.label, size=11, is_bold=point.is_marked))
    parts.append(_text((left + WIDTH - right) / 2, height - 12, x_label, anchor="middle"))
    parts.append(f'<g transform="rotate(-90 16 {(top + height - bottom) / 2:.0f})">')
    parts.append(_text(16, (top + height - bottom) / 2, y_label, anchor="middle") + "</g>")
    return _frame(title, parts, height)


def draw_pairs(
    title: str, panels: Mapping[str, Mapping[str, Mapping[str, float]]], categories: Sequence[str]
) -> str:
    """Panels side by side, each with an axis of its own: a line a series over the categories, which it may lack.

    The mean of a category, over the series that have it, is a bar across.
    """
    height, left, top, bottom, gap = 340, 60, 70, 40, 70
    width = (WIDTH - left - 20 - gap * (len(panels) - 1)) / max(len(panels), 1)
    series = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    parts = [*_legend(series, 40)]
    for number, (name, panel) in enumerate(panels.items()):
        begin = left + number * (width + gap)
        places = {c: begin + (i + 0.5) * width / len(categories) for i, c in enumerate(categories)}
        axis = _Axis(
            [v for line in panel.values() for v in line.values()], height - bottom, top, is_log=False
        )
        for value in axis.ticks():
            y = axis.place(value)
            parts.append(f'<path d="M{begin:.1f} {y:.1f}h{width:.1f}" stroke="#ddd"/>')
            parts.append(_text(begin - 6, y + 4, _number(value), anchor="end", size=11))
        for category, x in places.items():
            found = [line[category] for line in panel.values() if category in line]
            parts.append(_text(x, height - bottom + 18, category, anchor="middle"))
            if found:
                y = axis.place(sum(found) / len(found))
                parts.append(f'<path d="M{x - 22:.1f} {y:.1f}h44" stroke="#222" stroke-width="3"/>')
        for label, line in panel.items():
            colour = _colour(series.index(label))
            dots = [(places[c], axis.place(line[c])) for c in categories if c in line]
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in dots)
            parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in dots]
        parts.append(_text(begin, top - 8, name, is_bold=True))
    return _frame(title, parts, height)


class _Axis:
    """Values to pixels, with room at the ends."""

    def __init__(self, values: Sequence[float], begin_px: float, end_px: float, *, is_log: bool) -> None:
        self._is_log = is_log
        scaled = [self._scale(value) for value in values] or [0.0]
        low, high = min(scaled), max(scaled)
        room = 0.06 * (high - low) or 0.5
        self._low, self._high = low - room, high + room
        self._begin, self._end = begin_px, end_px

    def _scale(self, value: float) -> float:
        return math.log10(value) if self._is_log else value

    def place(self, value: float) -> float:
        share = (self._scale(value) - self._low) / (self._high - self._low)
        return self._begin + share * (self._end - self._begin)

    def ticks(self) -> list[float]:
        """Round values within the axis: 1, 2 and 5 times powers of ten."""
        if self._is_log:
            powers = range(math.floor(self._low), math.ceil(self._high) + 1)
            steps = (1, 2, 5) if self._high - self._low < 2.5 else (1,)
            values = [step * 10.0**power for power in powers for step in steps]
            return [v for v in values if self._low <= math.log10(v) <= self._high]
        rough = (self._high - self._low) / 5
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
        first = math.ceil(self._low / step)
        return [index * step for index in range(first, math.floor(self._high / step) + 1)]


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _number(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _legend(series: Sequence[str], top: int) -> list[str]:
    parts, left = [], 12
    for index, name in enumerate(series):
        parts.append(f'<rect x="{left}" y="{top - 9}" width="10" height="10" fill="{_colour(index)}"/>')
        parts.append(_text(left + 15, top, name))
        left += 34 + 7 * len(name)
    return parts


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, is_bold: bool = False
) -> str:
    weight = ' font-weight="bold"' if is_bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" {FONT} font-size="{size}" text-anchor="{anchor}"{weight} '
        f'fill="#222">{escape(text)}</text>'
    )


def _frame(title: str, parts: Sequence[str], height: float) -> str:
    body = "\n".join([_text(12, 20, title, size=15, is_bold=True), *parts])
    size = f'width="{WIDTH}" height="{height:.0f}" viewBox="0 0 {WIDTH} {height:.0f}"'
    paper = '<rect width="100%" height="100%" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n{paper}\n{body}\n</svg>\n'
