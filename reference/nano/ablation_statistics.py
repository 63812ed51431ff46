"""The statistic of docs/ablation.md: paired differences by seed, an interval of Student's t, a sign test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Difference", "Outcome", "compare_arms", "format_verdict", "is_taught"]

T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""The 97.5 % points of Student's t by degrees of freedom: two sides of 95 %."""
PRIMARY = "error_left"
PAIRS = (("B", "A"), ("B", "C"), ("C", "A"))


@dataclass(frozen=True)
class Outcome:
    """One figure of one run. measure: its group and name, such as "lift, error_left"."""

    seed: int
    arm: str
    measure: str
    value: float


@dataclass(frozen=True)
class Difference:
    """First arm minus second, over the seeds that both have.

    mean, half_width: the 95 % interval is mean +- half_width, infinite for one seed. p: of the sign test on both
    sides, ties left out.
    """

    pair: tuple[str, str]
    seeds: int
    mean: float
    half_width: float
    p: float

    @property
    def is_below_zero(self) -> bool:
        return self.mean + self.half_width < 0


def compare_arms(outcomes: Sequence[Outcome], measure: str, pair: tuple[str, str]) -> Difference:
    """Compare two arms by one measure. Raises ValueError where no seed has both, or more than ten have."""
    by_arm = {
        arm: {o.seed: o.value for o in outcomes if o.arm == arm and o.measure == measure} for arm in pair
    }
    seeds = sorted(by_arm[pair[0]].keys() & by_arm[pair[1]].keys())
    if not 1 <= len(seeds) <= 1 + max(T_975):
        raise ValueError(
            f"{len(seeds)} seeds have both {pair[0]} and {pair[1]} of {measure!r}; expected 1 to {1 + max(T_975)}"
        )
    differences = [by_arm[pair[0]][seed] - by_arm[pair[1]][seed] for seed in seeds]
    count = len(differences)
    mean = sum(differences) / count
    half_width = math.inf
    if count > 1:
        deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / (count - 1))
        half_width = T_975[count - 1] * deviation / math.sqrt(count)
    return Difference(pair, count, mean, half_width, sign_test(differences))


def sign_test(differences: Sequence[float]) -> float:
    """The exact probability, on both sides, of so uneven signs if both were equally likely."""
    signs = [d > 0 for d in differences if d != 0]
    rarer = min(sum(signs), len(signs) - sum(signs))
    tail = sum(math.comb(len(signs), k) for k in range(rarer + 1)) / 2 ** len(signs)
    return min(1.0, 2 * tail)


def is_taught(outcomes: Sequence[Outcome], group: str) -> bool:
    """Whether images lower the error left: B - A and B - C both lie below zero with their intervals."""
    measure = f"{group}, {PRIMARY}"
    return all(compare_arms(outcomes, measure, pair).is_below_zero for pair in (("B", "A"), ("B", "C")))


def format_verdict(outcomes: Sequence[Outcome]) -> str:
    """The table of all differences, and for each group what the rule says of it."""
    lines = [
        "| measure | difference | seeds | mean | 95 % interval | sign test p |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for measure in dict.fromkeys(o.measure for o in outcomes):
        for pair in PAIRS:
            try:
                found = compare_arms(outcomes, measure, pair)
            except ValueError:
                continue
            low, high = found.mean - found.half_width, found.mean + found.half_width
            lines.append(
                f"| {measure} | {pair[0]} - {pair[1]} | {found.seeds} | {found.mean:+.4f} "
                f"| {low:+.4f} to {high:+.4f} | {found.p:.3f} |"
            )
    for group in ("lift", "transfer"):
        try:
            taught = is_taught(outcomes, group)
        except ValueError:
            lines.append(f"\n{group}: not every arm has a run yet.")
            continue
        verdict = "images teach video" if taught else "the claim is not shown"
        lines.append(f"\n{group}: {verdict} by the rule of docs/ablation.md.")
    return "\n".join(lines)
