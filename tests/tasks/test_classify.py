"""The loss for logits, alone or with those of auxiliary classifiers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compressor.data import Batch
from compressor.tasks.classify import AUXILIARY, TEMPERATURE, Classify

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


def test_a_teacher_shares_the_loss() -> None:
    """T^2 KL(teacher || student) of softened logits, in addition to the cross-entropy; no gradient reaches the teacher."""
    teacher = nn.Linear(3, 5)
    terms = Classify(teacher=teacher, soft=0.25).loss(LOGITS, BATCH)
    answers = teacher(BATCH.inputs)
    p, q = (logits.div(TEMPERATURE).softmax(1) for logits in (answers, LOGITS))
    distance = (p * (p / q).log()).sum(1).mean()
    assert terms["cross_entropy"] == 0.75 * F.cross_entropy(LOGITS, TARGETS)
    torch.testing.assert_close(terms["teacher"], 0.25 * TEMPERATURE**2 * distance)
    assert not terms["teacher"].requires_grad
    assert Classify(teacher=teacher).loss(answers, BATCH)["teacher"].item() == pytest.approx(0, abs=1e-6)
