"""RCKA: Gram matrices and their alignment by hand, the relations of each term, and forward passes of the teacher."""

import math

import pytest
import torch
from torch import nn
from toy import SHAPE, Toy, Wide, batches, job

from compressor.errors import UsageError
from compressor.methods.catalogue import create, find
from compressor.methods.distill.papers.rcka import RCKA, alignment, gram

ROWS = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
TERMS = ["cross_entropy", "intra", "inter", "feature", "kd"]


def test_grams_by_hand() -> None:
    assert gram(ROWS).tolist() == [[25, 3], [3, 1]]
    torch.testing.assert_close(gram(ROWS, scale=True), torch.tensor([[5.0, 0.6], [3.0, 1.0]]))  # row i over the root of (i, i)
    assert gram(ROWS, center=True).tolist() == [[5, -5], [-5, 5]]  # of (1, 2) and (-1, -2)


def test_alignment_is_the_cosine_of_flattened_grams() -> None:
    """tr(K G^T) / sqrt(tr(K K^T) tr(G G^T)), of [[25, 3], [3, 1]] and the unit matrix: 26 / sqrt(644 x 2)."""
    k, g = gram(ROWS), gram(torch.eye(2))
    assert alignment(k, g).item() == pytest.approx(26 / math.sqrt(644 * 2))
    traces = (k @ g.T).trace() / ((k @ k.T).trace() * (g @ g.T).trace()).sqrt()
    assert alignment(k, g).item() == pytest.approx(traces.item())


def test_neither_turning_nor_scaling_changes_what_is_alike() -> None:
    angle = torch.tensor(0.7)
    turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    for center in (False, True):
        assert alignment(gram(ROWS, center), gram(5 * ROWS @ turn, center)).item() == pytest.approx(1)


def test_grams_are_computed_in_float32_under_autocast() -> None:
    rows = torch.full((2, 1000), 1.01)
    with torch.autocast("cpu", torch.bfloat16):
        found = gram(rows, scale=True)
    assert found.dtype == torch.float32 and found[0, 1].item() == pytest.approx(1.01 * math.sqrt(1000), rel=1e-5)


def test_each_term_by_its_formula() -> None:
    (batch,) = batches(1)
    method = RCKA(job("macs=50%", teacher=Toy()), intra=2.0, inter=3.0, feature=4.0, kd=0.5, scale=False).eval()
    with torch.no_grad():
        terms = method.loss(batch)
        ours, theirs = method.student.ask(method.model, batch.inputs), method.taught().ask(batch.inputs)

        def cosine(k: torch.Tensor, g: torch.Tensor) -> float:
            return ((k * g).sum() / (k.square().sum() * g.square().sum()).sqrt()).item()

        z, z_t = ours.logits, theirs.logits
        features = 0.0
        for f, f_t in zip(ours.features, theirs.features, strict=True):
            k, k_t = (x.flatten(1) @ x.flatten(1).T for x in (f, f_t))
            features += cosine(k / k.norm(dim=1, keepdim=True), k_t / k_t.norm(dim=1, keepdim=True))
    assert list(terms) == TERMS
    assert terms["intra"].item() == pytest.approx(-2 * cosine(z @ z.T, z_t @ z_t.T), rel=1e-4)
    assert terms["inter"].item() == pytest.approx(-3 * cosine(z.T @ z, z_t.T @ z_t), rel=1e-4)
    assert terms["feature"].item() == pytest.approx(-4 * features, rel=1e-4)


def test_with_softmax_probabilities_are_compared() -> None:
    (batch,) = batches(1)
    student, teacher = Toy(), Toy()
    found = RCKA(job("macs=50%", student, teacher=teacher), softmax=True, temperature=2.0).eval().loss(batch)["intra"].item()
    with torch.no_grad():
        p, q = ((model.eval()(batch.inputs) / 2).softmax(1) for model in (student, teacher))
    assert found == pytest.approx(-alignment(gram(p, scale=True), gram(q, scale=True)).item(), rel=1e-5)


@pytest.mark.parametrize("settings", [{}, {"center": True}, {"softmax": True}, {"scale": False}])
def test_from_a_teacher_that_it_equals_it_learns_nothing(settings: dict[str, bool]) -> None:
    """All relations agree: each term is minus its weight, for the features once per stage."""
    (batch,) = batches(1)
    model = Toy()
    method = RCKA(job("macs=50%", model, teacher=model), kd=1.0, **settings).eval()
    terms = method.loss(batch)
    stages = len(method.student.taps)
    assert [terms[name].item() for name in TERMS[1:]] == pytest.approx([-1, -1, -stages, 0], abs=1e-4)


def test_a_teacher_of_other_widths_and_another_number_of_stages() -> None:
    (batch,) = batches(1)
    method = RCKA(job("macs=50%", Toy(), teacher=Wide()))
    assert len(method.student.taps) != len(method.taught().anatomy.taps)
    assert -len(method.pairs()) <= method.loss(batch)["feature"].item() < 0


def test_the_teacher_gets_no_gradients() -> None:
    (batch,) = batches(1)
    method = RCKA(job("macs=50%", teacher=Toy()), cross_entropy=0.0)
    torch.stack(list(method.loss(batch).values())).sum().backward()
    assert all(parameter.grad is None for parameter in method.taught().network.parameters())
    assert all(parameter.grad is not None for parameter in method.model.parameters())


@pytest.mark.parametrize("term", TERMS)
def test_a_term_without_weight_is_absent(term: str) -> None:
    (batch,) = batches(1)
    method = create(find("rcka", "distill"), job("macs=50%", teacher=Toy()), {"kd": 0.5, term: 0.0})
    assert set(method.loss(batch)) == set(TERMS) - {term}


@pytest.mark.parametrize(("feature", "calls"), [(0.0, 0), (1.0, 1)])
def test_only_for_features_is_the_teacher_asked_again(feature: float, calls: int) -> None:
    (batch,) = batches(1)
    method = RCKA(job("macs=50%", teacher=Toy(), images_stay=True), feature=feature)
    method.loss(batch)
    before = method.taught().calls
    method.loss(batch)
    assert method.taught().calls - before == calls


def test_networks_without_stages_need_the_features_off() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(SHAPE), 5))
    task = job("macs=50%", teacher=flat)
    with pytest.raises(UsageError, match="feature=0"):
        RCKA(task)
    (batch,) = batches(1)
    assert "feature" not in RCKA(task, feature=0.0).loss(batch)
