"""KDCL: the four ensembles, on logits that can be checked by hand."""

from math import log

import pytest
import torch
import torch.nn.functional as F
from toy import Random, batches, job

from compressor.errors import UsageError
from compressor.methods.distill.papers.kdcl import ENSEMBLES, KDCL, best, best_together, least, mixed, products, uncorrelated
from compressor.tasks.likeness import softened
from compressor.training.method import Progress

FIRST, SECOND = [[4.0, 1.0, 0.0], [0.0, 1.0, 5.0]], [[3.0, 2.0, -4.0], [2.0, 4.0, 0.0]]
LOGITS, TARGETS = torch.tensor([FIRST, SECOND]), torch.tensor([0, 1])


def test_minlogit_takes_the_least_beside_the_true_class() -> None:
    """Image 0: (0, -3, -4) and (0, -1, -7). Image 1: (-1, 0, 4) and (-2, 0, -4)."""
    assert least(LOGITS, TARGETS).tolist() == [[0, -3, -7], [-2, 0, -4]]


def test_naive_takes_the_network_with_the_least_error() -> None:
    """The first is wrong about image 1."""
    shares = best(LOGITS, TARGETS)
    assert shares.tolist() == [0, 1] and mixed(shares, LOGITS).tolist() == SECOND


def test_linear_finds_the_best_shares() -> None:
    """Image 0 favours the first network, image 1 the second, with equal margins: half and half.

    If one network is right on both images, and the other wrong, it gets all the weight.
    """
    apart = torch.tensor([[[3.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 3.0]]])  # margins a 3 - (1 - a) and (1 - a) 3 - a
    torch.testing.assert_close(best_together(apart, torch.tensor([0, 1])), torch.tensor([0.5, 0.5]).double())
    clear = torch.tensor([[[3.0, 0.0], [0.0, 3.0]], [[0.0, 3.0], [3.0, 0.0]]])
    assert best_together(clear, torch.tensor([0, 1]))[0] > 0.99
    shares = best_together(LOGITS, TARGETS)
    errors = [F.cross_entropy(mixed(torch.tensor([a, 1 - a]), LOGITS), TARGETS) for a in torch.linspace(0, 1, 101)]
    assert F.cross_entropy(mixed(shares, LOGITS), TARGETS) <= min(errors) + 1e-3
    assert shares.min() >= 0 and shares.sum().item() == pytest.approx(1)


def test_general_weighs_by_the_inverse_covariance() -> None:
    """Of uncorrelated errors of variances 1 and 4: 4/5 and 1/5. The inverse of [[2, -1], [-1, 3]] is [[3, 1], [1, 2]] / 5."""
    for covariance, shares in (
        ([[1, 0], [0, 4]], [0.8, 0.2]),
        ([[2, -1], [-1, 3]], [4 / 7, 3 / 7]),
        ([[1, 1], [1, 1]], [0.5, 0.5]),
    ):
        assert uncorrelated(torch.tensor(covariance)).tolist() == pytest.approx(shares, abs=1e-5)


def test_errors_are_those_of_probabilities() -> None:
    """(0.2, -0.2) and (0.5, -0.5): products 0.08, 0.2 and 0.5."""
    logits = torch.tensor([[[log(0.2), log(0.8)]], [[0.0, 0.0]]])
    torch.testing.assert_close(products(logits, torch.tensor([1])), torch.tensor([[0.08, 0.2], [0.2, 0.5]]))


def test_general_looks_at_held_out_images_before_each_epoch() -> None:
    method = KDCL(job("macs=50%"), ensemble="general", peers=3)
    assert method.shares.tolist() == [pytest.approx(1 / 3)] * 3
    method.train().begin_epoch(Progress(0, 2))
    shares = method.shares.clone()
    looks = Random().batches("held_out", batch_size=500)
    method.eval()
    with torch.no_grad():
        found = sum(products(torch.stack([n(b.inputs) for n in (method.model, *method.others)]), b.targets) for b in looks)
    torch.testing.assert_close(shares, uncorrelated(found / 16).float())
    assert shares.sum().item() == pytest.approx(1) and "shares" in method.state_dict()
    with pytest.raises(UsageError, match="ensemble=general needs held-out images"):
        KDCL(job("macs=50%", images=Random(images=0)), ensemble="general").begin_epoch(Progress(0, 2))


def test_each_network_sees_its_own_view() -> None:
    method, (batch, other) = KDCL(job("macs=50%"), temperature=2.0, distillation=0.5).eval(), batches(2)
    assert method.views == 2
    terms = method.loss(batch._replace(views=(batch.inputs, other.inputs)))
    ours, theirs = method.model(batch.inputs), method.others[0](other.inputs)
    teacher = least(torch.stack([ours, theirs]), batch.targets)
    both = F.cross_entropy(ours, batch.targets) + F.cross_entropy(theirs, batch.targets)
    torch.testing.assert_close(terms["cross_entropy"], both)
    torch.testing.assert_close(terms["distillation"], 0.5 * (softened(ours, teacher, 2.0) + softened(theirs, teacher, 2.0)))


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_networks_that_are_alike_have_nothing_to_learn(ensemble: str) -> None:
    method, (batch,) = KDCL(job("macs=50%"), ensemble=ensemble, cross_entropy=0.0), batches(1)
    method.others[0].load_state_dict(method.model.state_dict())
    terms = method.eval().loss(batch)
    assert list(terms) == ["distillation"] and terms["distillation"].item() == pytest.approx(0, abs=1e-5)


def test_an_ensemble_that_nobody_knows() -> None:
    with pytest.raises(UsageError, match="did you mean 'minlogit'"):
        KDCL(job("macs=50%"), ensemble="minlogits")
