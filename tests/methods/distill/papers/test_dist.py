"""DIST: correlations worked out by hand, their axes, and their invariances."""

import pytest
import torch
from toy import Toy, batches, job

from compressor.methods.catalogue import create, find
from compressor.methods.distill.papers.dist import DIST, unlike

ROW = torch.tensor([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("other", "distance"),
    [
        ([1.0, 2.0, 3.0], 0.0),
        ([10.0, 30.0, 50.0], 0.0),  # linear in it, though not equal
        ([3.0, 2.0, 1.0], 2.0),
        ([1.0, 3.0, 2.0], 0.5),  # (-1, 0, 1) and (-1, 1, 0): 1 of 2
        ([1.0, -2.0, 1.0], 1.0),
    ],
)
def test_pearson_by_hand(other: list[float], distance: float) -> None:
    assert unlike(ROW[None], torch.tensor([other])).item() == pytest.approx(distance, abs=1e-6)


def test_rows_are_averaged() -> None:
    assert unlike(ROW.expand(2, 3), torch.stack([ROW, ROW.flip(0)])).item() == pytest.approx(1.0)


def test_each_term_by_its_formula() -> None:
    (batch,) = batches(1)
    teacher = Toy()
    method = DIST(job("macs=50%", teacher=teacher), inter=3.0, intra=5.0, temperature=2.0).eval()
    with torch.no_grad():
        terms = method.loss(batch)
        ours, theirs = ((model(batch.inputs) / 2).softmax(1) for model in (method.model, teacher.eval()))
    assert list(terms) == ["cross_entropy", "inter", "intra"]
    of_images = [torch.corrcoef(torch.stack([ours[i], theirs[i]]))[0, 1].item() for i in range(8)]
    of_classes = [torch.corrcoef(torch.stack([ours[:, j], theirs[:, j]]))[0, 1].item() for j in range(5)]
    assert terms["inter"].item() == pytest.approx(3 * 4 * (1 - sum(of_images) / 8), rel=1e-3)
    assert terms["intra"].item() == pytest.approx(5 * 4 * (1 - sum(of_classes) / 5), rel=1e-3)


def test_from_a_teacher_that_it_equals_it_learns_nothing() -> None:
    (batch,) = batches(1)
    model = Toy()
    terms = DIST(job("macs=50%", model, teacher=model), temperature=1.0).eval().loss(batch)
    assert [terms["inter"].item(), terms["intra"].item()] == pytest.approx([0, 0], abs=1e-5)


def test_the_teacher_gets_no_gradients() -> None:
    (batch,) = batches(1)
    method = DIST(job("macs=50%", teacher=Toy()))
    terms = method.loss(batch)
    (terms["inter"] + terms["intra"]).backward()
    assert all(parameter.grad is None for parameter in method.taught().network.parameters())
    assert all(parameter.grad is not None for parameter in method.model.parameters())


def test_one_image_has_nothing_to_be_compared_with() -> None:
    """The last batch of an epoch can have one image: the loss is then constant, and gradients are finite."""
    ours = torch.tensor([[0.2], [0.8]], requires_grad=True)
    distance = unlike(ours, torch.tensor([[0.5], [0.5]]))
    distance.backward()
    assert distance.item() == 1 and ours.grad is not None and ours.grad.abs().max() == 0


@pytest.mark.parametrize("term", ["cross_entropy", "inter", "intra"])
def test_a_term_without_weight_is_absent(term: str) -> None:
    (batch,) = batches(1)
    method = create(find("dist", "distill"), job("macs=50%", teacher=Toy()), {term: 0.0})
    assert set(method.loss(batch)) == {"cross_entropy", "inter", "intra"} - {term}
