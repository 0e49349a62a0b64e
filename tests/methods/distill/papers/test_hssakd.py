"""HSSAKD: its equation for peers, and its equality to HSAKD with a teacher."""

import pytest
import torch
import torch.nn.functional as F
from toy import Toy, batches, job, optimizer, train

from compressor.errors import UsageError
from compressor.methods.distill.papers.hsakd import HSAKD
from compressor.methods.distill.papers.hssakd import HSSAKD
from compressor.methods.distill.rotations import joint_labels, rotated
from compressor.tasks.likeness import softened

TERMS = {"cross_entropy", "joint_labels", "kd", "joint_kd"}


def test_its_terms_are_those_of_the_equation() -> None:
    method = HSSAKD(job("macs=50%")).eval()
    (batch,) = batches(1)
    terms, images, labels = method.loss(batch), rotated(batch.inputs), joint_labels(batch.targets)
    (peer,), (peer_heads,) = method.peers, method.peers_heads
    a, b = method.model(images), peer(images)
    q_a, q_b = (
        heads(method.student.ask(network, images).features)
        for network, heads in ((method.model, method.heads), (peer, peer_heads))
    )
    upright = [F.cross_entropy(network(batch.inputs), batch.targets) for network in (method.model, peer)]
    assert torch.allclose(terms["cross_entropy"], upright[0] + upright[1])
    assert torch.allclose(terms["joint_labels"], sum(F.cross_entropy(q, labels) for q in (*q_a, *q_b)))
    assert torch.allclose(terms["kd"], softened(a, b, 3.0) + softened(b, a, 3.0))
    both = sum(softened(a, b, 3.0) + softened(b, a, 3.0) for a, b in zip(q_a, q_b, strict=True))
    assert torch.allclose(terms["joint_kd"], both)


def test_three_equal_peers_teach_as_much_as_two() -> None:
    """Two equal peers and one other: four of six ordered pairs differ, divided by two."""
    two, three = HSSAKD(job("macs=50%", model := Toy()), peers=2).eval(), HSSAKD(job("macs=50%", model), peers=3).eval()
    for peer in three.peers:
        peer.load_state_dict(two.peers[0].state_dict())
    (batch,) = batches(1)
    assert torch.allclose(three.loss(batch)["kd"], two.loss(batch)["kd"])


def test_the_teaching_side_gets_no_gradient() -> None:
    method = HSSAKD(job("macs=50%"), cross_entropy=0.0, joint_labels=0.0, joint_kd=0.0).eval()
    (batch,) = batches(1)
    method.loss(batch)["kd"].backward()
    found = method.model.head.weight.grad.clone()
    method.zero_grad()
    images = rotated(batch.inputs)
    softened(method.model(images), method.peers[0](images).detach(), 3.0).backward()
    assert torch.allclose(found, method.model.head.weight.grad, atol=1e-7)


@pytest.mark.parametrize("off", sorted(TERMS))
def test_each_term_can_be_off(off: str) -> None:
    (batch,) = batches(1)
    assert set(HSSAKD(job("macs=50%"), **{off: 0.0}).loss(batch)) == TERMS - {off}


def test_all_networks_and_heads_learn_and_the_first_is_kept() -> None:
    method = HSSAKD(job("macs=50%"), peers=3)
    assert method.first() is None
    method.prepare()
    before = {name: weight.detach().clone() for name, weight in method.named_parameters()}
    train(method, optimizer(method), range(1), 1)
    assert all(not torch.equal(before[name], weight) for name, weight in method.named_parameters())
    assert method.finish() is method.model


def test_with_a_teacher_it_is_hsakd() -> None:
    task = job("macs=50%", teacher=Toy())
    offline, online = HSAKD(task), HSSAKD(task)
    for method in (offline, online):
        method.prepare()
        method.eval()
    online.load_state_dict(offline.state_dict())
    online.teachers_heads.network.load_state_dict(offline.teachers_heads.network.state_dict())
    assert not online.peers and online.earlier == offline.earlier
    (batch,) = batches(1)
    wanted, found = offline.loss(batch), online.loss(batch)
    assert wanted.keys() == found.keys() and all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_one_network_alone_teaches_nobody() -> None:
    with pytest.raises(UsageError, match="peers=1"):
        HSSAKD(job("macs=50%"), peers=1)
