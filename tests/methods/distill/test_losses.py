"""Losses that several distillation methods use, on numbers that can be worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from compressor.methods.distill.contrastive import contrast
from compressor.methods.distill.papers.kd import standardised
from compressor.tasks.likeness import softened

LN2, LN3 = math.log(2), math.log(3)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_softened_answers_are_compared_by_kl_times_the_square_of_t(temperature: float) -> None:
    """Teacher 3/4 and 1/4, student 1/2 and 1/2: KL = 3/4 ln 3/2 + 1/4 ln 1/2."""
    student, teacher = torch.zeros(3, 2), torch.tensor([[temperature * LN3, 0.0]]).expand(3, 2)
    wanted = temperature**2 * (0.75 * math.log(1.5) - 0.25 * LN2)
    assert softened(student, teacher, temperature).item() == pytest.approx(wanted)


def test_it_is_the_teacher_who_weighs_the_classes() -> None:
    """KL(teacher || student), not the other way: 1/2 ln 2/3 + 1/2 ln 2."""
    found = softened(torch.tensor([[LN3, 0.0]]), torch.zeros(1, 2), 1.0)
    assert found.item() == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * LN2)


def test_gradients_of_softened_answers_are_of_the_same_size_at_any_t() -> None:
    """For small differences of logits, T^2 KL approaches half their mean square, for any T."""
    difference = 0.1 * torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    found = [softened(torch.zeros(1, 4), difference, temperature).item() for temperature in (2.0, 8.0)]
    assert found == pytest.approx([0.005, 0.005], rel=0.01)


def test_standardised_rows_have_mean_0_and_the_deviation_of_a_sample_1() -> None:
    found = standardised(torch.tensor([[1.0, 2.0, 3.0], [50.0, 30.0, 10.0]]))
    torch.testing.assert_close(found, torch.tensor([[-1.0, 0.0, 1.0], [1.0, 0.0, -1.0]]))


def test_equal_logits_are_standardised_to_nothing() -> None:
    assert standardised(torch.full((2, 3), 7.0)).abs().max() == 0


def test_contrast_by_hand() -> None:
    """Four images of classes 0, 0, 0, 1; similarities ln 2 between the first two, 100 on the diagonal, 0 elsewhere.

    The first has probabilities 1/2 and 1/4 for its positives, the third 1/3 and 1/3, and the last has no positive.
    """
    similarities = 100 * torch.eye(4)
    similarities[0, 1] = similarities[1, 0] = LN2
    found = contrast(similarities, torch.tensor([0, 0, 0, 1]))
    torch.testing.assert_close(found, torch.tensor([(LN2 + 2 * LN2) / 2, (LN2 + 2 * LN2) / 2, LN3, 0.0]))


def test_contrast_has_gradients_where_an_image_is_alone() -> None:
    embeddings = F.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    contrast(embeddings @ embeddings.T, torch.tensor([0, 0, 1])).sum().backward()
    assert embeddings.grad is not None and embeddings.grad.isfinite().all() and embeddings.grad.abs().sum() > 0
