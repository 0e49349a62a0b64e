"""The loss of what networks return: logits, alone or with those of auxiliary classifiers."""

import pytest
import torch
import torch.nn.functional as F

from compressor.method import Batch
from compressor.task import AUXILIARY, Classify

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
