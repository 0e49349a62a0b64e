"""KD: its terms from the logits of student and teacher, and a teacher that equals the student."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toy import Toy, batches, job

from compressor.errors import UsageError
from compressor.methods.catalogue import create, find
from compressor.methods.distill.papers.kd import KD


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Of probabilities [n, classes], the mean over the rows."""
    return (teacher * (teacher / student).log()).sum(1).mean()


def test_each_term_by_its_formula() -> None:
    (batch,) = batches(1)
    teacher = Toy()
    method = KD(job("macs=50%", teacher=teacher), cross_entropy=0.25, kd=0.5, temperature=2.0).eval()
    with torch.no_grad():
        terms = method.loss(batch)
        z, z_t = method.model(batch.inputs), teacher.eval()(batch.inputs)
    assert list(terms) == ["cross_entropy", "kd"]
    assert terms["cross_entropy"].item() == pytest.approx(0.25 * F.cross_entropy(z, batch.targets).item())
    wanted = 0.5 * 4 * kl((z / 2).softmax(1), (z_t / 2).softmax(1)).item()
    assert terms["kd"].item() == pytest.approx(wanted, rel=1e-3)


def test_standardised_logits_do_not_know_the_scale_of_the_teacher() -> None:
    """A teacher whose logits are 3 z + 7, for logits z of the student, gives a loss of 0."""
    (batch,) = batches(1)
    student, teacher = Toy(), Toy()
    teacher.load_state_dict(student.state_dict())
    with torch.no_grad():
        teacher.head.weight *= 3
        teacher.head.bias.mul_(3).add_(7)
        found = [KD(job("macs=50%", student, teacher=teacher), standardise=on).eval().loss(batch)["kd"] for on in (True, False)]
    assert found[0].item() == pytest.approx(0, abs=1e-6) and found[1] > 1e-3


def test_from_a_teacher_that_it_equals_it_learns_nothing() -> None:
    (batch,) = batches(1)
    model = Toy()
    method = KD(job("macs=50%", model, teacher=model)).eval()
    assert method.loss(batch)["kd"].item() == pytest.approx(0, abs=1e-6)


def test_the_teacher_gets_no_gradients() -> None:
    (batch,) = batches(1)
    method = KD(job("macs=50%", teacher=Toy()))
    method.loss(batch)["kd"].backward()
    assert all(parameter.grad is None for parameter in method.taught().network.parameters())
    assert all(parameter.grad is not None for parameter in method.model.parameters())


@pytest.mark.parametrize("term", ["cross_entropy", "kd"])
def test_a_term_without_weight_is_absent(term: str) -> None:
    (batch,) = batches(1)
    method = create(find("kd", "distill"), job("macs=50%", teacher=Toy()), {term: 0.0})
    assert set(method.loss(batch)) == {"cross_entropy", "kd"} - {term}


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_is_above_0(temperature: float) -> None:
    with pytest.raises(UsageError, match="--set temperature="):
        KD(job("macs=50%", teacher=Toy()), temperature=temperature)
