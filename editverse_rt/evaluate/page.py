"""A page of HTML with source, result, instruction and scores side by side, worst first; and bars as SVG.

The page is one file without scripts and loads nothing: its pictures are data, and its policy forbids the rest.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from editverse_rt.evaluate.report import choose_primary, describe_report
from editverse_rt.evaluate.scoring import strip_path

__all__ = ["draw_category_bars", "order_worst_first", "page_from_report"]

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """body{font:15px/1.4 system-ui,sans-serif;margin:2em auto;max-width:1100px;padding:0 1em;color:#222}
table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}.item{border-top:1px solid #ccc;padding:1em 0}
.pair{display:flex;gap:1em;flex-wrap:wrap}figure{margin:0}figcaption,.note{color:#666;font-size:13px}
img{max-width:520px}.worse{color:#a00}"""


def page_from_report(report: Mapping[str, Any], folder: Path) -> str:
    """The page. folder: where the strips of the items lie; an item without them is shown without pictures."""
    metrics = report["metrics"]
    title = escape(f"{report['benchmark']}: {report['run'].get('name') or 'results'}")
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1><ul>",
        *(f"<li>{_plain(line)}</li>" for line in describe_report(report)),
        "</ul><table><tr><th></th>",
        *(f"<th>{_label(metric)}</th>" for metric in metrics.values()),
        "</tr><tr><td>mean</td>",
        *(f"<td>{_number(metric['mean'])}</td>" for metric in metrics.values()),
        "</tr></table>",
    ]
    for title, lines in (
        ("Missing", [f"{entry['key']}: {entry['reason']}" for entry in report["missing"]]),
        ("Problems", report["problems"]),
    ):
        if lines:
            parts.append(f"<h2>{title}</h2><ul class=worse>")
            parts += [f"<li>{escape(line)}</li>" for line in lines] + ["</ul>"]
    primary = choose_primary(report)
    order = "" if primary is None else f", by {_label(metrics[primary])}"
    parts.append(f"<h2>Items, worst first{order}</h2>")
    parts += [_item(item, metrics, folder) for item in order_worst_first(report)]
    return "\n".join(parts) + "\n</body></html>\n"


def order_worst_first(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The items: those without the primary score first, then from the lowest up."""
    primary = choose_primary(report)
    items: list[Mapping[str, Any]] = list(report["items"])
    if primary is None:
        return items

    def rank(item: Mapping[str, Any]) -> tuple[bool, float]:
        value = item["values"].get(primary)
        return value is not None, 0.0 if value is None else value

    return sorted(items, key=rank)


def draw_category_bars(report: Mapping[str, Any], name: str) -> str:
    """One metric by category as an SVG picture: bars of the means, lines of their intervals."""
    metric = report["metrics"][name]
    rows = {category: mean for category, mean in metric["by_category"].items() if mean["mean"] is not None}
    highest = max((mean["high"] for mean in rows.values()), default=1.0)
    lowest = min(0.0, *(mean["low"] for mean in rows.values())) if rows else 0.0
    scale = 440 / ((highest - lowest) or 1.0)
    height, zero = 60 + 22 * len(rows), 210 - lowest * scale
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="760" height="{height}" fill="white"/>',
        f'<text x="10" y="24" font-size="15">{escape(report["benchmark"])}: {_label(metric)}</text>',
    ]
    for index, (category, mean) in enumerate(rows.items()):
        top, end = 44 + 22 * index, zero + mean["mean"] * scale
        parts += [
            f'<text x="202" y="{top + 12}" text-anchor="end">{escape(category)} ({mean["count"]})</text>',
            f'<rect x="{min(zero, end):.1f}" y="{top}" width="{abs(end - zero):.1f}" height="16" fill="#0072b2"/>',
            f'<path d="M{zero + mean["low"] * scale:.1f} {top + 8}H{zero + mean["high"] * scale:.1f}" '
            'stroke="#222" stroke-width="2"/>',
            f'<text x="670" y="{top + 12}">{_number(mean["mean"])}</text>',
        ]
    return "".join(parts) + "</svg>\n"


def _item(item: Mapping[str, Any], metrics: Mapping[str, Any], folder: Path) -> str:
    groups = [str(item[name]) for name in item if name not in ("key", "instruction", "values", "notes")]
    head = f"{item['key']} ({', '.join(filter(None, groups))})"
    scores = ", ".join(
        f"{_label(metrics[name])} {_number(value) or 'missing'}"
        for name, value in item["values"].items()
        if name in metrics
    )
    notes = [f"{name}: {note}" for name, note in item["notes"].items()]
    pictures = [_picture(folder, item["key"], what) for what in ("source", "result")]
    return (
        f"<div class=item><b>{escape(head)}</b><p>{escape(item['instruction'])}</p>"
        f"<div class=pair>{''.join(pictures)}</div><p>{scores}</p>"
        + "".join(f"<p class=note>{escape(note)}</p>" for note in notes)
        + "</div>"
    )


def _picture(folder: Path, key: str, what: str) -> str:
    path = strip_path(folder, key, what)
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<figure><img alt="{what}" src="data:image/jpeg;base64,{data}"><figcaption>{what}</figcaption></figure>'


def _label(metric: Mapping[str, Any]) -> str:
    return escape(metric["label"] + (" (random)" if metric["random"] else ""))


def _plain(line: str) -> str:
    """A line that was made for Markdown has its marks escaped already; the rest is escaped here."""
    return (
        escape(line, quote=True)
        .replace("&amp;lt;", "&lt;")
        .replace("&amp;gt;", "&gt;")
        .replace("&amp;amp;", "&amp;")
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if abs(value) < 1.5 else f"{value:.2f}"
