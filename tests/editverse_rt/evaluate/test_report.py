"""Aggregation beside values worked out by hand, what every report has to say, and pages that stay harmless."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from editverse_rt.errors import RequestError
from editverse_rt.evaluate.benchmarks import BENCHMARKS, BenchmarkItem
from editverse_rt.evaluate.page import draw_category_bars, order_worst_first, page_from_report
from editverse_rt.evaluate.report import build_report, describe_report, read_report, table_from_report
from editverse_rt.evaluate.scoring import ItemScore

JUDGE = {"model": "judge-1", "profile": "own", "prompt_sha256": "ab" * 32}
XSS = "<script>alert(1)</script><img src=x onerror=alert(2)>\" ' | &lt;b&gt;"


def item(key: str, category: str, direction: str, instruction: str = "Go") -> BenchmarkItem:
    return BenchmarkItem(
        key, category, instruction, {"video1": Path("a.mp4")}, groups={"direction": direction}
    )


def make_report(instruction: str = "Go", note: str = "", **changes: Any) -> dict[str, Any]:
    items = [
        item("0", "a", "horizontal", instruction),
        item("1", "a", "vertical"),
        item("2", "b", "vertical"),
        item("3", "b", "vertical"),
        item("4", "c", "horizontal"),
    ]
    values = {"0": (9.0, 20.0), "1": (6.0, 22.0), "2": (3.0, None), "3": (None, 30.0)}
    scores = {
        key: ItemScore(key, "f", {"judge": one, "pick": two}, {"clip": note} if note else {})
        for key, (one, two) in values.items()
    }
    options: dict[str, Any] = {
        "num_all": 200,
        "subset": {"categories": "", "limit": 5},
        "problems": ["item 9: broken"],
        "reasons": {"4": "the instruction has too many tokens"},
        "models": {"random": True, "ids": {"clip": "none"}, "backend": "ort-cpu", "hash": "h"},
        "judge": JUDGE,
        "run": {"name": "nano"},
        "time": {"num_items_all": 200},
    }
    return build_report(BENCHMARKS["editverse-bench"], items, scores, **(options | changes))


def test_means_are_those_worked_out_by_hand() -> None:
    judge = make_report()["metrics"]["judge"]
    assert judge["mean"] == pytest.approx((9 + 6 + 3) / 3)
    assert (judge["count"], judge["missing"]) == (3, 2)
    assert judge["by_category"]["a"]["mean"] == pytest.approx(7.5)
    assert judge["by_category"]["b"]["mean"] == pytest.approx(3.0)
    assert judge["by_category"]["c"]["mean"] is None
    assert judge["macro"] == pytest.approx((7.5 + 3.0) / 2)
    assert judge["by_direction"]["vertical"]["mean"] == pytest.approx(4.5)
    assert judge["low"] <= judge["mean"] <= judge["high"]


def test_a_report_says_what_its_scores_are_of() -> None:
    report = make_report()
    assert {
        "format_version", "benchmark", "note", "subset", "averaging", "judge", "models", "run", "metrics",
        "left_out", "published", "missing", "problems", "time", "items",
    } == set(report)  # fmt: skip
    assert report["subset"] == {
        "categories": "", "limit": 5, "num_items": 5, "num_all": 200, "num_scored": 4,
    }  # fmt: skip
    assert report["missing"] == [{"key": "4", "reason": "the instruction has too many tokens"}]
    assert report["metrics"]["pick"]["random"]
    assert not report["metrics"]["judge"]["random"]
    said = "\n".join(describe_report(report))
    for word in (
        "4 of 5",
        "200",
        "limit 5",
        "plain mean",
        "judge-1",
        "own",
        "abababab",
        "RANDOM",
        "NOT comparable",
    ):
        assert word in said
    table = table_from_report(report)
    assert "pick score (random)" in table
    assert "| EditVerse, published | 7.65 | 20.07 |" in table
    assert "too many tokens" in table


def test_a_full_run_of_the_papers_judge_is_comparable() -> None:
    report = make_report(
        judge=JUDGE | {"model": "gpt-4o-2024-11-20", "profile": "published"},
        models=None,
        time={"num_items_all": 4},
    )
    assert "NOT" not in "\n".join(describe_report(report))


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    report = make_report()
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    assert read_report(tmp_path) == report
    (tmp_path / "report.json").write_text('{"format_version": 1}', encoding="utf-8")
    with pytest.raises(RequestError, match="benchmark"):
        read_report(tmp_path)
    with pytest.raises(RequestError):
        read_report(tmp_path / "nothing.json")


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_escapes_whatever_it_shows(tmp_path: Path) -> None:
    report = make_report(
        XSS,
        XSS,
        problems=[XSS],
        reasons={"4": XSS},
        run={"name": XSS},
        judge=JUDGE | {"model": XSS},
        subset={"categories": XSS, "limit": None},
    )
    page = page_from_report(report, tmp_path)
    tags = Tags(page)
    assert {tag for tag, _ in tags.found} & {"script", "img", "iframe", "object", "link"} == set()
    assert not any(name.startswith("on") for _, attributes in tags.found for name in attributes)
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src 'none'" in page
    assert tags.text.count("<script>alert(1)</script>") >= 4
    assert "<script" not in table_from_report(report)


def test_a_category_is_escaped_in_a_plot() -> None:
    report = make_report()
    judge = report["metrics"]["judge"]
    judge["by_category"] = {XSS: judge["by_category"]["a"]}
    assert "<script" not in draw_category_bars(report, "judge")


def test_items_without_the_score_stand_first_then_the_worst() -> None:
    assert [one["key"] for one in order_worst_first(make_report())] == ["3", "2", "1", "0"]
