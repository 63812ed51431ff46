"""From scores of items to a report: `report.json`, and a table in Markdown beside the published rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from editverse_rt.errors import RequestError
from editverse_rt.evaluate.benchmarks import Benchmark, BenchmarkItem
from editverse_rt.evaluate.metrics import METRICS
from editverse_rt.evaluate.scoring import EXACT, ItemScore
from editverse_rt.fields import Fields, read_json
from editverse_rt.quality.statistics import LEVEL, Item, summarize

__all__ = [
    "AVERAGING",
    "LABELS",
    "REPORT_JSON",
    "build_report",
    "choose_primary",
    "describe_report",
    "read_report",
    "table_from_report",
]

REPORT_JSON = "report.json"
_FORMAT_VERSION = 1
AVERAGING = f"plain mean over items; {LEVEL:.0%} percentile bootstrap over items"
LABELS = {
    "judge": "editing quality",
    "pick": "pick score",
    "frame_text": "text, frame",
    "video_text": "text, video",
    "clip_temporal": "temporal, CLIP",
    "dino_temporal": "temporal, DINO",
    "tgve_clip_frame": "CLIPFrame",
    "tgve_clip_score": "CLIPScore",
    "tgve_pick": "PickScore",
    "viclip_dir": "ViCLIP_dir",
    "viclip_out": "ViCLIP_out",
    "psnr_db": "PSNR, dB",
    "ssim": "SSIM",
    "success": "success",
}
"""What tables call the metrics."""


def build_report(
    benchmark: Benchmark,
    items: Sequence[BenchmarkItem],
    scores: Mapping[str, ItemScore],
    *,
    num_all: int,
    subset: Mapping[str, Any],
    problems: Sequence[str],
    reasons: Mapping[str, str],
    models: Mapping[str, Any] | None,
    judge: Mapping[str, str] | None,
    run: Mapping[str, Any],
    left_out: Sequence[str] = (),
    time: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that is known of a run, as JSON values.

    items: that were to be scored, of num_all in the benchmark. subset: how they were chosen. reasons: why a
    result is missing, by key. models: of the metrics, with "random". run: bundle and options.
    """
    missing = [
        {"key": item.key, "reason": reasons.get(item.key, "no result")}
        for item in items
        if item.key not in scores
    ]
    is_random = bool(models and models.get("random"))
    return {
        "format_version": _FORMAT_VERSION,
        "benchmark": benchmark.name,
        "note": benchmark.note,
        "subset": {**subset, "num_items": len(items), "num_all": num_all, "num_scored": len(scores)},
        "averaging": AVERAGING,
        "judge": None if judge is None else dict(judge),
        "models": None if models is None else dict(models),
        "run": dict(run),
        "metrics": _summarize_metrics(benchmark, items, scores, is_random),
        "left_out": list(left_out),
        "published": {name: dict(row) for name, row in benchmark.published.items()},
        "missing": missing,
        "problems": list(problems),
        "time": dict(time or {}),
        "items": [_item_row(item, scores[item.key]) for item in items if item.key in scores],
    }


def _summarize_metrics(
    benchmark: Benchmark, items: Sequence[BenchmarkItem], scores: Mapping[str, ItemScore], is_random: bool
) -> dict[str, dict[str, Any]]:
    """The mean over items of each metric that any item has, in the benchmark's order, with intervals."""
    found = {name for score in scores.values() for name in score.values}
    metrics = {}
    for name in ("judge", *benchmark.metrics, *EXACT):
        if name not in found:
            continue
        # An item whose metric is not defined for it (no right answer) does not count as missing.
        rows = [
            Item(scores[item.key].values[name] if item.key in scores else None, item.category, item.groups)
            for item in items
            if item.key not in scores or name in scores[item.key].values
        ]
        metrics[name] = {
            "label": LABELS[name],
            "random": is_random and name in METRICS,
            **summarize(rows).to_json(),
        }
    return metrics


def _item_row(item: BenchmarkItem, score: ItemScore) -> dict[str, Any]:
    return {
        "key": item.key,
        "category": item.category,
        **item.groups,
        "instruction": item.instruction,
        "values": dict(score.values),
        "notes": dict(score.notes),
    }


def read_report(path: Path) -> dict[str, Any]:
    """A report, or the one in a folder. Raises RequestError for a file that is none."""
    file = path / REPORT_JSON if path.is_dir() else path
    fix = "run editverse-rt evaluate again"
    value = read_json(file, error=RequestError, fix=fix)
    fields = Fields(value, str(file), "", error=RequestError, fix=fix)
    fields.integer("format_version", 1, _FORMAT_VERSION)
    fields.string("benchmark")
    fields.mapping("metrics")
    for item in fields.children("items"):
        item.string("key")
        item.mapping("values")
    assert isinstance(value, dict)  # noqa: S101 - Fields refuses others
    return value


def choose_primary(report: Mapping[str, Any]) -> str | None:
    """The metric that orders items: the judge's, else what is known exactly, else the first."""
    metrics = report["metrics"]
    return next((name for name in ("judge", "psnr_db", *metrics) if name in metrics), None)


def table_from_report(report: Mapping[str, Any]) -> str:
    """The scores in Markdown beside the published rows, with what they are scores of."""
    metrics: Mapping[str, Mapping[str, Any]] = report["metrics"]
    published = report["published"]
    names = list(metrics)
    head = [label + (" (random)" if metrics[name]["random"] else "") for name, label in _labels(metrics)]
    lines = [f"# {report['benchmark']}", "", *[f"- {line}" for line in describe_report(report)], ""]
    lines += [_row(["", *head]), _row(["---", *["---:"] * len(names)])]
    run = report["run"].get("name") or "this run"
    lines.append(_row([f"**{_cell(run)}**", *[_shown(metrics[name]["mean"]) for name in names]]))
    lines.append(_row([f"{LEVEL:.0%} interval", *[_interval(metrics[name]) for name in names]]))
    lines.append(_row(["mean of categories", *[_shown(metrics[name]["macro"]) for name in names]]))
    lines.append(_row(["items", *[str(metrics[name]["count"]) for name in names]]))
    for name, row in published.items():
        lines.append(_row([f"{name}, published", *[_shown(row.get(metric)) for metric in names]]))
    groups = {key for metric in metrics.values() for key in metric if key.startswith("by_")}
    for group in sorted(groups, key=lambda name: (name != "by_category", name)):
        lines += ["", f"## {group.replace('_', ' ').capitalize()}", ""]
        lines += [_row(["", "items", *head]), _row(["---", *["---:"] * (len(names) + 1)])]
        parts = dict.fromkeys(part for metric in metrics.values() for part in metric.get(group, {}))
        for part in parts:
            found = [metrics[name].get(group, {}).get(part, {}) for name in names]
            count = max((one.get("count", 0) for one in found), default=0)
            lines.append(_row([_cell(part), str(count), *[_shown(one.get("mean")) for one in found]]))
    for title, entries in (
        ("Missing", [f"{entry['key']}: {entry['reason']}" for entry in report["missing"]]),
        ("Problems", report["problems"]),
    ):
        if entries:
            lines += ["", f"## {title}", "", *[f"- {_cell(entry)}" for entry in entries]]
    return "\n".join(lines) + "\n"


def describe_report(report: Mapping[str, Any]) -> list[str]:
    """Lines without which a score means nothing: subset, averaging, judge, metric models, what is missing."""
    subset, judge, models = report["subset"], report["judge"], report["models"]
    chosen = [
        f"{name} {_cell(value)}" for name, value in subset.items() if not name.startswith("num_") and value
    ]
    lines = [
        f"{subset['num_scored']} of {subset['num_items']} items scored, of {subset['num_all']} in the benchmark"
        + (f" ({', '.join(chosen)})" if chosen else ""),
        f"averaging: {report['averaging']}",
        "judge: none"
        if judge is None
        else f"judge: {_cell(judge['model'])}, profile {judge['profile']}, prompt {judge['prompt_sha256'][:16]}",
    ]
    if models is None:
        lines.append("metric models: none")
    elif models.get("random"):
        lines.append("metric models: RANDOM weights; their scores mean nothing and are labelled random")
    else:
        lines.append(f"metric models: {', '.join(models['ids'].values())}, on {models['backend']}")
    if report["left_out"]:
        lines.append(f"left out, without their models: {', '.join(report['left_out'])}")
    if report["published"]:
        lines.append(_comparability(report))
    if report["note"]:
        lines.append(f"note: {report['note']}")
    times = report["time"]
    if "edit_s_an_item" in times:
        all_s = times["edit_s_an_item"] * times["num_items_all"]
        lines.append(f"editing took {times['edit_s_an_item']:.2f} s an item here, {_hours(all_s)} for all")
    if "score_s_an_item" in times:
        all_s = times["score_s_an_item"] * times["num_items_all"]
        lines.append(f"scoring took {times['score_s_an_item']:.2f} s an item here, {_hours(all_s)} for all")
    for target, estimate in times.get("estimates", {}).items():
        lines.append(
            f"editing all {estimate['num_items']} on {target}: {_hours(estimate['seconds_all'])} by the planner's "
            "estimate, not measured"
        )
    return lines


def _comparability(report: Mapping[str, Any]) -> str:
    """Whether the published rows are scores of the same thing, as far as is known."""
    subset, full = report["subset"], report["time"]["num_items_all"]
    judge = report["judge"]
    reasons = [
        f"{subset['num_scored']} of {full} items" if subset["num_scored"] != full else "",
        "random metric models" if (report["models"] or {}).get("random") else "",
        "another judge" if judge is not None and judge["model"] != "gpt-4o-2024-11-20" else "",
        "another protocol of judging" if judge is not None and judge["profile"] != "published" else "",
    ]
    found = ", ".join(filter(None, reasons))
    return (
        f"published rows are NOT comparable with this run: {found}"
        if found
        else ("published rows: the same number of items, judge and protocol")
    )


def _labels(metrics: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(name, metric["label"]) for name, metric in metrics.items()]


def _hours(seconds: float) -> str:
    return (
        f"{seconds:.3g} s"
        if seconds < 120
        else f"{seconds / 60:.3g} min"
        if seconds < 7200
        else (f"{seconds / 3600:.3g} h")
    )


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if abs(value) < 1.5 else f"{value:.2f}"


def _interval(metric: Mapping[str, Any]) -> str:
    return "" if metric["low"] is None else f"{_shown(metric['low'])} to {_shown(metric['high'])}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: object) -> str:
    """Text that stays in its cell and is no HTML."""
    text = " ".join(str(value).split())
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "\\|")
