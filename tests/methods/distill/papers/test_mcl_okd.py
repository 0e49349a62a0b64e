"""MCL-OKD: the contrastive loss in numbers, the choice of negatives, and the memory bank, in a step and when resumed."""

import copy
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from toy import Random, batches, job, optimizer, train

from compressor.errors import UsageError
from compressor.methods.distill.papers.mcl_okd import MCLOKD, nce
from compressor.tasks.likeness import softened
from compressor.training.method import Progress


@pytest.mark.parametrize("images", [50, 50_000])
def test_the_contrast_by_hand(images: int) -> None:
    """The equation, with Z and c for this number of training images, which cancels."""
    scores = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, -2.0]], dtype=torch.float64)
    s, c = scores.exp() / (scores.exp().mean() * images), 2 / images
    wanted = -((s[:, 0] / (s[:, 0] + c)).log() + (c / (s[:, 1:] + c)).log().sum(1)).mean()
    torch.testing.assert_close(nce(scores), wanted)


def test_no_gradient_goes_through_the_scale() -> None:
    """d/da -log sigmoid(a) = sigmoid(a) - 1, with the opposite sign for negatives: each score affects only its own term."""
    scores = torch.tensor([[1.0, 1.0]], requires_grad=True)  # s = 1 / N each, c = 1 / N: both sigmoids are 1/2
    nce(scores).backward()
    assert scores.grad is not None and scores.grad.tolist() == [[-0.5, 0.5]]


@dataclass(frozen=True)
class Told(Random):
    """Six images with gaps between their indices."""

    def targets(self, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor([9, 2, 4, 7, 0, 5]), torch.tensor([1, 0, 1, 3, 0, 1])


def test_negatives_are_of_all_other_classes() -> None:
    method = MCLOKD(job("macs=50%", images=Told()), negatives=200)
    assert method.bank.shape == (4, 10, 128)
    drawn = method.draw(torch.tensor([0, 1, 3]))
    assert [set(row.tolist()) for row in drawn] == [{9, 4, 7, 5}, {2, 7, 0}, {9, 2, 4, 0, 5}]


def test_each_term_by_hand() -> None:
    torch.manual_seed(0)
    method, (batch,) = MCLOKD(job("macs=50%"), branches=3, negatives=5, contrast=0.5, tau=0.2).eval(), batches(1)
    assert method.student.taps[method.shared] == "stem"
    torch.manual_seed(1)
    terms = method.loss(batch)
    torch.manual_seed(1)
    rows = torch.cat([batch.indices[:, None], method.draw(batch.targets)], 1)
    answers = method.answers(batch.inputs)
    z = [answer.logits for answer in answers]
    e = [F.normalize(embed(answer.embedding)) for embed, answer in zip(method.embed, answers, strict=True)]
    pairs = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    losses = [nce((method.bank[i][rows] * e[j][:, None]).sum(2) / 0.2) for i, j in pairs]
    torch.testing.assert_close(terms["cross_entropy"], sum(F.cross_entropy(logits, batch.targets) for logits in z))
    torch.testing.assert_close(terms["distillation"], softened(z[0], (z[0] + z[1] + z[2]) / 3, 3.0))
    torch.testing.assert_close(terms["contrast"], 0.5 * sum(losses))


def test_the_bank_follows_what_the_branches_embed() -> None:
    method, (batch,) = MCLOKD(job("macs=50%"), branches=2, negatives=4), batches(1)
    before = method.bank.clone()
    assert before.abs().max() <= (3 / 128) ** 0.5
    method.loss(batch)
    method.end_step(batch)
    rows = method.bank[:, batch.indices]
    torch.testing.assert_close(rows.norm(dim=2), torch.ones(2, 8))
    torch.testing.assert_close(rows, F.normalize(before[:, batch.indices] + method.newest, dim=2))
    assert torch.equal(method.bank[:, 8:], before[:, 8:]), "no other row moves"
    assert not method.newest.requires_grad


def test_the_bank_comes_back_when_a_run_goes_on() -> None:
    method = MCLOKD(job("macs=50%"), branches=2, negatives=4)
    train(method, optimizer(method), range(1), 2)
    state = copy.deepcopy(method.state_dict())
    again = MCLOKD(job("macs=50%"), branches=2, negatives=4)
    assert not torch.equal(again.bank, method.bank)
    again.load_state_dict(state)
    assert torch.equal(again.bank, method.bank)
    losses = []
    for one in (method, again):
        torch.manual_seed(2)
        one.train().begin_epoch(Progress(1, 2))
        losses.append(one.loss(next(batches(1, seed=1)))["contrast"].item())
    assert losses[0] == losses[1]


def test_without_contrast_no_bank_moves() -> None:
    method, (batch,) = MCLOKD(job("macs=50%"), contrast=0.0), batches(1)
    before = method.bank.clone()
    assert list(method.loss(batch)) == ["cross_entropy", "distillation"]
    method.end_step(batch)
    assert torch.equal(method.bank, before)


def test_it_needs_training_images() -> None:
    with pytest.raises(UsageError, match="give images with --data"):
        MCLOKD(job("macs=50%", images=None))
