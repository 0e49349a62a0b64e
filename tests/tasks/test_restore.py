"""Restoration: losses, PSNR and SSIM against other libraries, luma and borders, and outputs that were padded."""

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from compressor.data import Batch
from compressor.errors import DataError
from compressor.tasks.restore import Restore


def images(n: int, channels: int = 3, side: int = 24, seed: int = 0) -> Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed))


def batch(targets: Tensor) -> Batch:
    return Batch(targets, targets, torch.arange(len(targets)))


def test_losses() -> None:
    wanted, found = images(2), images(2, seed=1)
    torch.testing.assert_close(Restore().loss(found, batch(wanted))["l1"], (found - wanted).abs().mean())
    torch.testing.assert_close(
        Restore(max_value=255).loss(255 * found, batch(255 * wanted))["l1"], (found - wanted).abs().mean()
    )


@pytest.mark.parametrize("most", [1.0, 255.0])
def test_scores_are_means_over_images_of_torchmetrics(most: float) -> None:
    wanted, found = images(3, 1), images(3, 1, seed=1)
    task, meter = Restore(max_value=most), Restore(max_value=most).meter()
    meter.update(task.decode(most * found, batch(wanted)), most * wanted, torch.arange(3))
    psnr, ssim = meter.compute()
    each = [PeakSignalNoiseRatio(data_range=1.0)(a, b) for a, b in zip(found, wanted, strict=True)]
    assert psnr.value == pytest.approx(float(torch.stack(each).mean()), abs=1e-3)
    assert ssim.value == pytest.approx(float(StructuralSimilarityIndexMeasure(data_range=1.0)(found, wanted)), abs=1e-4)
    assert (psnr.name, psnr.label, psnr.unit) == ("psnr", "PSNR", "dB")


def test_super_resolution_is_measured_on_luma_without_a_border() -> None:
    """BT.601: Y = 16 + (65.481 r + 128.553 g + 24.966 b), of 255. The border of 2 pixels does not count."""
    wanted = images(1)
    found = wanted.clone()
    found[..., :2, :] = 0
    found[:, 0] = (found[:, 0] - 0.1).clamp(0)
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    gap = 65.481 * (found[inner][:, 0] - wanted[inner][:, 0]) / 255
    meter = Restore(scale=2).meter()
    meter.update(found, wanted, torch.tensor([0]))
    psnr, ssim = meter.compute()
    assert psnr.value == pytest.approx(float(-10 * gap.square().mean().log10()), abs=1e-4)
    assert (psnr.label, ssim.label) == ("PSNR (Y)", "SSIM (Y)")
    flipped = Restore(scale=2, bgr=True).meter()
    flipped.update(found.flip(1), wanted.flip(1), torch.tensor([0]))
    assert flipped.compute()[0].value == pytest.approx(psnr.value)


def test_values_beyond_the_range_are_clipped_and_padding_is_cut() -> None:
    wanted = images(1, side=16)
    found = torch.nn.functional.pad(wanted, (0, 4, 0, 8), value=9.0)
    assert Restore().decode(found, batch(wanted)).equal(wanted)
    assert Restore().loss(found, batch(wanted))["l1"] == 0
    assert Restore().decode(wanted + 5, batch(wanted)).max() == 1


def test_equal_images_have_a_finite_psnr() -> None:
    meter = Restore().meter()
    meter.update(images(2), images(2), torch.arange(2))
    assert [score.value for score in meter.compute()] == pytest.approx([100.0, 1.0])


def test_what_does_not_fit_is_refused() -> None:
    class Few:
        spec, shape, tile, fit = "d", (3, 16, 8), (8, 9), "cover"

    Restore(scale=2).check(nn.Upsample(scale_factor=2), Few())  # type: ignore[arg-type]  # of the data, only these are read
    with pytest.raises(DataError, match="outputs 3x8x8, but the targets of d have 3x16x16"):
        Restore(scale=2).check(nn.Identity(), Few())  # type: ignore[arg-type]
    with pytest.raises(DataError, match="too small for SSIM"):
        Restore().meter().update(images(1, side=8), images(1, side=8), torch.tensor([0]))
