"""HSAKD: its equation, its gradients, and the teacher that is prepared first."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toy import Toy, batches, job, optimizer, train

from compressor.errors import UsageError
from compressor.methods.distill.papers.hsakd import HSAKD
from compressor.methods.distill.rotations import rotated
from compressor.tasks.likeness import softened
from compressor.training.method import Job


def prepared(task: Job | None = None, **settings: float | bool) -> HSAKD:
    method = HSAKD(task or job("macs=50%", teacher=Toy()), **settings)
    method.prepare()
    return method


def states(*modules: torch.nn.Module) -> list[Tensor]:
    return [tensor.clone() for module in modules for tensor in module.state_dict().values()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(map(torch.equal, first, second))


def test_its_terms_are_those_of_the_equation() -> None:
    method = prepared(cross_entropy=2.0, joint_kd=3.0, kd=0.5, temperature=2.0).eval()
    (batch,) = batches(1)
    terms = method.loss(batch)
    images, teacher = rotated(batch.inputs), method.taught().network
    answer = method.student.ask(method.model, images)
    taught = method.taught().anatomy.ask(teacher, images)
    ours, theirs = method.heads(answer.features), method.teachers_heads.network(taught.features)
    joint = sum(softened(q, k, 2.0) for q, k in zip(ours, theirs, strict=True))
    assert torch.allclose(terms["cross_entropy"], 2 * F.cross_entropy(method.model(batch.inputs), batch.targets))
    assert torch.allclose(terms["kd"], 0.5 * softened(method.model(images), teacher(images), 2.0), rtol=1e-4)
    assert torch.allclose(terms["joint_kd"], 3 * joint, rtol=1e-4) and joint > 0


def test_a_student_that_is_its_teacher_has_nothing_to_learn_but_the_labels() -> None:
    model = Toy()
    method = prepared(job("macs=50%", model, teacher=model)).eval()
    method.heads.load_state_dict(method.teachers_heads.network.state_dict())
    (batch,) = batches(1)
    terms = method.loss(batch)
    assert abs(terms["kd"]) < 1e-6 and abs(terms["joint_kd"]) < 1e-6 and terms["cross_entropy"] > 0


@pytest.mark.parametrize("off", ["cross_entropy", "joint_kd", "kd"])
def test_each_term_can_be_off(off: str) -> None:
    (batch,) = batches(1)
    assert set(prepared(**{off: 0.0}).loss(batch)) == {"cross_entropy", "joint_kd", "kd"} - {off}


def test_heads_send_gradient_into_the_student_and_none_into_the_teacher() -> None:
    method = prepared()
    (batch,) = batches(1)
    method.loss(batch)["joint_kd"].backward()
    assert method.model.stem.weight.grad.abs().sum() > 0
    frozen = [*method.taught().network.parameters(), *method.teachers_heads.network.parameters()]
    assert all(weight.grad is None and not weight.requires_grad for weight in frozen)


@pytest.mark.parametrize("joint", [False, True])
def test_the_teacher_stays_as_it_was_made_ready(joint: bool) -> None:
    method = HSAKD(job("macs=50%", teacher=Toy()), joint=joint)
    given = states(method.taught().network)
    ready = method.first()
    assert ready is not None
    train(ready, optimizer(ready), range(1), 1)
    assert same(given, states(ready.model)) is not joint
    before = states(ready.model, ready.heads)
    method.prepare()
    train(method, optimizer(method), range(1), 1)
    assert same(before, states(method.taught().network, method.teachers_heads.network))
    assert not any("teacher" in name for name in method.state_dict())


def test_a_teacher_that_was_made_ready_before_is_not_trained_again() -> None:
    task = job("macs=50%", teacher=Toy())
    method = HSAKD(task)
    ready = method.first()
    assert ready is not None
    train(ready, optimizer(ready), range(1), 1)
    kept = copy.deepcopy(ready.state_dict())
    method.prepare()

    resumed = HSAKD(task)
    again = resumed.first()
    assert again is not None
    again.load_state_dict(kept)
    resumed.prepare()
    resumed.load_state_dict(method.state_dict())
    (batch,) = batches(1)
    terms = [m.eval().loss(batch) for m in (method, resumed)]
    assert all(torch.equal(terms[0][name], terms[1][name]) for name in terms[0])


def test_how_long_the_teacher_is_made_ready() -> None:
    task = job("macs=50%", teacher=Toy())
    assert round(240 * HSAKD(task).earlier) == 100 and HSAKD(task, joint=True).earlier == 1


def test_the_last_taps_go_together_where_one_network_has_more() -> None:
    taps, teacher_taps = ("stages.0", "stages.1", "stages.2"), ("stages.0", "stages")
    method = prepared(job("macs=50%", teacher=Toy(), taps=taps, teacher_taps=teacher_taps))
    assert method.student.taps == taps[1:] and method.taught().anatomy.taps == teacher_taps
    assert method.loss(next(batches(1)))["joint_kd"] > 0


def test_the_student_stays_alone_in_the_end() -> None:
    method = prepared()
    train(method, optimizer(method), range(1), 1)
    assert method.finish().state_dict().keys() == Toy().state_dict().keys()


def test_images_that_are_not_square_are_refused_before_training() -> None:
    with pytest.raises(UsageError, match=r"square\. Found 3 x 12 x 8"):
        HSAKD(job("macs=50%", shape=(3, 12, 8), teacher=Toy()))


def test_it_needs_a_teacher_and_a_temperature() -> None:
    with pytest.raises(UsageError, match="--teacher"):
        HSAKD(job("macs=50%")).loss(next(batches(1)))
    with pytest.raises(UsageError, match="temperature=0"):
        HSAKD(job("macs=50%", teacher=Toy()), temperature=0)


def test_heads_that_nobody_asks_are_not_trained() -> None:
    task = job("macs=50%", teacher=Toy())
    assert HSAKD(task, joint_kd=0.0).first() is None
    assert HSAKD(task, joint_kd=0.0, joint=True).first() is not None
