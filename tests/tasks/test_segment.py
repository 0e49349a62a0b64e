"""Segmentation: the loss on maps of any size, scores against torchmetrics and by hand, and what does not fit."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassJaccardIndex

from compressor.data import IGNORED, Batch
from compressor.errors import DataError
from compressor.tasks.segment import AUXILIARY, Segment

NAMES = ("road", "sky", "parked car")
TASK = Segment(NAMES)


def batch(masks: Tensor) -> Batch:
    return Batch(torch.zeros(len(masks), 3, *masks.shape[1:]), masks, torch.arange(len(masks)))


def random_masks(n: int, side: int = 8, ignored: float = 0.2) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    masks = torch.randint(3, (n, side, side), generator=generator)
    masks[torch.rand(masks.shape, generator=generator) < ignored] = IGNORED
    return masks


def test_the_loss_leaves_ignored_pixels_out() -> None:
    masks, logits = random_masks(2), torch.randn(2, 3, 8, 8)
    (loss,) = TASK.loss(logits, batch(masks)).values()
    torch.testing.assert_close(loss, F.cross_entropy(logits, masks, ignore_index=IGNORED))


def test_a_batch_without_any_class_has_no_loss() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    (loss,) = TASK.loss(logits, batch(torch.full((1, 4, 4), IGNORED))).values()
    assert loss == 0
    loss.backward()
    assert logits.grad is not None and not logits.grad.any()


def test_maps_of_another_size_are_resized_and_auxiliary_heads_count_less() -> None:
    masks, main, auxiliary = random_masks(2), torch.randn(2, 3, 4, 4), torch.randn(2, 3, 2, 2)
    terms = TASK.loss({"out": main, "aux": auxiliary}, batch(masks))
    wanted = [
        F.cross_entropy(F.interpolate(logits, (8, 8), mode="bilinear"), masks, ignore_index=IGNORED)
        for logits in (main, auxiliary)
    ]
    torch.testing.assert_close(terms["cross_entropy"], wanted[0])
    torch.testing.assert_close(terms["auxiliary"], AUXILIARY * wanted[1])


def test_one_channel_is_a_class_against_the_background() -> None:
    task, logits = Segment(("background", "person")), torch.randn(2, 1, 8, 8)
    masks = (torch.rand(2, 8, 8) > 0.5).long()
    (loss,) = task.loss(logits, batch(masks)).values()
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(logits[:, 0], masks.float()))
    assert task.decode(logits, batch(masks)).equal((logits[:, 0] > 0).long())


def test_scores_by_hand() -> None:
    """Of the road 2 of 3 pixels are found and 1 of the sky is taken for it; one pixel is ignored; no car occurs."""
    wanted = torch.tensor([[[0, 0, 0], [1, 1, IGNORED]]])
    found = torch.tensor([[[0, 0, 1], [0, 1, 2]]])
    meter = TASK.meter()
    meter.update(found, wanted, torch.tensor([0]))
    scores = {score.name: score.value for score in meter.compute()}
    assert scores == pytest.approx({"miou": (2 / 4 + 1 / 3) / 2, "pixel_accuracy": 3 / 5, "iou_road": 2 / 4, "iou_sky": 1 / 3})


def test_scores_are_those_of_torchmetrics_in_batches_of_any_size() -> None:
    masks, logits = random_masks(7), torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    meter, other = TASK.meter(), MulticlassJaccardIndex(3, average="none", ignore_index=IGNORED)
    for part in torch.arange(7).split(3):
        meter.update(TASK.decode(logits[part], batch(masks[part])), masks[part], part)
    other.update(logits, masks)
    scores = {score.name: score for score in meter.compute()}
    each = other.compute()
    assert [scores[f"iou_{name}"].value for name in ("road", "sky", "parked_car")] == pytest.approx(each.tolist())
    assert scores["miou"].value == pytest.approx(float(each.mean())) and scores["miou"].n == 7
    assert (scores["miou"].low or 1) < scores["miou"].value < (scores["miou"].high or 0)


def test_a_channel_for_no_class_may_be_predicted() -> None:
    """A prediction of the fourth channel, which no mask has, is a miss of the true class and of no other."""
    logits = torch.zeros(1, 4, 1, 2)
    logits[0, 3, 0, 0], logits[0, 1, 0, 1] = 5, 5
    meter, masks = TASK.meter(), torch.tensor([[[0, 1]]])
    meter.update(TASK.decode(logits, batch(masks)), masks, torch.tensor([0]))
    scores = {score.name: score.value for score in meter.compute()}
    assert scores == {"miou": 0.5, "pixel_accuracy": 0.5, "iou_road": 0.0, "iou_sky": 1.0}


def test_the_distance_is_a_divergence_of_pixels() -> None:
    ours, theirs = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    p, q = theirs.softmax(1), ours.softmax(1)
    torch.testing.assert_close(TASK.distance([ours], [theirs]), (p * (p / q).log()).sum(1).mean())
    assert float(TASK.distance([ours], [ours])) == pytest.approx(0, abs=1e-6)


def test_agreement_of_pixels() -> None:
    ours = torch.zeros(1, 3, 2, 2)
    theirs = ours.clone()
    theirs[0, 1, 0, 0] = 1
    meter = TASK.likeness()
    meter.update(ours, theirs, torch.tensor([0]))
    assert meter.compute()[0].value == 0.75


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (nn.Conv2d(3, 2, 1), "has 2 classes, but d has 3"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), "masks need logits"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(network: nn.Module, told: str) -> None:
    class Few:
        spec, shape, tile, fit = "d", (3, 8, 8), None, "cover"

    with pytest.raises(DataError, match=told):
        TASK.check(network, Few())  # type: ignore[arg-type]  # of the data, only these are read
