"""The ablation's report: every run, every task, the differences between arms, and a plot of the paired seeds."""

from __future__ import annotations

from statistics import mean

from benchmarks.plot import draw_pairs
from benchmarks.report_parts import Row, table
from benchmarks.results import Results
from reference.nano.ablation import ARMS, GROUPS, outcomes_of
from reference.nano.ablation_statistics import format_verdict

__all__ = ["report_ablation"]


def report_ablation(results: Results) -> tuple[str, str]:
    rows, budget = results.rows, results.facts["budget"]
    note = (
        f"A, B and C: {budget['clips']:,} draws of {budget['distinct_clips']:,} clips. B besides: "
        f"{budget['images']:,} draws of {budget['distinct_images']:,} images. C besides: clips, to as many tokens as B."
    )
    parts = [note, _list_runs(rows), _list_tasks(rows), format_verdict(outcomes_of(rows))]
    panels = {
        f"{group}: error left": {
            f"seed {seed}": {row["arm"]: row[f"{group}_error_left"] for row in rows if row["seed"] == seed}
            for seed in dict.fromkeys(row["seed"] for row in rows)
        }
        for group in GROUPS
    }
    return "\n\n".join(parts), draw_pairs("Do images teach video? Each line is a seed", panels, ARMS)


def _list_runs(rows: list[Row]) -> str:
    head = [
        "seed", "arm", "steps", "tokens, million", "core-hours",
        *(f"{group}: {name}" for group in GROUPS for name in ("error left", "success")),
    ]  # fmt: skip
    lines = [
        [
            str(row["seed"]), row["arm"], f"{row['steps']:,}", f"{row['tokens'] / 1e6:.2f}", f"{row['core_hours']:.2f}",
            *(
                cell
                for group in GROUPS
                for cell in (f"{row[f'{group}_error_left']:.4f}", f"{row[f'{group}_success_rate']:.1%}")
            ),
        ]
        for row in rows
    ]  # fmt: skip
    return table(head, lines)


def _list_tasks(rows: list[Row]) -> str:
    """The mean over the seeds, task by task."""
    arms = [arm for arm in ARMS if any(row["arm"] == arm for row in rows)]
    head = ["task", "group", *(f"{arm}: {name}" for name in ("error left", "success") for arm in arms)]
    lines = []
    for group, tasks in GROUPS.items():
        for task in tasks:
            found = {arm: [row["by_task"][task] for row in rows if row["arm"] == arm] for arm in arms}
            lines.append([
                task, group,
                *(f"{mean(one['error_left'] for one in found[arm]):.3f}" for arm in arms),
                *(f"{mean(one['success_rate'] for one in found[arm]):.0%}" for arm in arms),
            ])  # fmt: skip
    return table(head, lines)
