"""Means of scores over items, with the interval that a bootstrap gives: one summary for every report.

An item without a value (a missing result, a metric that is not defined for it) counts as missing and enters
no mean. Resampling is seeded: the same items give the same interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from editverse_rt.errors import RequestError

__all__ = [
    "LEVEL",
    "RESAMPLES",
    "Item",
    "Mean",
    "PairedDifference",
    "Summary",
    "compare_paired",
    "mean_of",
    "summarize",
]

LEVEL = 0.95
RESAMPLES = 2000
_CHUNK_ROWS = 64
_DIGITS = 6
"""Of what `to_json` says; a score is known to fewer."""


@dataclass(frozen=True)
class Item:
    """One scored item.

    value: None where it is missing. groups: other divisions, such as {"direction": "vertical"}.
    """

    value: float | None
    category: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Mean:
    """A mean over items, and the percentile bootstrap's interval of `LEVEL`.

    count: of the items with a value; missing: of those without. mean, low, high: None where count is 0; with
    one item the interval is that item.
    """

    mean: float | None
    low: float | None
    high: float | None
    count: int
    missing: int = 0

    def to_json(self) -> dict[str, float | int | None]:
        return {name: _rounded(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Summary:
    """What a report says of one metric.

    overall: plain mean over items. macro: plain mean of the categories' means. by_group: for each other
    division ("direction") its parts ("horizontal", "vertical").
    """

    overall: Mean
    macro: float | None
    by_category: Mapping[str, Mean]
    by_group: Mapping[str, Mapping[str, Mean]]

    def to_json(self) -> dict[str, Any]:
        return {
            **self.overall.to_json(),
            "macro": _rounded(self.macro),
            "by_category": {name: mean.to_json() for name, mean in self.by_category.items()},
            **{
                f"by_{group}": {name: mean.to_json() for name, mean in parts.items()}
                for group, parts in self.by_group.items()
            },
        }


@dataclass(frozen=True)
class PairedDifference:
    """Second minus first, over the items that both have.

    low, high: the interval of the mean difference. above: the share of resamples whose mean difference is
    above 0, ties counted half; near 1 or 0 it says which run is better. count: of paired items. unpaired: of
    values that only one of the runs has.
    """

    mean: float
    low: float
    high: float
    above: float
    count: int
    unpaired: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def to_json(self) -> dict[str, float | int | None]:
        return {name: _rounded(value) for name, value in asdict(self).items()}


def mean_of(values: Sequence[float | bool | None], *, resamples: int = RESAMPLES, seed: int = 0) -> Mean:
    """Mean and interval of values; None is missing. Of true and false, the share of the true.

    Raises RequestError for a value that is not finite.
    """
    known = _finite([value for value in values if value is not None])
    missing = len(values) - len(known)
    if not len(known):
        return Mean(None, None, None, 0, missing)
    low, high = _interval(_resampled_means(known, resamples, seed))
    return Mean(float(known.mean()), low, high, len(known), missing)


def summarize(items: Sequence[Item], *, resamples: int = RESAMPLES, seed: int = 0) -> Summary:
    """Summarize one metric over items, as a whole, by category and by every other division.

    A category that holds only missing items is listed, and does not enter the macro mean.
    """

    def mean(chosen: Sequence[Item]) -> Mean:
        return mean_of([item.value for item in chosen], resamples=resamples, seed=seed)

    categories = dict.fromkeys(item.category for item in items)
    by_category = {name: mean([item for item in items if item.category == name]) for name in categories}
    means = [part.mean for part in by_category.values() if part.mean is not None]
    groups = dict.fromkeys(group for item in items for group in item.groups)
    by_group = {
        group: {
            part: mean([item for item in items if item.groups.get(group) == part])
            for part in dict.fromkeys(item.groups[group] for item in items if group in item.groups)
        }
        for group in groups
    }
    return Summary(mean(items), float(np.mean(means)) if means else None, by_category, by_group)


def compare_paired(
    first: Mapping[str, float | bool | None],
    second: Mapping[str, float | bool | None],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """Compare two runs item by item, by a bootstrap of the differences; values by the items' keys.

    Raises RequestError where they share no item with values, or for a value that is not finite.
    """
    pairs = [
        (one, other)
        for key in sorted(first)
        if (one := first[key]) is not None and (other := second.get(key)) is not None
    ]
    if not pairs:
        raise RequestError(
            "found no item that both runs have a value for", expected="one or more", hint="compare other runs"
        )
    known = sum(value is not None for run in (first, second) for value in run.values())
    differences = _finite([float(other) - float(one) for one, other in pairs])
    means = _resampled_means(differences, resamples, seed)
    low, high = _interval(means)
    above = float((means > 0).mean() + (means == 0).mean() / 2)
    return PairedDifference(float(differences.mean()), low, high, above, len(pairs), known - 2 * len(pairs))


def _finite(values: Sequence[float | bool]) -> NDArray[np.float64]:
    found = np.array(values, np.float64)
    if not np.isfinite(found).all():
        raise RequestError("found a score that is not finite", expected="numbers, or None for a missing one")
    return found


def _resampled_means(values: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Means of draws with replacement, float64 [resamples]."""
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, resamples, _CHUNK_ROWS):
        rows = min(_CHUNK_ROWS, resamples - start)
        parts.append(values[rng.integers(0, len(values), (rows, len(values)))].mean(1))
    return np.concatenate(parts)


def _interval(means: NDArray[np.float64]) -> tuple[float, float]:
    outside = (1 - LEVEL) / 2
    low, high = np.quantile(means, [outside, 1 - outside])
    return float(low), float(high)


def _rounded(value: float | None) -> float | None:
    return round(value, _DIGITS) if isinstance(value, float) else value
