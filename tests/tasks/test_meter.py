"""Confidence intervals of scores and of their differences, against closed forms and other libraries."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap
from torch import Tensor

from compressor.tasks.meter import Measure, Meter, paired, wilson


class Means(Meter):
    """The mean of one number for each image, as a share of images or not."""

    def __init__(self, share: bool = False) -> None:
        super().__init__()
        self.share = share

    @property
    def measures(self) -> Sequence[Measure]:
        return [Measure("mean", "mean", share=0 if self.share else None)]

    def row(self, ours: Tensor, wanted: object) -> Tensor:
        return ours[:, None]

    def values(self, sums: Tensor, n: int) -> Tensor:
        return sums / n


def measured(values: Tensor, share: bool = False, step: int = 50, indices: Tensor | None = None) -> Means:
    meter, places = Means(share), torch.arange(len(values)) if indices is None else indices
    for first in range(0, len(values), step):
        meter.update(values[first : first + step], None, places[first : first + step])
    return meter


def test_batches_of_any_size_give_the_same() -> None:
    values = torch.randn(120, generator=torch.Generator().manual_seed(0))
    assert measured(values, step=7).compute() == measured(values, step=120).compute()


def test_the_interval_of_a_mean_is_that_of_a_bootstrap() -> None:
    values = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp()
    (score,) = measured(values).compute()
    other = bootstrap((values.numpy(),), np.mean, method="percentile", n_resamples=9999, rng=0).confidence_interval
    width = other.high - other.low
    assert score.value == pytest.approx(float(values.mean()))
    assert (score.low, score.high) == pytest.approx((other.low, other.high), abs=0.08 * width)


def test_the_interval_of_a_share_is_wilsons() -> None:
    """Newcombe, Statistics in Medicine 1998, table I: 81 of 263 gives 0.2553 to 0.3662."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    (score,) = measured((torch.arange(263) < 81).double(), share=True).compute()
    assert (score.low, score.high) == wilson(81, 263)


def test_the_interval_of_a_paired_difference_of_shares() -> None:
    """Agresti and Min, 2005: with counts 20 and 7 of 100, (20.5 - 7.5) / 102 +- 1.96 sqrt(28 - 13^2 / 102) / 102."""
    half = 1.959964 * (28 - 13**2 / 102) ** 0.5 / 102
    assert paired(20, 7, 100) == pytest.approx((13 / 102 - half, 13 / 102 + half), abs=1e-6)
    before = torch.zeros(100, dtype=torch.float64)
    after = before.clone()
    before[:7], after[7:27] = 1, 1
    found = measured(after, share=True).differences(measured(before, share=True))["mean"]
    assert found.value == pytest.approx(0.13)
    assert (found.low, found.high) == pytest.approx(paired(20, 7, 100))


def test_a_paired_difference_is_surer_than_two_scores() -> None:
    """Where each image gets a little worse, the drop is sure, however different the images are."""
    generator = torch.Generator().manual_seed(1)
    before = 30 + 5 * torch.randn(60, generator=generator, dtype=torch.float64)
    after = before - 0.3 + 0.05 * torch.randn(60, generator=generator, dtype=torch.float64)
    one, other = measured(before), measured(after)
    (score,), drop = other.compute(), other.differences(one)["mean"]
    assert drop.value == pytest.approx(float((after - before).mean()))
    assert drop.low is not None and drop.high is not None and score.low is not None and score.high is not None
    assert -0.33 < drop.low < drop.value < drop.high < -0.27
    assert score.high - score.low > 20 * (drop.high - drop.low)


def test_no_difference_is_claimed_to_be_sure() -> None:
    same = (torch.arange(50) < 40).double()
    found = measured(same, share=True).differences(measured(same, share=True))["mean"]
    assert found.value == 0 and found.low is not None and found.high is not None and found.low < -0.01 and found.high > 0.01


def test_other_images_have_no_paired_interval() -> None:
    values = torch.rand(20, dtype=torch.float64)
    other = measured(values, indices=torch.arange(20) + 1)
    assert measured(values).differences(other)["mean"].low is None
    assert measured(values).differences(measured(values[:10]))["mean"].low is None


def test_one_image_has_no_interval() -> None:
    (score,) = measured(torch.ones(1)).compute()
    assert (score.value, score.low, score.high) == (1.0, None, None)
