"""Classification: the loss for logits, alone or with those of auxiliary classifiers, the teacher, and scores."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compressor.data import Batch
from compressor.errors import DataError, VerificationFailed
from compressor.tasks.classify import AUXILIARY, Classify
from compressor.tasks.likeness import TEMPERATURE
from compressor.training.objective import Objective

LOGITS, AUX, HIDDEN = torch.randn(4, 5), torch.randn(4, 5), torch.randn(4, 9)
TARGETS = torch.tensor([0, 1, 2, 4])
BATCH = Batch(torch.randn(4, 3), TARGETS, torch.arange(4))


def test_auxiliary_logits_count_less() -> None:
    terms = Classify().loss((LOGITS, None, AUX), BATCH)
    assert terms["cross_entropy"] == F.cross_entropy(LOGITS, TARGETS)
    assert terms["auxiliary"] == AUXILIARY * F.cross_entropy(AUX, TARGETS)


@pytest.mark.parametrize("output", [LOGITS, {"hidden": HIDDEN, "logits": LOGITS}, (LOGITS, (HIDDEN, HIDDEN))])
def test_other_tensors_are_no_logits(output: object) -> None:
    assert Classify().loss(output, BATCH) == {"cross_entropy": F.cross_entropy(LOGITS, TARGETS)}


def test_labels_are_smoothed() -> None:
    (loss,) = Classify().trained_with(0.1).loss(LOGITS, BATCH).values()
    assert loss == F.cross_entropy(LOGITS, TARGETS, label_smoothing=0.1)


def test_a_teacher_shares_the_loss() -> None:
    """T^2 KL(teacher || student) of softened logits, in addition to the cross-entropy; no gradient reaches the teacher."""
    teacher = nn.Linear(3, 5)
    terms = Objective(Classify(), teacher, soft=0.25).loss(LOGITS, BATCH)
    answers = teacher(BATCH.inputs)
    p, q = (logits.div(TEMPERATURE).softmax(1) for logits in (answers, LOGITS))
    distance = (p * (p / q).log()).sum(1).mean()
    assert terms["cross_entropy"] == 0.75 * F.cross_entropy(LOGITS, TARGETS)
    torch.testing.assert_close(terms["teacher"], 0.25 * TEMPERATURE**2 * distance)
    assert not terms["teacher"].requires_grad
    assert Objective(Classify(), teacher).loss(answers, BATCH)["teacher"].item() == pytest.approx(0, abs=1e-6)


def test_scores_by_hand() -> None:
    """Three of four images are right; of two equal logits the first is the prediction."""
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    meter = Classify().meter()
    meter.update(logits[:1], torch.tensor([0]), torch.tensor([7]))
    meter.update(logits[1:], torch.tensor([1, 0, 1]), torch.tensor([8, 9, 3]))
    top1, loss = meter.compute()
    assert (top1.name, top1.label, top1.value, top1.unit, top1.n) == ("top1", "top-1", 0.75, "%", 4)
    assert loss.name == "loss" and not loss.more_is_better
    assert loss.value == pytest.approx(float(F.cross_entropy(logits, torch.tensor([0, 1, 0, 1]))), rel=1e-6)
    assert (round(top1.low or 0, 4), round(top1.high or 0, 4)) == (0.3006, 0.9544)  # Wilson's, by scipy.stats and by hand


def test_top_5_is_measured_with_ten_classes() -> None:
    logits = torch.arange(10.0).repeat(6, 1)  # the class 9 is first, 5 is fifth, 4 is sixth
    meter = Classify().meter()
    meter.update(logits, torch.tensor([9, 5, 4, 9, 0, 6]), torch.arange(6))
    assert {score.name: score.value for score in meter.compute()[:2]} == {"top1": 2 / 6, "top5": 4 / 6}


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(VerificationFailed, match="NaN"):
        Classify().meter().update(torch.full((1, 3), float("nan")), torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(DataError, match="classes 0 to 2, but the labels range from 0 to 3"):
        Classify().meter().update(torch.randn(2, 3), torch.tensor([0, 3]), torch.arange(2))
    with pytest.raises(DataError, match="no images"):
        Classify().meter().compute()
