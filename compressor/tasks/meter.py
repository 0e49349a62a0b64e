"""Scores over images, with confidence intervals.

A score is a function of sums over images: the number of correct ones, or the pixels of each class that both masks have. So a
meter keeps a row of such statistics for each image, in any order and batches of any size, and from these rows follow

    the scores                     values(sum of the rows)
    the interval of a score        Wilson's for a share of images, else percentiles of a bootstrap over images
    the interval of a difference   of two networks on the same images: Agresti and Min's for paired shares, else a bootstrap
                                   that draws the same images for both

All intervals are at 95 %. References: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927;
Agresti, Min, "Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine 2005, section 4;
Efron, Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compressor.errors import DataError, VerificationFailed
from compressor.report.schema import Difference, Score

RESAMPLES, SEED = 1000, 0  # of a bootstrap
AT_ONCE = 2**22  # numbers drawn at a time
Z = 1.959963984540054  # of a normal distribution, for 95 %
QUANTILES = (0.025, 0.975)


@dataclass(frozen=True)
class Measure:
    """What is known of a score before it is measured; see `Score`."""

    name: str
    label: str
    unit: str = "%"
    places: int = 2
    more_is_better: bool = True
    share: int | None = None  # the statistic that is 1 for an image that counts and 0 for another, if it is a share of images


class Meter(ABC):
    """Abstract. Statistics of images, from which scores are computed. A subclass says what they are."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._indices: list[Tensor] = []

    @abstractmethod
    def row(self, ours: Any, wanted: Any) -> Tensor:
        """The statistics [n, statistics] of n images, from answers of a network and what they are compared with."""

    @property
    @abstractmethod
    def measures(self) -> Sequence[Measure]:
        """The scores, the headline first. Called after the first update."""

    @abstractmethod
    def values(self, sums: Tensor, n: int) -> Tensor:
        """The scores [..., scores] of n images, from the sums of their statistics [..., statistics]."""

    def update(self, ours: Any, wanted: Any, indices: Tensor) -> None:
        """Add the images with these `indices` [n] in their data set.

        Raises VerificationFailed if the network outputs NaN or infinity.
        """
        row = self.row(ours, wanted).detach().to("cpu", torch.float64)
        if not row.isfinite().all():
            raise VerificationFailed("The network outputs NaN or infinity: its weights are corrupt, or the training diverged.")
        if len(row) != len(indices):
            raise DataError(f"The network has {len(row)} answers for {len(indices)} images: it must have one for each.")
        self._rows.append(row)
        self._indices.append(indices.cpu())

    @property
    def n(self) -> int:
        """The number of images."""
        return sum(map(len, self._rows))

    @property
    def rows(self) -> Tensor:
        """[n, statistics]. Raises DataError without images."""
        if not self._rows:
            raise DataError("There are no images to evaluate the network on: check the test data.")
        return torch.cat(self._rows)

    @property
    def indices(self) -> Tensor:
        """[n] of the images, in the order of `rows`."""
        return torch.cat(self._indices)

    def headline(self) -> float:
        """The value of the first score."""
        return float(self.values(self.rows.sum(0), self.n)[0])

    def compute(self, intervals: bool = True) -> list[Score]:
        """All scores, the headline first. Raises DataError without images."""
        rows, n = self.rows, self.n
        values = self.values(rows.sum(0), n).tolist()
        measures = list(self.measures)
        bounds: list[tuple[float, float] | None] = [None] * len(measures)
        if intervals:
            if any(measure.share is None for measure in measures) and n > 1:
                bounds = _percentiles(torch.cat([self.values(sums, n) for (sums,) in _resampled(rows)]))
            for place, measure in enumerate(measures):
                if measure.share is not None:
                    bounds[place] = wilson(round(float(rows[:, measure.share].sum())), n)
        found = []
        for m, value, bound in zip(measures, values, bounds, strict=True):
            low, high = bound or (None, None)
            if not math.isnan(value):
                found.append(Score(m.name, m.label, value, m.unit, m.places, n, low, high, m.more_is_better))
        return found

    def differences(self, before: Meter) -> dict[str, Difference]:
        """Of all scores, from `before` to this one, by name; without an interval where the images are not the same."""
        own, other = ({score.name: score.value for score in meter.compute(intervals=False)} for meter in (self, before))
        plain = {name: Difference(own[name] - other[name]) for name in own if name in other}
        rows, then, n, measures = self.rows, before.rows, self.n, list(self.measures)
        if n < 2 or rows.shape != then.shape or not self.indices.equal(before.indices):
            return plain
        if any(measure.share is None for measure in measures):
            both = _resampled(rows, then)
            drawn = _percentiles(torch.cat([self.values(ours, n) - self.values(theirs, n) for ours, theirs in both]))
        else:
            drawn = [None] * len(measures)
        found = {}
        for measure, bound in zip(measures, drawn, strict=True):
            if measure.name not in plain:
                continue
            value = plain[measure.name].value
            if measure.share is not None:
                change = rows[:, measure.share] - then[:, measure.share]
                bound = paired(int((change > 0).sum()), int((change < 0).sum()), n)
            low, high = bound or (value, value)
            found[measure.name] = Difference(value, min(low, value), max(high, value)) if bound else Difference(value)
        return found


# Intervals ------------------------------------------------------------------------------------------------------------


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Wilson's interval of the share `correct` / `n`."""
    from scipy.stats import binomtest  # takes a second to import

    interval = binomtest(correct, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def paired(gained: int, lost: int, n: int) -> tuple[float, float]:
    """Agresti and Min's interval of (gained - lost) / n, for shares of the same n images: 1/2 is added to all four counts."""
    gained_, lost_, n_ = gained + 0.5, lost + 0.5, n + 2
    middle = (gained_ - lost_) / n_
    half = Z * math.sqrt(gained_ + lost_ - (gained_ - lost_) ** 2 / n_) / n_
    return max(middle - half, -1.0), min(middle + half, 1.0)


def _resampled(*tables: Tensor) -> Iterator[list[Tensor]]:
    """The sums [draws, statistics] of each table [n, statistics] over n rows drawn with replacement, the same of all tables."""
    n = len(tables[0])
    generator = torch.Generator().manual_seed(SEED)
    step = max(1, AT_ONCE // n)
    for first in range(0, RESAMPLES, step):
        draws = min(step, RESAMPLES - first)
        chosen = torch.randint(n, (draws, n), generator=generator)
        weights = torch.zeros(draws, n, dtype=torch.float64)
        weights.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.float64))
        yield [weights @ table for table in tables]


def _percentiles(drawn: Tensor) -> list[tuple[float, float] | None]:
    """The interval of each column of `drawn` [draws, scores]; None where a score is not defined in some draws."""
    low, high = drawn.quantile(torch.tensor(QUANTILES, dtype=drawn.dtype), dim=0)
    return [None if math.isnan(a) or math.isnan(b) else (a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
