"""DKD: its two terms on probabilities worked out by hand, their sum to KL, and the ramp."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toy import Toy, batches, job

from compressor.methods.catalogue import create, find
from compressor.methods.distill.papers.dkd import DKD, others, right_or_not
from compressor.tasks.likeness import softened
from compressor.training.method import Progress

STUDENT, TEACHER = [[0.5, 0.25, 0.25]], [[0.8, 0.15, 0.05]]  # the first class is the target
TCKD = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)  # of (0.8, 0.2) and (0.5, 0.5)
NCKD = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)  # of (3/4, 1/4) and (1/2, 1/2)
RIGHT = torch.tensor([0])


def parts(student: Tensor, teacher: Tensor, targets: Tensor, temperature: float = 4.0) -> list[Tensor]:
    """TCKD and NCKD of logits, times T^2."""
    of_both = [[part(z, targets, temperature) for z in (student, teacher)] for part in (right_or_not, others)]
    return [softened(ours, theirs, temperature) for ours, theirs in of_both]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_both_parts_by_hand(temperature: float) -> None:
    student, teacher = (temperature * torch.tensor(p).log() + 3 for p in (STUDENT, TEACHER))
    tckd, nckd = parts(student, teacher, RIGHT, temperature)
    square = temperature**2
    assert [tckd.item(), nckd.item()] == pytest.approx([square * TCKD, square * NCKD], rel=1e-4)
    assert softened(student, teacher, temperature).item() == pytest.approx(square * (TCKD + 0.2 * NCKD), rel=1e-4)


def test_a_teacher_that_is_sure_leaves_numbers_finite() -> None:
    student = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    teacher, targets = 100.0 * torch.eye(5)[:2], torch.tensor([0, 3])
    loss = torch.stack(parts(student, teacher, targets)).sum()
    loss.backward()
    assert loss.isfinite() and student.grad is not None and student.grad.isfinite().all()


def test_its_terms_are_weighed_as_set() -> None:
    (batch,) = batches(1)
    teacher = Toy()
    method = DKD(job("macs=50%", teacher=teacher), cross_entropy=0.5, tckd=2.0, nckd=3.0).eval()
    with torch.no_grad():
        terms = method.loss(batch)
        student = method.model(batch.inputs)
        tckd, nckd = parts(student, teacher.eval()(batch.inputs), batch.targets)
    assert terms["cross_entropy"].item() == pytest.approx(0.5 * F.cross_entropy(student, batch.targets).item())
    assert [terms["tckd"].item(), terms["nckd"].item()] == pytest.approx([2 * tckd.item(), 3 * nckd.item()], rel=1e-3)


@pytest.mark.parametrize(("epoch", "share"), [(0, 0.05), (1, 0.1), (9, 0.5), (18, 0.95), (19, 1.0), (120, 1.0), (239, 1.0)])
def test_the_teacher_comes_in_over_the_first_20_of_240_epochs(epoch: int, share: float) -> None:
    (batch,) = batches(1)
    method = DKD(job("macs=50%", teacher=Toy())).eval()
    whole = method.loss(batch)
    method.begin_epoch(Progress(epoch, 240))
    now = method.loss(batch)
    assert now["cross_entropy"] == whole["cross_entropy"]
    assert [now[name].item() for name in ("tckd", "nckd")] == pytest.approx(
        [share * whole[name].item() for name in ("tckd", "nckd")], rel=1e-3
    )


def test_a_ramp_of_one_epoch_has_the_teacher_at_once() -> None:
    method = DKD(job("macs=50%", teacher=Toy()), ramp=1)
    method.begin_epoch(Progress(0, 5))
    assert method.grown == 1


def test_from_a_teacher_that_it_equals_it_learns_nothing() -> None:
    (batch,) = batches(1)
    model = Toy()
    terms = DKD(job("macs=50%", model, teacher=model)).eval().loss(batch)
    assert [terms["tckd"].item(), terms["nckd"].item()] == pytest.approx([0, 0], abs=1e-6)


def test_the_teacher_gets_no_gradients() -> None:
    (batch,) = batches(1)
    method = DKD(job("macs=50%", teacher=Toy()))
    terms = method.loss(batch)
    (terms["tckd"] + terms["nckd"]).backward()
    assert all(parameter.grad is None for parameter in method.taught().network.parameters())
    assert all(parameter.grad is not None for parameter in method.model.parameters())


@pytest.mark.parametrize("term", ["cross_entropy", "tckd", "nckd"])
def test_a_term_without_weight_is_absent(term: str) -> None:
    (batch,) = batches(1)
    method = create(find("dkd", "distill"), job("macs=50%", teacher=Toy()), {term: 0.0})
    assert set(method.loss(batch)) == {"cross_entropy", "tckd", "nckd"} - {term}


def test_of_two_classes_only_the_right_one_tells_something() -> None:
    """There is one non-target class, with probability 1 among these for student and teacher."""
    student, teacher = torch.tensor([[2.0, 0.0], [1.0, -1.0]]), torch.tensor([[0.0, 3.0], [5.0, 0.0]])
    tckd, nckd = parts(student, teacher, torch.tensor([0, 1]))
    assert nckd == 0 and tckd.item() == pytest.approx(softened(student, teacher).item(), rel=1e-5)
